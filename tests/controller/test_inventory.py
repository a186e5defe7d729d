"""What the inventory refuses, and with which sentence."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace as struct_replace

from controller.inventory import BridgePort, Inventory
from controller.inventory import ports as module
from controller.sources.objects import (
    NodeObject,
    NodeObjectAddress,
    NodeSpec,
    NodeStatus,
    OwnerReference,
    PodAnnotations,
    PodObject,
)
from flows import names
from flows.compile import compile_scope
from flows.text import golden
from flows.view import CLUSTER_SCOPE, Cluster, Key
from tests.controller.events import mirror_pod, node_object, pod_object, port
from tests.flows.worlds import CLUSTER

GOOD = ("10.244.1.0/24", "172.30.1.1")


def inventory_with(*nodes: tuple[str, str, str, str]) -> Inventory:
    """Nodes as (name, podCIDR, InternalIP, creationTimestamp)."""
    inventory = Inventory(CLUSTER, [("the host range", IPv4Network("172.30.0.0/16"))])
    for given in nodes:
        inventory.set_object(node_object(*given))
    inventory.settle()
    return inventory


@pytest.mark.parametrize(
    ("cidr", "address", "problem"),
    [
        ("", "172.30.1.1", "spec.podCIDR is missing"),
        ("10.244.1.0", "172.30.1.1", "spec.podCIDR 10.244.1.0/32 is too small"),
        ("ten", "172.30.1.1", "spec.podCIDR 'ten' is not a CIDR: "),
        ("10.244.1.7/24", "172.30.1.1", "spec.podCIDR '10.244.1.7/24' is not a CIDR: "),
        ("10.244.1.0/31", "172.30.1.1", "spec.podCIDR 10.244.1.0/31 is too small: /30 is the"),
        ("fd00:1::/64", "172.30.1.1", "spec.podCIDR fd00:1::/64 is not IPv4; this cluster is"),
        ("10.9.0.0/24", "172.30.1.1", "spec.podCIDR 10.9.0.0/24 is outside the pod range 10.244"),
        ("10.240.0.0/12", "172.30.1.1", "spec.podCIDR 10.240.0.0/12 is outside the pod range"),
        ("10.96.7.0/24", "172.30.1.1", "spec.podCIDR 10.96.7.0/24 overlaps the Service range"),
        ("172.30.7.0/24", "172.30.1.1", "spec.podCIDR 172.30.7.0/24 overlaps the host range"),
        ("10.244.1.0/24", "", "status.addresses holds no InternalIP"),
        ("10.244.1.0/24", "127.0.0.1", "status.addresses: InternalIP 127.0.0.1 cannot be the end"),
        ("10.244.1.0/24", "0.0.0.0", "status.addresses: InternalIP 0.0.0.0 cannot be the end"),
        ("10.244.1.0/24", "224.0.0.1", "status.addresses: InternalIP 224.0.0.1 cannot be the end"),
        ("10.244.1.0/24", "169.254.1.1", "status.addresses: InternalIP 169.254.1.1 cannot be"),
        ("10.244.1.0/24", "255.255.255.255", "status.addresses: InternalIP 255.255.255.255 cannot"),
        ("10.244.1.0/24", "fd00::1", "status.addresses: InternalIP 'fd00::1' is not an IPv4"),
        (
            "10.244.1.0/24",
            "10.244.9.9",
            "status.addresses: InternalIP 10.244.9.9 is inside the pod",
        ),
        ("10.244.1.0/24", "10.96.0.1", "status.addresses: InternalIP 10.96.0.1 is inside the Serv"),
    ],
)
def test_bad_node_is_refused_with_its_field(cidr: str, address: str, problem: str) -> None:
    good = ("good", "10.244.5.0/24", "172.30.1.5", "")
    inventory = inventory_with(good, ("bad", cidr, address, ""))
    assert set(inventory.view.nodes) == {"good"}
    assert inventory.problems.texts()["Node bad"].startswith(problem)
    # Once it is repaired it takes part, and the problem ends.
    inventory.set_object(node_object("bad", *GOOD))
    inventory.settle()
    assert set(inventory.view.nodes) == {"good", "bad"}
    assert not inventory.problems


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (
            ("10.244.1.0/24", "172.30.1.2"),
            "spec.podCIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of Node one",
        ),
        (
            ("10.244.0.0/20", "172.30.1.2"),
            "spec.podCIDR 10.244.0.0/20 overlaps 10.244.1.0/24 of Node one",
        ),
        (
            ("10.244.1.128/25", "172.30.1.2"),
            "spec.podCIDR 10.244.1.128/25 overlaps 10.244.1.0/24 of Node one",
        ),
        (
            ("10.244.2.0/24", "172.30.1.1"),
            "status.addresses: InternalIP 172.30.1.1 is Node one's already",
        ),
    ],
)
def test_older_of_two_nodes_in_conflict_stays(second: tuple[str, str], problem: str) -> None:
    one, two = ("one", *GOOD, "2026-01-01"), ("two", *second, "2026-01-02")
    for order in ((one, two), (two, one)):
        inventory = inventory_with(*order)
        assert set(inventory.view.nodes) == {"one"}
        assert inventory.problems.texts() == {"Node two": problem}
    # A manifest without a time of creation, made by hand, displaces nobody either.
    inventory = inventory_with(one, ("a", *second, ""))
    assert set(inventory.view.nodes) == {"one"}
    inventory.remove_object("Node", "", "a")
    inventory.set_object(node_object(*two))
    inventory.remove_object("Node", "", "one")
    inventory.settle()
    assert set(inventory.view.nodes) == {"two"}
    assert not inventory.problems


def without_addresses(node: NodeObject) -> NodeObject:
    return struct_replace(node, status=struct_replace(node.status, addresses=[]))


@pytest.mark.parametrize("broken", ["no address", "a bad address", "no podCIDR"])
def test_last_usable_state_of_a_node_stays(broken: str) -> None:
    """A cloud controller takes the addresses away for some seconds."""
    inventory = inventory_with(("n", *GOOD, "2026"))
    inventory.set_object(pod_object("a", "n", uid="u1"))
    inventory.set_port("n", port("a", "u1", "s", "10.244.1.5", 16))
    node = node_object("n", *GOOD, "2026")
    now = {
        "no address": without_addresses(node),
        "a bad address": node_object("n", GOOD[0], "127.0.0.1", "2026"),
        "no podCIDR": node_object("n", "", GOOD[1], "2026"),
    }[broken]
    inventory.set_object(now)
    assert not inventory.settle()
    assert accepted(inventory, "n") == {"10.244.1.5": "default/a"}
    problem = inventory.problems.texts()["Node n"]
    assert problem.endswith("; it takes part with address 172.30.1.1 and podCIDR 10.244.1.0/24")
    inventory.set_object(node)
    assert not inventory.settle()
    assert not inventory.problems.texts()
    # Another Node of that name has no earlier state.
    inventory.set_object(struct_replace(now, metadata=struct_replace(now.metadata, uid="new")))
    inventory.settle()
    assert not inventory.view.nodes


def test_address_of_an_earlier_state_is_free_for_others() -> None:
    inventory = inventory_with(("old", *GOOD, "2025"))
    inventory.set_object(without_addresses(node_object("old", *GOOD, "2025")))
    inventory.set_object(node_object("new", "10.244.2.0/24", GOOD[1], "2026"))
    inventory.settle()
    assert set(inventory.view.nodes) == {"new"}


def test_next_address_is_used_where_the_first_is_disputed_or_invalid() -> None:
    inventory = inventory_with(("one", *GOOD, "2025"))
    for first in (GOOD[1], "127.0.0.1", "10.244.9.9"):
        two = node_object("two", "10.244.2.0/24", first, "2026", others=("172.30.1.2",))
        inventory.set_object(two)
        inventory.settle()
        assert inventory.view.nodes["two"].address == IPv4Address("172.30.1.2")
    inventory.set_object(
        node_object("two", "10.244.2.0/24", GOOD[1], "2026", others=("172.30.1.2",))
    )
    inventory.settle()
    assert inventory.problems.texts() == {
        "Node two": "status.addresses: InternalIP 172.30.1.1 is Node one's already; it takes part"
        " with address 172.30.1.2 and podCIDR 10.244.2.0/24"
    }


@pytest.mark.parametrize("order", ["session first", "claim first"])
def test_address_belongs_to_the_node_that_connects_from_it(order: str) -> None:
    """A kubelet writes its own Node's addresses, a stolen one those of others."""
    thief = node_object("a", "10.244.1.0/24", "172.30.1.1", "2025")
    inventory = inventory_with(("victim", "10.244.2.0/24", "172.30.1.2", "2026"))
    inventory.set_object(thief)
    inventory.settle()
    claim = node_object("a", "10.244.1.0/24", "172.30.1.2", "2025")
    if order == "session first":
        inventory.node_connected("victim", IPv4Address("172.30.1.2"))
    inventory.node_connected("a", IPv4Address("172.30.1.1"))
    inventory.set_object(claim)
    inventory.settle()
    if order == "claim first":
        inventory.node_connected("victim", IPv4Address("172.30.1.2"))
    assert set(inventory.view.nodes) == {"victim"}
    problem = "status.addresses: InternalIP 172.30.1.2 is Node victim's already"
    assert inventory.problems.texts() == {"Node a": problem}
    # Where both connect through one gateway, age decides.
    for name in ("victim", "a"):
        inventory.node_connected(name, IPv4Address("192.0.2.1"))
    assert set(inventory.view.nodes) == {"a"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"spec": NodeSpec(pod_cidrs=["10.244.1.0/24"] * 10_000)},
            "spec.podCIDRs has 10000 entries; 2 is the most",
        ),
        (
            {"spec": NodeSpec(pod_cidr="1" * 1_000_000)},
            "spec.podCIDR '" + "1" * 79,
        ),
        (
            {"status": NodeStatus([NodeObjectAddress("InternalIP", "x" * 1_000_000)] * 2)},
            "status.addresses: InternalIP '" + "x" * 79,
        ),
    ],
)
def test_hostile_node_is_refused_in_a_short_sentence(change: dict[str, Any], problem: str) -> None:
    inventory = inventory_with()
    inventory.set_object(struct_replace(node_object("n", *GOOD), **change))
    inventory.settle()
    assert not inventory.view.nodes
    text = inventory.problems.texts()["Node n"]
    assert text.startswith(problem)
    assert len(text) < 200


