"""Connections that the switch forgets: all of them, as a dump shows, however many they are."""

import asyncio
from collections import Counter
from functools import partial
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from controller.conntrack_flush import FLUSHES_OF_STALE
from flows.pipeline import CT_ZONE, FROM_SERVICE, KNOWN
from node_agent import appctl, limits, tracked
from node_agent.connection_limits import ConnectionLimits, most_of
from node_agent.local_switch import MOST_ROUNDS, SwitchAwayError, forget_all
from openflow.batch import Batch
from openflow.watch import connect
from tests.ovs import Ovs

OLD, OTHER, CLIENT, THIRD = (IPv4Address(f"10.0.0.{n}") for n in range(1, 5))
MANY = 1_500
AT_ONCE = 100
"""What the queue of a dummy port holds."""


@pytest.fixture
def tracking(ovs: Ovs) -> Ovs:
    """Every UDP packet of port 1 opens a connection."""
    for number in (1, 2):
        ovs.port_up(f"p{number}", number)
    ovs.ofctl("add-flow", str(ovs.mgmt), f"udp,actions=ct(commit,zone={CT_ZONE}),output:2")
    return ovs


def packet(source: IPv4Address, destination: IPv4Address, port: int) -> str:
    return (
        "in_port(1),eth(src=50:54:00:00:00:01,dst=50:54:00:00:00:02),eth_type(0x0800),"
        f"ipv4(src={source},dst={destination},proto=17,tos=0,ttl=64,frag=no),"
        f"udp(src={port},dst=9)"
    )


async def opened(ovs: Ovs, source: IPv4Address, destination: IPv4Address, count: int) -> None:
    """So many more connections, each from a port of its own, in the switch."""
    before = (await tracked.opened(ovs.directory, "dummy"))[source]
    packets = [packet(source, destination, before + port) for port in range(1, count + 1)]
    for at in range(0, count, AT_ONCE):
        await appctl.call(ovs.directory, "netdev-dummy/receive", "p1", *packets[at : at + AT_ONCE])
        async with asyncio.timeout(60):
            wanted = before + min(at + AT_ONCE, count)
            while (await tracked.opened(ovs.directory, "dummy"))[source] < wanted:
                await asyncio.sleep(0.005)


async def counts(ovs: Ovs) -> Counter[IPv4Address]:
    return await tracked.counts(ovs.directory, "dummy")


def test_one_flush_leaves_connections_where_the_table_shrinks_meanwhile(tracking: Ovs) -> None:
    """Open vSwitch's fault: if this fails, it is mended there, and `forget_all` can be simpler."""

    async def flushed_once(others: int) -> int:
        await opened(tracking, CLIENT, OLD, MANY)
        if others:
            await opened(tracking, THIRD, OTHER, others)
        async with connect(tracking.mgmt) as switch:
            await switch.apply(Batch.forgetting(CT_ZONE, [OLD]))
            left = (await counts(tracking))[OLD]
            await forget_all(switch, [OLD, OTHER], partial(counts, tracking))
        return left

    assert 0 < asyncio.run(flushed_once(0)) <= MANY / 2
    # The others keep the table from shrinking: so that is the cause.
    assert asyncio.run(flushed_once(2 * MANY)) == 0


def test_what_the_controller_flushes_is_flushed_often_enough(tracking: Ovs) -> None:
    """It cannot ask a switch what is left, but each flush leaves at most half."""

    async def flushed() -> None:
        await opened(tracking, CLIENT, OLD, MANY)
        batch = Batch.forgetting(CT_ZONE, [OLD])
        async with connect(tracking.mgmt) as switch:
            for _ in range(FLUSHES_OF_STALE):
                await switch.apply(batch)
        assert await counts(tracking) == Counter()

    asyncio.run(flushed())


def test_all_are_forgotten_and_nobody_elses(tracking: Ovs) -> None:
    async def both() -> None:
        await opened(tracking, CLIENT, OLD, MANY)
        await opened(tracking, OLD, OTHER, 5)
        await opened(tracking, THIRD, OTHER, 7)
        async with connect(tracking.mgmt) as switch:
            await forget_all(switch, [OLD], partial(counts, tracking))
        assert await counts(tracking) == Counter({THIRD: 7, OTHER: 7})

    asyncio.run(both())


