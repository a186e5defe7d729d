"""A controller that follows: what it writes, and what it keeps in memory."""

import asyncio
from ipaddress import IPv4Address
from typing import Any, Self, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller import api_writes
from controller import switches as module
from controller.api import Api
from controller.api_writes import keep_writing
from controller.conntrack_flush import Flush
from controller.desired import LOG_LENGTH
from controller.inventory import Inventory
from controller.journal import MAX_REMEMBERED
from controller.leadership import Leadership
from controller.reconciler import Reconciler
from controller.session_state import State
from controller.sources.objects import from_manifest
from flows import names
from flows.pipeline import CT_ZONE
from openflow.batch import Batch
from openflow.messages import Port
from tests.controller.events import pod_object
from tests.controller.lease_server import Clock
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.test_convergence import policy
from tests.controller.test_cut_off import PlayedSwitch
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER

OTHER = "other\x1b[2J_1"


class ConnectedSwitch(PlayedSwitch):
    """One that stays connected."""

    def __init__(self) -> None:
        super().__init__()
        self.dpid = names.datapath_id("node1")
        self.certificate_name = "node1"
        self.host, self.peer = "172.30.1.1", "172.30.1.1:1"
        name = names.port_name("default", "a", "u", "eth0", "s")
        self.ports = {16: Port(16, name, "0a:58:0a:f4:01:05")}
        self.roles: list[Any] = []

    async def alive(self, _: float) -> bool:
        return True

    async def request_role(self, role: Any, generation: int) -> Any:
        self.roles.append((role.name, generation))
        return role, generation

    async def port_events(self) -> Any:
        await asyncio.Event().wait()
        yield

    async def apply_chosen(self, choose: Any) -> None:
        if batch := choose():
            await self.apply(batch)


class Standby:
    """It has read the cluster, and knows who leads."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.leadership = Leadership(elected=True, clock=self.clock)
        self.reconciler = Reconciler(Inventory(CLUSTER), leadership=self.leadership)
        self.reconciler.update([NODE, PEER], [])
        self.reconciler.source_complete(True)
        self.switch = ConnectedSwitch()

    async def __aenter__(self) -> Self:
        await self.reconciler.listed.wait()
        self.leadership.follows(OTHER)
        self.leadership.learn(7)
        self._task = asyncio.create_task(self.reconciler.on_switch(cast("Any", self.switch)))
        await self.until(lambda: self.switch.roles)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leadership.withdraw()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def lead(self, generation: int) -> None:
        self.clock.now += 1.0
        self.leadership.grant(generation, self.clock.now + 1e6, self.clock.now)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)


def test_name_of_the_leader_is_made_readable() -> None:
    """Whoever may write the Lease chooses it, and people read it at a terminal."""

    async def story() -> None:
        async with Standby() as ours:
            api = Api(ours.reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:
                answer = await client.get("/v1/status")
                text = (await answer.json())["error"]
            assert answer.status == 421
            assert text == r"this controller does not lead: other\x1b[2J_1 does"

    asyncio.run(story())


def test_standby_tells_the_switch_and_tells_it_again_of_a_newer_generation() -> None:
    async def story() -> None:
        async with Standby() as ours:
            assert ours.switch.roles == [("SLAVE", 7)]
            ours.leadership.learn(9)
            await ours.until(lambda: len(ours.switch.roles) == 2)
            assert ours.switch.roles[1:] == [("SLAVE", 9)]
            assert ours.switch.batches == []

    asyncio.run(story())


def test_standby_writes_nothing_to_the_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_writes, "LOOK", 0.001)

    async def story() -> None:
        clock = Clock()
        leadership = Leadership(elected=True, clock=clock)
        written = 0

        async def write() -> None:
            nonlocal written
            assert leadership.holds()
            written += 1

        task = asyncio.create_task(keep_writing(write, "not written", leadership))
        await asyncio.sleep(0.05)
        assert written == 0
        leadership.grant(1, clock.now + 1e6, clock.now)
        async with asyncio.timeout(60):
            while not written:
                await asyncio.sleep(0.001)
        leadership.withdraw()
        before = written
        await asyncio.sleep(0.05)
        assert written == before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_change_of_policy_is_published_on_a_standby_without_its_switches() -> None:
    async def story() -> None:
        async with Standby() as ours:
            reconciler = ours.reconciler
            metadata = {"name": "a", "namespace": "default", "uid": "u", "labels": {"app": "a"}}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                   "spec": {"nodeName": "node1"}}  # fmt: skip
            reconciler.update([from_manifest(pod)], [])
            programs = []
            for selected in ("a", "b", "a"):
                reconciler.update([policy(selected)], [])
                await asyncio.sleep(0.02)  # longer than changes are gathered
                await ours.until(lambda: reconciler.is_idle)
                programs.append(set(reconciler.desired.program("node1").cookies))
            assert programs[0] == programs[2] != programs[1]
            assert ours.switch.batches == []
            assert reconciler.sessions["node1"].state is State.STANDBY

    asyncio.run(story())


def test_memory_of_a_standby_does_not_grow_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_TICK", 0.001)

    async def story() -> None:
        async with Standby() as ours:
            reconciler = ours.reconciler
            session = reconciler.sessions["node1"]
            journal = session._journal
            flush = Flush((IPv4Address("10.244.1.9"),), 1,
                          lambda each: Batch.forgetting(CT_ZONE, each))  # fmt: skip
            for turn in range(10_000):
                reconciler.switches.forget(flush)
                if turn % 33 == 0:
                    # Shared flows, by way of the tick in which they are gathered.
                    endpoints = [f"10.244.1.{turn % 200 + 2}"]
                    reconciler.update(
                        [service("web"), endpoint_slice("web-1", "web", endpoints)], []
                    )
                    await ours.until(lambda: reconciler.is_idle)
                    uid = f"u{turn}"
                    reconciler.update([pod_object("a", "node1", uid=uid)], [])
            assert len(reconciler.switches._recent_flushes) == module.MAX_RECENT
            assert len(session.flushes) == 0
            assert len(reconciler.desired._log) <= LOG_LENGTH
            assert journal._cost <= MAX_REMEMBERED
            assert session.state is State.STANDBY
            assert ours.switch.batches == []
            assert not reconciler.switches._claims
            ours.lead(8)
            await ours.until(lambda: ours.switch.roles[-1] == ("MASTER", 8))
            ours.lead(8)  # the renewal that it waits for
            await ours.until(lambda: session.in_sync and not len(session.flushes))

    asyncio.run(story())
