"""What is refused, and in which words."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from controller.inventory import BridgePort, Inventory
from controller.sources.objects import NodeObject, NodeObjectAddress, NodeStatus
from flows import names
from flows.compile import compile_scope
from flows.text import golden
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.events import node_object, pod_object, port
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
def test_a_node_that_is_refused(cidr: str, address: str, problem: str) -> None:
    good = ("good", "10.244.5.0/24", "172.30.1.5", "")
    inventory = inventory_with(good, ("bad", cidr, address, ""))
    assert set(inventory.view.nodes) == {"good"}
    assert inventory.problems["Node bad"].startswith(problem)
    # Mended, it takes part, and the complaint is gone.
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
def test_of_two_nodes_in_conflict_the_older_stays(second: tuple[str, str], problem: str) -> None:
    one, two = ("one", *GOOD, "2026-01-01"), ("two", *second, "2026-01-02")
    for order in ((one, two), (two, one)):
        inventory = inventory_with(*order)
        assert set(inventory.view.nodes) == {"one"}
        assert inventory.problems == {"Node two": problem}
    # A manifest without a time of creation, made by hand, displaces nobody either.
    inventory = inventory_with(one, ("a", *second, ""))
    assert set(inventory.view.nodes) == {"one"}
    inventory.remove_object("Node", "", "a")
    inventory.set_object(node_object(*two))
    inventory.remove_object("Node", "", "one")
    inventory.settle()
    assert set(inventory.view.nodes) == {"two"}
    assert not inventory.problems


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


def test_a_port_is_its_pods(inventory: Inventory) -> None:
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
def test_a_port_that_is_refused(
    inventory: Inventory, node: str, given: tuple[str, str, str], problem: str
) -> None:
    pod, uid, address = given
    new = port(pod, uid, "s", address, 16)
    assert not inventory.set_port(node, new)
    assert not accepted(inventory, node)
    assert inventory.problems[f"port {new.name} of {node}"].startswith(problem)
    inventory.remove_port(node, new.name)
    assert not inventory.problems


@pytest.mark.parametrize("ofport", [0, 1, 2, 15, 0xFF00, 0xFFFFFFFE])
def test_an_ofport_that_is_no_attachments(inventory: Inventory, ofport: int) -> None:
    new = port("a", "u1", "s", "10.244.1.5", ofport)
    assert not inventory.set_port("node1", new)
    problem = inventory.problems[f"port {new.name} of node1"]
    assert problem == f"ofport {ofport} is outside the range of attachments"


def test_two_ports_with_one_ofport(inventory: Inventory) -> None:
    """No switch does this; a stolen one may."""
    inventory.set_object(pod_object("b", "node1", uid="u2"))
    one, two = (
        port(p, u, "s", f"10.244.1.{n}", 16) for p, u, n in (("a", "u1", 5), ("b", "u2", 6))
    )
    inventory.set_port("node1", one)
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    inventory.set_port("node1", two)
    assert not accepted(inventory, "node1")
    assert f"port {two.name} has the same ofport" in inventory.problems[f"port {one.name} of node1"]
    inventory.remove_port("node1", two.name)
    assert accepted(inventory, "node1") == {"10.244.1.5": "default/a"}
    assert not inventory.problems


def test_ofports_go_round(inventory: Inventory) -> None:
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


def test_nothing_is_kept_of_what_is_gone(inventory: Inventory) -> None:
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


def test_a_mac_without_an_address(inventory: Inventory) -> None:
    good = port("a", "u1", "s", "10.244.1.5", 16)
    inventory.set_port("node1", BridgePort(good.name, 16, "02:00:00:00:00:01"))
    assert "holds no address" in inventory.problems[f"port {good.name} of node1"]


def test_the_newer_of_two_sandboxes_has_the_address(inventory: Inventory) -> None:
    old, new = (port("a", "u1", s, "10.244.1.5", n) for s, n in (("s1", 16), ("s2", 17)))
    for first, second in ((old, new), (new, old)):
        inventory.set_port("node1", first)
        inventory.set_port("node1", second)
        assert set(inventory.view.attachments["node1"]) == {new.name}
        inventory.remove_port("node1", new.name)
        assert set(inventory.view.attachments["node1"]) == {old.name}
        inventory.remove_port("node1", old.name)


def test_a_host_network_pod_has_no_port(inventory: Inventory) -> None:
    inventory.set_object(pod_object("h", "node1", uid="u2", host_network=True))
    inventory.set_port("node1", port("h", "u2", "s", "10.244.1.6", 16))
    assert not accepted(inventory, "node1")


def test_a_static_pod_is_known_by_its_config_hash(inventory: Inventory) -> None:
    mirror = pod_object("s", "node1", uid="mirror")
    annotations = {"kubernetes.io/config.hash": "hash"}
    metadata = type(mirror.metadata)("s", "default", "mirror", annotations=annotations)
    inventory.set_object(type(mirror)(metadata, mirror.spec))
    inventory.set_port("node1", port("s", "hash", "s", "10.244.1.7", 16))
    assert accepted(inventory, "node1") == {"10.244.1.7": "default/s"}


def test_a_container_without_a_pod(inventory: Inventory) -> None:
    name = names.container_port_name("c0ffee", "eth0")
    inventory.set_port("node1", BridgePort(name, 16, names.mac_of(IPv4Address("10.244.1.8"))))
    assert accepted(inventory, "node1") == {"10.244.1.8": ""}


def test_other_ports_are_none_of_our_business(inventory: Inventory) -> None:
    inventory.set_port("node1", BridgePort("eth7", 9, "0a:58:0a:f4:01:09"))
    assert not inventory.problems


def test_a_pod_bound_elsewhere_loses_its_port(inventory: Inventory) -> None:
    inventory.set_port("node1", port("a", "u1", "s", "10.244.1.5", 16))
    inventory.set_object(pod_object("a", "node2", uid="u1"))
    assert not accepted(inventory, "node1")
