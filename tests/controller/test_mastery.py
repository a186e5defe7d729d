"""Two controllers and one real switch: who writes to it, and from when on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import IPv4Address
from typing import Any

import pytest

from controller import switches as module
from controller.conntrack_flush import Flush
from controller.leadership import Leadership
from controller.session import Session
from controller.session_state import State
from flows import names
from flows.features import state
from flows.pipeline import CT_ZONE, Feature
from flows.refs import ObjectRef
from openflow.batch import Batch, Control, GenerationSet, Message
from openflow.errors import NotWriter
from openflow.messages import Role
from openflow.switch import Switch
from openflow.watch import connect
from tests.controller.lease_server import Clock
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import World, controller
from tests.ovs import Ovs


class Replica:
    """A controller whose part in the election the test plays."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.leadership = Leadership(elected=True, clock=clock)
        self.world: World
        self.sent: list[Message] = []
        """What it has written to its switch, without what opens and ends bundles."""
        self.renews = True
        """Whether the Lease is renewed when somebody doubts."""

    @property
    def session(self) -> Session:
        return self.world.reconciler.sessions["node1"]

    def lead(self, generation: int) -> None:
        self.clock.now += 0.001
        self.leadership.grant(generation, self.clock.now + 1e6, self.clock.now)

    async def renew(self) -> None:
        """As the loop at the Lease does."""
        while True:
            await self.leadership.doubted(60)
            if self.renews and self.leadership.holds():
                self.lead(self.leadership.generation)

    async def role(self) -> tuple[Role, int]:
        return await self.session.switch.request_role(Role.NOCHANGE, 0)

    async def until(self, condition: Callable[[], Any]) -> None:
        await self.world.until(condition)

    async def has_role(self, role: Role) -> None:
        async with asyncio.timeout(60):
            while (await self.role())[0] is not role:
                await asyncio.sleep(0.01)

    async def connected(self) -> None:
        await self.until(lambda: "node1" in self.world.reconciler.sessions)

    async def follows(self) -> None:
        """Wait until the switch was told so."""
        await self.connected()
        await self.has_role(Role.SLAVE)
        assert self.session.state is State.STANDBY


@asynccontextmanager
async def replicas(ovs: Ovs, count: int = 2) -> AsyncIterator[list[Replica]]:
    """Controllers that all follow; the switch has dialled them."""
    clock = Clock()
    made = [Replica(clock) for _ in range(count)]
    tasks = [asyncio.create_task(each.renew()) for each in made]
    try:
        async with AsyncExitStack() as stack:
            for each in made:
                run = controller(ovs, leadership=each.leadership)
                each.world = await stack.enter_async_context(run)
            ports = [each.world.port for each in made]
            datapath_id = f"{names.datapath_id('node1'):016x}"
            ovs.vsctl("set", "Bridge", "br0", f"other_config:datapath-id={datapath_id}")
            ovs.dial(*(f"tcp:127.0.0.1:{port}" for port in ports))
            for each in made:
                await each.follows()
            yield made
    finally:
        for task, each in zip(tasks, made, strict=True):
            task.cancel()
            each.leadership.withdraw()