def test_addresses_of_a_node_are_bounded() -> None:
    addresses = [NodeObjectAddress("InternalIP", GOOD[1])]
    addresses += [
        NodeObjectAddress("ExternalIP", f"198.51.{n // 250}.{n % 250}") for n in range(999)
    ]
    inventory = inventory_with()
    inventory.set_object(struct_replace(node_object("n", *GOOD), status=NodeStatus(addresses)))
    inventory.settle()
    assert len(inventory.view.nodes["n"].further_addresses) == 63
    assert inventory.problems.texts()["Node n"].startswith(
        "status.addresses has 1000 entries; the first 64 are used; it takes part with address"
    )


def test_cost_of_a_node_does_not_grow_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = Inventory(Cluster(IPv4Network("10.0.0.0/8"), CLUSTER.service_range, 6081, 100))
    for number in range(3_000):
        cidr = IPv4Network((int(IPv4Address("10.0.0.0")) + 256 * number, 24))
        address = IPv4Address("172.30.0.0") + number
        inventory.set_object(node_object(f"n{number}", str(cidr), str(address), "2026"))
    inventory.settle()
    assert len(inventory.view.nodes) == 3_000
    steps = 0

    def step(_: object, event: str, __: object) -> None:
        nonlocal steps
        steps += event == "call"

    other = node_object("n7", "10.0.7.0/24", "172.31.0.7", "2026")
    inventory.set_object(other)
    monkeypatch.setattr(inventory.services, "set_node_addresses", lambda _: None)
    sys.setprofile(step)
    inventory.settle()
    sys.setprofile(None)
    assert inventory.view.nodes["n7"].address == IPv4Address("172.31.0.7")
    assert steps < 1_000


