"""Modes of Nodes, and what follows from them for agents and for the Nodes' annotations."""

import dataclasses
from ipaddress import IPv4Interface, IPv4Network

import msgspec
import pytest

from controller.address_annotations import AGAIN, AddressAnnotations
from controller.inventory import Inventory
from controller.peer_routes import PeerRouteDocuments
from controller.sources.objects import NodeAnnotations, NodeObject
from flows.ways import Mode
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER
from wire.documents import decode_peer_routes


def node(number: int, mode: str = "", uplink: str = "") -> NodeObject:
    made = node_object(f"node{number}", f"10.244.{number}.0/24", f"172.30.1.{number}")
    metadata = msgspec.structs.replace(
        made.metadata,
        labels={"sluice.dev/network-mode": mode} if mode else None,
        annotations=NodeAnnotations(uplink) if uplink else None,
    )
    return msgspec.structs.replace(made, metadata=metadata)


def world(*nodes: NodeObject, mode: Mode = Mode.ENCAP) -> Inventory:
    made = Inventory(dataclasses.replace(CLUSTER, mode=mode))
    for each in nodes:
        made.set_object(each)
    made.settle()
    return made


def peers(inventory: Inventory, name: str) -> list[str]:
    found = PeerRouteDocuments(inventory.nodes).of(name, whole=True)
    assert found is not None
    return [str(pods) for pods, _ in decode_peer_routes(found.body).peers]


def test_label_overrides_the_mode_of_the_cluster() -> None:
    inventory = world(node(1), node(2, "encap"), node(3, "hybrid"), mode=Mode.NO_ENCAP)
    modes = {name: each.mode for name, each in inventory.view.nodes.items()}
    assert modes == {"node1": Mode.NO_ENCAP, "node2": Mode.ENCAP, "node3": Mode.HYBRID}
    assert inventory.nodes.use_tunnel
    for number in (2, 3):
        inventory.set_object(node(number, "noEncap"))
    inventory.settle()
    assert not inventory.nodes.use_tunnel


@pytest.mark.parametrize("text", ["", "Encap", "noencap", "x" * 10_000, "hybrid\n"])
def test_label_that_is_no_mode_is_reported_and_the_cluster_decides(text: str) -> None:
    inventory = world(node(1, text), mode=Mode.HYBRID)
    assert inventory.view.nodes["node1"].mode is Mode.HYBRID
    problem = inventory.problems.texts().get("Node node1", "")
    assert ("label sluice.dev/network-mode" in problem) == bool(text)
    assert len(problem) < 500


@pytest.mark.parametrize(
    ("text", "subnet", "is_reported"),
    [
        ("172.30.1.1/16", IPv4Network("172.30.0.0/16"), False),
        ("172.30.1.9/16", None, False),  # of an address that it had before
        ("172.30.1.1", IPv4Network("172.30.1.1/32"), False),
        ("fd00::1/64", None, True),
        ("172.30.1.1/33", None, True),
        ("x" * 10_000, None, True),
        ("", None, False),
    ],
)
def test_subnet_comes_from_the_annotation(
    text: str, subnet: IPv4Network | None, is_reported: bool
) -> None:
    inventory = world(node(1, "hybrid", text))
    assert inventory.view.nodes["node1"].subnet == subnet
    problem = inventory.problems.texts().get("Node node1", "")
    assert ("annotation sluice.dev/address" in problem) == is_reported
    assert len(problem) < 500


def test_agents_get_the_peers_that_their_nodes_reach_directly() -> None:
    inventory = world(
        node(1, "hybrid", "172.30.1.1/16"),
        node(2, "noEncap", "172.30.1.2/16"),
        node(3, "noEncap"),
        node(4, "encap", "172.30.1.4/16"),
        node(5, "hybrid", "172.30.1.5/24"),
    )
    one, two, three = "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"
    assert peers(inventory, "node1") == [one, two]
    assert peers(inventory, "node2") == [one, two, three]
    assert peers(inventory, "node3") == [two, three]
    assert peers(inventory, "node4") == []
    assert peers(inventory, "node5") == ["10.244.5.0/24"]
    assert PeerRouteDocuments(inventory.nodes).of("nobody", whole=True) is None


def test_nodes_that_are_alike_get_the_same_bytes_until_a_node_changes() -> None:
    inventory = world(*(node(n) for n in (1, 2, 3)), mode=Mode.NO_ENCAP)
    documents = PeerRouteDocuments(inventory.nodes)
    first = documents.of("node1", whole=True)
    assert documents.of("node2", whole=True) is first
    assert documents.of("node1", whole=False) != first
    inventory.remove_object("Node", "", "node3")
    inventory.settle()
    second = documents.of("node1", whole=True)
    assert first is not None
    assert second is not None
    assert second.revision != first.revision
    assert peers(inventory, "node1") == ["10.244.1.0/24", "10.244.2.0/24"]


def test_annotation_is_written_where_it_differs_from_what_the_agent_found() -> None:
    inventory = world(node(1), node(2, uplink="172.30.1.2/16"))
    annotations = AddressAnnotations(inventory.nodes)
    assert not annotations.due(0.0)
    for name, text in (("node1", "172.30.1.1/16"), ("node2", "172.30.1.2/16"), ("x", "10.0.0.1/8")):
        inventory.nodes.report_uplink(name, IPv4Interface(text))
    (due,) = annotations.due(0.0)
    body = msgspec.json.decode(msgspec.json.encode(due.write.body))
    assert due.write.path == "/api/v1/nodes/node1/status"
    assert body["metadata"]["annotations"] == {"sluice.dev/address": "172.30.1.1/16"}
    annotations.patched(due, 0.0)
    assert not annotations.due(AGAIN - 1)
    assert annotations.due(AGAIN) == [due]
    # Of an address that is not the Node's: the agent's configuration is old.
    inventory.nodes.report_uplink("node2", IPv4Interface("192.0.2.1/24"))
    assert [each.node for each in annotations.due(AGAIN)] == ["node1"]
