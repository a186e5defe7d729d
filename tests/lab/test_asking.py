"""What a running cluster tells when it is asked: explain, wait, top, drops, filtered flows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from lab import Lab
from lab.processes import running
from tests.lab.pings import address, ping
from tests.lab.policy_objects import applied
from tests.lab.served import A1, A2, B1, serve, service, three_servers
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("lab", [{"log_denials": True}], indirect=True, ids=["denials"])
RESET = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
    for _ in range(3):
        segment = struct.pack("!HHIIBBHHH", 4321, 8080, 1, 0, 5 << 4, 4, 0, 0, 0)
        raw.sendto(segment, (sys.argv[1], 0))
"""
"""Ends a TCP connection that there is not."""
CLOSED = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": "default", "uid": "closed"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The lab of conftest.py with three pods, each with a server."""
    with three_servers(lab):
        yield lab


def command(lab: Lab, *words: str) -> list[str]:
    verb, *others = words
    return [sys.executable, "-m", "cli.main", verb, "--lab", lab.name, *others]


def sluice(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(lab, *words), capture_output=True, text=True, check=False, timeout=60
    )


def answer(lab: Lab, *words: str) -> Any:
    done = sluice(lab, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dump(lab: Lab, node: str, *options: str) -> list[str]:
    output = lab.exec(node, ["ovs-ofctl", "-O", "OpenFlow15", *options, "dump-flows", "br-int"])
    return [line for line in output.stdout.splitlines() if "cookie=" in line]


def test_every_flow_of_a_dump_is_explained(lab: Lab) -> None:
    serve(lab, "web", "10.96.0.10", A1, B1)
    assert sluice(lab, "wait", "svc/default/web").returncode == 0
    for line in dump(lab, "node1"):
        told = lab.ask(f"/v1/explain?what={quote(line)}&node=node1")
        assert told is not None
        cookie = re.search(r"cookie=(0x[0-9a-f]+)", line)
        assert cookie is not None
        assert int(told["flow"]["cookie"], 16) == int(cookie[1], 16)
        assert told["sentence"]


def test_flow_of_a_dump_is_found_without_its_cookie(lab: Lab) -> None:
    """As Open vSwitch prints it, with names of tables or without."""
    for options in ((), ("--names",), ("--no-names", "--no-stats")):
        for line in dump(lab, "node1", *options)[::7]:
            cookie = re.search(r"cookie=(0x[0-9a-f]+)", line)
            assert cookie is not None
            if "table=State" in line or "table=250" in line:
                continue  # both seals have the same match
            without = line.replace(cookie[0], "cookie=0x0")
            told = lab.ask(f"/v1/explain?what={quote(without)}&node=node1")
            assert told is not None, without
            assert int(told["flow"]["cookie"], 16) == int(cookie[1], 16), without


def test_flows_of_a_pod_without_a_node(lab: Lab) -> None:
    report = answer(lab, "flows", "--pod", A1)
    assert report["node"] == "node1"
    assert {row["object"] for row in report["flows"]} == {f"Pod {A1}"}
    assert {row["state"] for row in report["flows"]} == {"installed"}
    in_dump = "\n".join(dump(lab, "node1"))
    assert all(f"cookie={int(row['cookie'], 16):#x}," in in_dump for row in report["flows"])
    shown = sluice(lab, "flows", "--pod", A1, "--table", "Output", "--raw").stdout
    assert shown.startswith("on node node1\n")
    assert re.search(r"reg1=0x[0-9a-f]+ → output:\d+\n", shown)


def is_denial(line: str) -> bool:
    return "table=DeniedToPod" in line and "reg1=" in line


def test_wait_proves_that_switches_hold_an_object(lab: Lab) -> None:
    assert sluice(lab, "wait", "svc/default/new", "--timeout", "0").returncode == 1
    serve(lab, "new", "10.96.0.11", A2)
    done = sluice(lab, "wait", "svc/default/new")
    assert done.returncode == 0, done.stderr
    proof = r"2 of 2 switches hold it, last at [0-9:.]+ \(node[12]\).*; in force since [0-9:.]+\n"
    assert re.fullmatch(proof, done.stdout)
    for node in ("node1", "node2"):
        assert any("nw_dst=10.96.0.11" in line for line in dump(lab, node))
    of_pod = answer(lab, "wait", f"pod/{A1}")
    assert (of_pod["hold"], of_pod["need"], of_pod["last"]["node"]) == (1, 1, "node1")
    with applied(lab, CLOSED):
        policy = answer(lab, "wait", "networkpolicy/default/closed")
        assert (policy["hold"], policy["need"], policy["inForce"]) == (2, 2, True)
        assert any(map(is_denial, dump(lab, "node1", "--names")))
    gone = sluice(lab, "wait", "networkpolicy/default/closed", "--gone")
    assert gone.returncode == 0, gone.stderr
    assert gone.stdout.startswith("it is gone from 2 of 2 switches, last at ")
    assert not any(map(is_denial, dump(lab, "node1", "--names")))


def test_top_counts_the_packets_that_pods_send(lab: Lab) -> None:
    def counted() -> dict[str, tuple[int, int]]:
        report = lab.ask("/v1/counters?what=traffic")
        assert report is not None
        return {
            f"{row['object']['kind']} {row['object']['namespace']}/{row['object']['name']}": (
                row["sentPackets"], row["receivedPackets"]
            )
            for node in report["nodes"]
            for row in node["traffic"]
        }  # fmt: skip

    def grown() -> list[int]:
        now = counted()
        return [
            new - old
            for name in (f"Pod {A1}", f"Pod {B1}")
            for new, old in zip(now[name], before[name], strict=True)
        ]

    before = counted()
    lab.exec(A1, ["ping", "-n", "-c", "40", "-i", "0.02", "-w", "60", address(lab, B1)], timeout=90)
    # Also ARP, of which a pod sends a request now and then.
    wait_until(lambda: all(40 <= each <= 60 for each in grown()))
    assert counted()["tunnel /node1"][1] - before["tunnel /node1"][1] >= 40


def test_top_shows_who_has_traffic(lab: Lab) -> None:
    flood = ["ping", "-n", "-i", "0.005", "-s", "1000", address(lab, B1)]
    with running(lab.command(A1, flood)):
        shown = answer(lab, "top", "--once", "--interval", "2")
    rates = {f"{row['object']['namespace']}/{row['object']['name']}": row for row in shown["pods"]}
    assert {A1, B1} <= rates.keys()
    assert A2 not in rates
    assert rates[A1]["sentBytes"] > rates[A1]["sentPackets"] * 1000
    assert (shown["read"], shown["of"], shown["unread"]) == (2, 2, {})
    node1 = next(row for row in shown["nodes"] if row["node"] == "node1")
    assert node1["tunnelSentBytes"] > 0
    text = sluice(lab, "top", "--once", "--interval", "1", "--node", "node2").stdout
    assert "1 of 2 nodes" in text


def reasons(lab: Lab, *words: str) -> dict[str, int]:
    """By reason, the packets that node1 has dropped."""
    found: dict[str, int] = {}
    for row in answer(lab, "drops", "--node", "node1", *words)["drops"]:
        found[row["reason"]] = found.get(row["reason"], 0) + row["packets"]
    return found


def drop_of_each_kind(lab: Lab) -> None:
    """Packets of a1 that are dropped: to nobody, as somebody else, to a Service of nobody."""
    lab.apply(service("nobody", "10.96.0.12", [{"port": 80}]))
    assert sluice(lab, "wait", "svc/default/nobody").returncode == 0
    no_pod = str(address(lab, A1)).rpartition(".")[0] + ".250"
    tries = f"""
        ip addr add 192.0.2.99/32 dev eth0
        ping -n -c 3 -i 0.1 -W 1 -I 192.0.2.99 {address(lab, B1)}
        ip addr del 192.0.2.99/32 dev eth0
        ping -n -c 3 -i 0.1 -W 1 {no_pod}
        ping -n -c 3 -i 0.1 -W 1 {address(lab, A2)}
        timeout 2 bash -c '</dev/tcp/10.96.0.12/80'
        ping -n -f -c 300 -s 4000 -W 1 {address(lab, B1)}
        true
    """
    lab.exec(A1, ["bash", "-c", tries], timeout=60)
    lab.exec(A1, [sys.executable, "-c", RESET, str(address(lab, B1))])


def test_drops_by_reason(lab: Lab) -> None:
    with applied(lab, CLOSED):
        assert sluice(lab, "wait", "networkpolicy/default/closed").returncode == 0
        before = reasons(lab)
        with running(command(lab, "drops", "--follow", "--interval", "1")) as following:
            drop_of_each_kind(lab)
            wanted = {
                "guard": 3, "no route": 3, "policy": 3, "no endpoint": 1, "invalid": 3, "meter": 1,
            }  # fmt: skip

            def all_are_counted() -> bool:
                now = reasons(lab)
                return all(now.get(k, 0) - before.get(k, 0) >= n for k, n in wanted.items())

            wait_until(all_are_counted)
            seen: set[str] = set()
            while not wanted.keys() <= seen:
                line = following.line()
                seen |= {reason for reason in wanted if f"  {reason}  " in line}
        assert {*reasons(lab, "--reason", "guard")} == {"guard"}
        shown = sluice(lab, "drops", "--node", "node1").stdout
        assert "not the pod's own MAC and address" in shown
        assert f"Pod {A2}: denied by the policies of this pod" in shown

        def is_reported() -> bool:
            denied = answer(lab, "drops")["denials"]
            return any(A1 in row["sentence"] and A2 in row["sentence"] for row in denied)

        wait_until(is_reported)


def test_ping_still_works(lab: Lab) -> None:
    """Nothing of all this changes a switch."""
    # Until one answer: the userspace datapath loses the first packet to a peer (docs/lab.md).
    lab.exec(A1, ["ping", "-n", "-c", "1", "-w", "60", address(lab, B1)], timeout=90)
    ping(lab, A1, address(lab, B1))
