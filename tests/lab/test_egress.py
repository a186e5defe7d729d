"""Egress addresses: what the outside sees, what stays connected, and who must not use them."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flows import names
from lab import Lab
from lab.egress import ADDRESS, GATEWAY_LABEL, rule, set_label, set_up, watched
from lab.layout import OUTSIDE_ADDRESS
from lab.link_addresses import cut_from_controllers, drain, moved, owner, set_link
from lab.processes import Process, running
from lab.traffic import stream
from tests.lab import packets
from tests.lab.served import answering, answers, ask
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("lab", [{"nodes": 3}], indirect=True)

OUTSIDE = str(OUTSIDE_ADDRESS)
PORT = 8080
NODES = {"a": "node1", "b": "node2", "c": "node3"}
"""The selected pods, in the namespace `shop`."""
OTHER = "default/other"
"""A pod of node1 that is not selected."""


@pytest.fixture(autouse=True, scope="module")
def _pods(lab: Lab) -> Iterator[None]:
    set_up(lab, "node2", "node3")
    for name, node in NODES.items():
        lab.pod_add("shop", name, node)
    lab.pod_add(*OTHER.split("/"), "node1")
    with answering(lab, "outside", PORT):
        gateway(lab)
        for pod in NODES:
            wait_until(lambda pod=pod: seen(lab, f"shop/{pod}") == {ADDRESS})  # type: ignore[misc]
        yield


class Sniffer:
    """What an interface has seen, as tcpdump prints it with MACs."""

    def __init__(self, process: Process) -> None:
        self._process = process
        assert "listening" in process.line() + process.line()

    def stop(self) -> list[str]:
        """All packets so far."""
        time.sleep(0.2)
        return [line for line in self._process.end().splitlines() if " > " in line]


@contextmanager
def sniffing(lab: Lab, where: str, interface: str, what: str) -> Iterator[Sniffer]:
    """A sniffer of these packets (pcap-filter(7))."""
    command = f"exec tcpdump --immediate-mode -lnnttei {interface} '{what}' 2>&1"
    with running(lab.command(where, ["sh", "-c", command])) as process:
        yield Sniffer(process)


def sources(packets: list[str]) -> list[str]:
    """The IPv4 address that each packet comes from."""
    found = (re.search(r": (\d+\.\d+\.\d+\.\d+)[. ].*> ", line) for line in packets)
    return [match[1] for match in found if match]


def send(lab: Lab, where: str, interface: str, frame: Packet) -> None:
    """Put a frame on the wire."""
    command = [sys.executable, packets.__file__, "send", interface, "1", bytes(frame).hex()]
    lab.exec(where, command)


def tunnel(lab: Lab, node: str, to: str, frame: Packet) -> None:
    """Send a frame to another node's tunnel port, as the node itself."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 6081))"
    )
    content = bytes(GENEVE(proto=0x6558, vni=1) / frame)
    lab.exec(node, [sys.executable, "-c", code, to, content.hex()])


def gateway(lab: Lab) -> str:
    """The node that has the address, once one has it."""
    return owner(lab, ADDRESS)


def seen(lab: Lab, pod: str, protocol: str = "tcp") -> set[str]:
    """The addresses that the outside sees a pod come from."""
    heard = ask(lab, pod, OUTSIDE, PORT, protocol, timeout=1)
    return {line.split()[1] if line.startswith("outside") else line for line in heard}


def test_selected_pods_leave_from_the_egress_address(lab: Lab) -> None:
    for pod in NODES:
        for protocol in ("tcp", "udp"):
            (found,) = answers(lab, f"shop/{pod}", OUTSIDE, PORT, protocol)
            assert found.address == ADDRESS, (pod, protocol)
        with sniffing(lab, "outside", "eth0", "icmp") as sniffed:
            lab.exec(f"shop/{pod}", ["ping", "-n", "-c", "2", "-i", "0.05", "-w", "20", OUTSIDE])
            assert sources(sniffed.stop()) == [ADDRESS, OUTSIDE] * 2


