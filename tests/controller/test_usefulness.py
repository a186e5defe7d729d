"""When a leader steps down, and how long a replica leaves a free Lease to others."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller import usefulness as module
from controller.session_state import State
from controller.usefulness import (
    ASKED,
    HANDICAP,
    LATE,
    LATE_TIMES,
    PERIOD,
    REST,
    SILENCE,
    SILENT_TIMES,
    STUCK,
    Usefulness,
)
from tests.controller.lease_server import Clock


class PlayedSession:
    def __init__(self) -> None:
        self.answers = True
        self.state = State.IN_SYNC
        self.switch = self
        self.asked = 0

    async def alive(self, _: float) -> bool:
        self.asked += 1
        return self.answers


class World:
    """What is looked at, and a clock that goes on when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, switches: int = 10) -> None:
        self.clock = Clock()
        self.lateness = 0.0
        self.leads = True
        self.silence = 0.0
        self.sessions = {f"node{n}": PlayedSession() for n in range(switches)}
        self.inventory = SimpleNamespace(view=SimpleNamespace(nodes={**self.sessions}))
        self.listed = asyncio.Event()
        self.listed.set()
        self.acknowledged_at = self.clock.now
        self.leadership = SimpleNamespace(holds=lambda: self.leads, began=self.clock.now)
        self.left = 0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self.clock))
        monkeypatch.setattr(
            module, "asyncio", SimpleNamespace(sleep=self.sleep, gather=asyncio.gather)
        )
        self.usefulness = Usefulness(cast("Any", self), cast("Any", self))

    async def sleep(self, seconds: float) -> None:
        if not self.left:
            raise asyncio.CancelledError
        self.left -= 1
        self.clock.now += seconds + self.lateness

    def look(self, times: int = 1) -> str:
        """Look so often; the reason to step down."""
        self.left = times

        async def main() -> None:
            with suppress(asyncio.CancelledError):
                await self.usefulness.run()

        asyncio.run(main())
        return self.usefulness.should_step_down()

    def silence_of(self, switches: int) -> None:
        for number, each in enumerate(self.sessions.values()):
            each.answers = number >= switches


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_leader_of_use_stays(world: World) -> None:
    assert world.look(100) == ""
    assert world.usefulness.delay() == 0.0


def test_replica_that_has_not_read_the_cluster_cannot_lead(world: World) -> None:
    world.listed.clear()
    assert world.usefulness.delay() is None


def test_silent_watches_make_a_leader_step_down(world: World) -> None:
    world.silence = SILENCE
    assert world.look() == ""
    world.silence = SILENCE + 1
    assert "watch" in world.look()


def test_loop_that_is_late_again_and_again_makes_a_leader_step_down(world: World) -> None:
    world.lateness = LATE + 0.1
    assert world.look(LATE_TIMES - 1) == ""
    world.lateness = 0.0
    assert world.look() == ""
    world.lateness = LATE + 0.1
    assert "late" in world.look(LATE_TIMES)


def test_one_long_stop_is_not_a_late_loop(world: World) -> None:
    world.lateness = 120.0
    assert world.look() == ""


@pytest.mark.parametrize(("silent", "steps_down"), [(1, False), (4, False), (10, True)])
def test_most_switches_have_to_be_silent(world: World, silent: int, steps_down: bool) -> None:
    world.silence_of(silent)
    assert bool(world.look(SILENT_TIMES)) is steps_down


def test_few_switches_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, switches=5_000)
    world.look()
    assert sum(each.asked for each in world.sessions.values()) == ASKED


def test_switches_that_are_silent_once_are_asked_again(world: World) -> None:
    world.silence_of(10)
    assert world.look(SILENT_TIMES - 1) == ""
    world.silence_of(0)
    assert world.look() == ""
    world.silence_of(10)
    assert world.look(SILENT_TIMES - 1) == ""


def test_leader_that_has_lost_every_switch_steps_down(world: World) -> None:
    assert world.look() == ""
    world.sessions.clear()
    assert world.look(SILENT_TIMES) != ""


def test_leader_that_never_had_a_switch_stays(world: World) -> None:
    world.sessions.clear()
    assert world.look(100) == ""


def test_stolen_switch_that_acknowledges_nothing_makes_nobody_step_down(world: World) -> None:
    world.sessions["node0"].state = State.UPDATING
    assert world.look(int(2 * STUCK)) == ""


def test_leader_of_which_nothing_is_acknowledged_steps_down(world: World) -> None:
    for each in world.sessions.values():
        each.state = State.UPDATING
    assert world.look(int(STUCK / PERIOD) - 1) == ""
    assert "acknowledged" in world.look(2)


def test_acknowledgement_of_anybody_is_enough(world: World) -> None:
    for each in world.sessions.values():
        each.state = State.UPDATING
    world.look(int(STUCK) - 1)
    world.acknowledged_at = world.clock.now
    assert world.look(int(STUCK) - 1) == ""


def test_leader_steps_down_once_in_a_while_and_leaves_the_lease_to_others(world: World) -> None:
    world.silence_of(10)
    assert world.look(SILENT_TIMES) != ""
    assert world.usefulness.should_step_down() == ""
    # What it was judged by is forgotten, but it is no better than before.
    world.leads = False
    world.look()
    assert world.usefulness.delay() == HANDICAP
    world.leads = True
    times = sum(bool(world.look()) for _ in range(600))
    assert times == pytest.approx(600 * PERIOD / REST, abs=1)


def test_two_useless_replicas_change_once_in_a_while() -> None:
    """Each has the Lease for most of its rest, and there is no storm of takeovers."""
    patches = [pytest.MonkeyPatch() for _ in range(2)]
    try:
        worlds = [World(patch) for patch in patches]
        changes = 0
        for each in worlds:
            each.silence = SILENCE + 1
        leader = 0
        for _ in range(600):
            for patch, each in zip(patches, worlds, strict=True):
                patch.setattr(module, "time", SimpleNamespace(monotonic=each.clock))
                each.clock.now += 1.0
                if each is worlds[leader] and each.usefulness.should_step_down():
                    leader, changes = 1 - leader, changes + 1
                    break
        assert changes <= 2 * (600 / REST) + 2
    finally:
        for patch in patches:
            patch.undo()


def test_replica_with_few_switches_leaves_a_free_lease_to_others(world: World) -> None:
    world.inventory.view.nodes.update({f"more{n}": None for n in range(11)})
    assert world.usefulness.delay() == HANDICAP
    assert world.look() == ""
