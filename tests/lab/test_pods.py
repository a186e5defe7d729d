"""Many pods, none left over, and a controller that dies meanwhile."""

import os
import re
import signal
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from flows import names
from flows.pipeline import Feature
from lab import Lab
from lab.processes import running
from tests.lab.pings import ended, lost, ping, ping_while
from tests.waiting import wait_until


def cookies(lab: Lab, node: str) -> set[str]:
    """Of all flows but those of table `State`, which change with every other flow, or leader."""
    dump = lab.exec(node, ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"]).stdout
    found = re.findall(r"cookie=(0x[0-9a-f]+)", dump)
    return {
        each for each in found if int(each, 16) >> 56 not in {Feature.STATE, Feature.GENERATION}
    }


def leases(lab: Lab, node: str) -> list[tuple[object, ...]]:
    """What the node's lease file says is in use."""
    (path,) = Path(lab.status()["directory"]).glob(f"nodes/{node}/state/leases.sqlite")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute("SELECT * FROM lease").fetchall()


def traces(lab: Lab, node: str) -> dict[str, object]:
    """Everything that a pod leaves on a node while it lives."""
    links = lab.exec(node, ["ip", "-br", "link", "show", "type", "veth"]).stdout
    ports = lab.exec(node, ["ovs-vsctl", "list-ports", "br-int"]).stdout
    ruleset = lab.exec(node, ["nft", "list", "ruleset"]).stdout
    return {
        "flows": cookies(lab, node),
        "meters": set(re.findall(r"meter=\d+", meters(lab, node))),
        "ports": sorted(ports.split()),
        "veths": sorted(line.split("@")[0] for line in links.splitlines()),
        "nftables": sorted(re.findall(r"[pc][a-z2-7]{14}", ruleset)),
        "leases": leases(lab, node),
    }


def settled(lab: Lab, node: str, wanted: dict[str, object]) -> dict[str, object]:
    """`traces` once they are as wanted, or after a minute: flows go a moment after the port."""
    deadline = time.monotonic() + 60
    while (found := traces(lab, node)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_deleted_pods_leave_nothing(lab: Lab) -> None:
    before = {node: traces(lab, node) for node in ("node1", "node2")}
    assert not before["node1"]["leases"]
    for number in range(3):
        for node in before:
            lab.pod_add("default", f"{node}-{number}", node)
    during = traces(lab, "node1")
    assert len(during["leases"]) == 3  # type: ignore[arg-type]
    assert len(during["ports"]) == len(before["node1"]["ports"]) + 3  # type: ignore[arg-type]
    for number in range(3):
        for node in before:
            lab.pod_del("default", f"{node}-{number}")
    for node, wanted in before.items():
        assert settled(lab, node, wanted) == wanted


def test_200_pods_on_one_node(lab: Lab) -> None:
    before = traces(lab, "node1")
    numbers = range(200)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lab.pod_add("many", f"p{n}", "node1"), numbers))
    lab.pod_add("default", "far", "node2")
    try:
        pods = [lab.pod("many", f"p{n}") for n in numbers]
        addresses = {pod.address for pod in pods}
        assert len(addresses) == 200
        assert all(IPv4Address(a or "") > IPv4Address("10.244.1.1") for a in addresses)

        def reaches(address: str | None) -> bool:
            command = ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-W", "2", str(address)]
            return lab.exec("default/far", command, check=False).returncode == 0

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(reaches, sorted(map(str, addresses))))
        assert all(answers)
        ports = {row["name"]: row for row in flows_of_output(lab)}
        assert len(ports) == 202
    finally:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: lab.pod_del("many", f"p{n}"), numbers))
        lab.pod_del("default", "far")
    assert settled(lab, "node1", before) == before


def flows_of_output(lab: Lab) -> list[dict[str, str]]:
    """One row per port that can be sent out of."""
    command = ["ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", "br-int", "table=Output"]
    dump = lab.exec("node1", command).stdout
    return [{"name": name} for name in re.findall(r'actions=output:"?([\w-]+)', dump)]


