"""One that takes over knows by a switch's seals which of the last changes the switch lacks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controller import metrics
from controller.inventory import Inventory
from controller.leadership import Leadership, clock
from controller.reconciler import Reconciler
from controller.session_state import State
from flows import names
from openflow.server import serve
from tests.controller.events import node_object, pod_object
from tests.controller.world import NODE, PEER, World, run
from tests.flows.worlds import CLUSTER
from tests.ovs import Ovs

THIRD = node_object("node3", "10.244.3.0/24", "172.30.1.3", uid="n3")


def lead(world: World, generation: int) -> None:
    """Make a replica the leader until it is told otherwise."""
    world.reconciler.leadership.grant(generation, clock() + 600, float("inf"))


@asynccontextmanager
async def replicas(ovs: Ovs) -> AsyncIterator[tuple[World, World]]:
    """Two controllers of one switch; the first one leads."""
    made = [Reconciler(Inventory(CLUSTER), leadership=Leadership(elected=True)) for _ in range(2)]
    for each in made:
        each.update([NODE, PEER], [])
        each.source_complete(True)
    async with (
        serve("127.0.0.1", 0, made[0].on_switch) as first,
        serve("127.0.0.1", 0, made[1].on_switch) as second,
    ):
        worlds = (
            World(ovs, made[0], first.address[1], set()),
            World(ovs, made[1], second.address[1], set()),
        )
        lead(worlds[0], 1)
        ovs.vsctl(
            "set", "Bridge", "br0", f"other_config:datapath-id={names.datapath_id('node1'):016x}"
        )
        ovs.dial(*(f"tcp:127.0.0.1:{world.port}" for world in worlds))
        await worlds[0].in_sync()
        await worlds[1].until(lambda: _standby(worlds[1]))
        yield worlds


def _standby(world: World) -> bool:
    session = world.reconciler.sessions.get("node1")
    return session is not None and session.state is State.STANDBY and not session.dirty.is_set()


def _comparisons() -> float:
    return metrics.COMPARISONS._value.get()  # type: ignore[no-any-return]


async def _take_over(worlds: tuple[World, World]) -> float:
    """The second one leads; how many switches it had to compare."""
    before = _comparisons()
    lead(worlds[1], 2)
    await worlds[1].in_sync()
    return _comparisons() - before


def test_takeover_of_a_switch_that_lacks_nothing_compares_nothing(ovs: Ovs) -> None:
    async def story() -> None:
        async with replicas(ovs) as worlds:
            worlds[0].reconciler.leadership.withdraw()
            assert await _take_over(worlds) == 0
            assert worlds[1].cookies() >= worlds[1].desired()

    run(story)


def test_takeover_sends_the_changes_that_the_leader_has_not_sent(ovs: Ovs) -> None:
    """Of the shared program, and of the node's own with a meter."""

    async def story() -> None:
        async with replicas(ovs) as worlds:
            worlds[0].reconciler.leadership.withdraw()
            before = worlds[1].cookies()
            worlds[1].reconciler.update([pod_object("a", "node1", uid="u1")], [])
            worlds[1].plug("a", "u1", 16)
            worlds[1].reconciler.update([THIRD], [])
            attachments = worlds[1].reconciler.inventory.view.attachments
            await worlds[1].until(lambda: attachments.get("node1"))
            await asyncio.sleep(0.1)
            assert worlds[1].cookies() == before
            assert await _take_over(worlds) == 0
            assert worlds[1].desired() <= worlds[1].cookies()

    run(story)


def test_takeover_waits_a_moment_for_what_the_leader_knew_already(ovs: Ovs) -> None:
    """The leader has installed a change of the cluster that the standby hears of later."""

    async def story() -> None:
        async with replicas(ovs) as worlds:
            worlds[0].reconciler.update([THIRD], [])
            await worlds[0].in_sync()
            worlds[0].reconciler.leadership.withdraw()
            loop = asyncio.get_running_loop()
            loop.call_later(0.1, worlds[1].reconciler.update, [THIRD], [])
            assert await _take_over(worlds) == 0
            assert worlds[1].desired() <= worlds[1].cookies()

    run(story)


def test_unknown_seal_is_compared_after_that_moment(ovs: Ovs) -> None:
    async def story() -> None:
        async with replicas(ovs) as worlds:
            worlds[0].reconciler.update([THIRD], [])
            await worlds[0].in_sync()
            worlds[0].reconciler.leadership.withdraw()
            assert await _take_over(worlds) == 1
            assert worlds[1].desired() <= worlds[1].cookies()

    run(story)
