"""Kubernetes objects as the sources read them: only the fields that anything here depends on.

Decoded straight from bytes or YAML into trimmed structs; a Pod of 5 KB costs microseconds.
"""

import re
from functools import lru_cache
from sys import intern
from typing import Any, ClassVar, Final

import msgspec

from controller.faults import ControllerFault
from controller.sources.endpoint_objects import SliceObject
from controller.sources.metadata import MOST_SHARED, Metadata, shared_labels
from controller.sources.policy_objects import (
    ClusterNetworkPolicyObject,
    NamespaceObject,
    NetworkPolicyObject,
)
from controller.sources.routed_objects import (
    GROUP_VERSION,
    ROUTED_KINDS,
    AddressPoolObject,
    BGPPeerObject,
    EgressAddressObject,
)
from flows.refs import ObjectRef
from settings.plain_yaml import shown


class ObjectError(ControllerFault):
    """An object cannot be read; the text names the object and the field."""


class UnknownKindError(ObjectError):
    """An object of a kind that no flow depends on."""


class NodeAnnotations(msgspec.Struct, frozen=True):
    """The annotations of a Node that anything here depends on."""

    address: str = msgspec.field(default="", name="sluice.dev/address")
    """`ADDRESS/LENGTH`: the address of its uplink, and the prefix length of its subnet."""


class NodeMetadata(Metadata, frozen=True, rename="camel"):
    """ObjectMeta of a Node."""

    labels: dict[str, str] | None = None
    annotations: NodeAnnotations | None = None


class NodeObjectAddress(msgspec.Struct, frozen=True):
    """core/v1 NodeAddress."""

    type: str
    address: str


class NodeSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 NodeSpec."""

    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    unschedulable: bool = False


class NodeCondition(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 NodeCondition, without the heartbeat that changes all the time."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    """core/v1 NodeStatus."""

    addresses: list[NodeObjectAddress] | None = None
    conditions: list[NodeCondition] | None = None


class NodeObject(msgspec.Struct, frozen=True):
    """core/v1 Node."""

    kind: ClassVar = "Node"

    metadata: NodeMetadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def zone(self) -> str:
        """Empty where it has none."""
        return (self.metadata.labels or {}).get("topology.kubernetes.io/zone", "")

    @property
    def network_mode(self) -> str:
        """The label `sluice.dev/network-mode`; empty: it has none."""
        return (self.metadata.labels or {}).get("sluice.dev/network-mode", "")

    @property
    def own_address(self) -> str:
        """The annotation `sluice.dev/address`; empty: it has none."""
        return self.metadata.annotations.address if self.metadata.annotations else ""

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


class PodAnnotations(msgspec.Struct, frozen=True):
    """The annotations of a Pod that anything here depends on."""

    config_hash: str = msgspec.field(default="", name="kubernetes.io/config.hash")
    config_mirror: str = msgspec.field(default="", name="kubernetes.io/config.mirror")


class OwnerReference(msgspec.Struct, frozen=True):
    """meta/v1 OwnerReference."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class PodMetadata(Metadata, frozen=True, rename="camel"):
    """ObjectMeta of a Pod."""

    annotations: PodAnnotations | None = None
    owner_references: list[OwnerReference] | None = None
    """Kept for mirror pods only: in a large cluster they would take most of the memory."""
    labels: dict[str, str] | None = None
    owner: str = ""
    """The controller among its owners, `KIND/NAME`; empty: none. Manifests do not have this field.
    """

    def __post_init__(self) -> None:
        for each in self.owner_references or ():
            if each.controller:
                msgspec.structs.force_setattr(self, "owner", intern(f"{each.kind}/{each.name}"))
        if self.annotations is None or not self.annotations.config_mirror:
            msgspec.structs.force_setattr(self, "owner_references", None)
        if self.labels is not None:
            msgspec.structs.force_setattr(self, "labels", shared_labels(self.labels))


class ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ContainerPort."""

    name: str = ""
    container_port: int = 0
    protocol: str = "TCP"


class Container(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 Container."""

    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str = ""


