"""Pods: to which of them a bridge's port belongs, by the port's name."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

from controller.inventory.nodes import Nodes
from controller.problems import Note
from controller.sources.objects import PodObject
from flows import names
from flows.refs import ObjectRef
from flows.view import Key

Follower = Callable[[PodObject | None, PodObject | None], set[Key]]
"""Called after a Pod changed with what it was and what it is; returns the keys that it changed."""

Identity = tuple[str, str]
"""Namespace and name of a Pod."""


class PrefixClaim(NamedTuple):
    """A Pod whose ports have a certain prefix."""

    pod: Identity
    mirror: bool
    """By the hash of a static pod's manifest, not by its own uid."""


class Pods:
    """The kind Pod. A Pod owns the ports of its node that its name and uid give.

    The prefix of a port's name holds 50 bits of a digest. Two Pods with one prefix on one node are
    a conflict, which nobody gets by chance: the older Pod wins, the other one is reported.
    """

    def __init__(self, nodes: Nodes, note: Note) -> None:
        self.followers: Final[list[Follower]] = []
        self._nodes = nodes
        self._note = note
        self._objects: dict[Identity, PodObject] = {}
        self._claims: dict[str, dict[str, tuple[PrefixClaim, ...]]] = {}
        """By node and prefix (`names.pod_port_prefix`)."""
        self._mirrored: dict[str, set[str]] = {}
        """By node, the prefixes that a mirror pod claims."""
        self._in_conflict: set[Identity] = set()
        nodes.followers.append(self._follow_nodes)

    @property
    def objects(self) -> Mapping[Identity, PodObject]:
        """Every Pod of the source."""
        return self._objects

    def get(self, namespace: str, name: str) -> PodObject | None:
        """As `ObjectKind.get`."""
        return self._objects.get((namespace, name))

    def owner(self, node: str, port: str) -> PodObject | None:
        """The Pod on this node that a port of this name, or with this prefix, belongs to."""
        claims = self._claims.get(node, {}).get(port[: names.PREFIX_LENGTH], ())
        valid = [self._objects[claim.pod] for claim in claims if self._is_valid(node, claim)]
        return min(valid, key=_age, default=None)

    def put(self, new: PodObject) -> set[Key]:
        """As `ObjectKind.put`."""
        identity = _identity(new)
        old = self._objects.get(identity)
        if old == new:
            return set()
        if old is not None:
            self._drop_claims(old)
        self._objects[identity] = new
        for prefix, mirror in _prefixes(new):
            claims = self._claims.setdefault(new.spec.node_name, {})
            claims[prefix] = (*claims.get(prefix, ()), PrefixClaim(identity, mirror))
            if mirror:
                self._mirrored.setdefault(new.spec.node_name, set()).add(prefix)
        self._note_conflicts(new)
        return self._tell(old, new)

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        old = self._objects.get((namespace, name))
        if old is None:
            return set()
        self._drop_claims(old)
        del self._objects[namespace, name]
        return self._tell(old, None)

    def _drop_claims(self, pod: PodObject) -> None:
        node, identity = pod.spec.node_name, _identity(pod)
        for prefix, mirror in _prefixes(pod):
            claims = self._claims[node]
            if left := tuple(claim for claim in claims[prefix] if claim.pod != identity):
                claims[prefix] = left
            else:
                claims.pop(prefix)
            if not claims:
                del self._claims[node]
            if mirror and not any(claim.mirror for claim in left):
                self._mirrored[node].discard(prefix)
                if not self._mirrored[node]:
                    del self._mirrored[node]
        if identity in self._in_conflict:
            self._in_conflict.discard(identity)
            self._note(_subject(identity), "")
        self._note_conflicts(pod)

    def _is_valid(self, node: str, claim: PrefixClaim) -> bool:
        """Whether a claim counts: a mirror pod has to belong to the Node that there is now."""
        if not claim.mirror:
            return True
        mirrored = self._objects[claim.pod].mirrored
        known = self._nodes.get("", node)
        return mirrored is not None and known is not None and mirrored[1] == known.metadata.uid

    def _note_conflicts(self, changed: PodObject) -> None:
        """Report each Pod that has a prefix with this one and is not the oldest."""
        claims = self._claims.get(changed.spec.node_name, {})
        concerned = {
            claim.pod for prefix, _ in _prefixes(changed) for claim in claims.get(prefix, ())
        }
        if len(concerned) < 2 and self._in_conflict.isdisjoint(concerned):
            return
        for identity in concerned:
            problem = self._conflict(identity)
            if problem:
                self._in_conflict.add(identity)
            else:
                self._in_conflict.discard(identity)
            self._note(_subject(identity), problem)

    def _conflict(self, identity: Identity) -> str:
        pod = self._objects[identity]
        for prefix, _ in _prefixes(pod):
            owner = self.owner(pod.spec.node_name, prefix)
            if owner is not None and owner is not pod:
                older = _subject(_identity(owner))
                return f"its ports have the same prefix {prefix} as those of {older}"
        return ""

    def _follow_nodes(self, changed: Collection[str]) -> set[Key]:
        for node in changed:
            for prefix in self._mirrored.get(node, ()):
                for claim in self._claims[node][prefix]:
                    self._note_conflicts(self._objects[claim.pod])
        return set()

    def _tell(self, old: PodObject | None, new: PodObject | None) -> set[Key]:
        return {key for follower in self.followers for key in follower(old, new)}


def port_prefixes(pod: PodObject) -> set[str]:
    """The prefixes of a Pod's ports; none where it has no network of its own."""
    return {prefix for prefix, _ in _prefixes(pod)}


def _prefixes(pod: PodObject) -> Iterator[tuple[str, bool]]:
    """The prefixes of its ports, and whether each is there because it is a mirror pod."""
    if not pod.spec.node_name or pod.spec.host_network:
        return
    metadata = pod.metadata
    if metadata.uid:
        yield names.pod_port_prefix(metadata.namespace, metadata.name, metadata.uid), False
    if (mirrored := pod.mirrored) and mirrored[0] != metadata.uid:
        yield names.pod_port_prefix(metadata.namespace, metadata.name, mirrored[0]), True


def _identity(pod: PodObject) -> Identity:
    return pod.metadata.namespace, pod.metadata.name


def _subject(identity: Identity) -> ObjectRef:
    return ObjectRef("Pod", *identity)


def _age(pod: PodObject) -> tuple[str, Identity]:
    # Without a time it is the youngest: a manifest made by hand displaces nobody.
    return pod.metadata.creation_timestamp or "never", _identity(pod)
