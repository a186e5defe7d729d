"""Ways between nodes: a lab in mode hybrid, two of whose three nodes share a subnet."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from lab import Lab
from lab.processes import Process
from tests.lab.pings import address, ended, lost, ping, ping_while
from tests.lab.served import answering, answers, ask, endpoints, service, wait_until_answered
from tests.lab.test_traffic import LAST, MARK, own, python, received
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize(
    "lab", [{"nodes": 3, "mode": "hybrid", "subnets": 2}], indirect=True, ids=["hybrid"]
)
A, B, C = "default/a", "default/b", "default/c"
NODES = {A: "node1", B: "node3", C: "node2"}
"""node1 and node3 share a subnet."""
NODE1, NODE2, NODE3 = "172.30.1.1", "172.31.1.2", "172.30.1.3"
OUTSIDE = "203.0.113.10"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """A pod on each node, each with a server at 8080."""
    with ExitStack() as servers:
        for pod, node in NODES.items():
            lab.pod_add(*pod.split("/"), node)
            servers.enter_context(answering(lab, pod))
        yield lab


def ttl(lab: Lab, one: str, other: str) -> int:
    """What a packet arrives with: each host and router that forwards it takes one of 64."""
    # Until one is answered: while the way changes, some may be lost.
    command = ["ping", "-n", "-c", "1", "-i", "0.1", "-w", "60", address(lab, other)]
    found = re.search(r"ttl=(\d+)", lab.exec(one, command, timeout=90).stdout)
    assert found
    return int(found[1])


def label(lab: Lab, node: str, labels: Mapping[str, str]) -> None:
    """Give a Node these labels besides its own."""
    manifest: dict[str, Any] = yaml.safe_load(
        (lab.layout.cluster / "nodes" / f"{node}.yaml").read_text()
    )
    manifest["metadata"]["labels"] = {"kubernetes.io/hostname": node, **labels}
    lab.apply(manifest)


def direct_routes(lab: Lab, node: str) -> dict[str, str]:
    shown = json.loads(lab.exec(node, ["ip", "-j", "-N", "route", "show", "proto", "213"]).stdout)
    return {route["dst"]: route["gateway"] for route in shown}


def test_way_depends_on_the_subnets_of_both_nodes(lab: Lab) -> None:
    assert {node: direct_routes(lab, node) for node in NODES.values()} == {
        "node1": {"10.244.3.0/24": NODE3},
        "node2": {},
        "node3": {"10.244.1.0/24": NODE1},
    }
    # Two hosts forward what does not go through the tunnel.
    assert (ttl(lab, A, B), ttl(lab, B, A)) == (62, 62)
    assert (ttl(lab, A, C), ttl(lab, C, B)) == (64, 64)
    for one in NODES:
        for other in NODES.keys() - {one}:
            heard = answers(lab, one, address(lab, other), 8080)
            assert heard[0][:2] == (other, address(lab, one))


def test_hosts_reach_pods_and_their_replies_come_back(lab: Lab) -> None:
    for node in NODES.values():
        gateway = f"10.244.{node.removeprefix('node')}.1"
        for pod in NODES:
            assert answers(lab, node, address(lab, pod), 8080)[0][:2] == (pod, gateway)


def test_trace_follows_both_ways(lab: Lab) -> None:
    for pod, way in ((B, "the network carries it"), (C, "the tunnel carries it")):
        query = f"/v1/trace?from={A}&to={pod}&port=8080&reply="
        found = lab.ask(query)
        assert found is not None
        for each in (found["there"], found["back"]):
            assert each["delivered"], found
            assert any(way in hop["text"] for hop in each["hops"]), found


def test_full_mtu(lab: Lab) -> None:
    for pod in (B, C):
        ping(lab, A, address(lab, pod), "-M", "do", "-s", "1422")
        ping(lab, A, address(lab, pod), "-s", "4000")


def test_services(lab: Lab) -> None:
    ports = [{"port": 80, "nodePort": 30080}]
    for name, at, more in (
        ("any", "10.96.0.10", {}),
        ("local", "10.96.0.11", {"externalTrafficPolicy": "Local"}),
    ):
        place = (address(lab, B), {"nodeName": "node3"})
        lab.apply(endpoints(name, [place], [{"port": 8080}]))
        port = [{**ports[0], "nodePort": 30080 + (name == "local")}]
        lab.apply(service(name, at, port, type="NodePort", **more))
    for client in (A, B, C, *NODES.values()):
        wait_until_answered(lab, (client,), "10.96.0.10", 80)
        assert answers(lab, client, "10.96.0.10", 80)[0].server == B
    assert answers(lab, A, "10.96.0.10", 80)[0].address == address(lab, A)
    for at, seen in ((NODE1, "10.244.1.0"), (NODE2, "10.244.2.0"), (NODE3, OUTSIDE)):
        wait_until_answered(lab, ("outside",), at, 30080)
        assert answers(lab, "outside", at, 30080)[0][:2] == (B, seen)
    for client in (A, C, "node1", "node2"):
        assert answers(lab, client, NODE1, 30080)[0].server == B
    wait_until_answered(lab, ("outside",), NODE3, 30081)
    assert answers(lab, "outside", NODE3, 30081)[0][:2] == (B, OUTSIDE)
    assert ask(lab, "outside", NODE1, 30081, timeout=1) == ["timeout"]


def test_policy_judges_peers_by_their_own_addresses(lab: Lab) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only-c", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "judged"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": f"{address(lab, C)}/32"}}]}],
        },
    }
    lab.pod_add("default", "judged", "node3", {"app": "judged"})
    judged = address(lab, "default/judged")
    with answering(lab, "default/judged"):
        wait_until_answered(lab, (A, C), judged, 8080)
        lab.apply(policy)
        try:
            wait_until(lambda: ask(lab, A, judged, 8080, timeout=1) == ["timeout"])
            assert answers(lab, C, judged, 8080)[0].address == address(lab, C)
        finally:
            lab.delete("NetworkPolicy", "default", "only-c")
            wait_until_answered(lab, (A,), judged, 8080)


def test_pod_does_not_send_from_addresses_of_others(lab: Lab) -> None:
    from scapy.layers.inet import IP, UDP  # noqa: PLC0415  it takes a second

    def arrived(source: str) -> int:
        frame = own(lab, A) / IP(src=source, dst=address(lab, B)) / UDP(dport=5000) / MARK
        last = own(lab, A) / IP(src=address(lab, A), dst=address(lab, B)) / UDP(dport=5001) / LAST
        return sum(MARK.load in data for data in received(lab, B, A, frame, last))

    assert arrived(address(lab, A)) == 3, "the control must arrive"
    for source in (address(lab, C), "10.244.1.99", "10.244.1.0", "10.244.3.1", OUTSIDE):
        assert arrived(source) == 0, source


def test_nobody_outside_sends_from_an_address_that_comes_another_way(lab: Lab) -> None:
    """As long as the host does not route these addresses to where the packet comes from."""
    from scapy.layers.inet import IP, UDP  # noqa: PLC0415  it takes a second
    from scapy.layers.l2 import Ether  # noqa: PLC0415

    lab.exec("fabric", ["ip", "route", "replace", "10.244.1.0/24", "via", NODE1])
    mac, router = (
        json.loads(lab.exec(where, ["ip", "-j", "link", "show", link]).stdout)[0]["address"]
        for where, link in (("outside", "eth0"), ("fabric", "world"))
    )
    link = Ether(src=mac, dst=router)

    def arrived(source: str) -> int:
        frame = link / IP(src=source, dst=address(lab, A)) / UDP(dport=5000) / MARK
        last = link / IP(src=OUTSIDE, dst=address(lab, A)) / UDP(dport=5001) / LAST
        return sum(MARK.load in data for data in received(lab, A, "outside", frame, last))

    assert arrived(OUTSIDE) == 3, "the control must arrive"
    for source in (
        address(lab, C), "10.244.2.0", "10.244.2.1",  # by the tunnel only
        "10.244.1.1", "10.244.1.99",  # of the node itself
        "10.244.77.1",  # of nobody
    ):  # fmt: skip
        assert arrived(source) == 0, source
    lab.exec("fabric", ["ip", "route", "del", "10.244.1.0/24"])


def test_routes_come_back_after_a_flush(lab: Lab) -> None:
    before = direct_routes(lab, "node1")
    assert before
    with ping_while(lab, A, address(lab, B)) as pinging:
        lab.exec("node1", ["ip", "route", "flush", "proto", "213"])
        wait_until(lambda: direct_routes(lab, "node1") == before)
        ping(lab, A, address(lab, B))
        output = ended(pinging)
    print("lost while the routes were gone:", len(lost(output)))
    # A foreign route for another range is left alone.
    lab.exec("node1", ["ip", "route", "add", "198.51.100.0/24", "via", NODE3])
    lab.exec("node1", ["ip", "route", "flush", "proto", "213"])
    wait_until(lambda: direct_routes(lab, "node1") == before)
    lab.exec("node1", ["ip", "route", "del", "198.51.100.0/24"])


TALK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 8080), timeout=60) as talking:
    talking.recv(200)
    print("ready", flush=True)
    longest, count, heard = 0.0, 0, b""
    talking.setblocking(True)
    talking.settimeout(60)
    while True:
        began = time.monotonic()
        talking.sendall(b"%08d" % count)
        while len(heard) < 8:
            data = talking.recv(8 - len(heard))
            if not data:
                raise SystemExit("the connection has ended")
            heard += data
        assert heard == b"%08d" % count, heard
        count, heard = count + 1, b""
        longest = max(longest, time.monotonic() - began)
        print(count, round(1000 * longest), flush=True)
        time.sleep(0.005)
"""