def test_other_pods_leave_from_their_nodes_address(lab: Lab) -> None:
    for protocol in ("tcp", "udp"):
        (found,) = answers(lab, OTHER, OUTSIDE, PORT, protocol)
        assert found.address == "172.30.1.1"


SENDER = """
import socket, sys
server = socket.create_server(("", 8081))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(bytes(2_000_000))
    connection.close()
"""
RECEIVER = """
import socket, sys
s = socket.create_connection((sys.argv[1], 8081))
count = 0
while found := s.recv(1 << 16):
    count += len(found)
print(count)
"""


def test_large_transfers_arrive_in_both_directions(lab: Lab) -> None:
    with running(lab.command("outside", [sys.executable, "-c", SENDER])) as process:
        assert process.line() == "ready"
        for pod in ("a", gateway_pod(lab)):
            with stream(lab, f"shop/{pod}", "outside", OUTSIDE) as streamed:
                time.sleep(0.3)
                sent, received = streamed.stop()
            assert sent == received
            assert sent.bytes > 100_000
            found = lab.exec(f"shop/{pod}", [sys.executable, "-c", RECEIVER, OUTSIDE])
            assert found.stdout.strip() == "2000000"


def gateway_pod(lab: Lab) -> str:
    """The selected pod on the gateway itself."""
    return {node: pod for pod, node in NODES.items()}[gateway(lab)]


HOLDER = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(s.recv(100).decode().split()[1], flush=True)
for line in sys.stdin:
    s.settimeout(20)
    s.sendall(b"x")
    print(s.recv(10).decode(), flush=True)
"""


@contextmanager
def held(lab: Lab, pod: str) -> Iterator[Any]:
    """A connection to the outside; calling it sends a byte, and gets it back."""
    command = lab.command(pod, [sys.executable, "-c", HOLDER, OUTSIDE, str(PORT)])
    with running(command) as process:
        assert process.line() == ADDRESS

        def alive() -> bool:
            return process.ask("go") == "x"

        yield alive


def test_connections_survive_changes_of_labels_and_rules(lab: Lab) -> None:
    """They keep the address that they were opened with; new ones follow the change."""
    with held(lab, "shop/a") as alive:
        assert alive()
        for change, now in (
            (rule(podSelector={"matchLabels": {"app": "none"}}), "172.30.1.1"),
            (rule(podSelector={}), ADDRESS),
            (rule(announce=["Link"]), ADDRESS),
        ):
            lab.apply(change)
            wait_until(lambda now=now: seen(lab, "shop/a") == {now})  # type: ignore[misc]
            assert alive()
        lab.pod_add("shop", "more", "node1")
        assert seen(lab, "shop/more") == {ADDRESS}
        lab.pod_del("shop", "more")
        assert alive()


def test_nobody_uses_the_address_who_may_not(lab: Lab) -> None:
    node = gateway(lab)
    layout = {each.name: each for each in lab.layout.nodes(3)}
    other = lab.pod(*OTHER.split("/"))
    a = lab.pod("shop", "a")
    mac = names.mac_of(IPv4Address(str(other.address)))
    forged = Ether(src=mac, dst=names.ROUTER_MAC) / IP(src=ADDRESS, dst=OUTSIDE) / UDP(dport=9)
    inner = Ether(src=names.ROUTER_MAC, dst=names.ROUTER_MAC)
    not_selected = inner / IP(src=str(other.address), dst=OUTSIDE) / UDP(dport=9)
    of_another = inner / IP(src=str(lab.pod("shop", "b").address), dst=OUTSIDE) / UDP(dport=9)
    from_outside = inner / IP(src=OUTSIDE, dst=str(a.address)) / TCP(sport=PORT, flags="S")
    with sniffing(lab, "outside", "eth0", "udp port 9") as sniffed:
        send(lab, OTHER, "eth0", forged)
        for frame in (not_selected, of_another):
            tunnel(lab, "node1", str(layout[node].address), frame)
        lab.exec("shop/a", [sys.executable, "-c", DATAGRAM, OUTSIDE, "9"])
        (seen_packet,) = sniffed.stop()
        assert seen_packet.endswith("length 4")
        assert sources([seen_packet]) == [ADDRESS]
    with sniffing(lab, "shop/a", "eth0", "tcp") as sniffed:
        tunnel(lab, node, "172.30.1.1", from_outside)
        assert sniffed.stop() == []


def test_outside_opens_no_connection_to_the_address(lab: Lab) -> None:
    assert ask(lab, "outside", ADDRESS, PORT, timeout=0.5) == ["timeout"]


DATAGRAM = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"last", (sys.argv[1], int(sys.argv[2])))
"""


