"""Connections to Services, from everywhere, through real switches and the hosts' own stacks."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab import Lab
from lab.processes import running
from tests.lab.pings import address
from tests.lab.served import (
    A1,
    A2,
    B1,
    NODE1,
    NODE2,
    NODES,
    answering,
    answers,
    ask,
    endpoints,
    place,
    put_behind,
    serve,
    service,
    spread,
    three_servers,
    wait_until_answered,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The lab of conftest.py with three pods, each with a server."""
    with three_servers(lab):
        yield lab


def test_pod_reaches_a_service(lab: Lab) -> None:
    serve(lab, "web", "10.96.0.10", A1, A2, B1)
    wait_until_answered(lab, (A1, B1), "10.96.0.10", 80)
    for client in (A1, B1):
        heard = answers(lab, client, "10.96.0.10", 80, times=60)
        assert {each.server for each in heard} == {A1, A2, B1}
        # Without translation of the source, but for a pod that reaches itself.
        seen = {each.address for each in heard if each.server != client}
        assert seen == {address(lab, client)}
        assert {each.address for each in heard if each.server == client} == {"169.254.1.2"}


def test_service_translates_udp_to_another_port(lab: Lab) -> None:
    ports = [{"name": "UDP", "protocol": "UDP", "port": 53}, {"port": 8081}]
    serve(lab, "dns", "10.96.0.11", A2, ports=ports)
    wait_until_answered(lab, (A1, B1), "10.96.0.11", 53, "udp")
    assert answers(lab, B1, "10.96.0.11", 53, "udp")[0][:2] == (A2, address(lab, B1))
    assert answers(lab, A1, "10.96.0.11", 8081)[0][:2] == (A2, address(lab, A1))
    assert ask(lab, A1, "10.96.0.11", 53) == ["refused"]


SCTP = """
import socket, struct, sys

def packet(source, destination, tag, chunk):
    head = struct.pack("!HHI", source, destination, tag)
    crc = 0xFFFFFFFF  # CRC32c
    for byte in head + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk

def init(kind, tag):
    return struct.pack("!BBHIIHHI", kind, 0, 20, tag, 65535, 1, 1, 7)

raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
raw.settimeout(20)
"""

SCTP_SERVER = (
    SCTP
    + """
print("ready", flush=True)
asked, (client, _) = raw.recvfrom(2048)
source, destination = struct.unpack_from("!HH", asked, 20)
print(client, source, destination, flush=True)
(tag,) = struct.unpack_from("!I", asked, 36)
raw.sendto(packet(destination, source, tag, init(2, 9)), (client, 0))
"""
)

SCTP_CLIENT = (
    SCTP
    + """
raw.sendto(packet(5000, int(sys.argv[2]), 0, init(1, 7)), (sys.argv[1], 0))
answer, (server, _) = raw.recvfrom(2048)
print(server, *struct.unpack_from("!HH", answer, 20))
"""
)


def test_sctp_service_is_translated(lab: Lab) -> None:
    """By packets made by hand, as the kernel may have no SCTP.

    The ports are one: the userspace datapath knows none of SCTP, and leaves them as they are.
    """
    lab.apply(endpoints("streams", [place(lab, B1)], [{"port": 3868, "protocol": "SCTP"}]))
    lab.apply(service("streams", "10.96.0.33", [{"protocol": "SCTP", "port": 3868}]))
    wait_until(lambda: "10.96.0.33" in flows(lab, "node1"))
    with running(lab.command(B1, [sys.executable, "-c", SCTP_SERVER])) as server:
        assert server.line() == "ready"
        client = [sys.executable, "-c", SCTP_CLIENT, "10.96.0.33", "3868"]
        assert lab.exec(A1, client).stdout.split() == ["10.96.0.33", "3868", "5000"]
        assert server.line().split() == [address(lab, A1), "5000", "3868"]


