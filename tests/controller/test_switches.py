"""Who owns which switch: strangers, second sessions, dead ones."""

import asyncio
from typing import Any

from controller.session import Session
from flows import names
from tests.controller.events import node_object
from tests.controller.world import World, controller, run
from tests.ovs import Ovs


def test_switch_without_a_node_waits_for_it(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            port = world.port
        ovs.vsctl(
            "set", "Bridge", "br0", f"other_config:datapath-id={names.datapath_id('node9'):016x}"
        )
        async with controller(ovs, port=port) as world:
            problems = world.reconciler.problems
            await world.until(lambda: problems)
            ((subject, problem),) = problems.texts().items()
            assert subject.startswith(f"switch {names.datapath_id('node9'):016x} at 127.0.0.1:")
            assert problem == "no Node's name gives this datapath id; it waits for one"
            # Gone and come again, it is one stranger still.
            next(iter(world.switches)).close("for a test")
            await world.until(lambda: problems and problems.texts().keys() != {subject})
            assert len(problems) == 1
            assert not world.reconciler.sessions
            ninth = node_object("node9", "10.244.9.0/24", "172.30.1.9")
            world.reconciler.update([ninth], [])
            await world.until(lambda: "node9" in world.reconciler.sessions)
            assert not problems

    run(story)


def test_only_one_switch_replaces_a_dead_session(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            ovs.freeze_switch()
            first = world.reconciler.sessions["node1"]
            owners = await asyncio.gather(*(taken_over(world) for _ in range(2)))
            assert world.reconciler.sessions["node1"] is not first
            del world.reconciler.sessions["node1"]
            assert sorted(owners, key=str) == [None, "node1"]

    async def taken_over(world: World) -> str | None:
        """What `on_switch` does first; the newcomer then lives."""
        newcomer = Newcomer(world.reconciler.sessions["node1"].switch.dpid)
        owner = await world.reconciler.switches._node_of(newcomer)  # type: ignore[arg-type]
        if owner:
            world.reconciler.sessions[owner] = Session(owner, newcomer, world.reconciler.desired)  # type: ignore[arg-type]
        return owner

    run(story)


class Newcomer:
    """Of a switch, what the choice between sessions asks."""

    certificate_name: str | None = None
    host = ""
    peer = "nowhere"

    def __init__(self, dpid: int) -> None:
        self.dpid = dpid

    async def alive(self, _: float) -> bool:
        return True


def test_second_session_of_a_living_switch_is_refused(ovs: Ovs, tmp_path_factory: Any) -> None:
    """Of two switches with one datapath id the first, alive, keeps its session."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            first = world.reconciler.sessions["node1"]
            second = Ovs(tmp_path_factory.mktemp("second"))
            try:
                second.start()
                second.vsctl(
                    "set", "Bridge", "br0",
                    f"other_config:datapath-id={names.datapath_id('node1'):016x}",
                )  # fmt: skip
                second.dial(f"tcp:127.0.0.1:{world.port}")
                await asyncio.sleep(0.5)
                assert world.reconciler.sessions["node1"] is first
                # The first one hangs: it is half open now, and the second takes over.
                ovs.freeze_switch()
                await world.until(lambda: world.reconciler.sessions.get("node1") is not first)
            finally:
                second.stop()

    run(story)