@lru_cache(maxsize=MOST_SHARED)
def _with_named_ports(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    """What the names of ports depend on, shared with other Pods that have the same."""
    named = [tuple(port for port in each.ports or () if port.name) for each in containers]
    return tuple(
        msgspec.structs.replace(each, ports=ports)
        for each, ports in zip(containers, named, strict=True)
        if ports
    )


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 PodSpec."""

    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] | None = None
    """Only those that have ports with names, and of their ports only these."""
    init_containers: tuple[Container, ...] | None = None
    """In the same way."""

    def __post_init__(self) -> None:
        for field in ("containers", "init_containers"):
            if (given := getattr(self, field)) is not None:
                kept = _with_named_ports(given) or None
                msgspec.structs.force_setattr(self, field, kept)

    @property
    def named_ports(self) -> tuple[ContainerPort, ...]:
        """The ports that have a name, of all containers that run as long as the Pod."""
        sidecars = (c for c in self.init_containers or () if c.restart_policy == "Always")
        of = (*(self.containers or ()), *sidecars)
        return tuple(port for container in of for port in container.ports or ())


class PodObject(msgspec.Struct, frozen=True):
    """core/v1 Pod."""

    kind: ClassVar = "Pod"

    metadata: PodMetadata
    spec: PodSpec = PodSpec()

    @property
    def is_mirror(self) -> bool:
        """Whether it calls itself a mirror pod: then a kubelet may have invented its labels."""
        annotations = self.metadata.annotations
        return annotations is not None and bool(annotations.config_mirror)

    @property
    def mirrored(self) -> tuple[str, str] | None:
        """For a mirror pod, the static pod's uid and the uid of the Node that runs it.

        A kubelet gives the runtime the hash of the manifest in place of the mirror pod's uid. It
        creates the mirror pod with that hash in both annotations, with `spec.nodeName` and with
        its Node as controller (CreateMirrorPod in k8s.io/kubernetes, pkg/kubelet/pod). Of these,
        the API server lets nobody change `config.mirror` or `spec.nodeName` later; the admission
        plugin NodeRestriction holds a kubelet to all of them. Other users may write the same, so a
        mirror pod is believed about its own node only, and the older of two Pods wins.
        """
        annotations, owners = self.metadata.annotations, self.metadata.owner_references
        if annotations is None or not owners or not self.spec.node_name:
            return None
        if not annotations.config_hash or annotations.config_hash != annotations.config_mirror:
            return None
        owner = owners[0]
        if len(owners) != 1 or not owner.controller:
            return None
        if (owner.kind, owner.name) != ("Node", self.spec.node_name):
            return None
        return annotations.config_hash, owner.uid


class ServiceLabels(msgspec.Struct, frozen=True):
    """The labels of a Service that anything here depends on; None: not set."""

    proxy_name: str | None = msgspec.field(
        default=None, name="service.kubernetes.io/service-proxy-name"
    )
    headless: str | None = msgspec.field(default=None, name="service.kubernetes.io/headless")


class ServiceAnnotations(msgspec.Struct, frozen=True):
    """The annotations of a Service that anything here depends on; those of MetalLB work, too."""

    addresses: str = msgspec.field(default="", name="sluice.dev/addresses")
    pool: str = msgspec.field(default="", name="sluice.dev/pool")
    share: str = msgspec.field(default="", name="sluice.dev/allow-shared-address")
    metallb_addresses: str = msgspec.field(default="", name="metallb.io/loadBalancerIPs")
    metallb_old_addresses: str = msgspec.field(
        default="", name="metallb.universe.tf/loadBalancerIPs"
    )
    metallb_pool: str = msgspec.field(default="", name="metallb.io/address-pool")
    metallb_share: str = msgspec.field(default="", name="metallb.io/allow-shared-ip")


class ServiceMetadata(Metadata, frozen=True, rename="camel"):
    """ObjectMeta of a Service."""

    resource_version: str = ""
    """Grows with each change of the object (etcd's revision)."""
    labels: ServiceLabels | None = None
    annotations: ServiceAnnotations | None = None


class ServicePortObject(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ServicePort. What its targetPort comes to is in the EndpointSlices."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0


class ClientIPConfig(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ClientIPConfig."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(msgspec.Struct, frozen=True):
    """core/v1 SessionAffinityConfig."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ServiceSpec.

    Not here: `publishNotReadyAddresses` and `trafficDistribution`, which whoever writes the
    EndpointSlices has turned into `ready` and hints.
    """

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[ServicePortObject] | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    external_traffic_policy: str = "Cluster"
    internal_traffic_policy: str = "Cluster"
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: int = 0
    load_balancer_class: str | None = None
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    selector: dict[str, str] | None = None
    """Kept for the policy Local only: with it, Services of the same pods may share an address."""

    def __post_init__(self) -> None:
        if self.selector is not None:
            is_local = self.type == "LoadBalancer" and self.external_traffic_policy == "Local"
            kept = shared_labels(self.selector) if is_local else None
            msgspec.structs.force_setattr(self, "selector", kept)

    @property
    def cluster_addresses(self) -> tuple[str, ...]:
        """As given, one per family; "None" for a headless one."""
        return tuple(self.cluster_ips or ([self.cluster_ip] if self.cluster_ip else []))


class Ingress(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 LoadBalancerIngress."""

    ip: str = ""
    ip_mode: str = "VIP"


class LoadBalancerStatus(msgspec.Struct, frozen=True):
    """core/v1 LoadBalancerStatus."""

    ingress: list[Ingress] | None = None


class ServiceCondition(msgspec.Struct, frozen=True):
    """meta/v1 Condition, as far as anything here depends on it."""

    type: str = ""
    status: str = ""


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 ServiceStatus."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: list[ServiceCondition] | None = None


class ServiceObject(msgspec.Struct, frozen=True):
    """core/v1 Service."""

    kind: ClassVar = "Service"

    metadata: ServiceMetadata
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()

    @property
    def is_anothers(self) -> bool:
        """Whether it is some other proxy's, or said to need none."""
        labels = self.metadata.labels
        return labels is not None and (labels.proxy_name, labels.headless) != (None, None)


Object = (
    NodeObject
    | PodObject
    | ServiceObject
    | SliceObject
    | NamespaceObject
    | NetworkPolicyObject
    | ClusterNetworkPolicyObject
    | BGPPeerObject
    | AddressPoolObject
    | EgressAddressObject
)
KINDS: dict[str, type[Object]] = {
    kind.kind: kind
    for kind in (
        NodeObject,
        PodObject,
        ServiceObject,
        SliceObject,
        NamespaceObject,
        NetworkPolicyObject,
        ClusterNetworkPolicyObject,
        *ROUTED_KINDS,
    )
}
CLUSTER_SCOPED: Final = frozenset(
    {
        NodeObject.kind,
        NamespaceObject.kind,
        ClusterNetworkPolicyObject.kind,
        *(kind.kind for kind in ROUTED_KINDS),
    }
)
"""The kinds without a namespace."""
API_VERSIONS: dict[str, str] = dict.fromkeys(KINDS, "v1") | {
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1beta1",
    **dict.fromkeys((kind.kind for kind in ROUTED_KINDS), GROUP_VERSION),
}
_FURTHER_VERSIONS: Final = {"ClusterNetworkPolicy": {"policy.networking.k8s.io/v1alpha2"}}
"""By kind, versions of which the schema is the same."""


def ref(given: Object) -> ObjectRef:
    """The reference of an object."""
    return ObjectRef(given.kind, given.metadata.namespace, given.metadata.name)


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
    given_version, due = content.get("apiVersion"), API_VERSIONS[wanted.kind]
    if given_version not in (due, *_FURTHER_VERSIONS.get(wanted.kind, ())):
        version = shown(given_version)
        raise ObjectError(f"{kind} {name}: apiVersion: {version} is not {due!r}")
    try:
        made = msgspec.convert(content, wanted)
    except msgspec.ValidationError as error:
        raise ObjectError(f"{kind} {name}: {error}") from error
    if made.kind not in CLUSTER_SCOPED and not made.metadata.namespace:
        metadata = msgspec.structs.replace(made.metadata, namespace="default")
        made = msgspec.structs.replace(made, metadata=metadata)
    check_names(made)
    return made


# What the API server sees to in objects that come from there (apimachinery, util/validation).
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UID: Final = re.compile(r"[a-zA-Z0-9-]{0,64}")


def check_names(made: Object) -> None:
    """Raise `ObjectError` where a name is none: a slash would make two pods' ports one."""
    metadata = made.metadata
    fields = [("name", metadata.name, _SUBDOMAIN), ("uid", metadata.uid, _UID)]
    if made.kind not in CLUSTER_SCOPED:
        fields.append(("namespace", metadata.namespace, _LABEL))
    for field, value, pattern in fields:
        if not pattern.fullmatch(value):
            raise ObjectError(
                f"{made.kind} {metadata.name[:253]}: metadata.{field}: "
                f"{shown(value)} does not match {pattern.pattern}"
            )