def test_killing_the_controller_costs_no_packet(lab: Lab) -> None:
    lab.pod_add("default", "k1", "node1")
    far = lab.pod_add("default", "k2", "node2")
    flows = cookies(lab, "node1")
    ping(lab, "default/k1", str(far.address))
    with ping_while(lab, "default/k1", str(far.address)) as pinging:
        time.sleep(1)
        lab.kill_daemon("control", "controller")
        time.sleep(1)
        assert cookies(lab, "node1") == flows
        assert lab.status()["controller"]["pid"] is None
        lab.up(nodes=2)
        output = ended(pinging)
    assert not lost(output)
    late = lab.pod_add("default", "late", "node1")
    ping(lab, "default/late", str(far.address))
    assert flows < cookies(lab, "node1")
    assert late.address != far.address
    for name in ("k1", "k2", "late"):
        lab.pod_del("default", name)


def test_ovs_ofctl_shows_table_names(lab: Lab) -> None:
    dump = lab.exec("node1", ["ovs-ofctl", "--names", "dump-flows", "br-int"]).stdout
    assert "table=Classifier" in dump
    assert "resubmit(,TunnelGuard)" in dump


FLOOD = """
import socket, struct, sys
frame, count, first = bytearray.fromhex(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    for number in range(first, first + count):
        if sys.argv[3] == "many":
            struct.pack_into("!HH", frame, 34, 1024 + number % 60000, 5000 + number // 60000)
        raw.send(frame)
"""


SINK = [
    sys.executable,
    "-c",
    "import socket\n"
    "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:\n"
    "    sink.bind(('', 9999))\n"
    "    print(flush=True)\n"
    "    while True: sink.recv(9000)",
]


def test_one_pod_cannot_fill_the_connection_table(lab: Lab) -> None:
    """Beyond what its meter lets through, which is set low here, for any machine to exceed."""
    flooder = lab.pod_add("default", "flooder", "node1")
    victim = lab.pod_add("default", "victim", "node1")
    frame = (
        Ether(src=flooder.mac, dst=names.ROUTER_MAC)
        / IP(src=flooder.address, dst=victim.address)
        / UDP(sport=500, dport=9999, chksum=0)
    )

    def flood(connections: str, first: int = 0) -> None:
        argv = [sys.executable, "-c", FLOOD, bytes(frame).hex(), "1000", connections, str(first)]
        lab.exec("default/flooder", argv)

    agent = lab.status()["nodes"]["node1"]["pids"]["agent"]
    port = ["ovs-vsctl", "get", "Interface", str(flooder.port), "ofport"]
    meter = int(lab.exec("node1", port).stdout)
    usual = meters(lab, "node1")
    try:
        flood("many")
        assert dropped(lab, "node1") == 0
        os.kill(agent, signal.SIGSTOP)  # its audit would have the meter put back
        # More than the 32 packets that the userspace datapath takes at a time: until the first
        # of them is committed, all of them are of an unknown connection.
        low = f"meter={meter},pktps,burst,band=type=drop,rate=10,burst_size=100"
        lab.exec("node1", ["ovs-ofctl", "-O", "OpenFlow15", "mod-meter", "br-int", low])
        # A stream that is never answered is one connection, however many datagrams it has. (The
        # victim would answer a closed port.)
        with running(lab.command("default/victim", SINK)) as sink:
            sink.line()
            flood("one")
        assert dropped(lab, "node1") == 0
        # Others than at first: those that were let through then are known, and not metered again.
        flood("many", first=1000)
        wait_until(lambda: dropped(lab, "node1") > 0)
        # Who floods is held back; another pod is not.
        ping(lab, "default/victim", "203.0.113.10")
    finally:
        os.kill(agent, signal.SIGCONT)
    wait_until(lambda: meters(lab, "node1") == usual)
    lab.pod_del("default", "flooder")
    lab.pod_del("default", "victim")


def meters(lab: Lab, node: str) -> str:
    return lab.exec(node, ["ovs-ofctl", "-O", "OpenFlow15", "dump-meters", "br-int"]).stdout


def dropped(lab: Lab, node: str) -> int:
    """Packets that all meters of a node have dropped."""
    text = lab.exec(node, ["ovs-ofctl", "-O", "OpenFlow15", "meter-stats", "br-int"]).stdout
    return sum(int(count) for count in re.findall(r"0: packet_count:(\d+)", text))
