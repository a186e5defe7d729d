"""From objects to flows by the controller's own path: manifests, inventory, compiler."""

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from controller.inventory import BridgePort, Inventory
from controller.sources.objects import from_manifest
from flows import names
from flows.compile import COMPILER, Fragment, Program
from flows.view import CLUSTER_SCOPE, Key
from tests.flows.worlds import CLUSTER
from tests.policy.evaluator import Cluster, Object
from tests.policy.switches import Contents

_FRAGMENTS: dict[tuple[Any, ...], Fragment | None] = {}
"""Fragments of Nodes and attachments, which are the same in most clusters."""
_UNCHANGED = {"cluster", "peer", "node", "attachment"}


def ofport_of(cluster: Cluster, address: str) -> int:
    """The ofport of an attachment: they are numbered node by node."""
    node = next(each.node for each in cluster.attachments if each.address == address)
    own = [each.address for each in cluster.attachments if each.node == node]
    return names.FIRST_ATTACHMENT_OFPORT + own.index(address)


def inventory_of(cluster: Cluster) -> Inventory:
    """An inventory that was told all objects, then all ports."""
    inventory = Inventory(CLUSTER)
    for each in cluster.objects:
        inventory.set_object(from_manifest(each))
    inventory.settle()
    for node in cluster.nodes:
        inventory.set_ports(node, ports_of(cluster, node))
    inventory.settle()
    return inventory


def ports_of(cluster: Cluster, node: str) -> list[BridgePort]:
    """The ports of a node's bridge, as its agent makes them."""
    return [
        BridgePort(
            port_name(cluster.pods.get(each.pod), each.address),
            ofport_of(cluster, each.address),
            names.mac_of(IPv4Address(each.address)),
        )
        for each in cluster.attachments
        if each.node == node
    ]


def port_name(pod: Object | None, address: str) -> str:
    """The name of the port of a pod's sandbox; None: of a container without a Pod."""
    if pod is None:
        return names.container_port_name(address, "eth0")
    metadata = pod["metadata"]
    uid = (metadata.get("annotations") or {}).get("kubernetes.io/config.hash", metadata["uid"])
    return names.port_name(metadata["namespace"], metadata["name"], uid, "eth0", address)


def contents_of(inventory: Inventory, nodes: Mapping[str, Any]) -> dict[str, Contents]:
    """By node, what its bridge should hold."""
    shared = _program(inventory, CLUSTER_SCOPE)
    made = {}
    for node in nodes:
        own = _program(inventory, node)
        flows = {cookie: flow for p in (shared, own) for cookie, (flow, _) in p.cookies.items()}
        made[node] = Contents(flows, {**shared.meters, **own.meters})
    return made


def _program(inventory: Inventory, scope: str) -> Program:
    program = Program(scope)
    keys = sorted(COMPILER.keys(inventory.view, scope))
    program.update({key: _fragment(inventory, key) for key in keys})
    return program


def _fragment(inventory: Inventory, key: Key) -> Fragment | None:
    view = inventory.view
    if key.kind not in _UNCHANGED:
        return COMPILER.fragment(view, key)
    found: Any = key.name
    if key.kind == "attachment":
        found = view.attachments[key.scope].get(key.name)
    given = (key, found, *view.nodes.values())
    if given not in _FRAGMENTS:
        _FRAGMENTS[given] = COMPILER.fragment(view, key)
    return _FRAGMENTS[given]
