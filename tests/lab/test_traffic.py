"""Packets between pods, hosts and the outside world, over both kinds of tunnel."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from flows import names
from lab import Lab
from lab.processes import Process, running
from tests.lab.pings import address, ping
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize(
    "lab", [{"tunnel": "geneve"}, {"tunnel": "vxlan"}], indirect=True, ids=["geneve", "vxlan"]
)

ROOT = Path(__file__).parents[2]
A1, A2, B1 = "default/a1", "default/a2", "default/b1"
OUTSIDE = "203.0.113.10"
NODE1, NODE2 = "172.30.1.1", "172.30.1.2"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with two pods on node1 and one on node2."""
    for pod, node in ((A1, "node1"), (A2, "node1"), (B1, "node2")):
        lab.pod_add(*pod.split("/"), node)
    return lab


@contextmanager
def python(lab: Lab, where: str, program: str, *argv: str) -> Iterator[Process]:
    """A Python program in a part of the lab, once it has printed its first line."""
    with running(lab.command(where, [sys.executable, "-c", program, *argv])) as process:
        process.line()
        yield process


TCP_SERVER = """
import socket, sys
with socket.create_server(("", 8080)) as server:
    print("ready", flush=True)
    connection, peer = server.accept()
    with connection:
        connection.sendall(b"hello")
    print(peer[0], flush=True)
"""

