"""Small clusters for tests of policies: objects as YAML, attachments as ports of switches."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any

import yaml

from controller.inventory import BridgePort, Inventory
from controller.policies.port_sets import text_of
from controller.sources.objects import Object, from_manifest
from flows import names
from flows.policy import EVERY_PORT, Direction, Walks
from flows.view import Cluster, Key
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER

NODES = ("node1", "node2", "node3")


def objects(text: str) -> list[Object]:
    """The objects of a manifest."""
    return [from_manifest(document) for document in yaml.safe_load_all(text) if document]


class PolicyCluster:
    """An inventory with three nodes, and pods whose attachments have the address that is given."""

    def __init__(self, cluster: Cluster = CLUSTER, *, mirror_pods_as_members: bool = False) -> None:
        self.inventory = Inventory(cluster, mirror_pods_as_members=mirror_pods_as_members)
        self.ports: dict[str, tuple[str, BridgePort]] = {}
        """By pod, `NAMESPACE/NAME`."""
        for number, name in enumerate(NODES, 1):
            self.put(node_object(name, f"10.244.{number}.0/24", f"172.30.1.{number}"))

    def put(self, *items: Object) -> set[Key]:
        touched = set()
        for item in items:
            touched |= self.inventory.set_object(item)
        return touched | self.inventory.settle()

    def apply(self, text: str) -> set[Key]:
        """As kubectl does."""
        return self.put(*objects(text))

    def delete(self, kind: str, namespace: str, name: str) -> set[Key]:
        return self.inventory.remove_object(kind, namespace, name) | self.inventory.settle()

    def namespace(self, name: str, **labels: str) -> set[Key]:
        return self.put(namespace(name, labels))

    def pod(self, path: str, address: str, labels: Mapping[str, str] = {}, **spec: Any) -> set[Key]:
        """A pod that runs: `path` is `NAMESPACE/NAME`; its third byte is the number of its node."""
        node = f"node{address.split('.')[2]}"
        touched = self.put(pod(path, node, labels, **spec))
        port = bridge_port(path, address)
        self.ports[path] = node, port
        return touched | self.inventory.set_port(node, port)

    def unplug(self, path: str) -> set[Key]:
        """The sandbox of a pod is gone."""
        node, port = self.ports.pop(path)
        return self.inventory.remove_port(node, port.name)

    # --- what the view says, in words ---

    def walks(self, path: str, direction: Direction) -> Walks | None:
        """What the attachment of a pod goes through."""
        node, port = self.ports[path]
        found = self.inventory.view.isolations.get(node, {}).get(port.name)
        if found is None:
            return None
        return found.from_pod if direction is Direction.FROM_POD else found.to_pod

    def rules(self, path: str, direction: Direction) -> list[str] | None:
        """The steps that it goes through, `ACTION PEERS PORTS`; None: it is not isolated."""
        walks = self.walks(path, direction)
        if walks is None:
            return None
        if walks.refused:
            return ["refused"]
        ids = (*walks.admin, *walks.policies, *walks.baseline)
        view = self.inventory.view
        return [
            f"{step.action.name} {self.peers(step.peers)} {self.named_ports(step.ports)}"
            for number in ids
            for step in view.walks[f"{number:016x}"].steps
        ]

    def peers(self, number: int | None) -> str:
        if number is None:
            return "everybody"
        view, key = self.inventory.view, f"{number:016x}"
        found = view.peer_sets[key]
        parts = [] if found.outsiders is None else ["pods"]
        parts += sorted(view.peer_members[key], key=IPv4Address)
        pages = [found]
        while more := view.peer_sets.get(f"{key} {len(pages)}"):
            pages.append(more)
        parts += (
            f"{'' if block.is_member else '!'}{block.network}" for p in pages for block in p.blocks
        )
        return ",".join(parts) or "nobody"

    def named_ports(self, number: int) -> str:
        if number == EVERY_PORT:
            return "all"
        return text_of(self.inventory.view.port_sets[f"{number:016x}"].ranges).replace(" ", ";")

    def problems(self) -> dict[str, str]:
        return self.inventory.problems.texts()


def bridge_port(path: str, address: str) -> BridgePort:
    """The port of a pod on its node's bridge."""
    of, name = path.split("/")
    return BridgePort(
        names.port_name(of, name, f"uid-{name}", "eth0", f"sandbox-{address}"),
        16 + int(address.split(".")[3]),
        names.mac_of(IPv4Address(address)),
    )


def namespace(name: str, labels: Mapping[str, str] = {}) -> Object:
    metadata = {"name": name, "labels": dict(labels)}
    return from_manifest({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def pod(path: str, node: str, labels: Mapping[str, str] = {}, **spec: Any) -> Object:
    of, name = path.split("/")
    annotations = spec.pop("annotations", {})
    return from_manifest(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": of,
                "uid": f"uid-{name}",
                "labels": dict(labels),
                "annotations": annotations,
            },
            "spec": {"nodeName": node, **spec},
        }
    )


def policy(path: str, **spec: Any) -> Object:
    """A NetworkPolicy."""
    of, name = path.split("/")
    return from_manifest(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": of},
            "spec": spec,
        }
    )


def kinds(touched: Iterable[Key]) -> set[str]:
    return {key.kind for key in touched}