@pytest.mark.parametrize("client", [A1, "node1", "node2"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_service_without_endpoints_is_refused_at_once(lab: Lab, client: str, protocol: str) -> None:
    ports = [{"port": 80}, {"name": "UDP", "protocol": "UDP", "port": 80}]
    serve(lab, "empty", "10.96.0.12", ports=ports)
    wait_until(lambda: "10.96.0.12" in flows(lab, "node2"))
    assert ask(lab, client, "10.96.0.12", 80, protocol, times=3) == ["refused"] * 3


def test_service_answers_from_its_first_endpoint_on(lab: Lab) -> None:
    """A client that goes on from one UDP port reaches it, though it was refused before."""
    ports = [{"name": "UDP", "protocol": "UDP", "port": 80}, {"port": 80}]
    serve(lab, "late", "10.96.0.13", ports=ports)
    wait_until(lambda: ask(lab, B1, "10.96.0.13", 80, "udp", source=5000, timeout=1) == ["refused"])
    assert ask(lab, B1, "10.96.0.13", 80, source=5000) == ["refused"]
    serve(lab, "late", "10.96.0.13", A1, ports=ports)
    wait_until(lambda: ask(lab, B1, "10.96.0.13", 80, "udp", source=5000, timeout=1)[0][:2] == "de")
    assert answers(lab, B1, "10.96.0.13", 80, source=5000)[0].server == A1


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_host_reaches_a_service(lab: Lab, node: str) -> None:
    serve(lab, "web", "10.96.0.10", A1, A2, B1)
    gateway = {"node1": "10.244.1.1", "node2": "10.244.2.1"}[node]
    wait_until_answered(lab, (node,), "10.96.0.10", 80)
    heard = answers(lab, node, "10.96.0.10", 80, times=40)
    assert {each.server for each in heard} == {A1, A2, B1}
    assert {each.address for each in heard} == {gateway}


def test_host_network_endpoints_are_reached(lab: Lab) -> None:
    """As the API server's own Service has them: from pods, from that host and from another."""
    lab.apply(endpoints("hosts", [(NODE1, {"nodeName": "node1"})], [{"port": 9000}]))
    lab.apply(service("hosts", "10.96.0.14", [{"port": 443}]))
    with answering(lab, "node1", 9000):
        wait_until_answered(lab, (A1, B1, "node2", "node1"), "10.96.0.14", 443)
        assert answers(lab, A1, "10.96.0.14", 443)[0].address == address(lab, A1)
        # Masqueraded like everything that leaves a node.
        assert answers(lab, B1, "10.96.0.14", 443)[0].address == NODE2
        assert answers(lab, "node2", "10.96.0.14", 443)[0].address == NODE2
        assert answers(lab, "node1", "10.96.0.14", 443)[0].address == "169.254.1.2"


def test_node_port_is_reached(lab: Lab) -> None:
    """From outside by either node, though the endpoint is on one; from pods; from the hosts."""
    ports = [{"port": 80, "nodePort": 30080}]
    serve(lab, "np", "10.96.0.15", B1, ports=ports, type="NodePort")
    for node in (NODE1, NODE2):
        wait_until_answered(lab, ("outside", A1, B1, "node1", "node2"), node, 30080)
    # The node that the client asked has to see the answers: it is the client for the other node.
    assert answers(lab, "outside", NODE1, 30080)[0][:2] == (B1, "10.244.1.0")
    assert answers(lab, "outside", NODE2, 30080)[0][:2] == (B1, "203.0.113.10")
    assert answers(lab, A1, NODE1, 30080)[0][:2] == (B1, address(lab, A1))
    assert answers(lab, A1, NODE2, 30080)[0].server == B1
    assert answers(lab, B1, NODE2, 30080)[0][:2] == (B1, "169.254.1.2")
    assert answers(lab, "node1", NODE1, 30080)[0].server == B1
    assert answers(lab, "node2", NODE2, 30080)[0].server == B1
    assert answers(lab, "node1", NODE2, 30080)[0].server == B1


def test_node_port_with_policy_local(lab: Lab) -> None:
    ports = [{"port": 80, "nodePort": 30081}]
    serve(
        lab, "npl", "10.96.0.16", B1,
        ports=ports, type="NodePort", externalTrafficPolicy="Local",
    )  # fmt: skip
    wait_until_answered(lab, ("outside",), NODE2, 30081)
    wait_until_answered(lab, (A1, "node1"), NODE1, 30081)
    assert answers(lab, "outside", NODE2, 30081)[0][:2] == (B1, "203.0.113.10")
    assert ask(lab, "outside", NODE1, 30081, timeout=1) == ["timeout"]
    # The policy is for the outside world.
    assert answers(lab, A1, NODE1, 30081)[0].server == B1
    assert answers(lab, "node1", NODE1, 30081)[0].server == B1


def test_external_addresses_are_served(lab: Lab) -> None:
    serve(
        lab, "ext", "10.96.0.17", A1, B1,
        type="LoadBalancer", externalIPs=["192.0.2.10"],
        loadBalancerSourceRanges=["198.51.100.0/24"],
        status={"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}},
    )  # fmt: skip
    for at in ("192.0.2.10", "192.0.2.11"):
        lab.exec("fabric", ["ip", "route", "replace", f"{at}/32", "via", NODE1])
    wait_until_answered(lab, ("outside", A2), "192.0.2.10", 80)
    heard = answers(lab, "outside", "192.0.2.10", 80, times=30)
    assert {each[:2] for each in heard} == {(A1, "203.0.113.10"), (B1, "10.244.1.0")}
    assert {a.server for a in answers(lab, A2, "192.0.2.10", 80, times=30)} == {A1, B1}
    # Other ports are the router's business, as if there were no Service.
    assert "No route to host" in ask(lab, "outside", "192.0.2.10", 81)[0]
    # Not in loadBalancerSourceRanges.
    assert ask(lab, "outside", "192.0.2.11", 80, timeout=1) == ["timeout"]


def test_cluster_ip_of_a_further_range_is_served(lab: Lab) -> None:
    """From pods and hosts, as any other; what is not served there is refused by the hosts."""
    serve(lab, "far", "10.97.0.10", A1, B1)
    wait_until_answered(lab, (A2, "node1", "node2"), "10.97.0.10", 80)
    for client, seen in ((A2, address(lab, A2)), ("node1", "10.244.1.1"), ("node2", "10.244.2.1")):
        heard = answers(lab, client, "10.97.0.10", 80, times=30)
        assert {each.server for each in heard} == {A1, B1}
        assert {each.address for each in heard} == {seen}
    for client in (A2, "node1"):
        assert ask(lab, client, "10.97.0.10", 81) == ["refused"]


def test_node_addresses_as_external_addresses(lab: Lab) -> None:
    """Where it is on bare metal: clients know the Service by the address of one of the nodes."""
    ports = [{"port": 80}, {"name": "UDP", "protocol": "UDP", "port": 80}]
    serve(lab, "edge", "10.96.0.23", B1, ports=ports, externalIPs=[NODE1])
    for protocol in ("tcp", "udp"):
        wait_until_answered(lab, ("outside", "node1", "node2", A1, B1), NODE1, 80, protocol)
        for client, seen in (
            # As with NodePorts: from outside, the node that was asked has to see the answers.
            ("outside", "10.244.1.0"),
            ("node1", "10.244.1.0"),
            ("node2", "10.244.1.0"),
            (A1, address(lab, A1)),
            (B1, "169.254.1.2"),
        ):
            heard = answers(lab, client, NODE1, 80, protocol)
            assert heard[0][:2] == (B1, seen), (client, protocol)
    # No other port, and no other node's.
    for at, port in ((NODE1, 81), (NODE2, 80)):
        for client in ("outside", A1, "node1", "node2"):
            assert ask(lab, client, at, port, timeout=1) == ["refused"], (client, at, port)
    # Nodes reach each other still: node2 has no route to it into its switch.
    assert "dev sluice-gw" not in lab.exec("node2", ["ip", "route", "get", NODE1]).stdout
    lab.delete("Service", "default", "edge")
    wait_until(lambda: ask(lab, "outside", NODE1, 80, timeout=1) == ["refused"])
    assert ask(lab, "outside", NODE1, 80, "udp", timeout=1) == ["refused"]


def test_own_addresses_local_and_for_some_alone(lab: Lab) -> None:
    """Both policies of a load balancer at the number of another Service's NodePort."""
    serve(lab, "np2", "10.96.0.24", B1, ports=[{"port": 80, "nodePort": 30084}], type="NodePort")
    serve(
        lab, "lb", "10.96.0.25", A1, B1, ports=[{"port": 30084, "nodePort": 30085}],
        type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=30086,
        loadBalancerSourceRanges=["203.0.113.10/32", "172.30.1.1/32"],
        status={"loadBalancer": {"ingress": [{"ip": NODE1}, {"ip": NODE2}]}},
    )  # fmt: skip
    wait_until(lambda: ask(lab, "outside", NODE1, 30084, timeout=1)[0].startswith(A1))
    wait_until(lambda: "203.0" in ask(lab, "outside", NODE2, 30084, timeout=1)[0])
    for client in ("node2", A1):
        wait_until(lambda c=client: ask(lab, c, NODE1, 30084, timeout=1) == ["timeout"])  # type: ignore[misc]
    for at, pod in ((NODE1, A1), (NODE2, B1)):
        heard = answers(lab, "outside", at, 30084, times=10)
        assert {each[:2] for each in heard} == {(pod, "203.0.113.10")}
    # The policy is for the outside world; the ranges are for everybody.
    assert {a.server for a in answers(lab, "node1", NODE1, 30084, times=20)} == {A1, B1}
    # The NodePort is there again when the other is gone.
    lab.delete("Service", "default", "lb")
    wait_until(lambda: ask(lab, "outside", NODE1, 30084, timeout=1)[0].startswith(B1))
    wait_until(lambda: ask(lab, A1, NODE1, 30084, timeout=1)[0].startswith(B1))


def test_an_own_address_whose_port_a_process_has(lab: Lab) -> None:
    with answering(lab, "node1", 9005):
        serve(lab, "taken", "10.96.0.26", B1, ports=[{"port": 9005}], externalIPs=[NODE1])
        wait_until(lambda: "listens on it" in str(lab.ask("/v1/services/default/taken")))
        for client in ("outside", "node1", "node2"):
            assert answers(lab, client, NODE1, 9005)[0].server == "node1"
        # The switch knows of no process: pods reach the Service, as they do at NodePorts.
        assert answers(lab, A1, NODE1, 9005)[0].server == B1


def test_internal_policy_local(lab: Lab) -> None:
    serve(lab, "inl", "10.96.0.18", A1, B1, internalTrafficPolicy="Local")
    wait_until_answered(lab, (A2, "node2"), "10.96.0.18", 80)
    assert {a.server for a in answers(lab, A2, "10.96.0.18", 80, times=20)} == {A1}
    assert {a.server for a in answers(lab, "node2", "10.96.0.18", 80, times=20)} == {B1}


def test_affinity_tells_hosts_apart(lab: Lab) -> None:
    """A client from outside and the host itself, from one port, through the node's translation."""
    ports = [{"port": 80, "nodePort": 30082}]
    serve(lab, "apart", "10.96.0.19", B1, ports=ports, type="NodePort")
    wait_until_answered(lab, ("outside",), NODE1, 30082)
    wait_until_answered(lab, ("node1",), "10.96.0.19", 80)
    for source in (6000, 6001, 6002):
        from_outside = answers(lab, "outside", NODE1, 30082, source=source)
        from_host = answers(lab, "node1", "10.96.0.19", 80, source=source)
        assert (from_outside[0].address, from_host[0].address) == ("10.244.1.0", "10.244.1.1")


def test_direct_first_then_by_the_service_from_the_same_port(lab: Lab) -> None:
    """Open vSwitch moves the port of the second: the server could not tell them apart."""
    serve(lab, "same", "10.96.0.20", B1)
    wait_until(lambda: ask(lab, A1, "10.96.0.20", 80, timeout=1)[0].startswith(B1))
    both = lab.exec(
        A1, [sys.executable, "-c", SAME_PORT, address(lab, B1), "8080", "10.96.0.20", "80", "7000"]
    ).stdout.split()
    assert both[0] == "7000"
    assert both[1] != "7000"
    assert both[2:] == ["one", "two"]


SAME_PORT = """
import socket, sys
open = []
for at in (1, 3):
    each = socket.socket()
    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    each.settimeout(10)
    each.bind(("", int(sys.argv[5])))
    each.connect((sys.argv[at], int(sys.argv[at + 1])))
    open.append(each)
for each in open:
    print(each.recv(100).decode().split()[2])
for each, word in zip(open, ("one", "two")):
    each.sendall(word.encode())
for each in open:
    print(each.recv(100).decode())
"""


@pytest.mark.parametrize("client", [A1, "node1"])
def test_by_the_service_first_then_directly_from_the_same_port(lab: Lab, client: str) -> None:
    """Nothing of the direct one is translated, so that its port has to be moved on purpose."""
    serve(lab, "same", "10.96.0.20", B1)
    wait_until(lambda: ask(lab, client, "10.96.0.20", 80, timeout=1)[0].startswith(B1))
    at = address(lab, B1)
    for source in (7100, 7200, 7300):
        both = lab.exec(
            client,
            [sys.executable, "-c", SAME_PORT, "10.96.0.20", "80", at, "8080", str(source)],
        ).stdout.split()
        assert both[0] == str(source)
        assert both[1] != str(source)
        assert both[2:] == ["one", "two"]


def test_the_one_by_the_service_may_wait_for_its_answer_still(lab: Lab) -> None:
    serve(lab, "same", "10.96.0.20", B1)
    wait_until(lambda: ask(lab, A1, "10.96.0.20", 80, timeout=1)[0].startswith(B1))
    drop = "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }"
    lab.exec(B1, ["nft", drop])
    try:
        for at, port in (("10.96.0.20", 80), (address(lab, B1), 8080)):
            assert ask(lab, A1, at, port, source=7400, timeout=0.5) == ["timeout"]
        known = lab.exec("node1", ["ovs-appctl", "dpctl/dump-conntrack"]).stdout.splitlines()
    finally:
        lab.exec(B1, ["nft", "delete table ip t"])
    (by_service, directly) = (
        [line.partition("reply=")[2] for line in known if "sport=7400" in line and to in line]
        for to in ("dst=10.96.0.20,", f"dst={address(lab, B1)},sport")
    )
    assert len(by_service) == len(directly) == 1
    assert "dport=7400" in by_service[0]
    assert "dport=7400" not in directly[0]


def test_affinity_holds_for_its_time_and_no_longer(lab: Lab) -> None:
    seconds = 3
    serve(
        lab, "sticky", "10.96.0.21", A1, A2, B1,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}},
    )  # fmt: skip
    wait_until(lambda: ask(lab, B1, "10.96.0.21", 80, timeout=1)[0].startswith("default/"))
    (first,) = {a.server for a in answers(lab, B1, "10.96.0.21", 80, times=20)}
    assert learned(lab, "node2")
    # Where its endpoint goes it gets another, and keeps that though the first comes back.
    others = [pod for pod in NODES if pod != first]
    put_behind(lab, "sticky", others)
    wait_until(lambda: {a.server for a in answers(lab, B1, "10.96.0.21", 80)} <= {*others})
    (second,) = {a.server for a in answers(lab, B1, "10.96.0.21", 80, times=20)}
    put_behind(lab, "sticky", NODES)
    # Three endpoints, and the table's end.
    wait_until(lambda: flows(lab, "node2").count("table=AffinityCheck,") == len(NODES) + 1)
    assert {a.server for a in answers(lab, B1, "10.96.0.21", 80, times=20)} == {second}
    # Chosen anew each time that it was forgotten: not the same for ever.
    for _ in range(12):
        wait_until(lambda: not learned(lab, "node2"), seconds=seconds + 10)
        (third,) = {a.server for a in answers(lab, B1, "10.96.0.21", 80, times=5)}
        if third != second:
            break
    assert third != second


def learned(lab: Lab, node: str) -> list[str]:
    """The flows of table Affinity that the switch has made itself."""
    return [line for line in flows(lab, node).splitlines() if line.strip().startswith("cookie=0xa")]


def test_ten_endpoints_get_fair_shares(lab: Lab) -> None:
    """10,000 connections; with 9 degrees of freedom chi-square exceeds 27.9 once in 1,000 times.

    From five clients: one alone has some 14,000 ports, so that it gets what the hash makes of
    these, and not of any.
    """
    at = address(lab, B1)
    counts: Counter[str] = Counter()
    with ExitStack() as servers:
        # Ten ports of one pod.
        for port in range(9100, 9110):
            servers.enter_context(answering(lab, B1, port))
            one = endpoints("spread", [(at, {"nodeName": "node2"})], [{"port": port}])
            one["metadata"]["name"] = f"spread-{port}"
            lab.apply(one)
        lab.apply(service("spread", "10.96.0.22", [{"port": 80}]))
        wait_until_answered(lab, (A1, B1, "node1", "node2"), "10.96.0.22", 80)
        for client in (A1, A2, B1, "node1", "node2"):
            counts += spread(lab, client, "10.96.0.22", 80, 2_000)
    assert sum(counts.values()) == 10_000
    assert len(counts) == 10
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 27.9, counts


def test_host_port_leads_to_its_pod(lab: Lab) -> None:
    """From outside, other nodes, the node itself and its pods; gone with the pod."""
    to_server = {"containerPort": 8080, "protocol": "tcp"}
    mappings = [
        {**to_server, "hostPort": 8081},
        {**to_server, "hostPort": 8081, "protocol": "udp"},
        {**to_server, "hostPort": 8082, "hostIP": NODE1},
        {**to_server, "hostPort": 8083, "hostIP": "127.0.0.1"},
    ]
    one, other, gateway = "default/h1", "default/h2", "10.244.1.1"
    # As whom the pod sees them.
    clients = {"outside": "203.0.113.10", "node1": NODE1, "node2": NODE2, B1: NODE2, A1: gateway}
    lab.pod_add("default", "h1", "node1", port_mappings=mappings)
    with answering(lab, one):
        for client, seen in {**clients, one: gateway}.items():
            assert answers(lab, client, NODE1, 8081)[0][:2] == (one, seen)
            assert answers(lab, client, NODE1, 8081, "udp", source=5100)[0][:2] == (one, seen)
            assert answers(lab, client, NODE1, 8082)[0][:2] == (one, seen)
            assert ask(lab, client, NODE1, 8083) == ["refused"]
        assert answers(lab, "node1", "127.0.0.1", 8083)[0][:2] == (one, gateway)
        for client in ("node1", A1):
            # The node's other address.
            assert answers(lab, client, gateway, 8081)[0].server == one
            assert ask(lab, client, gateway, 8082) == ["refused"]
        assert ask(lab, "outside", NODE2, 8081) == ["refused"]
    lab.pod_del("default", "h1")
    for client in clients:
        for port in (8081, 8082):
            assert ask(lab, client, NODE1, port) == ["refused"]
    lab.pod_add("default", "h2", "node1", port_mappings=mappings)
    with answering(lab, other):
        for client, seen in clients.items():
            assert answers(lab, client, NODE1, 8081, "udp", source=5100)[0][:2] == (other, seen)
    lab.pod_del("default", "h2")


def flows(lab: Lab, node: str) -> str:
    return lab.exec(node, ["ovs-ofctl", "--names", "--no-stats", "dump-flows", "br-int"]).stdout
