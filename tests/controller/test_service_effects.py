"""What follows from Services: groups, nodes' own choices, what hosts must know, stale UDP."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from controller.host_services import HealthCheck, HostNodePort
from controller.inventory import Inventory
from controller.stale_udp import MAX_PAIRS, Stale, StaleEndpoint, StaleFrontend, StalePair
from flows import names
from flows.compile import COMPILER
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.events import node_object
from tests.controller.service_inventory import drop, inventory, of_port, only_port, put
from tests.controller.service_objects import endpoint, endpoint_slice, service

NODE_PORT = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}


def taken(made: Inventory) -> list[Stale]:
    """What became stale, without what only `narrowed` needs."""
    return [_bare(stale) for stale in made.services.stale_udp.take()]


def _bare(stale: Stale) -> Stale:
    match stale:
        case StaleEndpoint():
            return replace(stale, frontends=())
        case StaleFrontend():
            return replace(stale, endpoints=frozenset())
        case _:
            return stale


def test_stale_udp_connections_are_found() -> None:
    ports = [{"port": 53, "protocol": "UDP"}]
    to = [{"port": 5353, "protocol": "UDP"}, {"port": 5353}]
    virtual = IPv4Address("10.96.0.1")
    made = inventory(service("s", ports=[*ports, {"port": 53}]))
    assert taken(made) == []
    put(made, endpoint_slice("s-1", "s", ["10.244.1.5", "10.244.1.6"], to))
    assert taken(made) == [StaleFrontend(virtual, 53, served=False)]
    put(made, endpoint_slice("s-1", "s", ["10.244.1.6", "10.244.1.7"], to))
    assert taken(made) == [StaleEndpoint(IPv4Address("10.244.1.5"), 5353)]
    # One that drains keeps its connections; a frontend more has some to forget.
    leaving = endpoint("10.244.1.6", ready=False, serving=True, terminating=True)
    put(made, endpoint_slice("s-1", "s", [leaving, "10.244.1.7"], to))
    assert taken(made) == []
    put(made, service("s", type="NodePort", ports=[ports[0] | {"nodePort": 30053}]))
    assert taken(made) == [StaleFrontend(None, 30053, served=False)]
    # And to a frontend that it has no more.
    put(made, service("s", ports=ports))
    assert taken(made) == [StaleFrontend(None, 30053, served=True)]
    put(made, service("s", ports=[ports[0] | {"port": 54}]))
    assert taken(made) == [
        StaleFrontend(virtual, 53, served=True),
        StaleFrontend(virtual, 54, served=False),
    ]
    drop(made, "Service", "s")
    assert set(taken(made)) == {StaleEndpoint(IPv4Address(f"10.244.1.{n}"), 5353) for n in (6, 7)}
    assert taken(made) == []


def test_triggers_and_changes_are_counted() -> None:
    made = inventory(service("s"))
    services = made.services

    def write(second: str, *addresses: str) -> None:
        put(made, endpoint_slice("s-1", "s", addresses, triggered=f"1970-01-01T00:00:{second}Z"))

    write("02.5", "10.244.1.5")
    write("01.123456789", "10.244.1.6")
    write("02", "10.244.1.5")
    write("01.5", "10.244.1.6")
    assert services.take_triggers() == {"default/s": 1.123456}
    assert services.take_triggers() == {}
    write("03", "10.244.1.6")  # nothing but the time
    write("x", "10.244.1.7")
    assert services.take_triggers() == {}
    assert (services.service_changes, services.endpoint_changes) == (1, 6)
    write("04", "10.244.1.8")
    drop(made, "Service", "s")
    assert services.take_triggers() == {}


def test_host_gets_its_ports_addresses_and_health_checks() -> None:
    made = inventory(service("t", clusterIP="10.96.0.2", externalIPs=["198.51.100.1"]))
    services = made.services
    balanced = {
        "type": "LoadBalancer",
        "ports": [{"name": "a", "port": 81, "nodePort": 30081},
                  {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}],
        "ingress": [{"ip": "198.51.100.2"}, {"ip": "198.51.100.1"}],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30099,
    }  # fmt: skip
    first = services.hosts.revision("node1")
    put(made, service("s", **balanced))
    second = services.hosts.revision("node1")
    assert first != second
    found = services.hosts.wanted("node1")
    assert found.node_ports == (
        HostNodePort(6, 30081, "default/s"),
        HostNodePort(17, 30053, "default/s"),
    )
    assert [str(address) for address in found.addresses] == ["198.51.100.1", "198.51.100.2"]
    assert found.health_checks == (HealthCheck(30099, "default/s", 0),)
    assert services.hosts.wanted("node2") is found
    # Of one node only that node hears; each address counts once, and only where it is ready.
    of = [endpoint("10.244.1.5"), endpoint("10.244.1.6"),
          endpoint("10.244.1.7", ready=False, serving=True, terminating=True)]  # fmt: skip
    both = [{"name": "a", "port": 1}, {"name": "b", "port": 2, "protocol": "UDP"}]
    put(made, endpoint_slice("s-1", "s", of, both))
    assert services.hosts.wanted("node1").health_checks == (HealthCheck(30099, "default/s", 2),)
    assert services.hosts.wanted("node2") is found
    assert services.hosts.revision("node1") != second == services.hosts.revision("node2")
    third = services.hosts.revision("node1")
    put(made, endpoint_slice("s-1", "s", of[:1], both))
    assert services.hosts.revision("node1") != third
    # The last one goes: that is a change as well, for which its agent waits.
    changes = services.hosts.changes
    put(made, endpoint_slice("s-1", "s", [], both))
    assert services.hosts.wanted("node1").health_checks == (HealthCheck(30099, "default/s", 0),)
    assert services.hosts.changes > changes
    # Both Services have this address; it goes with the last.
    drop(made, "Service", "t")
    assert services.hosts.wanted("node2").addresses == found.addresses
    assert services.hosts.revision("node2") != second
    second = services.hosts.revision("node2")
    drop(made, "Service", "s")
    assert services.hosts.wanted("node1") == type(found)((), (), ())
    assert services.hosts.revision("node2") != second


def test_controllers_with_other_histories_agree_on_revisions() -> None:
    """Otherwise each agent would fetch its document anew when a controller ends."""
    balanced = {
        "type": "LoadBalancer",
        "ports": [{"name": "a", "port": 81, "nodePort": 30081}],
        "ingress": [{"ip": f"198.51.100.{number}"} for number in range(1, 9)],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30099,
    }
    ports = [{"name": "a", "port": 1}]
    parts = [
        service("s", **balanced),
        service("t", clusterIP="10.96.0.2", externalIPs=["198.51.100.1"]),
        endpoint_slice("s-1", "s", [endpoint("10.244.1.5"), endpoint("10.244.1.6")], ports),
    ]
    one, other = inventory(), inventory()
    for part in parts:
        put(one, part)
    put(other, service("gone", type="NodePort", ports=[{"port": 9, "nodePort": 30009}]))
    put(other, parts[2])
    put(other, service("s", **{**balanced, "healthCheckNodePort": 30098}))
    for part in parts:
        put(other, part)
    hosts = [made.services.hosts for made in (one, other)]
    assert hosts[0].revision("node1") != hosts[1].revision("node1")
    drop(other, "Service", "gone")
    for node in ("node1", "node2"):
        assert hosts[0].wanted(node) == hosts[1].wanted(node)
        assert hosts[0].revision(node) == hosts[1].revision(node)
    assert hosts[0].revision("node1") != hosts[0].revision("node2")


def test_removed_services_leave_no_trace() -> None:
    made = inventory(
        service(
            "s",
            externalIPs=["198.51.100.1"],
            internalTrafficPolicy="Local",
            type="NodePort",
            ports=[{"port": 80, "nodePort": 30080}],
        ),
        endpoint_slice("s-1", "s", ["10.244.1.5"], [{"port": 6081, "protocol": "UDP"}]),
        endpoint_slice("s-2", "s", ["10.244.1.5"]),
    )
    for name in ("s-1", "s-2"):
        drop(made, "EndpointSlice", name)
    drop(made, "Service", "s")
    for name, kept in vars(made.services).items():
        if isinstance(kept, dict | set) and name != "_node_addresses":
            assert not kept, name
    assert not len(made.services._groups)


def test_udp_to_an_address_of_a_node_is_flushed_under_both_addresses() -> None:
    """The node's own stack has translated the address before the switch sees the packet."""
    ports = [{"port": 53, "protocol": "UDP"}]
    fields = {"externalIPs": ["172.30.1.1"], "ports": ports}
    made = inventory(service("s", **fields), endpoint_slice("s-1", "s", ["10.244.1.5"], ports))
    taken(made)
    put(made, service("s", ports=ports))
    assert taken(made) == [
        StaleFrontend(IPv4Address("172.30.1.1"), 53, served=True),
        StaleFrontend(names.HOST_DNAT_RANGE[0], 53, served=True),
    ]
    put(made, service("s", **fields))
    assert taken(made) == [
        StaleFrontend(IPv4Address("172.30.1.1"), 53, served=False),
        StaleFrontend(names.HOST_DNAT_RANGE[0], 53, served=False),
    ]


