"""Services and slices of any content: taken or refused, and never anything else."""

from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.inventory import Inventory
from controller.service_costs import ServiceCosts
from controller.service_drafts import MAX_PORTS
from controller.sources.objects import ObjectError, from_manifest
from flows import names
from flows.compile import COMPILER, Program
from flows.flow import ToGroup
from flows.view import CLUSTER_SCOPE
from tests.controller.service_inventory import drop, frontends, inventory, put
from tests.controller.service_objects import endpoint_slice, service

ODD = st.sampled_from(
    [None, "", "x", "None", "a/b", "\x00", "10.96.0.1", "10.244.1.5", "::ffff:10.0.0.1",
     "010.1.1.1", "0.0.0.0/0", "TCP", "IPv4", "x" * 5000, 0, -1, 80, 6081, 2**70, True, 1.5, [], {}]
)  # fmt: skip
TEXTS = st.lists(ODD, max_size=3)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def mostly(usual: Any) -> st.SearchStrategy[Any]:
    return st.one_of(*[st.just(usual)] * 4, ODD)


service_specs = some(
    type=mostly("LoadBalancer"),
    clusterIP=mostly("10.96.0.1"),
    clusterIPs=mostly(["10.96.0.1"]),
    ipFamilies=st.one_of(st.just(["IPv4"]), TEXTS),
    ports=st.lists(
        some(port=mostly(80), name=mostly("a"), protocol=mostly("UDP"), nodePort=mostly(30080)),
        max_size=3,
    ),
    externalIPs=st.one_of(st.just(["198.51.100.1"]), TEXTS),
    loadBalancerSourceRanges=st.one_of(st.just(["10.0.0.0/8"]), TEXTS),
    externalTrafficPolicy=mostly("Local"),
    internalTrafficPolicy=mostly("Local"),
    sessionAffinity=mostly("ClientIP"),
    sessionAffinityConfig=st.one_of(
        ODD, some(clientIP=st.one_of(ODD, some(timeoutSeconds=mostly(10))))
    ),
    healthCheckNodePort=mostly(30081),
)
statuses = some(loadBalancer=some(ingress=st.lists(some(ip=ODD, ipMode=ODD), max_size=2)))
slice_endpoints = some(
    addresses=st.one_of(st.just(["10.244.1.5"]), TEXTS),
    conditions=some(ready=mostly(True), serving=ODD, terminating=ODD),
    nodeName=mostly("node1"),
    hints=some(forZones=st.lists(some(name=mostly("a")), max_size=2),
               forNodes=st.lists(some(name=mostly("node1")), max_size=2)),
)  # fmt: skip


@given(
    service_specs,
    statuses,
    st.lists(slice_endpoints, max_size=3),
    st.lists(some(name=mostly("a"), protocol=mostly("UDP"), port=mostly(5353)), max_size=2),
    mostly("2026-01-01T00:00:00Z"),
)
@settings(max_examples=500, deadline=None)
def test_any_content_is_accepted_or_refused(spec, status, endpoints, ports, triggered) -> None:
    made = inventory()
    for manifest in (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec,
         "status": status},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {
             "name": "s-1",
             "labels": {"kubernetes.io/service-name": "s"},
             "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
         },
         "endpoints": endpoints, "ports": ports},
    ):  # fmt: skip
        with suppress(ObjectError):
            made.set_object(from_manifest(manifest))
    made.settle()
    for problem in made.problems.texts().values():
        assert len(problem) < 1500
        assert "\x00" not in problem
    for served in made.view.services.values():
        for port in served.ports:
            assert port.frontends
            assert all(0 < each.port < 65536 for each in (*port.frontends, *port.endpoints))
            assert all(each in names.GROUPS for each in port.groups.values())
    made.services.take_triggers()
    for node in ("node1", "x"):
        made.services.hosts.wanted(node)
    made.remove_object("Service", "default", "s")
    made.remove_object("EndpointSlice", "default", "s-1")
    made.settle()
    assert not made.problems
    assert not made.services._claims