def test_a_connection_that_stays_is_an_error(tracking: Ovs) -> None:
    async def never_gone() -> None:
        asked = 0

        async def counts() -> Counter[IPv4Address]:
            nonlocal asked
            asked += 1
            return Counter({OLD: 3})

        async with connect(tracking.mgmt) as switch:
            with pytest.raises(SwitchAwayError, match=r"10\.0\.0\.1 still has 3 connections"):
                await forget_all(switch, [OLD], counts)
        assert asked == MOST_ROUNDS

    asyncio.run(never_gone())


class Local:
    """What `ConnectionLimits` needs of `LocalSwitch`, on a switch of the test's own."""

    def __init__(self, ovs: Ovs) -> None:
        self._ovs = ovs

    async def opened(self) -> Counter[IPv4Address]:
        return await tracked.opened(self._ovs.directory, "dummy")

    async def forget_opened(self, addresses: list[IPv4Address]) -> None:
        async with connect(self._ovs.mgmt) as switch:
            await forget_all(switch, addresses, self.opened)


def test_who_has_opened_most_loses_it_where_the_table_is_half_full(
    tracking: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_CONNECTIONS", 1_000)
    agent: Any = SimpleNamespace(ovs_run=tracking.directory, datapath="dummy")
    local: Any = Local(tracking)
    watching = ConnectionLimits(agent, local)

    async def story() -> None:
        await opened(tracking, OTHER, OLD, 100)
        await opened(tracking, CLIENT, OLD, 300)
        assert await watching.look() == []
        await opened(tracking, CLIENT, OLD, 300)
        assert await watching.look() == [CLIENT]
        assert await local.opened() == Counter({OTHER: 100})

    asyncio.run(story())
    assert tracking.appctl("dpctl/ct-get-maxconns").strip() == "1000"
    # The node's own connections find room.
    assert "zone=100,limit=750" in tracking.appctl("dpctl/ct-get-limits", "zone=100")
    assert f"max num frags (v4/v6): {limits.MOST_FRAGMENTS}" in tracking.appctl(
        "dpctl/ipf-get-status"
    )


def test_nobody_who_has_opened_little_is_to_blame() -> None:
    many = Counter({IPv4Address(number): 50 for number in range(20)})
    assert most_of(many, 400, 1_000) == []
    # Two who help each other, and one who did nothing.
    few = Counter({OLD: 300, OTHER: 290, CLIENT: 70})
    assert most_of(few, few.total(), 1_000) == [OLD]
    many = Counter({OLD: 800, OTHER: 790, CLIENT: 70})
    assert most_of(many, many.total(), 1_000) == [OLD, OTHER]


def test_entries_in_other_zones_count_for_who_opened_them() -> None:
    """A pod whose connections are translated twice fills the table with half as many."""
    assert most_of(Counter({OLD: 131_072}), 262_144, 262_144) == [OLD]


def test_many_pods_that_share_the_table_are_bounded_too() -> None:
    pods = Counter({IPv4Address(number): 15_200 for number in range(13)})
    assert len(most_of(pods, pods.total(), 262_144)) == 5


def test_an_endpoint_that_was_chosen_and_never_reached_does_not_count() -> None:
    """Otherwise who may write endpoints could keep an address from being used for ever."""
    entry = (
        "udp,orig=(src=10.0.0.1,dst=10.96.0.1,sport=1,dport=2),reply=(src=10.0.0.9,dst=10.0.0.1)"
    )
    chosen, known = FROM_SERVICE, FROM_SERVICE | KNOWN
    listed = f"{entry},zone=100,mark={chosen}\n{entry},zone=100,mark={known}\n{entry},zone=100\n"
    assert tracked._counted(listed)[IPv4Address("10.0.0.9")] == 2
    assert tracked._counted(listed, answerers=False) == {IPv4Address("10.0.0.1"): 3}


def test_a_refused_command_is_one_sentence(ovs: Ovs) -> None:
    with pytest.raises(appctl.AppctlError, match=r"^nonsense: .*not a valid command"):
        asyncio.run(appctl.call(ovs.directory, "nonsense"))


def test_a_switch_that_is_away_or_hangs_is_an_error(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appctl, "PATIENCE", 0.2)
    ovs.freeze_switch()
    with pytest.raises(appctl.AppctlError, match="no answer"):
        asyncio.run(appctl.call(ovs.directory, "version"))
    ovs.stop_switch()
    with pytest.raises(appctl.AppctlError, match="version: "):
        asyncio.run(appctl.call(ovs.directory, "version"))
