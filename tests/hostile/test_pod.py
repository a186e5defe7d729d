"""What a pod with root in its own network namespace can do to others."""

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from flows import names
from lab.processes import Process, running
from node_agent import limits
from tests.hostile.harness import Attack, Hostile
from tests.waiting import wait_until

FRAMES = Path(__file__).with_name("frames.py")
ATTACKER, VICTIM, SERVER = "default/attacker", "default/victim", "default/server"
FAR, FAR_SERVER = "default/far", "default/far-server"
OUTSIDE = "203.0.113.10"
NODE2 = "172.30.1.2"
TUNNEL_PORT = 6081
PACKETS = (Path(__file__).parents[1] / "lab" / "packets.py").read_text()


def flood(attack: Attack, kind: str, target: str, seconds: float, rate: int) -> Process:
    """Have the attacker send frames of this kind (frames.py)."""
    source = attack.hostile.address(ATTACKER)
    return attack.run(ATTACKER, FRAMES.read_text(), kind, str(seconds), source, target, str(rate))


def send(hostile: Hostile, pod: str, *frames: Packet) -> None:
    words = [bytes(frame).hex() for frame in frames]
    hostile.lab.exec(pod, [sys.executable, "-c", PACKETS, "send", "eth0", "1", *words])


def header(hostile: Hostile, pod: str) -> Packet:
    """A frame's Ethernet header as the pod's kernel would write it."""
    return Ether(src=hostile.lab.pod(*pod.split("/")).mac, dst=names.ROUTER_MAC)


def switch(hostile: Hostile, *command: str, node: str = "node1") -> str:
    return hostile.lab.exec(node, list(command)).stdout


def dropped(hostile: Hostile, table: str, match: str) -> int:
    """How many packets the flows of node1's `table` with `match` in them have met."""
    dump = switch(
        hostile, "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", "br-int",
        f"table={table}",
    )  # fmt: skip
    lines = [line for line in dump.splitlines() if match in line and "actions=drop" in line]
    return sum(int(found[1]) for line in lines if (found := re.search(r"n_packets=(\d+)", line)))


def datapath_flows(hostile: Hostile) -> int:
    shown = switch(hostile, "ovs-appctl", "dpctl/show")
    found = re.search(r"flows: (\d+)", shown)
    assert found, shown
    return int(found[1])


def connections(hostile: Hostile) -> int:
    return int(switch(hostile, "ovs-appctl", "dpctl/ct-get-nconns"))


def pings_lost(hostile: Hostile, where: str, to: str, size: int) -> str:
    command = ["ping", "-n", "-q", "-c", "20", "-i", "0.05", "-W", "5", "-s", str(size), to]
    said = hostile.lab.exec(where, command, check=False).stdout
    found = re.search(r"([\d.]+%) packet loss", said)
    assert found, said
    return found[1]


# --- guards ---


def test_a_tunnel_port_is_closed_for_a_connection_that_was_opened_before_its_node_was_known(
    hostile: Hostile,
) -> None:
    """An outside address becomes a Node's."""
    source = hostile.address(ATTACKER)
    frame = header(hostile, ATTACKER) / IP(src=source, dst=OUTSIDE)
    into_the_tunnel = frame / UDP(sport=6000, dport=TUNNEL_PORT) / Raw(b"x")
    nodes = hostile.lab.layout.cluster / "nodes"
    manifest = nodes / "late.yaml"
    match = f"nw_dst={OUTSIDE},tp_dst={TUNNEL_PORT}"
    send(hostile, ATTACKER, into_the_tunnel)
    shown = switch(hostile, "ovs-appctl", "dpctl/dump-conntrack", "zone=100")
    assert f"src={source},dst={OUTSIDE}" in shown
    try:
        part = nodes / ".late.part"
        part.write_text(json.dumps(LATE_NODE))
        part.rename(manifest)
        wait_until(lambda: match in _guards(hostile))
        send(hostile, ATTACKER, into_the_tunnel)
        # The userspace datapath adds what its megaflows have counted every half second.
        wait_until(lambda: dropped(hostile, "DestinationGuard", match) == 1)
    finally:
        manifest.unlink(missing_ok=True)
    wait_until(lambda: match not in _guards(hostile))


LATE_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "late", "uid": "00000000-0000-4000-8000-0000000000aa"},
    "spec": {"podCIDR": "10.244.200.0/24", "podCIDRs": ["10.244.200.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": OUTSIDE}]},
}


def _guards(hostile: Hostile) -> str:
    return switch(
        hostile, "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", "br-int",
        "table=DestinationGuard",
    )  # fmt: skip


