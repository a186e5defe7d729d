"""What the agent finds of its host's network, and how it sets up `sluice-gw`."""

import asyncio
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec
import pytest
from pyroute2 import AsyncIPRoute

from flows import names
from node_agent import host
from node_agent.host import Uplink
from node_agent.sysctl import Sysctls
from tests.namespaces import inside, namespace

from .conftest import CONFIG, needs_root, run

pytestmark = needs_root

NAME = f"sluice-host-facts-{os.getpid()}"
ADDRESS = "192.0.2.1"


@pytest.fixture(autouse=True)
def one_host() -> Iterator[None]:
    with namespace(NAME, f"{ADDRESS}/24"):
        yield


def ip(*lines: str) -> None:
    for line in lines:
        run("ip", "-n", NAME, *line.split())


def found(*host_ranges: str, direct: frozenset[IPv4Network] = frozenset()) -> Uplink:
    config = msgspec.structs.replace(
        CONFIG, address=IPv4Address(ADDRESS), host_ranges=tuple(map(IPv4Network, host_ranges))
    )

    async def check() -> Uplink:
        async with AsyncIPRoute() as netlink:
            return await host.check(netlink, config, direct)

    return inside(NAME, lambda: asyncio.run(check()))


@pytest.mark.parametrize(
    "line",
    [
        "route add 10.0.0.0/8 via 192.0.2.9",
        "route add 0.0.0.0/1 via 192.0.2.9",
        "route add default via 192.0.2.9",
        "route add blackhole 10.98.0.0/15",
        # Ours for the same range has a better metric.
        "route add 10.99.0.0/16 via 192.0.2.9 metric 100",
        # NodeLocal DNSCache: the ClusterIP of kube-dns, and an address of its own.
        "addr add 10.98.0.10/32 dev lo",
        "addr add 169.254.20.10/32 dev lo",
    ],
)
def test_what_takes_nothing_from_the_cluster_is_no_conflict(line: str) -> None:
    ip(line)
    assert found().problems == ()


def test_route_to_the_pods_of_a_direct_peer_is_no_conflict() -> None:
    ip("route add 10.99.7.0/24 via 192.0.2.9 proto bgp metric 20",
       "route add 10.99.8.0/24 via 192.0.2.9 proto bgp metric 20")  # fmt: skip
    (problem,) = found(direct=frozenset([IPv4Network("10.99.7.0/24")])).problems
    assert "10.99.8.0/24" in problem


def test_address_of_the_node_has_the_prefix_length_of_its_interface() -> None:
    assert str(found().own) == f"{ADDRESS}/24"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("route add 10.98.7.0/24 via 192.0.2.9", "serviceRange 10.98.0.0/16 overlaps the host's "
         "route 10.98.7.0/24 on d0"),
        ("route add 10.98.0.0/16 via 192.0.2.9", "overlaps the host's route 10.98.0.0/16 on d0"),
        ("route add unreachable 10.99.7.0/24", "podRange 10.99.0.0/16 overlaps the host's route "
         "10.99.7.0/24 on"),
        ("addr add 10.99.200.1/32 dev lo", "podRange 10.99.0.0/16 overlaps the host's address "
         "10.99.200.1/32 on lo"),
    ],
)  # fmt: skip
def test_what_takes_traffic_of_the_cluster_is_a_conflict(line: str, problem: str) -> None:
    ip(line)
    (told,) = found().problems
    assert problem in told


def test_the_mtu_is_that_of_the_smallest_way_to_other_nodes() -> None:
    ip("link set d0 mtu 9000")
    assert found().mtu == 9000
    ip(
        "link add e0 type veth peer name e1", "link set e1 up", "link set e0 mtu 1500 up",
        "addr add 198.51.100.1/24 dev e0",
    )  # fmt: skip
    assert found().mtu == 9000, "a network of its own, where no node is"
    ip("route add default via 198.51.100.9")
    assert found().mtu == 1500
    assert found("192.0.2.0/24").mtu == 9000, "the configuration says where all nodes are"
    assert found("192.0.2.0/24", "198.51.100.0/25").mtu == 1500


def test_an_address_on_the_loopback_interface_has_the_mtu_of_the_way_out() -> None:
    ip(f"addr del {ADDRESS}/24 dev d0", f"addr add {ADDRESS}/32 dev lo",
       "addr add 198.51.100.1/24 dev d0", "link set d0 mtu 1400")  # fmt: skip
    assert found("198.51.100.0/24").mtu == 1400
    ip("route add default nexthop via 198.51.100.8 nexthop via 198.51.100.9")
    assert found().mtu == 1400


@pytest.fixture
def sysctls(tmp_path: Path) -> Sysctls:
    """Those of a host that has the interface `sluice-gw`."""
    ip(f"link add {names.GATEWAY_PORT} type veth peer name switch")
    return Sysctls(Path("/proc/sys/net"), tmp_path / "found")


def set_up_gateway(sysctls: Sysctls) -> None:
    async def set_up() -> None:
        async with AsyncIPRoute() as netlink:
            await host.set_up_gateway(netlink, sysctls, CONFIG, 1450)

    inside(NAME, lambda: asyncio.run(set_up()))


def neighbours() -> set[str]:
    shown = run("ip", "-n", NAME, "neigh", "show", "dev", names.GATEWAY_PORT)
    return {line.strip() for line in shown.splitlines()}


ROUTER = f"{names.ROUTER_ADDRESS} lladdr {names.ROUTER_MAC} PERMANENT"


def test_gateway_that_is_right_is_not_set_again(sysctls: Sysctls) -> None:
    """When a MAC is set, the kernel deletes the neighbours, and Open vSwitch reads all routes."""
    set_up_gateway(sysctls)
    ip(f"neigh add 169.254.1.9 lladdr 02:00:00:00:00:09 dev {names.GATEWAY_PORT}")
    before = neighbours()
    assert len(before) == 2
    set_up_gateway(sysctls)
    assert neighbours() == before


@pytest.mark.parametrize("change", ["address 02:00:00:00:00:01", "mtu 1400", "down"])
def test_gateway_that_was_changed_is_set_again(sysctls: Sysctls, change: str) -> None:
    set_up_gateway(sysctls)
    ip(f"link set {names.GATEWAY_PORT} {change}")
    set_up_gateway(sysctls)
    shown = run("ip", "-n", NAME, "link", "show", names.GATEWAY_PORT)
    assert f"link/ether {names.GATEWAY_MAC} " in shown
    assert "mtu 1450 " in shown
    assert "UP" in shown.split("<")[1].split(">")[0].split(",")
    assert neighbours() == {ROUTER}
