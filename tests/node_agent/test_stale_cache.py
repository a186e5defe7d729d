"""The cache of a real userspace datapath is emptied after each change of the tables."""

import asyncio

import pytest

from node_agent import appctl, stale_cache
from node_agent.stale_cache import (
    INTERVAL,
    LONGEST_PAUSE,
    ROUND,
    StaleCache,
    is_mended,
    pause_after,
)
from tests.ovs import Ovs
from tests.waiting import wait_until

PACKET = (
    "in_port(1),eth(src=0a:58:00:00:00:01,dst=0a:58:00:00:00:02),eth_type(0x0800),"
    "ipv4(src=10.0.0.1,dst=10.0.0.2,proto=1,tos=0,ttl=64,frag=no),icmp(type=8,code=0)"
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(ovs: Ovs, clock: Clock) -> StaleCache:
    """Of a switch with a flow, and a packet that used it; nothing is to be done any more."""
    ovs.port_up("p1", 1)
    ovs.port_up("p2", 2)
    made = StaleCache(ovs.directory, monotonic=clock)
    change(ovs, "output:2")
    clock.now += 10
    # Until what the switch does by itself at its start is over.
    wait_until(lambda: not looked(made, clock))
    return made


def looked(cache: StaleCache, clock: Clock) -> bool:
    found = asyncio.run(cache.look())
    clock.now += 2 * ROUND
    return found


def change(ovs: Ovs, actions: str) -> None:
    ovs.ofctl("add-flow", str(ovs.mgmt), f"table=0,in_port=1,actions={actions}")


def call(ovs: Ovs, *command: str) -> str:
    return asyncio.run(appctl.call(ovs.directory, *command))


def has_cached_flow(ovs: Ovs) -> bool:
    return "in_port(1)" in call(ovs, "dpctl/dump-flows")


def packet(ovs: Ovs) -> None:
    call(ovs, "netdev-dummy/receive", "p1", PACKET)
    wait_until(lambda: has_cached_flow(ovs))


def test_cache_is_emptied_at_once_after_a_change_and_again_when_it_has_settled(
    ovs: Ovs, cache: StaleCache, clock: Clock
) -> None:
    def look() -> bool:
        return asyncio.run(cache.look())

    packet(ovs)
    assert not look(), "nothing has changed"
    assert has_cached_flow(ovs)
    # A flow that the packet does not use: the switch itself leaves the cached flow alone.
    ovs.ofctl("add-flow", str(ovs.mgmt), "table=0,in_port=2,actions=drop")
    wait_until(look)
    assert not has_cached_flow(ovs)
    packet(ovs)
    assert not look(), "it has not settled"
    assert has_cached_flow(ovs)
    clock.now += 2 * ROUND
    assert look()
    assert not has_cached_flow(ovs)
    clock.now += 2 * ROUND
    packet(ovs)
    assert not look(), "it has settled"
    assert has_cached_flow(ovs)


def test_cache_of_a_mended_version_stays(
    ovs: Ovs, cache: StaleCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale_cache, "MENDED_IN", (0, 0))
    packet(ovs)
    change(ovs, "drop")
    clock.now += 1
    for _ in range(5):
        assert not looked(cache, clock)
    assert has_cached_flow(ovs)


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ("ovs-vswitchd (Open vSwitch) 3.1.0\n", False),
        ("ovs-vswitchd (Open vSwitch) 3.3.0\n", True),
        ("ovs-vswitchd (Open vSwitch) 2.17.9\n", False),
        ("ovs-vswitchd (Open vSwitch) 10.0.1\n", True),
        ("something else", False),
    ],
)
def test_version_that_is_not_known_is_taken_for_an_old_one(version: str, mended: bool) -> None:
    assert is_mended(version) == mended


def test_switch_that_hangs_is_looked_at_again_soon() -> None:
    """Also after the 20 s in which an answer may come."""
    assert pause_after(0.0) == INTERVAL
    assert INTERVAL < pause_after(0.1) < LONGEST_PAUSE
    assert pause_after(appctl.PATIENCE) == LONGEST_PAUSE
