"""Which routes a peer is told, with which next hops, and why."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from controller.bgp.peers import KINDS, PeerDraft
from controller.bgp.routes import Announced, World, candidates, for_speaker, routes
from controller.bgp.world import world_of
from controller.sources.objects import from_manifest
from flows.refs import ObjectRef
from flows.view import ClusterView
from tests.controller.address_pools import balancer, pool
from tests.controller.bgp.test_peers import bgp_peer, judged
from tests.controller.service_inventory import inventory
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.flows.worlds import CLUSTER, node
from wire.bgp import MAX_NEXT_HOPS, MAX_PATHS

EVERYBODY = frozenset(("node1", "node2", "node3"))


def done(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def world(**more: Any) -> World:
    nodes = {f"node{n}": node(n) for n in (1, 2, 3)}
    made = World(ClusterView(CLUSTER, nodes), lambda _: True, lambda _: EVERYBODY)
    return replace(made, **more)


def peer(*kinds: str) -> PeerDraft:
    (found,) = judged(bgp_peer(announce=list(kinds))).peers
    return found


def told(given: World, *kinds: str) -> dict[str, Announced]:
    found, left_out = done(routes(peer(*kinds), given, done(candidates(given, frozenset(KINDS)))))
    assert left_out == 0
    return {str(each.prefix): each for each in found}


def test_each_pod_range_has_its_node_as_next_hop() -> None:
    found = told(world(is_fit=lambda _: False), "PodRanges")
    assert [(prefix, each.nodes) for prefix, each in found.items()] == [
        ("10.244.1.0/24", ("node1",)),
        ("10.244.2.0/24", ("node2",)),
        ("10.244.3.0/24", ("node3",)),
    ]
    assert found["10.244.2.0/24"].reasons == (ObjectRef.node("node2"),)
    first, *_ = for_speaker(found.values(), world().view.nodes)
    assert first.next_hops == (IPv4Address("172.30.1.1"),)


def test_only_selected_nodes_are_announced() -> None:
    given = world(selected=lambda _: frozenset(("node2",)))
    assert told(given, "PodRanges").keys() == {"10.244.2.0/24"}


WEB = ObjectRef("Service", "default", "web")
ADDRESS = IPv4Address("192.0.2.10")


def balanced(*nodes: str) -> dict[IPv4Address, Any]:
    return {ADDRESS: (frozenset(nodes), (WEB,))}


def test_a_load_balancer_address_has_the_nodes_that_can_serve_it() -> None:
    found = told(world(balanced=balanced("node1", "node3")), "LoadBalancerAddresses")
    assert found.keys() == {"192.0.2.10/32"}
    assert set(found["192.0.2.10/32"].nodes) == {"node1", "node3"}
    assert found["192.0.2.10/32"].reasons == (WEB,)


def test_nodes_that_are_not_fit_are_next_hops_only_where_no_other_is() -> None:
    given = world(balanced=balanced("node1", "node3"), is_fit=lambda name: name == "node3")
    assert told(given, "LoadBalancerAddresses")["192.0.2.10/32"].nodes == ("node3",)
    given = world(balanced=balanced("node1"), is_fit=lambda name: name == "node3")
    assert told(given, "LoadBalancerAddresses")["192.0.2.10/32"].nodes == ("node1",)


def test_an_address_that_nobody_can_serve_is_not_announced() -> None:
    assert told(world(balanced=balanced()), "LoadBalancerAddresses") == {}


def test_an_egress_address_has_its_gateway_as_next_hop() -> None:
    subject = ObjectRef("EgressAddress", "", "out")
    given = world(egress={ADDRESS: ("node2", subject)}, is_fit=lambda _: False)
    found = told(given, "EgressAddresses")["192.0.2.10/32"]
    assert (found.nodes, found.reasons) == (("node2",), (subject,))


def test_a_kind_that_is_not_asked_for_is_not_announced() -> None:
    given = world(balanced=balanced("node1"))
    assert told(given, "ExternalIPs") == {}


def of_services(*objects: Any) -> World:
    made = inventory(*objects)
    every = frozenset(made.view.nodes)
    return World(made.view, lambda _: True, lambda _: every)


def test_cluster_ips_are_one_route_and_one_more_for_each_local_service() -> None:
    given = of_services(
        service("s", clusterIP="10.96.0.7", internalTrafficPolicy="Local"),
        endpoint_slice("s-1", "s", [endpoint("10.244.2.9", "node2", ready=True)]),
        service("t", clusterIP="10.96.0.8"),
        endpoint_slice("t-1", "t", [endpoint("10.244.2.9", "node2", ready=True)]),
    )
    found = told(given, "ClusterIPs")
    assert found.keys() == {"10.96.0.0/16", "10.96.0.7/32"}
    assert set(found["10.96.0.0/16"].nodes) == {"node1", "node2"}
    assert found["10.96.0.7/32"].nodes == ("node2",)


def test_an_external_address_follows_the_traffic_policy() -> None:
    at = {"externalIPs": ["192.0.2.20"], "type": "NodePort", "clusterIP": "10.96.0.7"}
    ready = [endpoint("10.244.2.9", "node2", ready=True)]
    every = of_services(service("s", **at), endpoint_slice("s-1", "s", ready))
    assert set(told(every, "ExternalIPs")["192.0.2.20/32"].nodes) == {"node1", "node2"}
    local = of_services(
        service("s", externalTrafficPolicy="Local", **at), endpoint_slice("s-1", "s", ready)
    )
    found = told(local, "ExternalIPs")["192.0.2.20/32"]
    assert (found.nodes, found.note) == (("node2",), "only nodes with ready endpoints")


def test_different_addresses_prefer_different_nodes() -> None:
    many = {IPv4Address("192.0.2.0") + n: (EVERYBODY, (WEB,)) for n in range(60)}
    found = told(world(balanced=many), "LoadBalancerAddresses")
    first = [each.nodes[0] for each in found.values()]
    assert all(first.count(name) > 5 for name in EVERYBODY)


def test_next_hops_and_routes_are_bounded() -> None:
    nodes = {f"n{n}": replace(node(1), name=f"n{n}") for n in range(100)}
    view = ClusterView(CLUSTER, nodes)
    many = {IPv4Address("192.0.2.0") + n: (frozenset(nodes), (WEB,)) for n in range(400)}
    given = World(view, lambda _: True, lambda _: frozenset(nodes), many)
    found, left_out = done(
        routes(peer("LoadBalancerAddresses"), given, done(candidates(given, frozenset(KINDS))))
    )
    assert {len(each.nodes) for each in found} == {MAX_NEXT_HOPS}
    assert len(found) == MAX_PATHS // MAX_NEXT_HOPS
    assert left_out == 400 - len(found)


def test_two_controllers_announce_the_same_in_the_same_order() -> None:
    given = balanced("node1", "node2", "node3") | {IPv4Address("192.0.2.9"): (EVERYBODY, (WEB,))}
    turned = dict(reversed(given.items()))
    kinds = ("PodRanges", "LoadBalancerAddresses")
    one, other = told(world(balanced=given), *kinds), told(world(balanced=turned), *kinds)
    assert list(one.items()) == list(other.items())


def test_external_ips_of_a_service_do_not_announce_an_address_of_a_pool_or_an_egress_address() -> (
    None
):
    made = inventory(
        from_manifest(
            {"apiVersion": "sluice.dev/v1alpha1", "kind": "EgressAddress",
             "metadata": {"name": "out"},
             "spec": {"address": "192.0.2.30", "namespaceSelector": {}, "gateways": {}}}
        ),
        pool("link", "192.0.2.20/32", announce=["Link"]),
        balancer("s", has="192.0.2.20", clusterIP="10.96.0.7"),
        service("thief", externalIPs=["192.0.2.30", "192.0.2.40"], clusterIP="10.96.0.8"),
    )  # fmt: skip
    made.load_balancers.refresh()
    assert told(world_of(made), "ExternalIPs").keys() == {"192.0.2.40/32"}
