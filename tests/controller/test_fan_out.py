"""Shared changes go to all switches, a few at a time, and gather while switches wait for them."""

import asyncio
from typing import Any

import pytest

from controller import fan_out
from controller.fan_out import FanOut
from openflow.switch import Switch
from tests.controller.test_load import fleet, node
from tests.openflow.peers import Peer


class Sending:
    """Stands for a session."""

    def __init__(self, has_work: bool = True) -> None:
        self.has_work = has_work
        self.woken = 0

    def wake(self) -> bool:
        self.woken += 1
        return self.has_work


def test_each_place_goes_to_the_next_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "MOST_AT_ONCE", 2)

    async def story() -> None:
        waiting = FanOut()
        sessions = [Sending() for _ in range(5)]
        waiting.add(sessions)
        assert [each.woken for each in sessions] == [1, 1, 0, 0, 0]
        waiting.done(sessions[1])
        waiting.done(sessions[1])
        assert [each.woken for each in sessions] == [1, 1, 1, 0, 0]
        waiting.remove(sessions[3])
        waiting.remove(sessions[0])
        assert [each.woken for each in sessions] == [1, 1, 1, 0, 1]
        assert not waiting.is_busy

    asyncio.run(story())


def test_session_without_work_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "MOST_AT_ONCE", 1)

    async def story() -> None:
        waiting = FanOut()
        sessions = [Sending(has_work=False), Sending(), Sending()]
        waiting.add(sessions)
        assert [each.woken for each in sessions] == [1, 1, 0]
        assert waiting.is_busy

    asyncio.run(story())


def test_session_that_does_not_end_gives_its_place_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(fan_out, "LONGEST_PLACE", 0.01)

    async def story() -> None:
        waiting = FanOut()
        sessions = [Sending() for _ in range(3)]
        waiting.add(sessions)
        async with asyncio.timeout(30):
            while waiting.is_busy:
                await asyncio.sleep(0.01)
        assert [each.woken for each in sessions] == [1, 1, 1]

    asyncio.run(story())


def test_shared_change_is_sent_to_a_few_switches_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All at once would hold the event loop for the time of thousands of switches."""
    monkeypatch.setattr(fan_out, "MOST_AT_ONCE", 4)
    monkeypatch.setattr(fan_out, "LONGEST_PLACE", 1000.0)
    under_way, most = 0, 0
    apply = Switch.apply

    async def counted(switch: Switch, *of: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await apply(switch, *of)
        finally:
            under_way -= 1

    async def story() -> None:
        numbers = range(1, 31)
        peers = [Peer(number, pods=0) for number in numbers]
        async with fleet(nodes=30, pods=0) as ours:
            await ours.dial(peers)
            await ours.all_in_sync(numbers)
            monkeypatch.setattr(Switch, "apply", counted)
            ours.reconciler.update([node(31)], [])
            await ours.all_in_sync(numbers)
            for number, peer in zip(numbers, peers, strict=True):
                assert peer.flows.keys() == ours.desired(number)

    asyncio.run(story())
    assert 1 < most <= 4


def test_changes_that_come_while_switches_wait_are_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each batch costs every switch the same: one for each change would never end."""
    busy = True
    monkeypatch.setattr(FanOut, "is_busy", property(lambda _: busy))

    async def story() -> None:
        nonlocal busy
        peers = [Peer(1, pods=0)]
        async with fleet(nodes=1, pods=0) as ours:
            await ours.dial(peers)
            await ours.all_in_sync([1])
            shared = ours.reconciler.desired.shared
            before = shared.version
            for number in range(2, 10):
                ours.reconciler.update([node(number)], [])
                await asyncio.sleep(0.01)
            assert shared.version == before
            busy = False
            await ours.until(lambda: shared.version > before)
            await ours.all_in_sync([1])
            assert shared.version == before + 1
            assert peers[0].flows.keys() == ours.desired(1)

    asyncio.run(story())