UDP_SERVER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", int(sys.argv[1])))
    server.settimeout(float(sys.argv[2]))
    print("ready", flush=True)
    try:
        data, peer = server.recvfrom(65535)
        print(peer[0], len(data), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
"""

TCP_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8080), timeout=60) as connection:
    print(connection.recv(100).decode())
"""


def peer_seen(lab: Lab, server: str, client: str, at: str) -> str:
    """Which source address a TCP server saw of its client."""
    with python(lab, server, TCP_SERVER) as process:
        assert lab.exec(client, [sys.executable, "-c", TCP_CLIENT, at]).stdout == "hello\n"
        return process.line()


def test_loopback_inside_a_pod(lab: Lab) -> None:
    assert peer_seen(lab, A1, A1, "127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(("one", "other"), [(A1, A2), (A1, B1), (B1, A2)])
def test_pod_to_pod_without_nat(lab: Lab, one: str, other: str) -> None:
    ping(lab, one, address(lab, other))
    assert peer_seen(lab, other, one, address(lab, other)) == address(lab, one)


@pytest.mark.parametrize(
    ("node", "pod", "source"),
    [("node1", A1, "10.244.1.1"), ("node1", B1, "10.244.1.1"), ("node2", A1, "10.244.2.1")],
)
def test_host_to_pod_as_the_gateway_address(lab: Lab, node: str, pod: str, source: str) -> None:
    ping(lab, node, address(lab, pod))
    assert peer_seen(lab, pod, node, address(lab, pod)) == source


@pytest.mark.parametrize("to", [NODE1, NODE2, "10.244.1.1", "10.244.2.1"])
def test_pod_to_hosts(lab: Lab, to: str) -> None:
    ping(lab, A1, to)


def test_pod_to_outside_is_masqueraded(lab: Lab) -> None:
    ping(lab, A1, OUTSIDE)
    assert peer_seen(lab, "outside", B1, OUTSIDE) == NODE2


def test_pod_to_another_node_is_masqueraded(lab: Lab) -> None:
    assert peer_seen(lab, "node2", A1, NODE2) == NODE1


SEND_100_MB = """
import hashlib, os, socket, sys
digest, left = hashlib.sha256(), 100_000_000
block = os.urandom(1_000_000)
with socket.create_connection((sys.argv[1], 8081), timeout=60) as connection:
    while left:
        connection.sendall(block)
        digest.update(block)
        left -= len(block)
        block = block[1:] + block[:1]
print(digest.hexdigest())
"""

RECEIVE_ALL = """
import hashlib, socket
digest, size = hashlib.sha256(), 0
with socket.create_server(("", 8081)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(1 << 20):
            digest.update(data)
            size += len(data)
print(size, digest.hexdigest(), flush=True)
"""


def test_100_mb_across_nodes_arrive_unchanged(lab: Lab) -> None:
    with python(lab, B1, RECEIVE_ALL) as receiver:
        sent = lab.exec(A1, [sys.executable, "-c", SEND_100_MB, address(lab, B1)], timeout=120)
        assert receiver.line().split() == ["100000000", sent.stdout.strip()]


@pytest.mark.parametrize("to", [A2, B1])
def test_full_mtu_with_df(lab: Lab, to: str) -> None:
    """1500 of the underlay less 50 of the tunnel, less 28 of IP and ICMP."""
    ping(lab, A1, address(lab, to), "-M", "do", "-s", "1422")
    too_long = lab.exec(
        A1, ["ping", "-c", "1", "-M", "do", "-s", "1423", address(lab, to)], check=False
    )
    assert "message too long, mtu=1450" in too_long.stderr


@pytest.mark.parametrize("to", [A2, B1])
def test_fragments(lab: Lab, to: str) -> None:
    ping(lab, A1, address(lab, to), "-s", "4000")
    send = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "    s.sendto(bytes(20000), (sys.argv[1], 9000))"
    )
    with python(lab, to, UDP_SERVER, "9000", "60") as server:
        lab.exec(A1, [sys.executable, "-c", send, address(lab, to)])
        assert server.line().split() == [address(lab, A1), "20000"]


REFUSED = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((sys.argv[1], 9))
    s.settimeout(60)
    s.send(b"x")
    try:
        s.recv(1)
    except ConnectionRefusedError:
        print("refused")
"""


def test_icmp_errors_come_back(lab: Lab) -> None:
    for to in (address(lab, A2), address(lab, B1), OUTSIDE):
        done = lab.exec(A1, [sys.executable, "-c", REFUSED, to])
        assert done.stdout == "refused\n", to
    # The fabric is the router on the way to the world; its answer is about a masqueraded packet.
    expired = lab.exec(A1, ["ping", "-n", "-c", "1", "-t", "2", OUTSIDE], check=False)
    assert "From 172.30.0.1 icmp_seq=1 Time to live exceeded" in expired.stdout


PACKETS = (ROOT / "tests/lab/packets.py").read_text()


def send(lab: Lab, sender: str, *frames: Packet, count: int = 3) -> None:
    """Put frames on a pod's wire, each three times."""
    words = [bytes(frame).hex() for frame in frames]
    lab.exec(sender, [sys.executable, "-c", PACKETS, "send", "eth0", str(count), *words])


def received(lab: Lab, at: str, sender: str, frame: Packet, last: Packet) -> list[bytes]:
    """The frames that reach a pod after `sender` has sent `frame`, until `last` is there.

    `last` goes the same way behind `frame`, holds `LAST`, and must arrive: so what has not come
    before it does not come.
    """
    with python(lab, at, PACKETS, "listen", "eth0", LAST.load.hex()) as listener:
        send(lab, sender, frame, last)
        frames = [bytes.fromhex(line) for line in listener.rest().splitlines()]
    assert frames
    assert LAST.load in frames[-1], "the last one must arrive"
    return frames


def own(lab: Lab, pod: str = A1, **fields: str) -> Packet:
    """A frame's Ethernet header as the pod would write it, but for `fields`."""
    mac = lab.pod(*pod.split("/")).mac
    return Ether(**{"src": mac, "dst": names.ROUTER_MAC, **fields})


MARK = Raw(b"sluice-test-mark")
LAST = Raw(b"sluice-test-last-of-all")


@pytest.mark.parametrize("to", [A2, B1])
def test_spoofed_packets_are_dropped(lab: Lab, to: str) -> None:
    a1, a2, b1 = (address(lab, pod) for pod in (A1, A2, B1))
    target = address(lab, to)
    udp = UDP(sport=5000, dport=5000) / MARK

    def arrived(frame: Packet) -> int:
        last = own(lab) / IP(src=a1, dst=target) / UDP(sport=5001, dport=5001) / LAST
        return sum(MARK.load in data for data in received(lab, to, A1, frame, last))

    assert arrived(own(lab) / IP(src=a1, dst=target) / udp) == 3, "the control must arrive"
    a2_mac = lab.pod(*A2.split("/")).mac
    for what, frame in {
        "another pod's MAC": own(lab, src=a2_mac) / IP(src=a1, dst=target) / udp,
        "another pod's address": own(lab) / IP(src=a2, dst=target) / udp,
        "a remote pod's address": own(lab) / IP(src=b1, dst=target) / udp,
        "an outside address": own(lab) / IP(src=OUTSIDE, dst=target) / udp,
        "the gateway's address": own(lab) / IP(src="10.244.1.1", dst=target) / udp,
        "straight to the other's MAC": own(lab, dst=a2_mac) / IP(src=a1, dst=target) / udp,
        "broadcast": own(lab, dst="ff:ff:ff:ff:ff:ff") / IP(src=a1, dst=target) / udp,
        "a DHCP server": own(lab)
        / IP(src=a1, dst=target)
        / UDP(sport=67, dport=68)
        / BOOTP()
        / DHCP(options=[("message-type", "offer"), "end"])
        / MARK,
        "IPv6": own(lab) / IPv6(src="fd00::1", dst="fd00::2") / udp,
        "a router advertisement": own(lab, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::1", dst="ff02::1")
        / ICMPv6ND_RA()
        / MARK,
    }.items():
        assert arrived(frame) == 0, what


def test_spoofed_arp_is_dropped(lab: Lab) -> None:
    a1, a2 = address(lab, A1), address(lab, A2)
    mac = lab.pod(*A1.split("/")).mac
    everybody = "ff:ff:ff:ff:ff:ff"
    router = str(names.ROUTER_ADDRESS)

    proper = own(lab, dst=everybody) / ARP(hwsrc=mac, psrc=a1, pdst=router)

    def answers(request: Packet) -> int:
        # The switch turns a request into its answer where it is: what trails it comes back.
        frames = map(Ether, received(lab, A1, A1, request, proper / LAST)[:-1])
        return sum(f.haslayer(ARP) and f[ARP].op == 2 for f in frames)

    assert answers(proper) == 3
    for what, arp in {
        "another's address": ARP(hwsrc=mac, psrc=a2, pdst=router),
        "another's MAC": ARP(hwsrc="0a:58:0a:f4:01:63", psrc=a1, pdst=router),
        "who has a pod": ARP(hwsrc=mac, psrc=a1, pdst=a2),
    }.items():
        request = own(lab, dst=everybody) / arp
        assert answers(request) == 0, what
        last = own(lab) / IP(src=a1, dst=a2) / UDP(sport=5001, dport=5001) / LAST
        seen = [Ether(data) for data in received(lab, A2, A1, request, last)]
        assert not any(f.haslayer(ARP) for f in seen), f"{what}: ARP was carried to a pod"


def test_nodes_stack_does_not_receive_what_its_switch_receives(lab: Lab) -> None:
    """OVS opens the veth by a raw socket; the kernel would take the same frame in as well."""
    pod = lab.pod(*A1.split("/"))

    def heard(destination_mac: str) -> str:
        datagram = IP(src=pod.address, dst=NODE1) / UDP(sport=5001, dport=5001)
        with python(lab, "node1", UDP_SERVER, "5001", "60") as server:
            first = own(lab, dst=destination_mac) / datagram / MARK
            send(lab, A1, first, own(lab) / datagram / LAST, count=1)
            return server.line()

    assert pod.mac
    assert heard(names.ROUTER_MAC) == f"{pod.address} {len(MARK.load)}", "the control must arrive"
    assert heard(pod.mac) == f"{pod.address} {len(LAST.load)}"


def test_one_arp_answer_on_the_uplink(lab: Lab) -> None:
    bridge = re.search(r"dev (\S+)", lab.exec("fabric", ["ip", "route", "get", NODE1]).stdout)
    assert bridge
    done = lab.exec("fabric", ["arping", "-c", "3", "-w", "5", "-I", bridge[1], NODE1])
    assert "Received 3 response(s)" in done.stdout


def test_a_pod_cannot_inject_into_the_tunnel(lab: Lab) -> None:
    """UDP to a node's tunnel port is refused, whoever the node is."""
    port = {"geneve": 6081, "vxlan": 4789}[lab.status()["tunnel"]]
    a1 = address(lab, A1)
    for node in ("node1", "node2"):
        before = refused(lab, port)
        frame = own(lab) / IP(src=a1, dst=lab.status()["nodes"][node]["address"])
        send(lab, A1, frame / UDP(sport=6000, dport=port) / MARK)
        # The userspace datapath adds what its megaflows have counted every half second.
        wait_until(lambda before=before: refused(lab, port) == before + 3)


def refused(lab: Lab, port: int) -> int:
    """How many packets the flows against injection have dropped on node1."""
    dump = lab.exec(
        "node1",
        [
            "ovs-ofctl",
            "-O",
            "OpenFlow15",
            "--names",
            "dump-flows",
            "br-int",
            "table=DestinationGuard",
        ],
    ).stdout
    return sum(
        int(count) for count in re.findall(rf"n_packets=(\d+).*tp_dst={port} actions=drop", dump)
    )


def test_unknown_addresses_of_the_pod_range_are_dropped(lab: Lab) -> None:
    for nobody in ("10.244.1.99", "10.244.2.99", "10.244.77.1"):
        done = lab.exec(A1, ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", nobody], check=False)
        assert "100% packet loss" in done.stdout


def test_icmp_echo_is_one_connection(lab: Lab) -> None:
    """What conntrack keeps is in our zone only."""
    ping(lab, A1, address(lab, B1))
    entries = lab.exec("node1", ["ovs-appctl", "dpctl/dump-conntrack", "zone=100"]).stdout
    assert f"src={address(lab, A1)},dst={address(lab, B1)}" in entries


CLOSING = """
import socket, sys
with socket.create_server(("", 7001)) as server:
    print("ready", flush=True)
    accepted = [server.accept()[0] for _ in range(2)]
    print("accepted", flush=True)
    sys.stdin.readline()
    for connection in accepted:
        connection.close()
    sys.stdin.readline()
"""
WAITING = """
import socket, sys
with socket.create_connection((sys.argv[1], 7001)) as client:
    print("connected", flush=True)
    client.settimeout(60)
    print(client.recv(100), flush=True)
"""


def test_a_pod_that_the_api_has_forgotten_still_ends_its_connections(lab: Lab) -> None:
    """Force-deleted: its Pod is gone at once, its process and its port are there for a while."""
    lab.pod_add("default", "ending", "node1")
    at = address(lab, "default/ending")
    with (
        python(lab, "default/ending", CLOSING) as server,
        python(lab, A1, WAITING, at) as near,
        python(lab, B1, WAITING, at) as away,
    ):
        assert server.line() == "accepted"
        manifest = lab.layout.cluster / "pods" / "default.ending.yaml"
        manifest.unlink()
        # What the controller reads later it has seen later.
        lab.pod_add("default", "later", "node1")
        server.say("\n")
        assert near.line() == "b''"
        assert away.line() == "b''"
