"""The right to write, as it is given, taken and confirmed."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from controller import leadership as module
from controller.leadership import Leadership


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Told:
    """Notes what it is told."""

    def __init__(self, leadership: Leadership) -> None:
        self.said: list[str] = []
        leadership.tell(self)

    def lead(self) -> None:
        self.said.append("lead")

    def follow(self) -> None:
        self.said.append("follow")

    def follow_next(self) -> None:
        self.said.append("next")


def story(told: Callable[[Leadership, Clock, Told], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = Clock()
        leadership = Leadership(elected=True, clock=clock)
        await told(leadership, clock, Told(leadership))
        leadership.withdraw()  # the timer

    asyncio.run(main())


def test_controller_without_an_election_leads_for_ever() -> None:
    async def main() -> None:
        leadership = Leadership()
        told = Told(leadership)
        assert leadership.holds()
        assert await leadership.confirmed(leadership.now())
        leadership.withdraw()
        assert leadership.holds()
        assert told.said == []

    asyncio.run(main())


def test_nobody_leads_before_the_election_says_so() -> None:
    async def told(leadership: Leadership, clock: Clock, _: Told) -> None:
        assert not leadership.holds()
        clock.now = -1.0
        assert not leadership.holds()
        assert not await leadership.confirmed(clock.now)

    story(told)


def test_term_is_told_once_and_its_renewals_are_not() -> None:
    async def told(leadership: Leadership, clock: Clock, told: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        clock.now = 101.0
        leadership.grant(5, 104.0, 101.0)
        assert told.said == ["lead"]
        clock.now = 103.5
        assert leadership.holds()
        leadership.withdraw()
        leadership.withdraw()
        assert told.said == ["lead", "follow"]
        assert not leadership.holds()

    story(told)


def test_new_generation_is_a_new_term() -> None:
    async def told(leadership: Leadership, _: Clock, told: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        leadership.grant(6, 103.0, 100.0)
        assert told.said == ["lead", "follow", "lead"]
        assert leadership.generation == 6

    story(told)


def test_term_that_ran_out_unseen_ends_before_the_next_one_begins() -> None:
    """The process was stopped, so that no timer ran."""

    async def told(leadership: Leadership, clock: Clock, told: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        clock.now = 500.0
        assert not leadership.holds()
        assert told.said == ["lead"]
        leadership.grant(5, 503.0, 500.0)
        assert told.said == ["lead", "follow", "lead"]

    story(told)


def test_followers_are_told_when_a_term_runs_out() -> None:
    async def told(leadership: Leadership, clock: Clock, told: Told) -> None:
        leadership.grant(5, clock.now + 0.001, clock.now)
        ends = asyncio.create_task(leadership.ceases(60))
        # The timer of the event loop fires, and by the other clock it is a little early.
        await asyncio.sleep(0.01)
        assert told.said == ["lead"]
        clock.now += 0.001
        await ends
        assert told.said == ["lead", "follow"]

    story(told)


def test_confirmation_needs_a_renewal_that_began_later() -> None:
    async def told(leadership: Leadership, clock: Clock, _: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        clock.now = 100.5
        asked = asyncio.create_task(leadership.confirmed(100.2))
        await asyncio.sleep(0)
        # One that is under way since before says nothing.
        leadership.grant(5, 103.1, 100.1)
        await asyncio.sleep(0)
        leadership.grant(5, 103.2, 100.2)
        await asyncio.sleep(0)
        assert not asked.done()
        leadership.grant(5, 103.3, 100.3)
        assert await asked

    story(told)


def test_confirmation_fails_when_the_term_ends() -> None:
    async def told(leadership: Leadership, _: Clock, __: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        asked = asyncio.create_task(leadership.confirmed(100.0))
        await asyncio.sleep(0)
        leadership.withdraw()
        assert not await asked

    story(told)


def test_confirmation_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_DOUBT", 0.01)

    async def told(leadership: Leadership, _: Clock, __: Told) -> None:
        leadership.grant(5, 1e6, 100.0)
        assert not await leadership.confirmed(100.0)

    story(told)


def test_doubt_is_heard_also_if_it_comes_first() -> None:
    async def told(leadership: Leadership, _: Clock, __: Told) -> None:
        leadership.doubt()
        await asyncio.wait_for(leadership.doubted(1e6), 60)
        hears = asyncio.create_task(leadership.doubted(1e6))
        await asyncio.sleep(0)
        assert not hears.done()
        leadership.doubt()
        await asyncio.wait_for(hears, 60)
        await leadership.doubted(-1.0)

    story(told)


def test_many_that_wait_for_a_confirmation_ask_for_one_renewal() -> None:
    async def told(leadership: Leadership, _: Clock, __: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        asked = [asyncio.create_task(leadership.confirmed(100.0)) for _ in range(1_000)]
        await asyncio.sleep(0)
        await leadership.doubted(60)
        leadership.grant(5, 103.5, 100.5)
        assert all(await asyncio.gather(*asked))

    story(told)


def test_follower_is_told_of_a_newer_generation_once() -> None:
    async def told(leadership: Leadership, _: Clock, told: Told) -> None:
        leadership.learn(4)
        leadership.learn(4)
        leadership.learn(3)
        assert told.said == ["next"]
        assert leadership.generation == 4

    story(told)


def test_generation_of_a_leader_is_that_of_its_term() -> None:
    async def told(leadership: Leadership, _: Clock, told: Told) -> None:
        leadership.grant(5, 103.0, 100.0)
        leadership.learn(9)
        assert leadership.generation == 5
        assert told.said == ["lead"]

    story(told)


def test_last_time_that_somebody_led_is_known() -> None:
    async def told(leadership: Leadership, clock: Clock, _: Told) -> None:
        leadership.follows("other")
        clock.now = 160.0
        leadership.follows("")
        assert (leadership.leader, leadership.last_led) == ("", 100.0)

    story(told)