def test_dual_stack_fields_are_accepted() -> None:
    node = node_object("n", "", "172.30.1.1")
    spec = type(node.spec)(pod_cidrs=["fd00::/64", "10.244.1.0/24"])
    inventory = Inventory(CLUSTER)
    inventory.set_object(type(node)(node.metadata, spec, node.status))
    inventory.settle()
    assert inventory.view.nodes["n"].pod_cidr == IPv4Network("10.244.1.0/24")


@pytest.fixture
def inventory() -> Inventory:
    """node1 and node2, and the pod default/a bound to node1."""
    made = inventory_with(("node1", *GOOD, ""), ("node2", "10.244.2.0/24", "172.30.1.2", ""))
    made.set_object(pod_object("a", "node1", uid="u1"))
    return made


def accepted(inventory: Inventory, node: str) -> dict[str, str]:
    return {str(a.address): a.pod for a in inventory.view.attachments.get(node, {}).values()}


def test_port_belongs_to_its_pod(inventory: Inventory) -> None:
    new = port("a", "u1", "s1", "10.244.1.5", 16)
    assert inventory.set_port("node1", new) == {Key("node1", "attachment", new.name)}
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}


@pytest.mark.parametrize(
    ("node", "given", "problem"),
    [
        ("node2", ("a", "u1", "10.244.2.5"), "no Pod with spec.nodeName node2 has this port's"),
        ("node1", ("a", "old", "10.244.1.5"), "no Pod with spec.nodeName node1 has this port's"),
        ("node1", ("a", "u1", "10.244.2.5"), "address 10.244.2.5 is outside spec.podCIDR 10.244.1"),
        ("node1", ("a", "u1", "10.244.1.1"), "address 10.244.1.1 is not a pod's: network, gatewa"),
        ("node1", ("a", "u1", "10.244.1.0"), "address 10.244.1.0 is not a pod's"),
        ("node1", ("a", "u1", "10.244.1.255"), "address 10.244.1.255 is not a pod's"),
    ],
)
def test_bad_port_is_refused(
    inventory: Inventory, node: str, given: tuple[str, str, str], problem: str
) -> None:
    pod, uid, address = given
    new = port(pod, uid, "s", address, 16)
    assert not inventory.set_port(node, new)
    assert not accepted(inventory, node)
    assert inventory.problems.texts()[f"port {new.name} of {node}"].startswith(problem)
    inventory.remove_port(node, new.name)
    assert not inventory.problems


