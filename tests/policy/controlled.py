"""From objects to flows by the controller's own path: manifests, inventory, compiler."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from controller.desired import Desired
from controller.inventory import BridgePort, Inventory
from controller.policy_effects import Change, Judge
from controller.sources.objects import from_manifest, ref
from flows import names
from flows.compile import Fragment, Program
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key
from tests.flows.worlds import CLUSTER
from tests.policy.evaluator import Attachment, Cluster, Object
from tests.policy.switches import Contents


class Controlled:
    """A controller's inventory and programs, which follow a cluster as it changes."""

    def __init__(self) -> None:
        self.inventory = Inventory(CLUSTER)
        self.desired = Desired(self.inventory.view)
        self._objects: dict[ObjectRef, Object] = {}
        self._ports: dict[str, dict[str, BridgePort]] = {}
        self.judge = Judge(self.inventory.view)
        self.changes: dict[str, dict[Key, Change]] = {}
        """By node, what the last change was of its own program."""
        self._touched: dict[str, set[Key]] = {}
        """By scope, what has to be compiled."""
        self._touch({Key(CLUSTER_SCOPE, "cluster", "")})
        self._compile()

    def become(self, cluster: Cluster) -> None:
        """Take only what differs from the cluster before, as the events of an API server."""
        inventory = self.inventory
        wanted = {ref(from_manifest(each)): each for each in cluster.objects}
        ports = {
            node: {port.name: port for port in ports_of(cluster, node)}
            for node in cluster.nodes.keys() | self._ports.keys()
        }
        self._begin()
        for node, had in self._ports.items():
            for name in sorted(had.keys() - ports[node].keys()):
                self._touch(inventory.remove_port(node, name))
        for gone in sorted(self._objects.keys() - wanted.keys()):
            self._touch(inventory.remove_object(gone.kind, gone.namespace, gone.name))
        for identity, each in wanted.items():
            if self._objects.get(identity) != each:
                self._touch(inventory.set_object(from_manifest(each)))
        self._touch(inventory.settle())
        for node, now in ports.items():
            for name, port in now.items():
                if self._ports.get(node, {}).get(name) != port:
                    self._touch(inventory.set_port(node, port))
        self._objects, self._ports = wanted, ports
        self._touch(inventory.settle())
        self._compile()

    def remove_object(self, kind: str, namespace: str, name: str) -> None:
        """Remove one object, and leave the ports alone."""
        self._objects = {
            identity: each
            for identity, each in self._objects.items()
            if (identity.kind, identity.namespace, identity.name) != (kind, namespace, name)
        }
        self._begin()
        self._touch(self.inventory.remove_object(kind, namespace, name))
        self._touch(self.inventory.settle())
        self._compile()

    def _begin(self) -> None:
        self._touched = {}

    def _touch(self, keys: Iterable[Key]) -> None:
        """Take what an event changed, at once, as `controller.compilation` does."""
        for key in sorted(keys):
            self.judge.follow(key)
            of, nodes = (key, (key.scope,))
            if key.scope != CLUSTER_SCOPE:
                of, nodes = self.desired.touch(key)
            for node in nodes:
                self._touched.setdefault(node, set()).add(of)

    def _compile(self) -> None:
        self.changes = {}
        for scope, keys in self._touched.items():
            changes = {key: self.desired.fragment(scope, key) for key in keys}
            if scope == CLUSTER_SCOPE:
                self.desired.update_shared(changes)
                continue
            had = self.desired.program(scope).fragments
            self.changes[scope] = {key: Change(had.get(key), new) for key, new in changes.items()}
            self.desired.update_node(scope, changes)

    def contents(self, nodes: Iterable[str]) -> dict[str, Contents]:
        """By node, what its bridge should hold."""
        return {node: self.contents_with(node, {}) for node in nodes}

    def contents_with(self, node: str, fragments: Mapping[Key, Fragment | None]) -> Contents:
        """What the bridge of a node should hold with these instead of its own fragments."""
        shared, own = self.desired.shared, self.desired.program(node)
        if not fragments:
            flows = [flow for program in (shared, own) for flow in program.flows()]
            return Contents({flow.cookie: flow for flow in flows}, {**shared.meters, **own.meters})
        program = Program(node)
        program.update({**own.fragments, **fragments})
        flows = [*shared.flows(), *program.flows()]
        return Contents({flow.cookie: flow for flow in flows}, {**shared.meters, **program.meters})


def ofport_of(address: str) -> int:
    """The ofport of the attachment with this address."""
    return names.FIRST_ATTACHMENT_OFPORT + int(address.rpartition(".")[2]) - 2


def ports_of(cluster: Cluster, node: str) -> list[BridgePort]:
    """The ports of a node's bridge, as its agent makes them."""
    return [
        BridgePort(
            port_name(cluster, each),
            ofport_of(each.address),
            names.mac_of(IPv4Address(each.address)),
        )
        for each in cluster.attachments
        if each.node == node
    ]


def port_name(cluster: Cluster, attachment: Attachment) -> str:
    """The name of a sandbox's port. A static pod's has the hash of its manifest for a uid."""
    if not attachment.pod:
        return names.container_port_name(attachment.address, "eth0")
    metadata = cluster.pods[attachment.pod]["metadata"]
    uid = (metadata.get("annotations") or {}).get("kubernetes.io/config.hash", metadata["uid"])
    sandbox = f"{attachment.node} {attachment.address}"
    return names.port_name(metadata["namespace"], metadata["name"], uid, "eth0", sandbox)
