"""BGP with real routers, FRR and BIRD: half of the nodes behind each, and two controllers."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lab import Lab
from lab.layout import POD_RANGE
from lab.leaves import CLUSTER_ASN, NAMES, ask, leaves
from lab.processes import running
from tests.lab.kube import kubectl
from tests.lab.pings import address, ping
from tests.lab.served import answering, answers, endpoints, service, wait_until_answered
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize(
    "lab", [{"fabric": "bgp", "nodes": 4, "source": "kube", "controllers": 2}],
    indirect=True, ids=["two-leaves"],
)  # fmt: skip
PODS = {f"default/p{number}": f"node{number}" for number in range(1, 5)}
OUTSIDE = "203.0.113.10"
NODES = {
    "node1": "172.30.1.1",
    "node2": "172.31.1.2",
    "node3": "172.30.1.3",
    "node4": "172.31.1.4",
}
LEAVES = ("203.0.113.1", "203.0.113.2")
"""Addresses of the leaves for each other."""


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """A pod on each node, each with a server at 8080, and a pool of addresses."""
    pool = {"ranges": ["198.51.100.0/28"], "announce": ["BGP"]}
    lab.apply(custom("AddressPool", "outside", pool))
    # Reported after half a minute, in which the other tests run.
    nobody = {"address": "203.0.113.77", "asn": 65000, "localASN": CLUSTER_ASN}
    lab.apply(custom("BGPPeer", "nobody", nobody))
    with ExitStack() as servers:
        for pod, node in PODS.items():
            lab.pod_add(*pod.split("/"), node)
            servers.enter_context(answering(lab, pod))
        yield lab


def custom(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    group = "sluice.dev/v1alpha1"
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec}


def next_hops(lab: Lab, leaf: str, prefix: str) -> set[str]:
    """Of a route in the kernel table of a leaf, made by its BGP daemon."""
    command = ["ip", "-json", "route", "show", prefix]
    found = json.loads(lab.exec(leaf, command).stdout or "[]")
    routes = [each for each in found if each["protocol"] in {"bgp", "bird"}]
    return {
        hop["gateway"]
        for each in routes
        for hop in each.get("nexthops", [each])
        if "gateway" in hop
    }


def wait_for_hops(lab: Lab, leaf: str, prefix: str, wanted: set[str]) -> None:
    wait_until(lambda: next_hops(lab, leaf, prefix) == wanted)


def balanced(lab: Lab, name: str, pods: list[str], **spec: Any) -> str:
    """A Service of type LoadBalancer; its address."""
    cluster_ip = f"10.96.7.{len(name)}"
    lab.apply(
        service(name, cluster_ip, [{"name": "http", "port": 80, "targetPort": 8080}],
                type="LoadBalancer", **spec)
    )  # fmt: skip
    put_behind(lab, name, pods)

    def ingress() -> str:
        found = json.loads(kubectl(lab, "get", "service", name, "-o", "json"))
        given = found["status"]["loadBalancer"].get("ingress") or [{}]
        return str(given[0].get("ip", ""))

    wait_until(ingress)
    return ingress()


def put_behind(lab: Lab, name: str, pods: list[str]) -> None:
    places = [(address(lab, pod), {"nodeName": PODS[pod]}) for pod in pods]
    lab.apply(endpoints(name, places, [{"name": "http", "port": 8080}]))


def test_pods_behind_different_leaves_reach_each_other_without_a_tunnel(lab: Lab) -> None:
    for number in (1, 2, 3, 4):
        node = f"node{number}"
        behind = (number - 1) % 2
        cidr = f"10.244.{number}.0/24"
        wait_for_hops(lab, NAMES[behind], cidr, {NODES[node]})
        wait_for_hops(lab, NAMES[1 - behind], cidr, {LEAVES[behind]})
    # The host of each node takes one of 64 hops, and so does each leaf.
    for to, ttl in (("default/p3", 62), ("default/p2", 60)):
        said = ping(lab, "default/p1", address(lab, to))
        assert f"ttl={ttl}" in said
    assert "ttl=" in ping(lab, "outside", address(lab, "default/p4"))


def test_outside_reaches_a_load_balancer_address_by_every_node(lab: Lab) -> None:
    ip = balanced(lab, "web", [*PODS], externalTrafficPolicy="Local")
    wait_for_hops(lab, "leaf1", ip, {NODES["node1"], NODES["node3"]})
    wait_for_hops(lab, "leaf2", ip, {NODES["node2"], NODES["node4"]})
    wait_until_answered(lab, ["outside"], ip, 80)
    heard = answers(lab, "outside", ip, 80, times=60)
    # Equal-cost routes: outside, two leaves; at each leaf, two nodes.
    assert {each.server for each in heard} == PODS.keys()
    assert {each.address for each in heard} == {OUTSIDE}


def test_policy_local_follows_the_endpoints(lab: Lab) -> None:
    ip = balanced(lab, "local", ["default/p1", "default/p2"], externalTrafficPolicy="Local")
    wait_for_hops(lab, "leaf1", ip, {NODES["node1"]})
    wait_for_hops(lab, "leaf2", ip, {NODES["node2"]})
    put_behind(lab, "local", ["default/p2"])
    wait_for_hops(lab, "leaf1", ip, {LEAVES[1]})
    wait_for_hops(lab, "leaf2", ip, {NODES["node2"]})
    shown = row(lab, "leaf1")
    (route,) = (each for each in shown["routes"] if each["prefix"] == f"{ip}/32")
    assert route["nodes"] == ["node2"]
    assert route["reasons"] == [{"kind": "Service", "namespace": "default", "name": "local"}]
    lab.delete("Service", "default", "local")
    for leaf in NAMES:
        wait_for_hops(lab, leaf, ip, set())


def row(lab: Lab, peer: str) -> dict[str, Any]:
    report = lab.ask(f"/v1/bgp?peer={peer}")
    assert report is not None
    found: dict[str, Any] = report["peers"][0]
    return found


def test_a_node_that_is_not_ready_gets_no_connections_for_others(lab: Lab) -> None:
    ip = balanced(lab, "every", [*PODS])
    wait_for_hops(lab, "leaf1", ip, {NODES["node1"], NODES["node3"]})
    kubectl(lab, "patch", "node", "node3", "-p", json.dumps({"spec": {"unschedulable": True}}))
    try:
        wait_for_hops(lab, "leaf1", ip, {NODES["node1"]})
        # Its pods are nowhere else.
        assert next_hops(lab, "leaf1", "10.244.3.0/24") == {NODES["node3"]}
    finally:
        kubectl(lab, "patch", "node", "node3", "-p", json.dumps({"spec": {"unschedulable": None}}))
    wait_for_hops(lab, "leaf1", ip, {NODES["node1"], NODES["node3"]})


def test_a_node_can_speak_for_itself(lab: Lab) -> None:
    kubectl(lab, "label", "node", "node1", "node3", "rack=one")
    spec = {
        "address": str(leaves(lab.layout)[0].address),
        "asn": 64601,
        "localASN": CLUSTER_ASN,
        "from": "Nodes",
        "nodeSelector": {"matchLabels": {"rack": "one"}},
    }
    lab.apply(custom("BGPPeer", "rack-one", spec))
    try:
        wait_until(lambda: sorted(up(lab, "rack-one")) == ["node1", "node3"])
        said = ask(leaves(lab.layout)[0], "show bgp ipv4 unicast 10.244.3.0/24")
        # From both controllers, and from the node itself.
        assert set(re.findall(r"from (172\.30\.\d+\.\d+)", said)) == {
            "172.30.0.2",
            "172.30.0.3",
            NODES["node3"],
        }
        lab.kill_daemon("node3", "agent")
        lab.start_daemon("node3", "agent")
        wait_until(lambda: sorted(up(lab, "rack-one")) == ["node1", "node3"])
    finally:
        lab.delete("BGPPeer", "", "rack-one")
    wait_until(lambda: NODES["node3"] not in sources(lab))


def up(lab: Lab, peer: str) -> list[str]:
    return [each["node"] for each in row(lab, peer)["sessions"] if each["state"] == "Established"]


def sources(lab: Lab) -> set[str]:
    said = ask(leaves(lab.layout)[0], "show bgp ipv4 unicast 10.244.3.0/24")
    return set(re.findall(r"from (172\.30\.\d+\.\d+)", said))


def test_a_peer_that_does_not_answer_is_reported_on_its_object(lab: Lab) -> None:
    wait_until(lambda: "no session: 203.0.113.77" in problem(lab, "nobody"))
    assert problem(lab, "leaf1") == problem(lab, "leaf2") == ""
    lab.delete("BGPPeer", "", "nobody")
    wait_until(lambda: lab.status()["problems"] == {})


def problem(lab: Lab, peer: str) -> str:
    return str(row(lab, peer)["problem"])


def test_routes_stay_when_a_controller_dies_and_the_other_goes_on(lab: Lab) -> None:
    controllers = lab.status()["controllers"]
    (leader,) = (name for name, each in controllers.items() if each["leads"])
    command = lab.command("outside", ["ping", "-i", "0.05", "-w", "8", address(lab, "default/p3")])
    with running(command, text=True) as pings:
        lab.kill_daemon(leader, "controller")
        lab.apply(node("node9", "172.30.1.9", 9))
        for leaf, hop in (("leaf1", "172.30.1.9"), ("leaf2", LEAVES[0])):
            wait_for_hops(lab, leaf, "10.244.9.0/24", {hop})
        said, _ = pings.popen.communicate(timeout=60)
    assert " 0% packet loss" in said, said
    lab.delete("Node", "", "node9")
    for leaf in NAMES:
        wait_for_hops(lab, leaf, "10.244.9.0/24", set())
    lab.start_control()
    wait_until(lambda: all(len(sessions(leaf, lab)) == 2 for leaf in NAMES))


def sessions(leaf: str, lab: Lab) -> set[str]:
    """The controllers that a router has an established session with."""
    one, two = leaves(lab.layout)
    if leaf == one.name:
        found = json.loads(ask(one, "show bgp ipv4 unicast summary json"))
        peers = found.get("peers", {})
        return {name for name, each in peers.items() if each["state"] == "Established"}
    said = ask(two, "show protocols all")
    return {
        re.findall(r"Neighbor address: (\S+)", part)[0]
        for part in said.split("\n\n")
        if "BGP state:          Established" in part
    }


def node(name: str, ip: str, number: int) -> dict[str, Any]:
    cidr = str(list(POD_RANGE.subnets(new_prefix=24))[number])
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    }