@pytest.mark.parametrize("ofport", [0, 1, 2, 15, 0xFF00, 0xFFFFFFFE])
def test_ofport_outside_the_range_of_attachments_is_refused(
    inventory: Inventory, ofport: int
) -> None:
    new = port("a", "u1", "s", "10.244.1.5", ofport)
    assert not inventory.set_port("node1", new)
    problem = inventory.problems.texts()[f"port {new.name} of node1"]
    assert problem == f"ofport {ofport} is outside the range of attachments"


def test_two_ports_with_one_ofport_are_refused(inventory: Inventory) -> None:
    """No switch does this; a stolen one may."""
    inventory.set_object(pod_object("b", "node1", uid="u2"))
    one, two = (
        port(p, u, "s", f"10.244.1.{n}", 16) for p, u, n in (("a", "u1", 5), ("b", "u2", 6))
    )
    inventory.set_port("node1", one)
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    inventory.set_port("node1", two)
    assert not accepted(inventory, "node1")
    assert (
        f"port {two.name} has the same ofport"
        in inventory.problems.texts()[f"port {one.name} of node1"]
    )
    inventory.remove_port("node1", two.name)
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    assert not inventory.problems


def test_newest_port_is_found_after_ofports_start_again(inventory: Inventory) -> None:
    old = port("a", "u1", "s1", "10.244.1.5", names.LAST_ATTACHMENT_OFPORT)
    new = port("a", "u1", "s2", "10.244.1.5", names.FIRST_ATTACHMENT_OFPORT)
    for each in (old, new):
        inventory.set_port("node1", each)
    assert set(inventory.view.attachments["node1"]) == {new.name}


def test_further_addresses_of_nodes_are_guarded_once() -> None:
    def node(name: str, number: int, *further: str) -> NodeObject:
        made = node_object(name, f"10.244.{number}.0/24", f"172.30.1.{number}")
        given = [NodeObjectAddress("ExternalIP", address) for address in further]
        status = NodeStatus([*(made.status.addresses or ()), *given])
        return NodeObject(made.metadata, made.spec, status)

    inventory = Inventory(CLUSTER)
    inventory.set_object(node("one", 1, "198.51.100.1", "node.example", "fd00::1"))
    inventory.set_object(node("two", 2, "198.51.100.1", "172.30.1.1", "198.51.100.2"))
    inventory.settle()
    further = {
        n: [str(a) for a in node.further_addresses] for n, node in inventory.view.nodes.items()
    }
    assert further == {"one": ["198.51.100.1"], "two": ["198.51.100.2"]}
    text = golden(compile_scope(inventory.view, CLUSTER_SCOPE).flows())
    for address in ("198.51.100.1", "198.51.100.2", "172.30.1.1", "172.30.1.2"):
        assert text.count(f"nw_dst={address},tp_dst=6081 actions=drop") == 1