# --- Services that are made to multiply ---


def many_addresses(count: int, first: str = "198.18.0.0") -> list[str]:
    return [str(IPv4Address(first) + number) for number in range(count)]


def many_ports(count: int) -> list[dict[str, Any]]:
    return [{"name": f"p{number}", "port": 1 + number} for number in range(count)]


def flows_of(made: Inventory) -> Program:
    """All that every switch holds of Services."""
    kinds = {"service", "service-port"}
    keys = sorted(key for key in COMPILER.keys(made.view, CLUSTER_SCOPE) if key.kind in kinds)
    program = Program(CLUSTER_SCOPE)
    program.update(COMPILER.fragments(made.view, keys))
    return program


@pytest.mark.parametrize(
    ("addresses", "ports", "served", "first_refused"),
    [
        (20, 200, 20, None),
        (64, 64, 64, None),
        (200, 200, 20, "spec.externalIPs[20]"),
        (500, 500, 8, "spec.externalIPs[8]"),
        (1_000, 1_000, 4, "spec.externalIPs[4]"),
        (5_000, 5_000, 4, "spec.externalIPs[4]"),
        (5_000, 1, 1_024, "spec.externalIPs[1024]"),
    ],
)
def test_cost_of_addresses_and_ports_is_their_sum(
    addresses: int, ports: int, served: int, first_refused: str | None
) -> None:
    made = inventory(
        service("s", externalIPs=many_addresses(addresses), ports=many_ports(ports)),
        service("t", clusterIP="10.96.0.2"),
    )
    problem = made.problems.texts().get("Service default/s", "")
    assert (first_refused or "") in problem
    assert bool(problem) == bool(first_refused)
    served_ports = min(ports, MAX_PORTS)
    # Of each port: at the ClusterIP, at the external addresses, and its endpoints.
    assert len(flows_of(made).cookies) <= served + 3 * served_ports + 10
    wanted = made.services.hosts.wanted("node1")
    (external,) = wanted.external_ports
    assert (len(external.addresses), len(external.ports)) == (served, served_ports)
    assert frontends(made, "t") == ["10.96.0.2:80/6"]


@pytest.mark.parametrize("ranges", [100, 1_000, 3_000])
def test_cost_of_source_ranges_is_their_sum(ranges: int) -> None:
    made = inventory(
        service(
            "s",
            type="LoadBalancer",
            ingress=[{"ip": address} for address in many_addresses(50)],
            ports=many_ports(10),
            loadBalancerSourceRanges=[f"{a}/32" for a in many_addresses(ranges, "198.19.0.0")],
        )
    )
    assert len(flows_of(made).cookies) < 50 + ranges + 100
    problem = made.problems.texts().get("Service default/s", "")
    assert ("more than 1024" in problem) == (ranges > 1_024)
    assert ("external addresses, not 50" in problem) == (ranges > 50)


def test_services_with_shared_addresses_stay_within_their_limits() -> None:
    """None of them is in a set, so that a flow names each address and port."""
    shared = many_addresses(64)
    made = inventory(
        *(
            service(
                f"s{number}",
                clusterIP=f"10.96.0.{number + 1}",
                externalIPs=shared,
                ports=[{"name": f"{port}", "port": 100 * number + port} for port in range(1, 65)],
            )
            for number in range(5)
        )
    )
    refused = [subject for subject in made.problems.texts() if subject.startswith("Service ")]
    # 16,384 pairs are a namespace's: four of them fit, and the youngest of five does not.
    assert refused == ["Service default/s4"]
    assert "than 16384 ports of external addresses" in made.problems.texts()["Service default/s4"]
    assert len(flows_of(made).cookies) < 4 * (4_096 + 3 * 64)
    drop(made, "Service", "s0")
    assert not made.problems


