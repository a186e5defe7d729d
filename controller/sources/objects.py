"""Kubernetes objects as the sources read them: only the fields that anything here depends on.

Decoded straight from bytes or YAML into trimmed structs; a Pod of 5 KB costs microseconds.
"""

import re
from typing import Any, Final

import msgspec

from settings.plain_yaml import shown


class ObjectError(ValueError):
    """An object cannot be read; the text names the object and the field."""


class UnknownKindError(ObjectError):
    """An object of a kind that no flow depends on."""


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """ObjectMeta."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str | None = None
    annotations: dict[str, str] | None = None


class NodeAddress(msgspec.Struct, frozen=True):
    """core/v1 NodeAddress."""

    type: str
    address: str


class NodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 NodeSpec."""

    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")


class NodeCondition(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 NodeCondition, without the heartbeat that changes all the time."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    """core/v1 NodeStatus."""

    addresses: list[NodeAddress] | None = None
    conditions: list[NodeCondition] | None = None


class Node(msgspec.Struct, frozen=True):
    """core/v1 Node."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """As given, one per family."""
        return tuple(self.spec.pod_cidrs or ([self.spec.pod_cidr] if self.spec.pod_cidr else []))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Whatever may be an address of the node, of any type."""
        return tuple(a.address for a in self.status.addresses or ())

    @property
    def internal_addresses(self) -> tuple[str, ...]:
        """All of type InternalIP, in their order."""
        return tuple(a.address for a in self.status.addresses or () if a.type == "InternalIP")

    @property
    def network_unavailable(self) -> NodeCondition | None:
        """The condition of this name: "True", "False" or "Unknown"."""
        conditions = self.status.conditions or ()
        return next((c for c in conditions if c.type == "NetworkUnavailable"), None)


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 PodSpec."""

    node_name: str = ""
    host_network: bool = False


class Pod(msgspec.Struct, frozen=True):
    """core/v1 Pod."""

    metadata: Metadata
    spec: PodSpec = PodSpec()

    @property
    def uids(self) -> tuple[str, ...]:
        """What the CNI call may give as the pod's uid.

        A static pod's sandbox carries the hash of its manifest, not the mirror pod's uid.
        """
        config_hash = (self.metadata.annotations or {}).get("kubernetes.io/config.hash", "")
        return (self.metadata.uid, config_hash) if config_hash else (self.metadata.uid,)


Object = Node | Pod
KINDS: dict[str, type[Node | Pod]] = {"Node": Node, "Pod": Pod}


def identity(kind: str, metadata: Metadata) -> str:
    """How an object is named in every message: `Pod default/a`, `Node node1`."""
    name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
    return f"{kind} {name}"


def from_manifest(content: Any) -> Object:
    """One object of a manifest (already parsed YAML or JSON). Raises `ObjectError`."""
    if not isinstance(content, dict):
        raise ObjectError(f"not an object but {shown(content)}")
    metadata = content.get("metadata")
    given = metadata.get("name") if isinstance(metadata, dict) else None
    name = given[:253] if isinstance(given, str) else "?"
    kind = content.get("kind")
    wanted = KINDS.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        raise UnknownKindError(
            f"object {name}: kind {shown(kind)} is unknown here; known: {', '.join(KINDS)}"
        )
    if content.get("apiVersion") != "v1":
        version = shown(content.get("apiVersion"))
        raise ObjectError(f"{kind} {name}: apiVersion: {version} is not 'v1'")
    try:
        made = msgspec.convert(content, wanted)
    except msgspec.ValidationError as error:
        raise ObjectError(f"{kind} {name}: {error}") from error
    if isinstance(made, Pod) and not made.metadata.namespace:
        metadata = msgspec.structs.replace(made.metadata, namespace="default")
        made = msgspec.structs.replace(made, metadata=metadata)
    _check_names(made)
    return made


# What the API server sees to in objects that come from there (apimachinery, util/validation).
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UID: Final = re.compile(r"[a-zA-Z0-9-]{0,64}")


def _check_names(made: Object) -> None:
    """A slash in a name, for one, would make two pods' ports one."""
    metadata = made.metadata
    fields = [("name", metadata.name, _SUBDOMAIN), ("uid", metadata.uid, _UID)]
    if isinstance(made, Pod):
        fields.append(("namespace", metadata.namespace, _LABEL))
    for field, value, pattern in fields:
        if not pattern.fullmatch(value):
            raise ObjectError(
                f"{type(made).__name__} {metadata.name[:253]}: metadata.{field}: "
                f"{shown(value)} does not match {pattern.pattern}"
            )