def test_fragments_do_not_pass_the_guard_of_a_port(hostile: Hostile) -> None:
    before = dropped(hostile, "DestinationGuard", "nw_frag=yes")
    source = hostile.address(ATTACKER)
    payload = bytes(UDP(sport=6000, dport=TUNNEL_PORT, len=3608) / Raw(bytes(3600)))
    for at in range(0, len(payload), 1208):
        more = "MF" if at + 1208 < len(payload) else 0
        fragment = IP(src=source, dst=NODE2, id=77, proto=17, frag=at // 8, flags=more)
        send(hostile, ATTACKER, header(hostile, ATTACKER) / fragment / payload[at : at + 1208])
    wait_until(lambda: dropped(hostile, "DestinationGuard", "nw_frag=yes") == before + 3)


# --- ICMP errors ---

CONNECTED = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.connect((sys.argv[1], int(sys.argv[2])))
    print(client.getsockname()[1], flush=True)
    client.send(b"x")
    for line in sys.stdin:
        try:
            client.send(b"y")
            print("sent", client.getsockopt(socket.IPPROTO_IP, 14), flush=True)
        except ConnectionRefusedError:
            print("refused", flush=True)
"""
SILENT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", 7300))
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("server", [SERVER, FAR_SERVER], ids=["same node", "other node"])
def test_a_third_pod_s_icmp_errors_do_not_arrive(hostile: Hostile, server: str) -> None:
    """Neither "port unreachable", which resets the socket, nor "fragmentation needed"."""
    lab = hostile.lab
    victim, at = hostile.address(VICTIM), hostile.address(server)
    connect = [sys.executable, "-c", CONNECTED, at, "7300"]
    with ExitStack() as programs:
        silent = programs.enter_context(
            running(lab.command(server, [sys.executable, "-c", SILENT]))
        )
        assert silent.line() == "ready"
        client = programs.enter_context(running(lab.command(VICTIM, connect)))
        port = int(client.line())
        said, mtu = client.ask("").split()
        assert said == "sent"
        quoted = IP(src=victim, dst=at, proto=17) / UDP(sport=port, dport=7300) / Raw(b"x")
        head = header(hostile, ATTACKER) / IP(src=hostile.address(ATTACKER), dst=victim)
        before = dropped(hostile, "IcmpError", "priority=300")
        send(
            hostile,
            ATTACKER,
            head / ICMP(type=3, code=3) / quoted,
            head / ICMP(type=3, code=4, nexthopmtu=552) / quoted,
        )
        wait_until(lambda: dropped(hostile, "IcmpError", "priority=300") == before + 2)
        for _ in range(2):
            assert client.ask("") == f"sent {mtu}"


def test_a_pod_s_own_icmp_errors_arrive(hostile: Hostile) -> None:
    """Nobody listens on that port of the server, here and on the other node."""
    for server in (SERVER, FAR_SERVER):
        at = hostile.address(server)
        command = [sys.executable, "-c", CONNECTED, at, "7399"]
        with running(hostile.lab.command(VICTIM, command)) as client:
            client.line()
            wait_until(lambda client=client: client.ask("") == "refused")


# --- what all pods of a node share ---


def test_first_fragments_of_one_pod_leave_room_for_the_others(hostile: Hostile) -> None:
    """Of incomplete datagrams the switch keeps so many, of all pods."""
    with hostile.attack("pod", "2,000 first fragments a second") as attack:
        flood(attack, "first-fragments", hostile.address(FAR), 60, 2_000)
        wait_until(lambda: _fragments(hostile) > 100)
        assert pings_lost(hostile, VICTIM, hostile.address(FAR), 3_000) == "0%"
        assert _fragments(hostile) < limits.MOST_FRAGMENTS / 2


def _fragments(hostile: Hostile) -> int:
    shown = switch(hostile, "ovs-appctl", "dpctl/ipf-get-status")
    found = re.search(r"num frag: (\d+)", shown)
    assert found, shown
    return int(found[1])


def test_unanswered_connections_are_forgotten_soon(hostile: Hostile) -> None:
    """The timeouts of our zone are in force."""
    target = hostile.address(SERVER)
    packet = IP(src=hostile.address(ATTACKER), dst=target) / UDP(sport=7_011, dport=7_012)
    send(hostile, ATTACKER, header(hostile, ATTACKER) / packet)
    shown = switch(hostile, "ovs-appctl", "dpctl/dump-conntrack", "-s", "zone=100")
    found = re.search(r"sport=7011,dport=7012\).*timeout=(\d+)", shown)
    assert found, shown
    assert int(found[1]) <= limits.TIMEOUTS["udp_first"]


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["source-macs", "destination-macs", "arp-macs"])
def test_invented_macs_do_not_fill_the_datapath(hostile: Hostile, kind: str) -> None:
    with hostile.attack("pod", f"20,000 frames a second, each with other {kind}") as attack:
        sender = flood(attack, kind, hostile.address(SERVER), 3, 20_000)
        assert int(sender.line()) > 1_000
        assert datapath_flows(hostile) < 1_000
    assert attack.after.ping_lost == 0


def test_refusals_to_one_pod_leave_some_for_the_others(hostile: Hostile) -> None:
    """Each node's stack refuses so many connections a second to Services that are not."""
    nobody = "10.96.77.77"
    attacker = hostile.address(ATTACKER)
    refused = (
        "import socket, sys\n"
        "for _ in range(20):\n"
        "    with socket.socket() as client:\n"
        "        client.settimeout(10)\n"
        "        print(client.connect_ex((sys.argv[1], 80)))\n"
    )
    command = [
        sys.executable, "-c", FRAMES.read_text(), "connections", "60", attacker, nobody, "5000",
    ]  # fmt: skip
    with running(hostile.lab.command(ATTACKER, command)) as sender:
        assert sender.line() == "ready"
        said = hostile.lab.exec(VICTIM, [sys.executable, "-c", refused, nobody]).stdout
    assert set(said.split()) == {"111"}, "ECONNREFUSED"


@pytest.mark.hostile
def test_new_connections_without_end(hostile: Hostile) -> None:
    """Unanswered UDP to another pod, each datagram a connection of its own."""
    with hostile.attack("pod", "10,000 datagrams a second, each a new connection") as attack:
        flood(attack, "connections", hostile.address(FAR), 120, 10_000)
        during = attack.measure()
        attack.measure()
        assert connections(hostile) < limits.MOST_CONNECTIONS / 2
    assert during.same_node_rate > 0
    assert during.add is not None
    assert attack.after.ping_lost == 0


@pytest.mark.hostile
def test_established_connections_without_end(hostile: Hostile) -> None:
    """Two pods that help each other open TCP connections and keep them."""
    lab = hostile.lab
    lab.pod_add("default", "accomplice", "node1")
    accomplice = hostile.address("default/accomplice")
    kernels = (ATTACKER, "default/accomplice")
    addresses = {pod: hostile.address(pod) for pod in kernels}
    seen = [0]
    try:
        with hostile.attack("pod", "two pods: 3,000 TCP connections a second, and none ends") as it:
            for pod in kernels:
                # Their kernels would end what they have not opened.
                lab.exec(pod, ["ip", "address", "flush", "dev", "eth0"])
            it.run("default/accomplice", FRAMES.read_text(), "answer", "300")
            it.run(
                ATTACKER, FRAMES.read_text(), "handshakes", "300", addresses[ATTACKER],
                accomplice, "3000",
            )  # fmt: skip

            def cut() -> bool:
                seen.append(connections(hostile))
                return seen[-1] < max(seen) / 2

            wait_until(lambda: connections(hostile) > limits.MOST_CONNECTIONS / 4, 200)
            during = it.measure()
            wait_until(cut, 200)
    finally:
        for pod in kernels:
            lab.exec(pod, ["ip", "address", "add", f"{addresses[pod]}/32", "dev", "eth0"])
    assert max(seen) <= limits.MOST_CONNECTIONS * 3 / 4
    assert during.same_node_rate > 0
    assert during.add is not None
    assert it.after.ping_lost == 0


@pytest.mark.hostile
def test_datapath_flows_without_end(hostile: Hostile) -> None:
    """What no flow can prevent."""
    with hostile.attack("pod", "20,000 frames a second, each of another ethertype") as attack:
        flood(attack, "ethertypes", hostile.address(FAR), 120, 20_000)
        during = attack.measure()
        attack.measure()
        assert datapath_flows(hostile) < 2 * limits.FLOW_LIMIT
    assert during.same_node_rate > 0
    assert attack.after.ping_lost == 0


# --- addresses ---

LITE = 136
"""The protocol number of UDP-Lite, which kernels do not translate."""


def test_what_cannot_be_translated_does_not_leave_the_node(hostile: Hostile) -> None:
    """It would reach the outside with the pod's own address. What comes after it does arrive."""
    source = hostile.address(ATTACKER)
    head = header(hostile, ATTACKER)
    lite = head / IP(src=source, dst=OUTSIDE, proto=LITE) / Raw(bytes(UDP(sport=7, dport=7)) + LOST)
    last = head / IP(src=source, dst=OUTSIDE) / UDP(sport=7, dport=7) / Raw(LAST)
    command = [sys.executable, "-c", PACKETS, "listen", _interface(hostile), LAST.hex()]
    with running(hostile.lab.command("outside", command)) as listener:
        assert listener.line() == "listening"
        send(hostile, ATTACKER, lite, last)
        frames = [bytes.fromhex(line) for line in listener.lines(60)]
    assert LAST in frames[-1]
    assert not any(LOST in frame for frame in frames)


LOST, LAST = b"sluice-test-lost", b"sluice-test-last-of-all"


def _interface(hostile: Hostile) -> str:
    """The outside's interface to the nodes."""
    shown = hostile.lab.exec("outside", ["ip", "route", "get", NODE2]).stdout
    found = re.search(r"dev (\S+)", shown)
    assert found, shown
    return found[1]