def test_one_namespace_cannot_use_all_of_the_capacity() -> None:
    """The oldest are served, whatever comes later; other namespaces do not notice."""
    made = inventory()
    made.services.costs = ServiceCosts("flows", limit=1_000, namespace_limit=60)
    for number in range(5):
        put(made, service(f"s{number}", clusterIP=f"10.96.0.{number + 1}", ports=many_ports(3),
                          created=f"2026-01-0{number + 1}T00:00:00Z"))  # fmt: skip
    other = service("s", clusterIP="10.96.1.1")
    elsewhere = msgspec.structs.replace(other.metadata, namespace="elsewhere")
    put(made, msgspec.structs.replace(other, metadata=elsewhere))
    assert set(made.problems.texts()) == {"Service default/s4"}
    assert "Services of namespace default would need more" in next(
        iter(made.problems.texts().values())
    )
    # The oldest grows by its endpoints: the youngest that is served makes room.
    crowd = endpoint_slice(
        "s0-1", "s0", many_addresses(8, "10.244.1.5"), [{"name": "p0", "port": 1}]
    )
    put(made, crowd)
    assert set(made.problems.texts()) == {f"Service default/s{number}" for number in (3, 4)}
    assert "elsewhere/s" in made.view.services
    drop(made, "EndpointSlice", "s0-1")
    assert set(made.problems.texts()) == {"Service default/s4"}
    for number in range(5):
        drop(made, "Service", f"s{number}")
    assert not made.problems


def test_many_ports_with_many_endpoints() -> None:
    """One endpoint less makes none of the other endpoints' buckets anew."""
    ports = many_ports(30)
    addresses = many_addresses(600, "10.244.1.5")
    slices = [
        endpoint_slice(f"s-{n:03}", "s", addresses[n : n + 100], ports) for n in range(0, 600, 100)
    ]
    made = inventory(service("s", ports=ports), *slices)
    before = flows_of(made).groups
    assert sum(len(group.buckets) for group in before.values()) > 18_000
    kept = {id(bucket) for group in before.values() for bucket in group.buckets}
    touched = put(made, endpoint_slice("s-000", "s", addresses[1:100], ports))
    # Each port is compiled by itself, so that others get their turn in between.
    assert {key.kind for key in touched} == {"service-port"}
    assert len(touched) == 30
    after = flows_of(made).groups
    new = [b for group in after.values() for b in group.buckets if id(b) not in kept]
    # Where a group chooses among groups, those are chosen anew.
    assert not [b for b in new if not any(isinstance(a, ToGroup) for a in b.actions)]
    assert not made.problems


def test_more_endpoints_than_a_service_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.services.MAX_SERVICE_ENDPOINTS", 150)
    ports = many_ports(2)
    addresses = many_addresses(100, "10.244.1.5")
    made = inventory(service("s", ports=ports), endpoint_slice("s-1", "s", addresses, ports))
    assert [len(port.endpoints) for port in made.view.services["default/s"].ports] == [100, 50]
    assert "spec.ports[1]: with its 100 endpoints" in made.problems.texts()["Service default/s"]


def test_slice_with_too_many_endpoints_and_ports_is_bounded() -> None:
    ports = many_ports(1_000)
    made = inventory(
        service("s", ports=ports[:1]),
        endpoint_slice("s-1", "s", many_addresses(1_000, "10.244.1.5"), ports),
    )
    assert len(made.view.services["default/s"].ports[0].endpoints) == 32
    assert "only the first 32 are used" in made.problems.texts()["EndpointSlice default/s-1"]


def test_udp_of_many_frontends_and_endpoints_needs_few_flushes() -> None:
    udp = [{"port": 53, "protocol": "UDP"}]
    addresses = many_addresses(200, "10.244.1.5")
    external = many_addresses(200)
    made = inventory(
        *(service(name, clusterIP=f"10.96.0.{n}", externalIPs=external if n == 1 else [],
                  ports=udp) for n, name in enumerate("st", 1)),
        *(endpoint_slice(f"{name}-1", name, addresses, udp) for name in "st"),
    )  # fmt: skip
    made.services.stale_udp.take()
    put(made, endpoint_slice("s-1", "s", addresses[:1], udp))
    assert len(made.services.stale_udp.take()) == 201
