"""Whose addresses Services may take ports of, and what hosts are told of them."""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from aiohttp import ClientSession, web

from controller.api import Api
from controller.host_services import HostEndpoint, HostExternalPorts, OwnAddress
from controller.inventory import Inventory
from controller.known_addresses import KnownAddresses
from controller.reconciler import Reconciler
from flows import names
from flows.view import Frontend, HostDnatAddress
from tests.controller.events import node_object
from tests.controller.service_inventory import drop, frontends, inventory, only_port, put
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.controller.world import SETTINGS
from tests.flows.worlds import CLUSTER
from wire.documents import MAX_ADDRESSES, NodeAddresses, encode

EXTERNAL = IPv4Address("198.51.100.1")
LAST = names.HOST_DNAT_RANGE[-1]


def api_servers(*addresses: str) -> Any:
    return endpoint_slice("kubernetes", "kubernetes", addresses, [{"port": 6443}])


def guarded(address: str) -> Inventory:
    made = Inventory(CLUSTER, protected={IPv4Address(address): "the address of a controller"})
    made.set_object(node_object("node1", "10.244.1.0/24", "172.30.1.1"))
    made.settle()
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: guarded("198.51.100.1"), "the address of a controller"),
        (lambda: inventory(api_servers("198.51.100.1")), "the address of an API server"),
        (lambda: inventory(api_servers("198.51.100.2")), ""),
    ],
)
@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("spec.externalIPs[0]", {"externalIPs": ["198.51.100.1"]}),
        (
            "status.loadBalancer.ingress[0].ip",
            {"type": "LoadBalancer", "ingress": [{"ip": "198.51.100.1"}]},
        ),
        ("spec.clusterIP", {"clusterIP": "198.51.100.1"}),
    ],
)
def test_service_cannot_take_an_address_that_the_cluster_needs(
    made: Callable[[], Inventory], why: str, field: str, fields: dict[str, Any]
) -> None:
    found = made()
    put(found, service("s", **fields))
    problem = found.problems.texts().get("Service default/s", "")
    assert problem == (f"{field}: 198.51.100.1 is {why}" if why else "")
    served = any("198.51.100.1" in each for each in frontends(found))
    assert served == (not why)
    assert (EXTERNAL in found.services.hosts.wanted("node1").addresses) == (not why)
    assert (EXTERNAL in found.services.hosts.wanted("node1").protected) == bool(why)


def test_later_api_server_gets_its_address_back() -> None:
    made = inventory(service("s", externalIPs=["198.51.100.1"]))
    revision = made.services.hosts.revision("node1")
    put(made, api_servers("198.51.100.1"))
    assert frontends(made) == ["10.96.0.1:80/6"]
    assert made.services.hosts.revision("node1") != revision
    drop(made, "EndpointSlice", "kubernetes")
    assert frontends(made) == ["10.96.0.1:80/6", "198.51.100.1:80/6e"]
    assert made.services.hosts.wanted("node1").protected == ()


@pytest.mark.parametrize("port", [22, 10250])
def test_service_cannot_take_a_reserved_port_of_a_node(port: int) -> None:
    made = inventory(service("s", externalIPs=["172.30.1.1"], ports=[{"port": port}]))
    assert frontends(made) == [f"10.96.0.1:{port}/6"]
    assert "172.30.1.1 is reserved for" in made.problems.texts()["Service default/s"]
    made = inventory(
        service("s", type="NodePort", ports=[{"port": 80, "nodePort": port}]),
    )
    assert frontends(made) == ["10.96.0.1:80/6"]
    assert "nodePort: " in made.problems.texts()["Service default/s"]


def test_hosts_are_told_ports_of_external_addresses() -> None:
    """Addresses with the same ports once, whatever their number; ClusterIPs as a whole."""
    made = inventory(
        service(
            "s",
            clusterIP="10.97.0.1",
            externalIPs=["198.51.100.1", "198.51.100.2"],
            ports=[{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}],
        ),
        service("t", clusterIP="10.96.0.2", externalIPs=["198.51.100.1"], ports=[{"port": 81}]),
    )
    found = made.services.hosts.wanted("node1")
    both = EXTERNAL, EXTERNAL + 1
    assert found.addresses == (IPv4Address("10.97.0.1"), *both)
    assert found.external_ports == (
        HostExternalPorts(both, ((6, 80), (17, 53)), "default/s"),
        HostExternalPorts((EXTERNAL,), ((6, 81),), "default/t"),
    )


# --- addresses that are on a host for the moment ---


def test_service_address_bound_by_kube_vip_is_served() -> None:
    """It works on that node too; others go on to send it into their switches."""
    made = inventory(
        service("s", type="LoadBalancer", ingress=[{"ip": "198.51.100.1"}]),
    )
    bound = (EXTERNAL, IPv4Address("172.30.1.1"), IPv4Address("192.0.2.9"))
    made.report_addresses("node1", bound)
    made.settle()
    host_dnat = (HostDnatAddress("node1", LAST),)
    assert only_port(made).frontends[1] == Frontend(EXTERNAL, 80, True, host_dnat=host_dnat)
    assert made.view.local_services == {"node1": {"default/s"}}
    own = OwnAddress(EXTERNAL, 6, 80, LAST, "default/s")
    assert made.services.hosts.wanted("node1").own_addresses == (own,)
    for node in ("node1", "node2"):
        assert made.services.hosts.wanted(node).addresses == (EXTERNAL,)
    assert not made.problems
    # It moves.
    made.report_addresses("node1", bound[1:])
    made.report_addresses("node2", bound[:1])
    made.settle()
    assert made.services.hosts.wanted("node1").own_addresses == ()
    assert made.services.hosts.wanted("node2").own_addresses == (own,)
    # The node goes, and what it reported with it.
    drop(made, "Node", "node2")
    assert only_port(made).frontends[1] == Frontend(EXTERNAL, 80, True)