def sluice(lab: Lab, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "cli.main", *arguments, "--name", lab.name]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_trace_follows_the_packet_to_the_gateway_and_back(lab: Lab) -> None:
    node = gateway(lab)
    told = sluice(lab, "trace", "shop/a", f"{OUTSIDE}:{PORT}", "--reply")
    assert f"the tunnel carries it from node node1 to node {node}" in told
    assert (
        f"delivered to the network outside: it leaves node {node} by br-phy from {ADDRESS}" in told
    )
    assert "EgressAddress shop" in told
    assert "delivered to pod shop/a on node node1" in told


def test_ledger_tells_which_pods_use_the_ports(lab: Lab) -> None:
    with held(lab, "shop/a"), held(lab, "shop/b"), held(lab, "shop/a"):

        def row() -> dict[str, Any]:
            report = lab.ask("/v1/egress")
            assert report is not None
            (found,) = report["egress"]
            return dict(found)

        def pods() -> dict[str, int]:
            found = (each for each in row()["destinations"] if each["ports"] >= 3)
            return {each["pod"]: each["ports"] for of in found for each in of["pods"]}

        wait_until(lambda: pods().get("shop/a", 0) >= 2 and pods().get("shop/b", 0) >= 1, 60)
        assert row()["gateway"] == gateway(lab)
        assert row()["pods"] == ["shop/a", "shop/b", "shop/c"]
        assert f"{OUTSIDE}:{PORT}/TCP" in sluice(lab, "egress", "shop")


# --- another gateway: at no moment two of them send from the address ---


def test_pods_leave_through_another_node_when_the_gateway_dies(lab: Lab) -> None:
    with watched(lab, "shop/a") as (node, watch):
        set_link(lab, node, "down")
        since = time.monotonic()
        lab.kill_daemon(node, "agent")
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.5)
        lab.start_daemon(node, "agent")
        set_link(lab, node, "up")
        time.sleep(2)  # in which nothing may happen
        print(f"moved {moved(watch.stop(), since):.3f} s after the gateway's death")


def test_pods_leave_through_another_node_when_the_gateway_is_drained(lab: Lab) -> None:
    """A connection that sends something goes on: the source port is free at the new gateway."""
    with held(lab, "shop/a") as alive, watched(lab, "shop/a") as (node, watch):
        since = time.monotonic()
        drain(lab, node, unschedulable=True)
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.5)
        print(f"moved {moved(watch.stop(), since):.3f} s after the drain")
        assert alive()
    drain(lab, node, unschedulable=False)


def test_pods_leave_through_another_node_when_the_gateway_loses_its_label(lab: Lab) -> None:
    with watched(lab, "shop/a") as (node, watch):
        since = time.monotonic()
        set_label(lab, node, GATEWAY_LABEL, None)
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.5)
        print(f"moved {moved(watch.stop(), since):.3f} s after the label was removed")
    set_label(lab, node, GATEWAY_LABEL, "yes")


def test_gateway_that_is_cut_off_from_the_controller_sends_nothing_more(lab: Lab) -> None:
    """It is still on the link, and its flows stay. When it returns, nothing has changed."""
    with watched(lab, "shop/a") as (node, watch):
        since = time.monotonic()
        with cut_from_controllers(lab, node, "control"):
            owner(lab, ADDRESS, other_than=node)
            time.sleep(1)
        time.sleep(2)  # in which nothing may happen
        print(f"moved {moved(watch.stop(), since):.3f} s after the cut")
