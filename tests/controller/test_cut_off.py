"""What a session makes of a switch that does not answer, or rejects what it is sent.

Most of it by a switch that the test plays: no real one could be made to do this.
"""

import asyncio
from typing import Any, cast

import pytest

from controller import flush_queue
from controller import session as module
from controller.conntrack_flush import Flush
from controller.desired import Desired
from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind
from controller.reconciler import Reconciler
from controller.session import Session
from controller.session_state import State
from flows.features import state
from flows.flow import Flow, Meter
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key
from openflow.batch import Batch, DeleteByCookie, DeleteStrict
from openflow.messages import InstalledFlow, Role, SwitchError
from openflow.switch import ConnectionLost, Rejected
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import NODE, PEER
from tests.flows.worlds import CLUSTER

WEB = [service("web"), endpoint_slice("web-1", "web", ["10.244.1.5"])]
SERVICE = ObjectRef("Service", "default", "web")


class PlayedSwitch:
    """Holds cookies. `rejects` is of a flow; `answers` says whether batches are acknowledged."""

    def __init__(self) -> None:
        self._flows: dict[object, Flow] = {}
        """By table, priority and match."""
        self.groups: set[int] = set()
        self.batches: list[Batch] = []
        self.rejects: Any = lambda _: False
        self.answers = True
        self.dumps = 0

    @property
    def held(self) -> dict[int, int]:
        """Cookie -> table."""
        return {flow.cookie: flow.table for flow in self._flows.values()}

    @property
    def seals(self) -> set[int]:
        return {cookie for cookie, table in self.held.items() if state.is_seal(table, cookie)}

    def lose(self, cookie: int) -> None:
        self._flows = {k: flow for k, flow in self._flows.items() if flow.cookie != cookie}

    async def dump_flows(self, table: int | None = None, *_: int) -> list[InstalledFlow]:
        self.dumps += table is None
        held = [(c, t) for c, t in self.held.items() if table in {None, t}]
        return cast("Any", [Held(cookie, at) for cookie, at in held])

    async def request_role(self, role: Role, generation: int) -> tuple[Role, int]:
        return role, generation

    async def dump_meters(self) -> dict[int, Meter]:
        return {}

    async def dump_groups(self) -> list[Any]:
        return []

    async def apply(self, batch: Batch) -> None:
        self.batches.append(batch)
        if not self.answers:
            await asyncio.Event().wait()
        messages = [message for part in batch.parts for message in part.messages]
        flows = [message for message in messages if isinstance(message, Flow)]
        if bad := [flow for flow in flows if self.rejects(flow)]:
            raise Rejected([(flow, cast("Any", "table full")) for flow in bad])
        for message in messages:
            if isinstance(message, Flow):
                self._flows[message.key] = message
            elif isinstance(message, DeleteStrict):
                self._flows.pop(message.flow.key, None)
            elif isinstance(message, DeleteByCookie):
                self.lose(message.cookie)


class Held:
    def __init__(self, cookie: int, table: int, priority: int = 0) -> None:
        self.cookie, self.table, self.priority = cookie, table, priority


async def world(*, complete: bool = True) -> Reconciler:
    reconciler = Reconciler(Inventory(CLUSTER))
    reconciler.update([NODE, PEER, *WEB], [])
    reconciler.source_complete(complete)
    await reconciler.listed.wait()
    return reconciler


def session(reconciler: Reconciler, switch: PlayedSwitch) -> Session:
    return Session("node1", cast("Any", switch), reconciler.desired)


def of_service(desired: Desired) -> set[int]:
    fragment = desired.fragment(CLUSTER_SCOPE, Key(CLUSTER_SCOPE, "service", "default/web"))
    assert fragment is not None
    return {flow.cookie for flow in fragment.flows}