def test_udp_of_another_service_with_the_same_endpoints_stays() -> None:
    udp = [{"port": 53, "protocol": "UDP"}]
    both = ["10.244.1.5", "10.244.1.6"]
    made = inventory(
        *(service(name, clusterIP=f"10.96.0.{n}", ports=udp) for n, name in enumerate("st", 1)),
        *(endpoint_slice(f"{name}-1", name, both, udp) for name in "st"),
    )
    taken(made)
    first, second = (IPv4Address(f"10.96.0.{n}") for n in (1, 2))
    left = IPv4Address("10.244.1.6")
    # One of them loses an endpoint that the other has.
    put(made, endpoint_slice("s-1", "s", both[:1], udp))
    assert taken(made) == [StalePair(first, 53, left, 53)]
    # It goes.
    drop(made, "Service", "s")
    assert taken(made) == [StaleFrontend(first, 53, served=True)]
    # The other one is the last that has them.
    put(made, endpoint_slice("t-1", "t", both[:1], udp))
    assert taken(made) == [StaleEndpoint(left, 53)]
    drop(made, "Service", "t")
    assert taken(made) == [StaleEndpoint(IPv4Address(both[0]), 53)]
    assert not made.services.stale_udp._uses
    assert not made.services.stale_udp._served
    assert second not in made.services._named