def test_removed_nodes_leave_no_trace(inventory: Inventory) -> None:
    """Nodes come and go for years."""
    for number in range(3, 9):
        name = f"node{number}"
        inventory.set_object(node_object(name, f"10.244.{number}.0/24", f"172.30.1.{number}"))
        inventory.settle()
        inventory.set_object(pod_object(f"p{number}", name, uid="u"))
        inventory.set_port(name, port(f"p{number}", "u", "s", f"10.244.{number}.5", 16))
        assert accepted(inventory, name)
        inventory.remove_object("Pod", "default", f"p{number}")
        inventory.remove_object("Node", "", name)
        inventory.settle()
        inventory.set_ports(name, [])
    for kept in vars(inventory).values():
        assert not isinstance(kept, dict) or not any("node3" in str(key) for key in kept)


def test_mac_without_an_address_is_refused(inventory: Inventory) -> None:
    good = port("a", "u1", "s", "10.244.1.5", 16)
    inventory.set_port("node1", BridgePort(good.name, 16, "02:00:00:00:00:01"))
    assert "holds no address" in inventory.problems.texts()[f"port {good.name} of node1"]


def test_the_newer_of_two_sandboxes_has_the_address(inventory: Inventory) -> None:
    old, new = (port("a", "u1", s, "10.244.1.5", n) for s, n in (("s1", 16), ("s2", 17)))
    for first, second in ((old, new), (new, old)):
        inventory.set_port("node1", first)
        inventory.set_port("node1", second)
        assert set(inventory.view.attachments["node1"]) == {new.name}
        inventory.remove_port("node1", new.name)
        assert set(inventory.view.attachments["node1"]) == {old.name}
        inventory.remove_port("node1", old.name)


def test_port_of_a_host_network_pod_is_refused(inventory: Inventory) -> None:
    inventory.set_object(pod_object("h", "node1", uid="u2", host_network=True))
    inventory.set_port("node1", port("h", "u2", "s", "10.244.1.6", 16))
    assert not accepted(inventory, "node1")


def test_static_pod_is_known_by_its_mirror_pod(inventory: Inventory) -> None:
    inventory.set_object(mirror_pod("s", "node1", "hash"))
    inventory.set_port("node1", port("s", "hash", "s", "10.244.1.7", 16))
    assert accepted(inventory, "node1") == {"10.244.1.7": "default/s"}


def _without_annotation(pod: PodObject) -> PodObject:
    annotations = PodAnnotations(config_hash="hash")
    return struct_replace(pod, metadata=struct_replace(pod.metadata, annotations=annotations))


def _with_another_hash(pod: PodObject) -> PodObject:
    annotations = PodAnnotations(config_hash="hash", config_mirror="another")
    return struct_replace(pod, metadata=struct_replace(pod.metadata, annotations=annotations))


def _with_owners(*owners: OwnerReference) -> Callable[[PodObject], PodObject]:
    return lambda pod: struct_replace(
        pod, metadata=struct_replace(pod.metadata, owner_references=[*owners])
    )


@pytest.mark.parametrize(
    "change",
    [
        _without_annotation,
        _with_another_hash,
        _with_owners(),
        _with_owners(OwnerReference("Node", "node1", "u")),
        _with_owners(OwnerReference("ReplicaSet", "node1", "u", controller=True)),
        _with_owners(OwnerReference("Node", "node2", "u", controller=True)),
        _with_owners(OwnerReference("Node", "node1", "another", controller=True)),
        _with_owners(
            OwnerReference("Node", "node1", "u", controller=True), OwnerReference("ReplicaSet", "r")
        ),
    ],
)
def test_config_hash_counts_on_mirror_pods_only(
    inventory: Inventory, change: Callable[[PodObject], PodObject]
) -> None:
    """Any tenant may write the annotation `kubernetes.io/config.hash`."""
    inventory.set_object(change(mirror_pod("s", "node1", "hash")))
    inventory.set_port("node1", port("s", "hash", "s", "10.244.1.7", 16))
    assert not accepted(inventory, "node1")