def said(talking: Process) -> tuple[int, int]:
    """The exchanges so far, and the longest one in milliseconds."""
    words = talking.line().split()
    return int(words[0]), int(words[1])


def test_connections_survive_a_change_of_the_mode(lab: Lab) -> None:
    """Node by node: away from the direct way, and back."""
    with (
        python(lab, A, TALK, address(lab, B)) as talking,
        ping_while(lab, A, address(lab, B)) as pinging,
    ):
        for mode, way in (("encap", 64), ("noEncap", 62)):
            for node in ("node1", "node3"):
                label(lab, node, {"sluice.dev/network-mode": mode})
            wait_until(lambda way=way: ttl(lab, A, B) == way and ttl(lab, B, A) == way)
        # A segment that was lost at a change is sent again after 0.2 s, then 0.4 and 0.8 s.
        time.sleep(2)
        output = ended(pinging)
        talking.popen.kill()
        *_, last = talking.rest().splitlines()
    print("pings lost in two changes:", sorted(lost(output)))
    print("exchanges, and the longest in ms:", last)
    assert int(last.split()[0]) > 10
    for node in ("node1", "node3"):
        label(lab, node, {})
    wait_until(lambda: ttl(lab, A, B) == 62)
    assert direct_routes(lab, "node1") == {"10.244.3.0/24": NODE3}


