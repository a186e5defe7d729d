"""Addresses of a pool, served on the nodes' own link: to clients outside, on the link, on nodes."""

from collections.abc import Iterator

import pytest

from lab import Lab
from lab.link_addresses import owner, row, set_link
from tests.lab.pings import address
from tests.lab.served import (
    A1,
    B1,
    answered,
    answers,
    ask,
    put_behind,
    service,
    three_servers,
    wait_until_answered,
)
from tests.waiting import wait_until

OUTSIDE = "203.0.113.10"
"""It reaches the link by a router, which asks by ARP who has the address."""
ON_LINK = "172.30.0.1"
"""The router itself."""
EVERYWHERE = ("outside", "fabric", "node1", "node2", "node3", A1, B1)

pytestmark = pytest.mark.parametrize("lab", [{"nodes": 3}], indirect=True)


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """Servers on node1 and node2, none on node3; a pool of addresses of the link."""
    lab.apply(
        {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": "edge"},
            "spec": {"ranges": ["172.30.9.0/29"], "announce": ["Link"]},
        }
    )
    with three_servers(lab):
        yield lab


def balance(lab: Lab, name: str, cluster_ip: str, *pods: str, **spec: object) -> str:
    """A Service of type LoadBalancer with these pods; its address."""
    put_behind(lab, name, pods)
    ports = [{"name": "TCP", "port": 80}]
    lab.apply(service(name, cluster_ip, ports, type="LoadBalancer", **spec))
    wait_until(lambda: given(lab, name))
    return given(lab, name)


def given(lab: Lab, name: str) -> str:
    """The Service's address, when it is in the Service's status; empty: not yet."""
    report = lab.ask(f"/v1/services/default/{name}") or {}
    balancer = report.get("balancer") or {}
    return str(balancer["address"]) if balancer.get("assigned") else ""


def test_everybody_reaches_an_address_of_a_pool(lab: Lab) -> None:
    at = balance(lab, "web", "10.96.0.60", A1, B1)
    assert at.startswith("172.30.9.")
    owner(lab, at)
    wait_until_answered(lab, EVERYWHERE, at, 80)
    for client in EVERYWHERE:
        heard = answers(lab, client, at, 80, times=20)
        assert {each.server for each in heard} <= {A1, B1}
    # Another port of the address is refused at once, and by nobody sent on.
    for client in ("outside", "fabric"):
        assert ask(lab, client, at, 81) == ["refused"]
    (pool,) = (lab.ask("/v1/pools") or {})["pools"]
    assert (pool["size"], pool["free"]) == (8, 7)
    (user,) = pool["users"]
    assert (user["address"], user["services"]) == (at, ["default/web"])
    assert user["nodes"] == ["node1", "node2", "node3"]


def test_with_the_policy_local_the_owner_has_an_endpoint_and_servers_see_clients(lab: Lab) -> None:
    local = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100}
    at = balance(lab, "local", "10.96.0.61", A1, **local)
    wait_until(lambda: owner(lab, at) == "node1")
    wait_until_answered(lab, ["outside", "fabric"], at, 80)
    assert answers(lab, "outside", at, 80)[0][:2] == (A1, OUTSIDE)
    assert answers(lab, "fabric", at, 80)[0][:2] == (A1, ON_LINK)
    # A node that does not own the address, and pods, reach it by their own switch.
    assert answers(lab, "node2", at, 80)[0].server == A1
    assert answers(lab, B1, at, 80)[0][:2] == (A1, address(lab, B1))
    put_behind(lab, "local", [B1])
    wait_until(lambda: row(lab, at).get("owner") == "node2")
    wait_until_answered(lab, ["outside", "fabric"], at, 80)
    assert answers(lab, "outside", at, 80)[0][:2] == (B1, OUTSIDE)


def test_source_ranges_hold(lab: Lab) -> None:
    ranges = [f"{ON_LINK}/32"]
    at = balance(lab, "few", "10.96.0.62", A1, B1, loadBalancerSourceRanges=ranges)
    owner(lab, at)
    wait_until_answered(lab, ["fabric"], at, 80)
    assert ask(lab, "outside", at, 80, timeout=2) == ["timeout"]


def test_address_moves_with_its_clients_when_its_node_dies(lab: Lab) -> None:
    at = given(lab, "web")
    node = owner(lab, at)
    set_link(lab, node, "down")
    try:
        wait_until(lambda: row(lab, at).get("owner") not in {"", node})
        # Endpoints on the dead node get connections until Kubernetes says otherwise.
        put_behind(lab, "web", [B1 if node == "node1" else A1])
        wait_until_answered(lab, ["outside", "fabric"], at, 80)
        heard = ask(lab, "outside", at, 80, times=5)
        assert all(map(answered, heard))
    finally:
        set_link(lab, node, "up")


def test_address_is_free_when_the_service_changes_its_type(lab: Lab) -> None:
    at = balance(lab, "gone", "10.96.0.63", A1, B1)
    owner(lab, at)
    lab.apply(service("gone", "10.96.0.63", [{"name": "TCP", "port": 80}]))
    wait_until(lambda: not row(lab, at).get("owner"))
    wait_until(lambda: not answered(ask(lab, "fabric", at, 80, timeout=1)[0]))


def test_same_address_after_a_restart_of_the_controller(lab: Lab) -> None:
    """Without an API server only the memory of the controller has it."""
    before = given(lab, "web")
    lab.kill_daemon("control", "controller")
    lab.start_daemon("control", "controller")
    wait_until(lambda: given(lab, "web"))
    assert given(lab, "web") == before
    wait_until_answered(lab, ["outside"], before, 80)
