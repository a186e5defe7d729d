"""What `make kernel-bench` makes of what it finds; the emulated machine itself is not booted."""

import msgspec
import pytest

from bench import flannel, kernel, kernel_guest
from bench.kernel_guest import Lookups, Network, Results, Turn
from lab import LabError
from lab.guest import Guest
from lab.layout import LabLayout

NODES = LabLayout("unit").nodes(2)

SHOWN = """system@ovs-system:
  lookups: hit:59486 missed:856 lost:0
  flows: 856
  masks: hit:94547 total:11 hit/pkt:1.57
  port 0: ovs-system (internal)
"""


def results(*turns: Turn) -> bytes:
    seen = Lookups("crr", "service", 1000, transactions=100.0, hits=4000, misses=10)
    return msgspec.json.encode(Results(turns=list(turns), lookups=[seen]))


def turns(kind: str, route: str, services: int) -> list[Turn]:
    return [
        Turn(kind, route, services, {"sluice": mine, "flannel": 100.0})
        for mine in (90.0, 130.0, 125.0)
    ]


def test_ratios_are_taken_turn_by_turn_and_named_after_route_and_services():
    measured = [
        turn
        for services in (10, 1000)
        for kind, route in kernel_guest.MEASURED
        for turn in turns(kind, route, services)
    ]
    figures = {f.name: f for f in kernel.figures_of(results(*measured), most=1000)}
    figure = figures["kernel_crr_service_vs_flannel"]
    assert (figure.value, min(figure.samples), max(figure.samples)) == (1.25, 0.9, 1.3)
    assert figure.met
    assert figures["kernel_crr_service_vs_flannel.flannel"].unit == "transactions/s"
    assert figures["kernel_crr_service_vs_flannel.lookups"].value == pytest.approx(40.1)
    assert figures["kernel_crr_service_vs_flannel.upcalls"].value == pytest.approx(0.1)
    assert {f.name for f in figures.values() if f.aim} == set(kernel.AIMS)
    assert {"kernel_stream_10_vs_flannel", "kernel_crr_endpoint_10_vs_flannel"} < {*figures}


def test_a_guest_that_measured_too_little_is_an_error():
    with pytest.raises(LabError, match="not measured: rr, direct, 10 Services"):
        kernel.figures_of(results(*turns("stream", "direct", 10)), most=10)


def test_lookups_of_a_datapath_are_read():
    assert kernel_guest.hits_and_misses(SHOWN) == (59486, 856)
    with pytest.raises(ValueError, match="no lookups"):
        kernel_guest.hits_and_misses("system@ovs-system:\n")


def test_only_the_direct_route_leads_to_a_port_where_no_service_has_endpoints():
    network = Network("sluice", "client", "server", "10.244.2.2")
    endpoints = {
        (endpoint["addresses"][0], str(manifest["ports"][0]["port"]))
        for manifest in kernel_guest.manifests(NODES, network.address, range(1000))
        if manifest["kind"] == "EndpointSlice"
        for endpoint in manifest["endpoints"]
    }
    for kind in ("stream", "crr"):
        assert network.target(kind, "endpoint") in endpoints
        assert network.target(kind, "direct") not in endpoints
        address, port = network.target(kind, "service")
        assert address.startswith("10.96.")
        assert port == network.target(kind, "endpoint")[1]


def test_all_named_services_are_there_once():
    named = [
        manifest["metadata"]["name"]
        for manifest in kernel_guest.manifests(NODES, "10.244.2.2", range(10))
        if manifest["kind"] == "Service"
    ]
    assert named == [f"service-{number}" for number in range(10)]


def test_flannel_masquerades_only_what_leaves_the_pod_range():
    rules = flannel.rules(NODES[0])
    returns = [line.split() for line in rules.splitlines() if line.endswith(" return")]
    assert [words[-2] for words in returns] == [
        "0x4000",
        "10.244.0.0/16",
        "10.244.1.0/24",
        "10.244.0.0/16",
    ]
    assert rules.count("masquerade fully-random") == 2


def test_a_guest_has_the_datapath_of_the_kernel_and_long_timeouts():
    script = Guest("unit", ["echo", "a b"], environment={"TERM": "linux"}).script()
    assert script == "env SLUICE_PATIENCE=8 SLUICE_DATAPATH=system TERM=linux echo 'a b'\n"
