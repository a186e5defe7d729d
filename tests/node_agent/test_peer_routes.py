"""The host's routes to peers that it reaches without the tunnel."""

import asyncio
import json
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import AsyncIPRoute

from flows import names
from node_agent import install, peer_routes
from node_agent.peer_routes import PeerRouting, file_of
from settings import Agent
from tests.namespaces import inside, namespace
from wire.documents import PeerRoutes, encode

from .conftest import CONFIG, needs_root, run

pytestmark = needs_root

NAME = f"sluice-peer-routes-{os.getpid()}"
OWN, NEAR, ROUTER, FAR = "192.0.2.1", "192.0.2.2", "192.0.2.9", "198.51.100.2"


@pytest.fixture(autouse=True)
def one_host() -> Iterator[None]:
    with namespace(NAME, f"{OWN}/24"):
        ip(f"link add {names.GATEWAY_PORT} type veth peer name gw",
           f"link set {names.GATEWAY_PORT} up",
           f"addr add {names.gateway_address(CONFIG.pod_cidr)}/32 dev {names.GATEWAY_PORT}",
           f"route add default via {ROUTER}")  # fmt: skip
        yield


def ip(*lines: str) -> None:
    for line in lines:
        run("ip", "-n", NAME, *line.split())


def shown() -> dict[str, Any]:
    """By range, the next hops of our routes."""
    listed = json.loads(run("ip", "-n", NAME, "-j", "-N", "route", "show", "proto", "213"))
    return {
        each["dst"]: each.get("gateway") or sorted(hop["gateway"] for hop in each["nexthops"])
        for each in listed
    }


def agent(home: Path) -> Agent:
    return Agent(node="node1", controllers=("127.0.0.1",), state=home, plain_tcp=True)


def converge(home: Path, *peers: tuple[str, str]) -> PeerRouting:
    """As an agent that starts with a copy of this document."""
    document = PeerRoutes(tuple((IPv4Network(pods), IPv4Address(at)) for pods, at in peers), "1")
    install.replace(file_of(agent(home)), encode(document), 0o600)

    async def steps() -> PeerRouting:
        async with AsyncIPRoute() as netlink:
            made = PeerRouting(agent(home), netlink)
            config = msgspec.structs.replace(CONFIG, address=IPv4Address(OWN))
            await made.converge(config)
            await made.converge(config)
            return made

    return inside(NAME, lambda: asyncio.run(steps()))


def test_peer_on_the_link_is_the_next_hop_and_one_behind_a_router_is_not(tmp_path: Path) -> None:
    made = converge(tmp_path, ("10.99.2.0/24", NEAR), ("10.99.3.0/24", FAR))
    assert shown() == {"10.99.2.0/24": NEAR, "10.99.3.0/24": ROUTER}
    assert made.routed == {IPv4Network("10.99.3.0/24"): IPv4Address(FAR)}
    assert not made.problem()


def test_own_range_and_ranges_outside_the_pod_range_get_no_route(tmp_path: Path) -> None:
    converge(tmp_path, (str(CONFIG.pod_cidr), OWN), ("10.98.0.0/24", NEAR), ("0.0.0.0/0", NEAR))
    assert shown() == {}


def test_all_next_hops_of_the_host_are_used(tmp_path: Path) -> None:
    ip("route add 198.51.100.0/24 nexthop via 192.0.2.8 nexthop via 192.0.2.9")
    converge(tmp_path, ("10.99.3.0/24", FAR))
    assert shown() == {"10.99.3.0/24": ["192.0.2.8", ROUTER]}
    ip("route del 198.51.100.0/24")
    converge(tmp_path, ("10.99.3.0/24", FAR))
    assert shown() == {"10.99.3.0/24": ROUTER}


def test_routes_follow_the_peers(tmp_path: Path) -> None:
    converge(tmp_path, ("10.99.2.0/24", NEAR), ("10.99.3.0/24", "192.0.2.3"))
    converge(tmp_path, ("10.99.3.0/24", "192.0.2.4"))
    assert shown() == {"10.99.3.0/24": "192.0.2.4"}
    ip("route flush proto 213")
    converge(tmp_path, ("10.99.3.0/24", "192.0.2.4"))
    assert shown() == {"10.99.3.0/24": "192.0.2.4"}


def test_routes_of_others_stay(tmp_path: Path) -> None:
    ip("route add 10.99.2.0/24 via 192.0.2.7 proto static", "route add 10.99.4.0/24 via 192.0.2.7")
    converge(tmp_path, ("10.99.2.0/24", NEAR), ("10.99.3.0/24", NEAR))
    assert shown() == {"10.99.3.0/24": NEAR}

    async def remove() -> None:
        async with AsyncIPRoute() as netlink:
            await peer_routes.remove(netlink)
            await peer_routes.remove(netlink)

    inside(NAME, lambda: asyncio.run(remove()))
    assert shown() == {}
    left = run("ip", "-n", NAME, "route")
    assert "10.99.2.0/24 via 192.0.2.7" in left
    assert "10.99.4.0/24 via 192.0.2.7" in left


def test_peers_that_the_host_has_no_route_to_are_named(tmp_path: Path) -> None:
    ip("route del default")
    made = converge(
        tmp_path, *((f"10.99.{n}.0/24", FAR) for n in range(2, 9)), ("10.99.9.0/24", NEAR)
    )
    assert shown() == {"10.99.9.0/24": NEAR}
    assert f"no route of the host leads to the nodes {FAR} (pods 10.99.2.0/24)" in made.problem()
    assert made.problem().endswith("and 2 more")