@pytest.fixture
def play(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(module, "RETRY_ROLE", 0.05)

    def run(story: Callable[..., Awaitable[None]], count: int = 2) -> None:
        async def main() -> None:
            async with replicas(ovs, count) as made:
                apply = Switch._apply

                async def noted(switch: Switch, part: Any, following: Any) -> None:
                    for each in made:
                        if switch in each.world.switches:
                            each.sent += [m for m in part.messages if not isinstance(m, Control)]
                    await apply(switch, part, following)

                monkeypatch.setattr(Switch, "_apply", noted)
                await story(*made)

        asyncio.run(main())

    return run


def generations(world: World) -> list[int]:
    """What the switch's flows say."""
    found = (state.generation_of(state.TABLE, cookie) for cookie in world.cookies())
    return [each for each in found if each is not None]


def change(replica: Replica, name: str = "web") -> None:
    replica.world.reconciler.update(
        [service(name), endpoint_slice(f"{name}-1", name, ["10.244.1.5"])], []
    )


def test_standby_writes_nothing_and_one_that_takes_over_writes_only_the_generation(
    play: Any,
) -> None:
    async def story(first: Replica, second: Replica) -> None:
        for each in (first, second):
            change(each)
        await second.until(lambda: second.world.reconciler.is_idle)
        assert not first.world.cookies()
        first.lead(5)
        await first.world.in_sync()
        assert await first.role() == (Role.MASTER, 5)
        assert await second.role() == (Role.SLAVE, 5)
        assert generations(first.world) == [5]
        held = first.world.cookies()
        assert second.sent == []
        assert second.session.state is State.STANDBY
        # The same changes come to both.
        for each in (first, second):
            change(each, "db")
        await first.until(lambda: first.world.cookies() != held)
        await first.world.in_sync()
        await second.until(lambda: second.world.reconciler.is_idle)
        held = first.world.cookies()
        assert second.sent == []
        first.leadership.withdraw()
        second.lead(6)
        await second.world.in_sync()
        assert second.sent == [GenerationSet(6)]
        assert generations(second.world) == [6]
        assert await second.role() == (Role.MASTER, 6)
        await first.follows()
        seals = {cookie for cookie in held if cookie >> 56 == Feature.STATE}
        assert second.world.seals() == seals
        assert second.world.cookies() >= held - {state.generation_cookie(5)}

    play(story)


def test_demoted_leader_stops_and_takes_no_object_for_wrong(play: Any) -> None:
    async def story(first: Replica, second: Replica) -> None:
        first.lead(5)
        await first.world.in_sync()
        # The first one does not know.
        second.lead(6)
        await second.world.in_sync()
        before = second.world.cookies()
        change(first)
        problems = first.world.reconciler.problems
        await first.until(lambda: len(problems.texts()) > 0)
        assert problems.texts() == {
            "Node node1 on the switch of node1": "its switch is not written:"
            " the switch refuses generation 5: it knows 6"
        }
        assert second.world.cookies() == before
        assert not first.session.left_out
        # One switch of two nodes.
        assert first.leadership.wanted_generation == 0
        first.leadership.withdraw()
        assert problems.texts() == {}
        await first.follows()
        change(second)
        await second.until(lambda: second.world.cookies() != before)

    play(story)


def test_problem_of_a_refused_leader_ends_when_it_writes_again(play: Any) -> None:
    async def story(first: Replica, second: Replica) -> None:
        first.lead(5)
        await first.world.in_sync()
        second.lead(6)
        await second.world.in_sync()
        change(first)
        problems = first.world.reconciler.problems
        await first.until(lambda: len(problems.texts()) > 0)
        first.leadership.withdraw()
        first.lead(7)
        await first.world.in_sync()
        assert problems.texts() == {}
        assert generations(first.world) == [7]

    play(story)


def test_generation_is_raised_when_most_switches_know_a_newer_one(play: Any) -> None:
    async def story(first: Replica, second: Replica) -> None:
        first.world.reconciler.update([], [ObjectRef.node("node2")])
        second.lead(90)
        await second.world.in_sync()
        second.leadership.withdraw()
        # Its Lease was restored from a backup.
        first.lead(40)
        await first.until(lambda: first.leadership.wanted_generation == 90)
        first.leadership.wanted_generation = 0
        # Once in a while only: a switch may claim anything.
        first.lead(41)
        await first.until(first.world.reconciler.problems.texts)
        assert first.leadership.wanted_generation == 0
        first.clock.now += module.RAISE_PERIOD
        await first.until(lambda: first.leadership.wanted_generation == 90)
        first.lead(91)
        await first.world.in_sync()
        assert generations(first.world) == [91]
        assert first.world.reconciler.problems.texts() == {}

    play(story)


def test_claim_of_a_generation_that_there_cannot_be_raises_nothing(play: Any) -> None:
    async def story(first: Replica) -> None:
        first.world.reconciler.update([], [ObjectRef.node("node2")])
        await first.session.switch.request_role(Role.SLAVE, 1 << 62)
        first.lead(5)
        problems = first.world.reconciler.problems
        await first.until(problems.texts)
        assert str(1 << 62) in str(problems.texts())
        assert first.leadership.wanted_generation == 0
        assert not first.world.cookies()

    play(story, count=1)


def test_nothing_is_written_before_the_lease_was_renewed_after_the_role(play: Any) -> None:
    async def story(first: Replica) -> None:
        first.renews = False
        first.lead(5)
        await first.has_role(Role.MASTER)
        flush = Flush((IPv4Address("10.244.1.9"),), 1, lambda each: Batch.forgetting(CT_ZONE, each))
        first.world.reconciler.switches.forget(flush)
        change(first)
        await first.until(lambda: first.world.reconciler.is_idle)
        with pytest.raises(NotWriter):
            await first.session.switch.apply(Batch.of(first=[GenerationSet(5)]))
        assert not first.world.cookies()
        assert first.session.state is State.UNKNOWN
        first.renews = True
        first.leadership.doubt()
        await first.world.in_sync()
        assert generations(first.world) == [5]

    play(story, count=1)


def test_term_that_ends_before_the_renewal_leaves_the_switch_as_it_is(play: Any) -> None:
    async def story(first: Replica) -> None:
        first.renews = False
        first.lead(5)
        await first.has_role(Role.MASTER)
        first.leadership.withdraw()
        await first.follows()
        assert not first.world.cookies()
        assert first.sent == []

    play(story, count=1)


def test_round_of_an_earlier_term_does_not_write_in_a_later_one(play: Any) -> None:
    """The connection is master of the earlier generation only."""

    async def story(first: Replica) -> None:
        first.lead(5)
        await first.world.in_sync()
        switch = first.session.switch
        assert switch.may_write()
        first.leadership.withdraw()
        first.renews = False
        first.lead(7)
        assert not switch.may_write()
        with pytest.raises(NotWriter):
            await switch.apply(Batch.of(first=[GenerationSet(7)]))
        first.renews = True
        await first.world.in_sync()
        assert generations(first.world) == [7]
        # Its own generation is the same again: the Lease was not renewed in time.
        first.leadership.withdraw()
        assert not switch.may_write()
        first.lead(7)
        await first.world.in_sync()
        assert switch.may_write()

    play(story, count=1)


def test_restarted_switch_is_written_by_the_leader_only(play: Any, ovs: Ovs) -> None:
    async def story(first: Replica, second: Replica) -> None:
        first.lead(5)
        await first.world.in_sync()
        # The first one was stopped, and the second one leads since then.
        first.renews = False
        second.lead(6)
        await second.world.in_sync()
        old = first.session, second.session
        await asyncio.to_thread(ovs.stop_switch)
        for replica, session in zip((first, second), old, strict=True):
            await replica.until(
                lambda r=replica, s=session: r.world.reconciler.sessions.get("node1") is not s
            )
        first.sent.clear()
        # It goes on when the switch has forgotten all, and is the first one there.
        await asyncio.to_thread(ovs.start_switch)
        await first.connected()
        await second.connected()
        await second.world.in_sync()
        assert generations(second.world) == [6]
        assert await second.role() == (Role.MASTER, 6)
        assert first.sent == []

    play(story)


@pytest.mark.parametrize(("answers", "bundles"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)])
def test_rest_of_a_batch_is_not_sent_when_the_term_is_over(
    ovs: Ovs, answers: int, bundles: int
) -> None:
    """It is asked before each bundle, and before each commit."""

    async def story() -> None:
        async with connect(ovs.mgmt) as switch:
            left = iter([True] * answers)
            switch.may_write = lambda: next(left, False)
            batch = two_bundles()
            assert batch.bundles == 2
            with suppress(NotWriter):
                await switch.apply(batch)
            held = {flow.cookie for flow in await switch.dump_flows()}
            wanted = [
                {m.generation for m in part.messages if isinstance(m, GenerationSet)}
                for part in batch.parts
            ]
            said = {state.generation_of(state.TABLE, cookie) for cookie in held}
            assert said == (wanted[bundles - 1] if bundles else set())
            # The connection goes on, and no bundle is left open.
            switch.may_write = lambda: True
            await switch.apply(Batch.of(first=[GenerationSet(9)]))

    asyncio.run(story())


