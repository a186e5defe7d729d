"""NetworkPolicy by real packets, compared with an evaluator of the API's text."""

import json
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from cli.main import main
from lab import Lab
from lab.processes import running
from tests.lab.policy_objects import applied, cluster_of, edit_pod, end_of, named_port
from tests.lab.served import endpoints, service
from tests.lab.stations import PORTLESS, Probe, Stations
from tests.lab.test_restart import connection
from tests.policy.evaluator import Evaluator, Packet
from tests.policy.manifests import (
    Part,
    cluster_policy,
    cluster_rule,
    in_namespace,
    namespace,
    network_policy,
)
from tests.waiting import wait_until

PODS = {"x/a": "node1", "x/b": "node2", "y/a": "node1", "y/b": "node2"}
NODES = ("node1", "node2")
KINDS = (("TCP", 80), ("TCP", 81), ("UDP", 80), ("SCTP", 80), ("ICMP", 0), ("FRAGMENTS", 80))

TCP_80: Part = {"port": 80}
Y_B: Part = {
    "namespaceSelector": {"matchLabels": {"team": "y"}},
    "podSelector": {"matchLabels": {"app": "b"}},
}


def block(cidr: str, *excepted: str) -> Part:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepted)} if excepted else {})}}


TABLES: dict[str, list[Part]] = {
    "no policy": [],
    "default deny of ingress": [network_policy("x/p", podSelector={})],
    "default deny of egress": [network_policy("x/p", podSelector={}, policyTypes=["Egress"])],
    "default deny of both, at both ends": [
        network_policy(f"{name}/p", podSelector={}, policyTypes=["Ingress", "Egress"])
        for name in ("x", "y")
    ],
    "ingress from the own namespace, to a port": [
        network_policy(
            "x/p", podSelector={}, ingress=[{"from": [{"podSelector": {}}], "ports": [TCP_80]}]
        )
    ],
    "ingress from a pod of another namespace, by both selectors": [
        network_policy(
            "x/p", podSelector={}, ingress=[{"from": [Y_B], "ports": [{"protocol": "UDP"}]}]
        )
    ],
    "ingress by the name of a namespace": [
        network_policy(
            "x/p",
            podSelector={"matchLabels": {"app": "b"}},
            ingress=[
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}
                    ]
                }
            ],
        )
    ],
    "egress to a block with an exception, and to the outside": [
        network_policy(
            "x/p",
            podSelector={},
            egress=[{"to": [block("10.244.0.0/16", "10.244.2.0/24"), block("203.0.113.0/24")]}],
            policyTypes=["Egress"],
        )
    ],
    "ingress from a block with a node's address": [
        network_policy("x/p", podSelector={}, ingress=[{"from": [block("172.30.1.2/32")]}])
    ],
    "egress to the own node by a rule": [
        network_policy(
            "x/p",
            podSelector={},
            egress=[{"to": [block("172.30.1.1/32")], "ports": [TCP_80]}],
            policyTypes=["Egress"],
        )
    ],
    "a named port of the selected pods": [
        network_policy("x/p", podSelector={}, ingress=[{"ports": [{"port": "web"}]}])
    ],
    "a named port of the peers: each pod has its own number": [
        network_policy(
            "y/p",
            podSelector={},
            egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}],
            policyTypes=["Egress"],
        )
    ],
    "ranges of ports, and SCTP": [
        network_policy(
            "x/p",
            podSelector={},
            ingress=[
                {"ports": [{"port": 81, "endPort": 90}, {"protocol": "SCTP", "port": 80}]}
            ],
        )
    ],
    "two policies for one pod, in both directions": [
        network_policy(
            "x/in", podSelector={}, ingress=[{"from": [{"podSelector": {}}], "ports": [TCP_80]}]
        ),
        network_policy(
            "x/more",
            podSelector={"matchLabels": {"app": "a"}},
            ingress=[{"from": [Y_B]}],
            egress=[{"to": [{"podSelector": {}}]}, {"to": [Y_B], "ports": [{"port": 81}]}],
        ),
    ],
    "ClusterNetworkPolicies before and after a NetworkPolicy": [
        cluster_policy(
            "first",
            subject={"namespaces": in_namespace("x")},
            ingress=[
                cluster_rule("Accept", protocols=[{"udp": {"destinationPort": {"number": 80}}}]),
                {"action": "Pass", "from": [{"namespaces": in_namespace("x")}]},
                cluster_rule("Deny", protocols=[{"tcp": {"destinationPort": {"number": 81}}}]),
            ],
        ),
        network_policy("x/p", podSelector={"matchLabels": {"app": "a"}}, ingress=[{}]),
        cluster_policy(
            "last",
            "Baseline",
            subject={"namespaces": {}},
            ingress=[{"action": "Deny", "from": [{"namespaces": in_namespace("y")}]}],
            egress=[{"action": "Deny", "to": [{"networks": ["203.0.113.0/24"]}]}],
        ),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with two namespaces, each with a pod on each node."""
    for name in ("x", "y"):
        lab.apply(namespace(name, team=name))
    for pod, node in PODS.items():
        lab.pod_add(*pod.split("/"), node, {"app": pod[-1]})
    edit_pod(lab, "x/a", containers=named_port("web", 80))
    edit_pod(lab, "x/b", containers=named_port("web", 81))
    return lab


@pytest.fixture(scope="module")
def stations(lab: Lab) -> Iterator[Stations]:
    with Stations.at(lab, (*PODS, *NODES, "outside")) as stations:
        yield stations


def table(lab: Lab, stations: Stations) -> dict[Probe, bool]:
    """Every packet from everywhere, and whether the API's text lets it pass."""
    cluster = cluster_of(lab)
    evaluator = Evaluator(cluster)
    # The kernel's datapath has reassembled fragments where policy sees them.
    no_port = {"ICMP"} if lab.status()["datapath"] == "system" else PORTLESS
    expected = {}
    for source in (*PODS, *NODES):
        for destination in (*PODS, *NODES, "outside"):
            if "/" not in source and "/" not in destination:
                continue
            for protocol, port in KINDS:
                # Not let to nodes, whatever policy says: docs/decisions.md.
                if protocol == "FRAGMENTS" and "/" not in destination:
                    continue
                # To the userspace datapath, two ways between two addresses are one connection.
                if protocol == "SCTP" and source > destination:
                    continue
                ends = [
                    end_of(cluster, place, stations.addresses[place], as_source=place == source)
                    for place in (source, destination)
                ]
                name = "UDP" if protocol == "FRAGMENTS" else protocol
                packet = Packet(*ends, name, None if protocol in no_port else port)
                probe = Probe(source, destination, protocol, port)
                expected[probe] = source == destination or evaluator.allows(packet)
    return expected


def forget_sctp(lab: Lab) -> None:
    """The userspace datapath knows no ports of SCTP: a new connection is part of an older one."""
    for node in NODES:
        wait_until(lambda node=node: not sctp_connections(lab, node))


def sctp_connections(lab: Lab, node: str) -> bool:
    lab.exec(node, ["ovs-appctl", "dpctl/flush-conntrack", "zone=100", "ct_nw_proto=132"])
    return "sctp" in lab.exec(node, ["ovs-appctl", "dpctl/dump-conntrack", "zone=100"]).stdout


@pytest.mark.parametrize("name", TABLES)
def test_packets_pass_as_the_api_says(lab: Lab, stations: Stations, name: str) -> None:
    forget_sctp(lab)
    with applied(lab, *TABLES[name]):
        expected = table(lab, stations)
        assert name == "no policy" or set(expected.values()) == {True, False}
        stations.check(expected)


def test_labels_of_pods_and_namespaces_may_change(lab: Lab, stations: Stations) -> None:
    forget_sctp(lab)
    with applied(
        lab,
        network_policy("x/p", podSelector={"matchLabels": {"app": "b"}}, ingress=[{"from": [Y_B]}]),
    ):
        for change in (
            lambda: edit_pod(lab, "y/b", {"app": "other"}),
            lambda: edit_pod(lab, "y/a", {"app": "b"}),
            lambda: lab.apply(namespace("y", team="other")),
            lambda: lab.apply(namespace("x", team="y")),
            lambda: edit_pod(lab, "x/a", {"app": "b"}),
        ):
            change()
            stations.check(table(lab, stations))
    for name in ("x", "y"):
        lab.apply(namespace(name, team=name))
    for pod in PODS:
        edit_pod(lab, pod, {"app": pod[-1]})


def test_service_is_judged_by_its_backend_and_by_the_real_client(
    lab: Lab, stations: Stations
) -> None:
    """The port is that of the backend, and the peer is the client, not the Service or a node."""
    at = {"x/a": "10.96.0.81", "x/b": "10.96.0.82"}
    ports = [{"port": 8000, "targetPort": 80, "protocol": "UDP"}]
    backend = [{"port": 80, "protocol": "UDP"}]
    for pod, address in at.items():
        name = pod.replace("/", "-")
        lab.apply(service(name, address, ports))
        lab.apply(endpoints(name, [(stations.addresses[pod], {"nodeName": PODS[pod]})], backend))
    to_80 = {"ports": [{"protocol": "UDP", "port": 80}]}
    policies = (
        network_policy("x/p", podSelector={}, ingress=[{"from": [Y_B], **to_80}]),
        network_policy(
            "y/p",
            podSelector={},
            egress=[{"to": [{"namespaceSelector": {}}], **to_80}],
            policyTypes=["Egress"],
        ),
        # What names the Service's own address and port allows nothing.
        network_policy(
            "x/out",
            podSelector={},
            egress=[
                {"to": [block("10.96.0.0/16")]},
                {"ports": [{"protocol": "UDP", "port": 8000}]},
            ],
            policyTypes=["Egress"],
        ),
    )
    with applied(lab, *policies):
        stations.check(
            {
                Probe(source, pod, "UDP", 8000, address): source == "y/b"
                for source in PODS
                for pod, address in at.items()
                if source != pod
            }
        )


ANSWERS_ONCE = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", 7000))
    print("ready", flush=True)
    server.sendto(b"hello", server.recvfrom(100)[1])
"""
ASKS_TWICE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.connect((sys.argv[1], 7000))
    client.settimeout(60)
    client.send(b"x")
    print(client.recv(100).decode(), flush=True)
    sys.stdin.readline()
    client.settimeout(1)
    for _ in range(60):
        # Again, because a node sends few ICMP errors a second to one address.
        client.send(b"x")
        try:
            client.recv(100)
        except TimeoutError:
            continue
        except ConnectionRefusedError:
            print("refused", flush=True)
            break
"""


def test_established_connections_and_icmp_errors_pass(lab: Lab, stations: Stations) -> None:
    """In both directions, when a policy forbids the connection; a new one does not pass."""
    # The policies of the test before are gone from the datapath.
    stations.check({Probe("x/a", "y/b"): True, Probe("y/a", "x/b"): True})
    closed = network_policy("x/p", podSelector={}, policyTypes=["Ingress", "Egress"])
    asks = lab.command("x/a", [sys.executable, "-c", ASKS_TWICE, stations.addresses["y/b"]])
    with (
        connection(lab, "y/a", "x/b") as say,
        running(lab.command("y/b", [sys.executable, "-c", ANSWERS_ONCE])) as server,
    ):
        assert server.line() == "ready"
        with running(asks) as client:
            assert client.line() == "hello"
            assert server.wait(60) == 0
            assert say("before") == "before"
            with applied(lab, closed):
                new = [Probe("y/a", "x/b"), Probe("x/a", "y/b", "UDP")]
                stations.check(dict.fromkeys(new, False))
                assert say("after") == "after"
                # Its server has ended: the answer is an ICMP error about its connection.
                assert client.ask("") == "refused"


def test_pods_may_be_pinged_by_their_node_only(lab: Lab, stations: Stations) -> None:
    """A node's own addresses are exempt, not what comes to it from elsewhere."""
    with applied(lab, network_policy("x/p", podSelector={})):
        stations.check(
            {
                Probe(node, pod, "ICMP"): PODS[pod] == node
                for node in NODES
                for pod in ("x/a", "x/b")
            }
        )


def test_denied_packets_are_counted_for_their_pod(lab: Lab, stations: Stations) -> None:
    with applied(lab, network_policy("x/p", podSelector={}, policyTypes=["Ingress", "Egress"])):
        denied = [Probe("y/a", "x/b"), Probe("x/a", "y/b")]
        stations.check(dict.fromkeys(denied, False))

        def counted() -> bool:
            assert stations.arrived(denied) == set()
            to_b, from_a = denials(lab, "node2", "x/b"), denials(lab, "node1", "x/a")
            return to_b["DeniedToPod"] > 0 and from_a["DeniedFromPod"] > 0

        # The userspace datapath adds what its megaflows have counted every half second.
        wait_until(counted)


def denials(lab: Lab, node: str, pod: str) -> dict[str, int]:
    """By table, what `sluice flows` says has been denied to or from a pod."""
    shown = CliRunner().invoke(main, ["flows", node, "--json", "--name", lab.name]).stdout
    return {
        row["table"]: row["packets"]
        for row in json.loads(shown)["flows"]
        if row["object"].startswith(f"Pod {pod}") and row["table"].startswith("Denied")
    }