def test_reports_of_unknown_nodes_are_ignored() -> None:
    made = inventory(service("s", externalIPs=["198.51.100.1"]))
    made.report_addresses("stranger", [EXTERNAL])
    made.settle()
    assert only_port(made).frontends[1].host_dnat == ()


def test_host_dnat_addresses_are_for_addresses_that_services_name() -> None:
    known = KnownAddresses({})
    many = [IPv4Address("192.0.2.0") + n for n in range(64)]
    known.report("node1", many)
    assert known.host_dnat(many[5]) == ()
    assert known.service_address_added(many[5]) == {many[5]}
    assert known.host_dnat(many[5]) == (HostDnatAddress("node1", LAST),)
    # Which has which depends on what is there, not on the order it came in.
    assert known.service_address_added(many[4]) == {many[4], many[5]}
    assert known.host_dnat(many[4]) == (HostDnatAddress("node1", LAST),)
    assert known.host_dnat(many[5]) == (HostDnatAddress("node1", LAST - 1),)
    for address in many:
        known.service_address_added(address)
    given = [known.host_dnat(address) for address in many]
    assert sum(map(bool, given)) == names.HOST_DNAT_RANGE.num_addresses
    known.report("node1", ())
    assert not any(known.host_dnat(address) for address in many)


# --- endpoints that are the host itself ---


def test_the_host_translates_to_itself_where_the_policy_is_local() -> None:
    """So that a process in the host's network sees the client's own address."""
    fields = {
        "type": "LoadBalancer",
        "ports": [{"port": 80, "nodePort": 30080}],
        "ingress": [{"ip": "198.51.100.1"}],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30099,
    }
    on_host = endpoint("172.30.1.1", "node1")
    made = inventory(
        service("s", **fields),
        endpoint_slice("s-1", "s", [on_host, endpoint("10.244.2.5", "node2")]),
    )
    address = IPv4Address("172.30.1.1")
    assert made.services.hosts.wanted("node1").host_endpoints == (
        HostEndpoint(EXTERNAL, 6, 80, address, 8080, "default/s"),
        HostEndpoint(None, 6, 30080, address, 8080, "default/s"),
    )
    assert made.services.hosts.wanted("node2").host_endpoints == ()
    # The switch checks source ranges, and chooses where there is more than one.
    put(made, service("s", **fields, loadBalancerSourceRanges=["192.0.2.0/24"]))
    (only,) = made.services.hosts.wanted("node1").host_endpoints
    assert only.address is None
    put(made, endpoint_slice("s-1", "s", [on_host, endpoint("10.244.1.5", "node1")]))
    assert made.services.hosts.wanted("node1").host_endpoints == ()
    put(made, endpoint_slice("s-1", "s", [on_host]))
    assert made.services.hosts.wanted("node1").host_endpoints
    put(made, service("s", **fields | {"externalTrafficPolicy": "Cluster"}))
    assert made.services.hosts.wanted("node1").host_endpoints == ()


def test_whether_an_endpoint_is_the_host_follows_its_node() -> None:
    made = inventory(
        service("s", type="NodePort", ports=[{"port": 80, "nodePort": 30080}],
                externalTrafficPolicy="Local"),
        endpoint_slice("s-1", "s", [endpoint("172.30.1.3", "node3")]),
    )  # fmt: skip
    assert made.services.hosts.wanted("node3").host_endpoints == ()
    put(made, node_object("node3", "10.244.3.0/24", "172.30.1.3"))
    assert len(made.services.hosts.wanted("node3").host_endpoints) == 1


# --- over HTTP ---


def test_agent_reports_its_host_s_addresses_by_http() -> None:
    async def story() -> None:
        reconciler = Reconciler(inventory(service("s", externalIPs=["198.51.100.1"])))
        reconciler.listed.set()
        runner = web.AppRunner(Api(reconciler, SETTINGS).application(local=True), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

                async def report(node: str, body: bytes) -> int:
                    async with session.post(f"/v1/nodes/{node}/addresses", data=body) as response:
                        return response.status

                whole = encode(NodeAddresses((EXTERNAL,)))
                assert await report("node9", whole) == 404
                assert await report("node1", b"{") == 400
                assert await report("node1", b'{"addresses":["x"]}') == 400
                many = tuple(EXTERNAL + n for n in range(MAX_ADDRESSES + 1))
                assert await report("node1", encode(NodeAddresses(many))) == 400
                assert await report("node1", whole) == 204
                assert only_port(reconciler.inventory).frontends[1].host_dnat
                # A stolen node does not keep the controller busy with it.
                statuses = [await report("node1", whole) for _ in range(10)]
                assert 429 in statuses
                assert await report("node2", whole) == 204
                assert len(only_port(reconciler.inventory).frontends[1].host_dnat) == 2
        finally:
            await runner.cleanup()

    asyncio.run(story())
