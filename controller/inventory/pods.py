"""Pods: whose port a bridge's port is, by its name."""

from collections.abc import Callable

from controller.sources.objects import PodObject
from flows import names
from flows.view import Key

Follower = Callable[[PodObject | None, PodObject | None], set[Key]]
"""Called after a Pod changed with what it was and what it is; returns the keys that it changed."""


class Pods:
    """The kind Pod. A Pod that a node's kubelet runs owns the ports that its name gives."""

    def __init__(self) -> None:
        self.followers: list[Follower] = []
        self._objects: dict[tuple[str, str], PodObject] = {}
        self._owners: dict[str, dict[str, tuple[str, str]]] = {}
        """By node and port prefix (`names.pod_port_prefix`): the Pod."""

    def get(self, namespace: str, name: str) -> PodObject | None:
        """As `Kind.get`."""
        return self._objects.get((namespace, name))

    def owner(self, node: str, port: str) -> PodObject | None:
        """The Pod on this node that a port of this name, or with this prefix, belongs to."""
        identity = self._owners.get(node, {}).get(port[: names.PREFIX_LENGTH])
        return None if identity is None else self._objects[identity]

    def put(self, new: PodObject) -> set[Key]:
        """As `Kind.put`."""
        identity = new.metadata.namespace, new.metadata.name
        old = self._objects.get(identity)
        if old == new:
            return set()
        if old is not None:
            self._disown(old)
        self._objects[identity] = new
        if owns_ports(new):
            owners = self._owners.setdefault(new.spec.node_name, {})
            owners.update(dict.fromkeys(prefixes(new), identity))
        return self._tell(old, new)

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `Kind.remove`."""
        old = self._objects.pop((namespace, name), None)
        if old is None:
            return set()
        self._disown(old)
        return self._tell(old, None)

    def _disown(self, pod: PodObject) -> None:
        node = pod.spec.node_name
        if owners := self._owners.get(node):
            for prefix in prefixes(pod):
                owners.pop(prefix, None)
            if not owners:
                del self._owners[node]

    def _tell(self, old: PodObject | None, new: PodObject | None) -> set[Key]:
        return {key for follower in self.followers for key in follower(old, new)}


def owns_ports(pod: PodObject) -> bool:
    """Whether it runs on a node, in a network namespace of its own."""
    return bool(pod.spec.node_name) and not pod.spec.host_network


def prefixes(pod: PodObject) -> list[str]:
    """The prefixes of the ports that may be its own."""
    metadata = pod.metadata
    return [
        names.pod_port_prefix(metadata.namespace, metadata.name, uid) for uid in pod.uids if uid
    ]
