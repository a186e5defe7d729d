"""What the role refuses before it changes anything, told by what `ip -json` says."""

import runpy
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "ansible/roles/sluice/files/host_ranges.py"
overlaps = runpy.run_path(str(SCRIPT))["overlaps"]

RANGES = {"pods": IPv4Network("10.244.0.0/16"), "services": IPv4Network("10.96.0.0/16")}
UPLINK = {"ifname": "eth0", "addr_info": [{"local": "192.0.2.7", "prefixlen": 24}]}


def address(link: str, local: str, prefix_length: int) -> dict[str, Any]:
    return {"ifname": link, "addr_info": [{"local": local, "prefixlen": prefix_length}]}


def test_a_plain_host_is_taken() -> None:
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": "192.0.2.0/24", "dev": "eth0"}]
    assert list(overlaps(RANGES, [UPLINK], routes)) == []


def test_what_is_ours_from_an_earlier_run_is_no_overlap() -> None:
    ours = address("sluice-gw", "10.244.3.1", 32)
    routes = [
        {"dst": "10.244.0.0/16", "dev": "sluice-gw"},
        {"dst": "10.244.3.1", "dev": "sluice-gw", "type": "local"},
    ]
    assert list(overlaps(RANGES, [UPLINK, ours], routes)) == []


@pytest.mark.parametrize(
    ("addresses", "routes", "said"),
    [
        ([address("eth1", "10.244.9.9", 24)], [], "address 10.244.9.9/24 on eth1"),
        ([address("eth1", "10.1.1.1", 8)], [], "address 10.1.1.1/8 on eth1"),
        ([], [{"dst": "10.96.0.1", "dev": "tun0"}], "route 10.96.0.1 on tun0"),
        ([], [{"dst": "10.0.0.0/8", "nexthops": []}], "route 10.0.0.0/8"),
    ],
)
def test_what_overlaps_is_named(addresses: list[Any], routes: list[Any], said: str) -> None:
    found = list(overlaps(RANGES, addresses, routes))
    assert found
    assert all(line.endswith(said) for line in found)


def test_ranges_that_overlap_each_other_are_named() -> None:
    ranges = RANGES | {"services": IPv4Network("10.244.128.0/17")}
    assert list(overlaps(ranges, [], [])) == [
        "pods 10.244.0.0/16 overlaps services 10.244.128.0/17"
    ]