UDP_53 = [{"port": 53, "protocol": "UDP"}]


def test_endpoint_that_came_back_leaves_stale_what_did_not_come_back_with_it() -> None:
    first, second = IPv4Address("10.96.0.1"), IPv4Address("198.51.100.1")
    place = IPv4Address("10.244.1.5")
    made = inventory(
        service("s", ports=UDP_53, externalIPs=[str(second)]),
        service("t", ports=UDP_53, clusterIP="10.96.0.2"),
        endpoint_slice("s-1", "s", [str(place)], UDP_53),
    )
    stale_udp = made.services.stale_udp
    stale_udp.take()
    put(made, endpoint_slice("s-1", "s", [], UDP_53))
    (lost,) = stale_udp.take()
    assert stale_udp.narrowed(lost) == (lost,)
    # To another Service: it has no part in the connections of the first one.
    put(made, endpoint_slice("t-1", "t", [str(place)], UDP_53))
    pairs = tuple(StalePair(at, 53, place, 53) for at in (first, second))
    assert stale_udp.narrowed(lost) == pairs
    assert stale_udp.narrowed(pairs[0]) == pairs[:1]
    # To the same one.
    changes = stale_udp.changes
    put(made, endpoint_slice("s-1", "s", [str(place), "10.244.1.6"], UDP_53))
    assert stale_udp.changes > changes
    assert stale_udp.narrowed(lost) == ()
    assert stale_udp.narrowed(pairs[0]) == ()


def test_frontend_that_came_back_leaves_stale_its_old_endpoints() -> None:
    external = "198.51.100.1"
    old, new, both = (IPv4Address(f"10.244.1.{n}") for n in (5, 6, 7))
    made = inventory(
        service("s", ports=UDP_53, externalIPs=[external]),
        service("t", ports=UDP_53, clusterIP="10.96.0.2"),
        endpoint_slice("s-1", "s", [str(old), str(both)], UDP_53),
        endpoint_slice("t-1", "t", [str(new), str(both)], UDP_53),
    )
    stale_udp = made.services.stale_udp
    stale_udp.take()
    put(made, service("s", ports=UDP_53))
    (lost,) = stale_udp.take()
    assert stale_udp.narrowed(lost) == (lost,)
    put(made, service("t", ports=UDP_53, clusterIP="10.96.0.2", externalIPs=[external]))
    assert stale_udp.narrowed(lost) == (StalePair(IPv4Address(external), 53, old, 53),)
    (won,) = stale_udp.take()
    assert won == StaleFrontend(IPv4Address(external), 53, served=False)
    assert stale_udp.narrowed(won) == (won,)


