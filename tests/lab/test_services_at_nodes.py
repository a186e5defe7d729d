"""Services at nodes' own addresses, on nodes' own stacks, and clients that are nodes."""

from collections.abc import Iterator

import pytest

from lab import Lab
from lab.network import UPLINK
from tests.lab.pings import address
from tests.lab.served import (
    A1,
    A2,
    B1,
    NODE1,
    NODE2,
    answering,
    answers,
    ask,
    endpoints,
    serve,
    service,
    three_servers,
)
from tests.waiting import wait_until

VIRTUAL = "192.0.2.20"
CLIENT = "203.0.113.10"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The lab of conftest.py with three pods, each with a server."""
    with three_servers(lab):
        yield lab


def test_process_bound_to_its_node_s_address_reaches_pods_of_other_nodes(lab: Lab) -> None:
    for pod in (A1, B1):
        command = ["ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "2", "-I", NODE1]
        said = lab.exec("node1", [*command, address(lab, pod)], timeout=20).stdout
        assert " 0% packet loss" in said


def test_address_that_a_node_has_bound_is_served(lab: Lab) -> None:
    """As kube-vip and keepalived do it: no Node object names the address."""
    serve(
        lab, "vip", "10.96.0.40", B1, type="LoadBalancer",
        status={"loadBalancer": {"ingress": [{"ip": VIRTUAL}]}},
    )  # fmt: skip
    for node, next_hop in (("node1", NODE1), ("node2", NODE2)):
        lab.exec("fabric", ["ip", "route", "replace", f"{VIRTUAL}/32", "via", next_hop])
        lab.exec(node, ["ip", "address", "add", f"{VIRTUAL}/32", "dev", UPLINK])
        try:
            for client in ("outside", node, "node1", "node2", A1, B1):
                wait_until(lambda c=client: B1 in ask(lab, c, VIRTUAL, 80, timeout=1)[0])  # type: ignore[misc]
            # Its other ports are the host's.
            assert ask(lab, "outside", VIRTUAL, 81) == ["refused"]
        finally:
            lab.exec(node, ["ip", "address", "del", f"{VIRTUAL}/32", "dev", UPLINK])
    # It works as well where the router only sends it to a node.
    wait_until(lambda: B1 in ask(lab, "outside", VIRTUAL, 80, timeout=1)[0])


def test_policy_local_shows_the_client_to_a_server_on_the_node_itself(lab: Lab) -> None:
    ports = [{"name": "TCP", "port": 80, "nodePort": 30045}]
    at_node = [(NODE1, {"nodeName": "node1"})]
    lab.apply(endpoints("onhost", at_node, [{"name": "TCP", "port": 9045}]))
    lab.apply(
        service("onhost", "10.96.0.45", ports, type="NodePort", externalTrafficPolicy="Local")
    )
    with answering(lab, "node1", 9045):
        wait_until(lambda: ask(lab, "outside", NODE1, 30045, timeout=1)[0].startswith("node1"))
        wait_until(lambda: answers(lab, "outside", NODE1, 30045)[0].address == CLIENT)
        assert ask(lab, "outside", NODE2, 30045, timeout=1) == ["timeout"]
        assert answers(lab, A2, NODE1, 30045)[0].server == "node1"


def test_source_ranges_are_about_the_client_s_own_address(lab: Lab) -> None:
    """Also where the client is a node, whose connections pass its own switch."""
    served = VIRTUAL.replace(".20", ".21")
    serve(
        lab, "narrow", "10.96.0.46", B1, type="LoadBalancer",
        loadBalancerSourceRanges=[f"{NODE2}/32", f"{address(lab, A1)}/32"],
        status={"loadBalancer": {"ingress": [{"ip": served}]}},
    )  # fmt: skip
    for client in ("node2", A1):
        wait_until(lambda c=client: B1 in ask(lab, c, served, 80, timeout=1)[0])  # type: ignore[misc]
    for client in ("node1", A2):
        wait_until(lambda c=client: ask(lab, c, served, 80, timeout=1) == ["timeout"])  # type: ignore[misc]
