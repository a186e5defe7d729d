"""What the controller does to a switch that is slow, rejects flows, lies, or comes twice.

The switch is simulated at the edge: it keeps what batches put there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from controller import session as session_module
from controller import switches
from controller.desired import Desired
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.session import Session
from flows import names
from flows.compile import Fragment
from flows.features.policy import peer_member
from flows.flow import Flow
from flows.pipeline import LAYOUT, Feature, Priority
from flows.policy import Direction, PeerMember
from flows.refs import ObjectRef
from flows.view import SOME_SCOPE, Key
from openflow.batch import Batch, DeleteByCookie, DeleteStrict
from openflow.errors import ConnectionLost
from openflow.messages import ErrorMessage, InstalledFlow, Role
from openflow.switch import Rejected
from tests.controller.events import node_object
from tests.controller.world import CLUSTER, NODE

NODE2 = node_object("node2", "10.244.2.0/24", "172.30.1.2")
NODE3 = node_object("node3", "10.244.3.0/24", "172.30.1.3")
FOREIGN = InstalledFlow(0x1234, 0, 7, 0, 0, b"")


class Switch:
    """A switch of node1 that acknowledges at once, unless told otherwise."""

    def __init__(self, dpid: int = names.datapath_id("node1"), name: str | None = None) -> None:
        self.dpid = dpid
        self.certificate_name = name
        self.host, self.peer = "172.30.1.1", "172.30.1.1:40000"
        self.ports: dict[int, Any] = {}
        self.flows: dict[tuple[int, int, Any], InstalledFlow] = {(0, 7, None): FOREIGN}
        self.rejected: set[int] = set()
        """Cookies of flows that it rejects."""
        self.acknowledges = True
        self.meanwhile: dict[int, Callable[[], Awaitable[None]]] = {}
        """What happens before the batch with this number, from 1, is acknowledged."""
        self.batches = 0
        self.is_alive = True
        self.closed = ""

    async def apply(self, batch: Batch) -> None:
        if not self.acknowledges:
            await asyncio.Event().wait()
        self.batches += 1
        if meanwhile := self.meanwhile.get(self.batches):
            await meanwhile()
        for part in batch.parts:
            rejections = [
                (message, ErrorMessage(5, 1, b""))
                for message in part.messages
                if isinstance(message, Flow) and message.cookie in self.rejected
            ]
            if rejections:
                raise Rejected(rejections)
            for message in part.messages:
                self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case Flow():
                key = message.table, message.priority, message.match
                self.flows[key] = InstalledFlow(
                    message.cookie, message.table, message.priority, 0, 0, b""
                )
            case DeleteByCookie(cookie=cookie):
                self.flows = {k: f for k, f in self.flows.items() if f.cookie != cookie}
            case DeleteStrict(flow=flow):
                self.flows.pop((flow.table, flow.priority, flow.match), None)

    async def dump_flows(self, table: int | None = None, *_: object) -> list[InstalledFlow]:
        return [flow for flow in self.flows.values() if table in {None, flow.table}]

    async def request_role(self, role: Role, generation: int) -> tuple[Role, int]:
        return role, generation

    async def dump_meters(self) -> dict[int, Any]:
        return {}

    async def dump_groups(self) -> list[Any]:
        return []

    async def port_events(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async def alive(self, _: float) -> bool:
        return self.is_alive

    def close(self, reason: str) -> None:
        self.closed = reason

    @property
    def cookies(self) -> set[int]:
        return {flow.cookie for flow in self.flows.values()}


def cluster(*nodes: Any, complete: bool = True) -> Reconciler:
    """A controller that knows these Nodes besides node1."""
    made = Reconciler(Inventory(CLUSTER))
    made.update([NODE, *nodes], [])
    made.source_complete(complete)
    return made


async def settled(made: Reconciler) -> Desired:
    """The programs of node1 and of all nodes are compiled."""
    compilation = made.compilation
    async with asyncio.timeout(30):
        await compilation.compiled("node1")
        while (
            compilation._nodes
            or compilation._shared
            or compilation._publishing
            or compilation._timer
            or compilation._tick
        ):
            await asyncio.sleep(0.01)
    return made.desired


def seals(desired: Desired) -> set[int]:
    return {desired.shared.seal.cookie, desired.program("node1").seal.cookie}


def wanted(desired: Desired) -> set[int]:
    return {*desired.shared.cookies, *desired.program("node1").cookies}


async def synced(desired: Desired, switch: Switch) -> Session:
    session = Session("node1", switch, desired)  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        await session.sync()
    return session


def test_synced_switch_holds_its_flows_both_seals_and_what_others_put_there() -> None:
    async def main() -> None:
        desired = await settled(cluster(NODE2))
        switch = Switch()
        session = await synced(desired, switch)
        assert session.in_sync
        assert switch.cookies == wanted(desired) | seals(desired) | {FOREIGN.cookie}

    asyncio.run(main())


def test_switch_that_does_not_acknowledge_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LONGEST_APPLY", 0.01)

    async def main() -> None:
        switch = Switch()
        switch.acknowledges = False
        desired = await settled(cluster())
        with pytest.raises(ConnectionLost, match="not acknowledged"):
            await synced(desired, switch)

    asyncio.run(main())


def test_nothing_is_removed_or_sealed_before_the_whole_source_was_read() -> None:
    async def main() -> None:
        switch = Switch()
        before = await settled(cluster(NODE2, NODE3))
        await synced(before, switch)
        known = wanted(before)
        # Another controller, which has not read node3 yet, and then hears that node2 is gone.
        after = cluster(NODE2, complete=False)
        desired = await settled(after)
        session = await synced(desired, switch)
        assert known <= switch.cookies
        after.update([], [("Node", "", "node2")])
        await settled(after)
        session.changed()
        await session.sync()
        assert known <= switch.cookies
        assert not seals(desired) & switch.cookies
        assert not session.in_sync

    asyncio.run(main())


def test_members_of_peer_sets_stay_until_the_pods_of_all_nodes_are_known() -> None:
    member = InstalledFlow(
        Feature.POLICY << 56 | 1, LAYOUT.tables["PolicyPeers"].number, Priority.MEMBER, 0, 0, b""
    )

    async def main() -> None:
        made = cluster(NODE2)
        await settled(made)
        both = Switch(), Switch(names.datapath_id("node2"))
        both[0].flows[member.table, member.priority, "a pod of node2"] = member
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(made.on_switch(both[0]))]  # type: ignore[arg-type]
            while "node1" not in made.sessions or not made.sessions["node1"].was_synced:
                await asyncio.sleep(0.01)
            session = made.sessions["node1"]
            assert member.cookie in both[0].cookies
            assert wanted(made.desired) <= both[0].cookies
            assert made.desired.program("node1").seal.cookie not in both[0].cookies
            assert not session.in_sync
            tasks.append(group.create_task(made.on_switch(both[1])))  # type: ignore[arg-type]
            while not session.in_sync:
                await asyncio.sleep(0.01)
            assert both[0].cookies == (
                wanted(made.desired) | seals(made.desired) | {FOREIGN.cookie}
            )
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_member_that_the_program_had_goes_at_once() -> None:
    pod = PeerMember(1, Direction.TO_POD, IPv4Address("10.244.1.9"), ObjectRef("Pod", "x", "a"))
    (flow,) = peer_member(CLUSTER, pod)
    key = Key(SOME_SCOPE, "policy-member", "of a test")

    async def main() -> None:
        desired = await settled(cluster(NODE2))
        desired.update_node("node1", {key: Fragment((pod.owner,), (flow,))})
        switch = Switch()
        switch.flows[flow.table, flow.priority, flow.match] = InstalledFlow(
            flow.cookie, flow.table, flow.priority, 0, 0, b""
        )
        unknown = replace(flow, match=flow.match[:-1])
        switch.flows[unknown.table, unknown.priority, unknown.match] = InstalledFlow(
            unknown.cookie, unknown.table, unknown.priority, 0, 0, b""
        )
        session = await synced(desired, switch)
        assert {flow.cookie, unknown.cookie} <= switch.cookies
        desired.update_node("node1", {key: None})
        session.changed()
        async with asyncio.timeout(30):
            await session.sync()
        assert flow.cookie not in switch.cookies
        assert unknown.cookie in switch.cookies

    asyncio.run(main())


def test_members_of_peer_sets_do_not_wait_for_a_node_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switches, "LONGEST_WAIT_FOR_MEMBERS", 0.05)

    async def main() -> None:
        made = cluster(NODE2)
        async with asyncio.timeout(30):
            while not made.desired.members_known:
                await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("scope", ["shared", "own"])
def test_rejected_flow_is_left_out_and_old_seals_do_not_hide_it(scope: str) -> None:
    async def main() -> None:
        switch = Switch()
        desired = await settled(cluster(NODE2))
        await synced(desired, switch)
        program = desired.shared if scope == "shared" else desired.program("node1")
        cookie = max(program.cookies)
        # One flow is gone, and the switch rejects it; the seals are those of a whole program.
        switch.flows = {key: f for key, f in switch.flows.items() if f.cookie != cookie}
        switch.rejected = {cookie}
        session = Session("node1", switch, desired)  # type: ignore[arg-type]
        session.left_out = {cookie}
        await session.sync()
        assert cookie not in switch.cookies
        assert not session.in_sync
        assert not seals(desired) <= switch.cookies

    asyncio.run(main())


@pytest.mark.parametrize("scope", ["shared", "own"])
def test_rejection_leaves_out_the_object_and_goes_on_with_the_rest(scope: str) -> None:
    async def main() -> None:
        switch = Switch()
        desired = await settled(cluster(NODE2))
        program = desired.shared if scope == "shared" else desired.program("node1")
        cookie = max(program.cookies)
        switch.rejected = {cookie}
        session = Session("node1", switch, desired)  # type: ignore[arg-type]
        with pytest.raises(Rejected) as caught:
            await session.sync()
        assert session.needs_comparison, "what was done of the batch is unknown"
        causes = session.leave_out(caught.value, lambda _: None)
        assert list(causes) == list(program.cookies[cookie][1])
        await session.sync()
        session.end()
        assert switch.cookies >= wanted(desired) - session.left_out
        assert not seals(desired) <= switch.cookies
        assert not session.in_sync

    asyncio.run(main())


def test_change_that_comes_while_a_batch_is_sent_is_sent_next() -> None:
    async def main() -> None:
        made, switch = cluster(NODE2), Switch()
        desired = await settled(made)
        session = Session("node1", switch, desired)  # type: ignore[arg-type]

        async def change() -> None:
            made.update([NODE3], [])
            await settled(made)
            session.changed()

        # The first batch has what all nodes share, the second what is node1's own.
        switch.meanwhile[2] = change
        async with asyncio.timeout(30):
            await session.sync()
        assert session.in_sync
        assert switch.cookies == wanted(desired) | seals(desired) | {FOREIGN.cookie}

    asyncio.run(main())


@pytest.mark.parametrize("known", [True, False], ids=["known Node", "unknown Node"])
def test_switch_with_another_nodes_certificate_is_refused(known: bool) -> None:
    async def main() -> None:
        made = cluster(NODE2)
        dpid = names.datapath_id("node1" if known else "invented")
        async with asyncio.timeout(30):
            await made.on_switch(Switch(dpid, name="node2"))  # type: ignore[arg-type]
        assert not made.sessions
        assert not made.problems.texts()

    asyncio.run(main())


def test_second_session_is_refused_while_the_first_one_is_alive() -> None:
    async def main() -> None:
        made = cluster()
        first, second, third = Switch(), Switch(), Switch()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(made.on_switch(first))]  # type: ignore[arg-type]
            while "node1" not in made.sessions:
                await asyncio.sleep(0.01)
            await made.on_switch(second)  # type: ignore[arg-type]
            assert made.sessions["node1"].switch is first
            first.is_alive = False
            tasks.append(group.create_task(made.on_switch(third)))  # type: ignore[arg-type]
            while made.sessions.get("node1") is None or made.sessions["node1"].switch is first:
                await asyncio.sleep(0.01)
            assert first.closed == "replaced by a new session"
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_switches_that_wait_for_their_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "MAX_UNCLAIMED", 2)

    async def main() -> None:
        made = cluster()
        waiting = [Switch(dpid) for dpid in (1, 2)]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(made.on_switch(each)) for each in waiting]  # type: ignore[arg-type]
            while len(made.problems.texts()) < 2:
                await asyncio.sleep(0.01)
            await made.on_switch(Switch(3))  # type: ignore[arg-type]
            assert len(made.problems.texts()) == 2
            # The same switch again takes the place of its earlier connection.
            tasks.append(group.create_task(made.on_switch(Switch(2))))  # type: ignore[arg-type]
            while not waiting[1].closed:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()

    asyncio.run(main())