def test_mirror_pod_of_a_recreated_node_counts_no_more(inventory: Inventory) -> None:
    inventory.set_object(mirror_pod("s", "node1", "hash"))
    inventory.set_object(node_object("node1", *GOOD, uid="new"))
    inventory.settle()
    inventory.set_port("node1", port("s", "hash", "s", "10.244.1.7", 16))
    assert not accepted(inventory, "node1")


@pytest.fixture
def one_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pods with one uid collide: a digest of so few bits that an attacker finds a collision."""
    digest = names.pod_port_prefix

    def short(_: str, __: str, uid: str, ifname: str = "eth0") -> str:
        return digest("", "", uid, ifname)

    monkeypatch.setattr(names, "pod_port_prefix", short)


@pytest.mark.usefixtures("one_prefix")
@pytest.mark.parametrize("victim_first", [True, False])
def test_of_two_pods_with_one_prefix_the_older_wins(victim_first: bool) -> None:
    inventory = inventory_with(("node1", *GOOD, ""))
    victim = pod_object("victim", "node1", uid="u1", created="2026-01-01T00:00:00Z")
    attacker = pod_object("attacker", "node1", uid="u1", created="2026-01-02T00:00:00Z")
    inventory.set_port("node1", port("any", "u1", "s", "10.244.1.5", 16))
    for pod in (victim, attacker) if victim_first else (attacker, victim):
        inventory.set_object(pod)
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/victim"}
    (subject,) = inventory.problems.texts()
    assert subject == "Pod default/attacker"
    assert inventory.problems.texts()[subject].endswith("as those of Pod default/victim")
    inventory.remove_object("Pod", "default", "attacker")
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/victim"}
    assert not inventory.problems


def test_attachment_lasts_as_long_as_its_port(inventory: Inventory) -> None:
    """A pod that was deleted by force still closes its connections."""
    old = port("a", "u1", "s", "10.244.1.5", 16)
    inventory.set_port("node1", old)
    assert not inventory.remove_object("Pod", "default", "a")
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    # Another Pod of that name is another pod.
    assert not inventory.set_object(pod_object("a", "node1", uid="u2"))
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    # The switch connects again and has the same ports.
    assert not inventory.set_ports("node1", [old])
    assert inventory.remove_port("node1", old.name) == {Key("node1", "attachment", old.name)}
    assert not accepted(inventory, "node1")


@pytest.mark.parametrize("change", ["a new port", "another address", "the port again"])
def test_new_port_of_a_vanished_pod_is_refused(inventory: Inventory, change: str) -> None:
    old = port("a", "u1", "s", "10.244.1.5", 16)
    inventory.set_port("node1", old)
    inventory.remove_object("Pod", "default", "a")
    if change == "a new port":
        inventory.set_port("node1", port("a", "u1", "s2", "10.244.1.6", 17))
        assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    elif change == "another address":
        inventory.set_port("node1", replace(old, mac="0a:58:0a:f4:01:06"))
        assert not accepted(inventory, "node1")
    else:
        inventory.remove_port("node1", old.name)
        inventory.set_port("node1", old)
        assert not accepted(inventory, "node1")


def test_attachments_of_a_refused_node_are_not_accepted(inventory: Inventory) -> None:
    new = port("a", "u1", "s", "10.244.1.5", 16)
    inventory.set_port("node1", new)
    inventory.set_object(node_object("older", GOOD[0], "172.30.1.9", "2020-01-01"))
    assert Key("node1", "attachment", new.name) in inventory.settle()
    assert inventory.problems.texts()["Node node1"].endswith("of Node older")
    assert not accepted(inventory, "node1")
    assert (
        inventory.problems.texts()[f"port {new.name} of node1"]
        == "Node node1 is unknown or refused"
    )
    assert not compile_scope(inventory.view, "node1").cookies


def invented(count: int, address: str | None = None) -> list[BridgePort]:
    """Ports as a stolen node may report them."""
    return [
        BridgePort(
            names.container_port_name(f"container-{number}", "eth0"),
            names.FIRST_ATTACHMENT_OFPORT + number,
            names.mac_of(IPv4Address(address) if address else IPv4Address("10.244.0.0") + number),
        )
        for number in range(count)
    ]


class Judgements:
    """Counts how often a port was judged, and how many claimants were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        verdict, newest = module.Ports._verdict, module._newest

        def counting(*arguments: Any) -> Any:
            self.count += 1
            return verdict(*arguments)

        def newest_of(claimants: Iterable[BridgePort]) -> str:
            looked_at = list(claimants)
            self.count += len(looked_at)
            return newest(looked_at)

        monkeypatch.setattr(module.Ports, "_verdict", counting)
        monkeypatch.setattr(module, "_newest", newest_of)