def test_too_many_pairs_are_flushed_together_though_some_came_back() -> None:
    addresses = [f"10.244.1.{n}" for n in range(1, MAX_PAIRS + 3)]
    external = "198.51.100.1"
    made = inventory(
        service("s", ports=UDP_53, externalIPs=[external]),
        endpoint_slice("s-1", "s", addresses, UDP_53),
    )
    stale_udp = made.services.stale_udp
    stale_udp.take()
    put(made, service("s", ports=UDP_53))
    (lost,) = stale_udp.take()
    put(made, endpoint_slice("s-1", "s", addresses[:1], UDP_53))
    put(made, service("s", ports=UDP_53, externalIPs=[external]))
    assert stale_udp.narrowed(lost) == (lost,)
    put(made, endpoint_slice("s-1", "s", addresses[:2], UDP_53))
    assert len(stale_udp.narrowed(lost)) == MAX_PAIRS


def test_groups_of_a_service_and_nodes_with_their_own_choice() -> None:
    made = inventory(
        service("s", internalTrafficPolicy="Local"),
        endpoint_slice("s-1", "s", [endpoint("10.244.1.5", "node1", zones=["a", "b"]),
                                    endpoint("10.244.2.5", "node2", nodes=["node1"])]),
    )  # fmt: skip
    port = only_port(made)
    assert list(port.groups) == ["cluster", "local", "node", "zone a", "zone b"]
    assert len(set(port.groups.values())) == 5
    assert made.view.local_services == {node: {"default/s"} for node in ("node1", "node2")}
    assert Key("node2", "service", "default/s") in COMPILER.keys(made.view, "node2")
    touched = put(made, service("s"))
    assert touched == {
        Key(CLUSTER_SCOPE, "service", "default/s"),
        of_port("s"),
        *(Key(node, "service", "default/s") for node in ("node1", "node2")),
    }
    assert made.view.local_services == {"node1": {"default/s"}}
    put(made, endpoint_slice("s-1", "s", ["10.244.1.5"]))
    assert list(only_port(made).groups) == ["cluster"]
    assert not made.view.local_services
    assert len(made.services._groups) == 1


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({}, (False, False)),
        ({"internalTrafficPolicy": "Local"}, (True, False)),
        ({"externalTrafficPolicy": "Local"}, (False, False)),
        ({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]}, (False, True)),
        (
            {
                "externalTrafficPolicy": "Local",
                "type": "NodePort",
                "ports": [{"port": 80, "nodePort": 30080}],
            },
            (False, True),
        ),
    ],
)
def test_local_policies(fields: dict[str, Any], local: tuple[bool, bool]) -> None:
    port = only_port(inventory(service("s", **fields)))
    assert (port.internal_local, port.external_local) == local
    assert ("local" in port.groups) == any(local)


def test_endpoint_of_a_local_service_concerns_its_node_only() -> None:
    """Thousands of nodes may have one; theirs stay as they are."""
    of = [endpoint(f"10.244.{n}.5", f"node{n}") for n in (1, 2)]
    made = inventory(service("s", internalTrafficPolicy="Local"), endpoint_slice("s-1", "s", of))
    touched = put(made, endpoint_slice("s-1", "s", [*of, endpoint("10.244.2.6", "node2")]))
    assert touched == {
        of_port("s"),
        Key("node2", "service", "default/s"),
    }


def test_later_node_gets_its_choice() -> None:
    made = inventory(
        service("s", internalTrafficPolicy="Local"),
        endpoint_slice("s-1", "s", [endpoint("10.244.3.5", "node3")]),
    )
    touched = put(made, node_object("node3", "10.244.3.0/24", "172.30.1.3"))
    assert Key("node3", "service", "default/s") in touched