def test_no_encapsulation_across_a_router_that_knows_the_ranges(lab: Lab) -> None:
    for node in NODES.values():
        label(lab, node, {"sluice.dev/network-mode": "noEncap"})
    wait_until(lambda: "mode noEncap across routers" in problem(lab, "node1"))
    for pod, at in ((A, NODE1), (B, NODE3), (C, NODE2)):
        number = NODES[pod].removeprefix("node")
        lab.exec("fabric", ["ip", "route", "replace", f"10.244.{number}.0/24", "via", at])
    wait_until(lambda: ttl(lab, A, C) == 61 and ttl(lab, C, A) == 61)
    assert direct_routes(lab, "node1") == {"10.244.3.0/24": NODE3, "10.244.2.0/24": "172.30.0.1"}
    for one in NODES:
        for other in NODES.keys() - {one}:
            heard = answers(lab, one, address(lab, other), 8080)
            assert heard[0][:2] == (other, address(lab, one))
    lab.pod_add("default", "large", "node1")
    lab.pod_add("default", "larger", "node2")
    to = address(lab, "default/larger")
    wait_until(lambda: not lost_all(lab, "default/large", to))
    ping(lab, "default/large", to, "-M", "do", "-s", "1472")
    wait_until(lambda: not problem(lab, "node1"))


def problem(lab: Lab, node: str) -> str:
    return str(lab.status()["problems"].get(f"agent of {node}", ""))


def lost_all(lab: Lab, where: str, to: str) -> bool:
    done = lab.exec(where, ["ping", "-n", "-c", "1", "-W", "1", to], check=False)
    return done.returncode != 0