def two_bundles() -> Batch:
    return Batch.of(first=[GenerationSet(1)], last=[GenerationSet(2)], bundle_size=1)


def test_flushes_of_the_last_leader_are_sent_once_more(play: Any) -> None:
    async def story(first: Replica) -> None:
        switches = first.world.reconciler.switches
        flushes = [
            Flush((IPv4Address(f"10.244.1.{n}"),), 1, lambda each: Batch.forgetting(CT_ZONE, each))
            for n in range(3)
        ]
        first.leadership.follows("other")
        switches.forget(flushes[0])
        first.clock.now += module.HANDED_OVER + 1
        first.leadership.follows("other")
        switches.forget(flushes[1])
        # Nobody leads for long.
        first.clock.now += 10 * module.HANDED_OVER
        switches.forget(flushes[2])
        first.lead(5)
        await first.world.in_sync()

        def forgotten() -> set[Message]:
            return {message for message in first.sent if type(message).__name__ == "Forget"}

        def messages(*of: Flush[IPv4Address]) -> set[Message]:
            return {m for each in of if each.batch for p in each.batch.parts for m in p.messages
                    if not isinstance(m, Control)}  # fmt: skip

        await first.until(lambda: forgotten() == messages(*flushes[1:]))
        # A term that ends and begins again loses none of them.
        first.sent.clear()
        first.leadership.withdraw()
        first.lead(6)
        await first.world.in_sync()
        await first.until(lambda: forgotten() >= messages(flushes[2]))

    play(story, count=1)


def test_controller_without_an_election_writes_whatever_generation_there_was(
    ovs: Ovs, play: Any
) -> None:
    async def before(first: Replica) -> None:
        first.lead(5)
        await first.world.in_sync()

    play(before, count=1)

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            assert generations(world) == [5]
            # Somebody has deleted the flow, and the switch knows the number.
            ovs.ofctl("del-flows", str(ovs.mgmt))
            (switch,) = world.switches
            switch.close("test")
            await world.until(lambda: switch not in world.switches and world.switches)
            await world.in_sync()
            assert generations(world) == [5]

    asyncio.run(story())