def test_switch_that_never_acknowledges_a_batch_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may answer every echo, and would be out of sync for ever."""
    monkeypatch.setattr(module, "LONGEST_APPLY", 0.01)

    async def story() -> None:
        switch = PlayedSwitch()
        switch.answers = False
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionLost, match="not acknowledged"):
                await session(await world(), switch).sync()
        assert len(switch.batches) == 1

    asyncio.run(story())


def test_rejected_flows_are_missing_despite_old_seals() -> None:
    async def story() -> None:
        reconciler = await world()
        switch = PlayedSwitch()
        ours = session(reconciler, switch)
        await ours.sync()
        assert ours.state is State.IN_SYNC
        old_seals = switch.seals
        assert len(old_seals) == 2
        # It rejects a flow, as when its table is full.
        bad = next(iter(of_service(reconciler.desired)))
        switch.lose(bad)
        switch.rejects = lambda flow: flow.cookie == bad
        ours.left_out = of_service(reconciler.desired)
        ours.invalidate()
        assert ours.needs_comparison
        await ours.sync()
        # Seals alone would say that nothing is missing.
        assert switch.dumps > 1
        assert ours.state is State.INCOMPLETE
        assert not ours.in_sync
        assert ours.left_out == of_service(reconciler.desired)
        # When it accepts them again, they are sent, and it is sealed.
        switch.rejects = lambda _: False
        ours.retry()
        await ours.sync()
        assert ours.state is State.IN_SYNC
        assert of_service(reconciler.desired) <= switch.held.keys()
        assert switch.seals == old_seals

    asyncio.run(story())


def test_nothing_shared_is_deleted_before_the_whole_source_was_read() -> None:
    async def story() -> None:
        reconciler = await world(complete=False)
        switch = PlayedSwitch()
        ours = session(reconciler, switch)
        await ours.sync()
        held = of_service(reconciler.desired)
        assert held <= switch.held.keys()
        assert ours.state is State.INCOMPLETE
        # It changes, and goes: its old flows stay until it is known what else there is.
        reconciler.update([], [ObjectRef("Service", "default", "web")])
        while reconciler.compilation._publishing or reconciler.compilation._shared:
            await asyncio.sleep(0.001)
        ours.changed()
        await ours.sync()
        assert held <= switch.held.keys()
        assert not switch.seals
        deleted = [m for b in switch.batches for p in b.parts for m in p.messages]
        assert not any(isinstance(message, DeleteByCookie) for message in deleted)
        reconciler.source_complete(True)
        ours.invalidate()
        await ours.sync()
        assert not held & switch.held.keys()
        assert ours.state is State.IN_SYNC

    asyncio.run(story())


def test_timer_of_an_ended_session_does_not_touch_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_REJECTED", 0.01)

    async def story() -> None:
        reconciler = await world()
        problems = reconciler.problems
        old, new = (session(reconciler, PlayedSwitch()) for _ in range(2))
        flow = next(
            flow
            for cookie, (flow, _) in reconciler.desired.shared.cookies.items()
            if cookie in of_service(reconciler.desired)
        )
        rejected = Rejected([(flow, cast("SwitchError", "table full"))])
        retried: list[Session] = []
        for each in (old, new):
            for subject, why in each.leave_out(rejected, retried.append).items():
                problems.set(each.reporter, subject, why)
        assert len(problems.of_subject(SERVICE)) == 2
        old.end()
        problems.clear_reporter(old.reporter)
        assert [p.reporter for p in problems.of_subject(SERVICE)] == [new.reporter]
        async with asyncio.timeout(60):
            while not retried:
                await asyncio.sleep(0.001)
        assert retried == [new]
        assert (old.state, new.state) == (State.UNKNOWN, State.RETRY)
        assert problems.texts() == {
            "Service default/web on the switch of node1": problems.text(new.reporter, SERVICE)
        }
        new.end()
        assert new.reporter.kind is ReporterKind.SWITCH
        assert new.reporter != Reporter(ReporterKind.SWITCH, "node1", old.reporter.session)

    asyncio.run(story())


def test_waiting_conntrack_flushes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_queue, "MAX_TO_FORGET", 3)

    async def story() -> None:
        ours = session(await world(), PlayedSwitch())
        for _ in range(10):
            ours.flushes.add([Flush((), 1, lambda _: Batch(()))])
        assert len(ours.flushes) == 3

    asyncio.run(story())