@pytest.mark.parametrize("address", ["10.244.1.5", None])
@pytest.mark.parametrize("way", ["at once", "one by one"])
def test_cost_of_ports_is_linear(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch, address: str | None, way: str
) -> None:
    """A PORT_DESC of 800 ports with one MAC blocked all nodes for more than a minute."""
    judgements = Judgements(monkeypatch)
    ports = invented(800, address)
    if way == "at once":
        inventory.set_ports("node1", ports)
    else:
        for each in ports:
            inventory.set_port("node1", each)
    assert judgements.count <= 2 * len(ports) + 2 * module.MAX_CLAIMANTS**2
    if address:
        assert not accepted(inventory, "node1")
        problem = inventory.problems.texts()[f"port {ports[0].name} of node1"]
        assert problem == f"more than 8 ports have address {address}"
    # Once the crowd is gone, the last of them has the address, as if it had been alone.
    judgements.count = 0
    for each in ports[:-1]:
        inventory.remove_port("node1", each.name)
    assert judgements.count <= 3 * len(ports) + 4 * module.MAX_CLAIMANTS**2
    if address:
        assert accepted(inventory, "node1") == {address: ""}
        assert not inventory.problems


def test_ports_of_a_node_are_bounded(inventory: Inventory) -> None:
    """48,000 invented PORT_STATUS left 22,000 problems."""
    for each in (ports := invented(10_000)):
        inventory.set_port("node1", each)
    assert len(inventory.problems) <= module.MAX_PORTS + 1
    first = ports[module.MAX_PORTS]
    problem = inventory.problems.texts()["ports of node1"]
    assert problem.startswith(f"a node may have 1024 ports; refused: {first.name}, ")
    assert problem.endswith(f" and {module.MAX_REFUSED - module.MAX_NAMED} more")
    # Another node does not notice, and theirs are accepted again when there are fewer.
    inventory.set_object(pod_object("b", "node2", uid="u2"))
    inventory.set_port("node2", port("b", "u2", "s", "10.244.2.5", 16))
    assert accepted(inventory, "node2") == {"10.244.2.5": "default/b"}
    for each in ports:
        inventory.remove_port("node1", each.name)
    assert not inventory.problems
    inventory.set_port("node1", port("a", "u1", "s", "10.244.1.5", 16))
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}


def test_controllers_take_the_same_ports_of_too_many(inventory: Inventory) -> None:
    ports = invented(3_000, "10.244.1.5")
    other = inventory_with(("node1", *GOOD, ""))
    for each, order in ((inventory, ports), (other, ports[::-1])):
        each.set_ports("node1", order)
    assert inventory.problems.texts() == other.problems.texts()


def test_container_without_a_pod_is_attached(inventory: Inventory) -> None:
    name = names.container_port_name("c0ffee", "eth0")
    inventory.set_port("node1", BridgePort(name, 16, names.mac_of(IPv4Address("10.244.1.8"))))
    assert accepted(inventory, "node1") == {"10.244.1.8": ""}


def test_ports_with_other_names_are_ignored(inventory: Inventory) -> None:
    inventory.set_port("node1", BridgePort("eth7", 9, "0a:58:0a:f4:01:09"))
    assert not inventory.problems


def test_pod_bound_to_another_node_loses_its_port(inventory: Inventory) -> None:
    inventory.set_port("node1", port("a", "u1", "s", "10.244.1.5", 16))
    inventory.set_object(pod_object("a", "node2", uid="u1"))
    assert not accepted(inventory, "node1")
