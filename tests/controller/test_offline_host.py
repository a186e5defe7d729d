"""What a node's own stack would do, computed from what its agent would make it."""

import asyncio
from ipaddress import IPv4Address
from typing import Any, Literal

import pytest

from controller.inventory import Inventory
from controller.offline.host import UPLINK, OfflineHost
from flows import names
from tests.controller.address_pools import balancer, namespace, pool
from tests.controller.service_inventory import inventory
from tests.controller.service_objects import endpoint_slice, service
from wire.questions import HostTrace, Packet, TraceHost, Translation
from wire.tracing.host import trace_host

NODE, OTHER_NODE, GATEWAY = "172.30.1.1", "172.30.1.2", "10.244.1.1"
POD, OTHER_POD, CLIENT = "10.244.1.5", "10.244.2.5", "203.0.113.10"
NOBODY = "0.0.0.0"
NODE_PORT, OWN = str(names.NODE_PORT_ADDRESS), str(names.HOST_DNAT_RANGE[0])
TCP, ICMP, SOURCE_PORT = 6, 1, 40_000


@pytest.fixture(scope="module")
def cluster() -> Inventory:
    def ports(number: int) -> list[dict[str, int]]:
        return [{"port": 80, "nodePort": number}]

    made = inventory(
        namespace("default"),
        pool("edge", "203.0.113.64/30"),
        balancer("balanced", has="203.0.113.65", clusterIP="10.96.0.5"),
        service("web", type="NodePort", ports=ports(30080)),
        service("wide", clusterIP="10.96.0.2", externalIPs=["192.0.2.16"]),
        service("own", clusterIP="10.96.0.3", externalIPs=[NODE], ports=[{"port": 8443}]),
        service(
            "host", clusterIP="10.96.0.4", type="NodePort", ports=ports(30081),
            externalTrafficPolicy="Local",
        ),
        endpoint_slice("host-1", "host", [NODE], [{"port": 9000}]),
        service("whole", clusterIP="198.51.100.7"),
    )  # fmt: skip
    made.load_balancers.refresh()
    return made


def asked(
    cluster: Inventory,
    comes_from: Literal["process", "outside", "switch"],
    source: str,
    to: str,
    port: int = 0,
    **more: Any,
) -> HostTrace:
    protocol = TCP if port else ICMP
    given = Packet(
        protocol, IPv4Address(source), IPv4Address(to),
        SOURCE_PORT if port else 8, port, more.pop("reply", False),
    )  # fmt: skip
    host = OfflineHost(cluster, cluster.view.nodes["node1"])
    return asyncio.run(trace_host(host, TraceHost(given, comes_from, **more)))


@pytest.mark.parametrize(
    ("comes_from", "source", "to", "port", "expected"),
    [
        # By NodePort, by an address of the node itself, and to an endpoint on the node itself.
        ("outside", CLIENT, NODE, 30080, f"switch {CLIENT} > {NODE_PORT}:30080"),
        ("process", NOBODY, NODE, 30080, f"switch {NODE} > {NODE_PORT}:30080"),
        ("outside", CLIENT, NODE, 8443, f"switch {CLIENT} > {OWN}:8443"),
        ("outside", CLIENT, NODE, 30081, f"process {CLIENT} > {NODE}:9000"),
        ("process", NOBODY, NODE, 30081, f"switch {NODE} > {NODE_PORT}:30081"),
        # The switch itself translates its pods' connections to NodePorts.
        ("switch", POD, NODE, 30080, f"process {POD} > {NODE}:30080"),
        # Pods, Services and their other addresses.
        ("process", NOBODY, "10.96.0.1", 80, f"switch {GATEWAY} > 10.96.0.1:80"),
        ("process", NOBODY, OTHER_POD, 80, f"switch {GATEWAY} > {OTHER_POD}:80"),
        ("process", NODE, OTHER_POD, 80, f"switch {GATEWAY} > {OTHER_POD}:80"),
        ("process", NODE, POD, 80, f"switch {NODE} > {POD}:80"),
        ("outside", CLIENT, "192.0.2.16", 80, f"switch {CLIENT} > 192.0.2.16:80"),
        ("outside", CLIENT, "192.0.2.16", 81, f"outside {CLIENT} > 192.0.2.16:81"),
        ("process", NOBODY, "192.0.2.16", 80, f"switch {NODE} > 192.0.2.16:80"),
        ("outside", CLIENT, "203.0.113.65", 80, f"switch {CLIENT} > 203.0.113.65:80"),
        ("outside", CLIENT, "203.0.113.65", 81, f"dropped {CLIENT} > 203.0.113.65:81"),
        ("process", NOBODY, "203.0.113.65", 80, f"switch {NODE} > 203.0.113.65:80"),
        ("process", NOBODY, "198.51.100.7", 81, f"switch {GATEWAY} > 198.51.100.7:81"),
        # To the world outside.
        ("process", NOBODY, CLIENT, 80, f"outside {NODE} > {CLIENT}:80"),
        ("switch", POD, CLIENT, 80, f"outside {NODE} > {CLIENT}:80"),
        ("switch", names.HAIRPIN_ADDRESS, CLIENT, 80, f"outside {NODE} > {CLIENT}:80"),
        ("switch", POD, OTHER_NODE, 22, f"outside {NODE} > {OTHER_NODE}:22"),
        ("switch", POD, CLIENT, 0, f"outside {NODE} > {CLIENT}:0"),
        # To the node itself.
        ("outside", CLIENT, NODE, 22, f"process {CLIENT} > {NODE}:22"),
        ("process", NOBODY, NODE, 22, f"process {NODE} > {NODE}:22"),
        ("process", NOBODY, "127.0.0.1", 30080, "process 127.0.0.1 > 127.0.0.1:30080"),
        ("switch", POD, GATEWAY, 0, f"process {POD} > {GATEWAY}:0"),
        # What the switch cannot serve, and what nobody may send.
        ("switch", POD, "10.96.0.99", 80, f"dropped {POD} > 10.96.0.99:80"),
        ("switch", POD, "127.0.0.1", 80, f"dropped {POD} > 127.0.0.1:80"),
    ],
)
def test_packets_go_as_the_agent_makes_it(
    cluster: Inventory, comes_from: Any, source: str, to: str, port: int, expected: str
) -> None:
    found = asked(cluster, comes_from, str(source), to, port)
    after = found.packet
    said = f"{found.goes_to} {after.source} > {after.destination}:{after.destination_port}"
    assert said == expected


def test_reply_is_translated_back(cluster: Inventory) -> None:
    there = asked(cluster, "switch", POD, CLIENT, 80)
    assert (there.device, there.first.source) == (UPLINK, IPv4Address(POD))
    answer = Packet(TCP, IPv4Address(CLIENT), IPv4Address(NODE), 80, SOURCE_PORT, is_reply=True)
    host = OfflineHost(cluster, cluster.view.nodes["node1"])
    assumed = (Translation(there.first, there.packet),)
    back = asyncio.run(trace_host(host, TraceHost(answer, "outside", assumed)))
    assert (back.goes_to, back.packet.destination) == ("switch", IPv4Address(POD))


def test_nobody_knows_which_processes_listen(cluster: Inventory) -> None:
    found = asked(cluster, "outside", CLIENT, NODE, 22)
    assert found.is_listener_unknown
    assert found.sentences[-1] == (
        "it is for the node itself; whether a process listens on 172.30.1.1:22 is unknown"
    )
    assert not asked(cluster, "outside", CLIENT, NODE).is_listener_unknown
