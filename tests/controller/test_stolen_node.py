"""A stolen node: what its certificate, its switch and its agent can cost the others."""

import asyncio
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller import api as api_module
from controller import problems as problems_module
from controller import switches as module
from controller.api import Api
from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind
from controller.reconciler import Reconciler
from flows import names
from openflow.messages import Port, PortReason, PortStatus, Role
from openflow.switch import ConnectionLost
from tests.controller.events import node_object, pod_object
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER
from wire.documents import MAX_PODS, NodeProblems, encode


class FakeSwitch:
    """Of a switch, what its owner asks; it holds nothing and acknowledges nothing."""

    def __init__(self, dpid: int, certificate: str | None = None) -> None:
        self.dpid = dpid
        self.certificate_name = certificate
        self.host, self.peer = "172.30.1.1", "172.30.1.1:1"
        self.ports: dict[int, Port] = {}
        self.closed = asyncio.Event()
        self.reason = ""
        self.events: asyncio.Queue[PortStatus] = asyncio.Queue()
        self.taken = 0

    async def alive(self, _: float) -> bool:
        return not self.closed.is_set()

    def close(self, reason: str) -> None:
        self.reason = reason
        self.closed.set()

    async def request_role(self, role: Role, generation: int) -> tuple[Role, int]:
        return role, generation

    async def dump_flows(self, *_: Any) -> list[Any]:
        await self.closed.wait()
        raise ConnectionLost(self.reason)

    async def port_events(self) -> Any:
        while True:
            yield await self.events.get()
            self.taken += 1
            await asyncio.sleep(0)


def world() -> Reconciler:
    reconciler = Reconciler(Inventory(CLUSTER))
    reconciler.update([NODE, PEER], [])
    reconciler.source_complete(True)
    return reconciler


def own(reconciler: Reconciler, switch: FakeSwitch) -> asyncio.Task[None]:
    return asyncio.create_task(reconciler.on_switch(cast("Any", switch)))


async def settle(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("claimed", ["node2", "node9", "invented"])
def test_switch_with_another_nodes_datapath_id_is_refused_at_once(claimed: str) -> None:
    """Whether that node is known or not: 300 sessions of invented ids all stayed."""

    async def story() -> None:
        reconciler = world()
        switches = [FakeSwitch(names.datapath_id(claimed) + n, "node1") for n in range(50)]
        tasks = [own(reconciler, switch) for switch in switches]
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        assert not reconciler.sessions
        assert not reconciler.problems

    asyncio.run(story())


def test_switch_with_its_own_nodes_certificate_is_accepted() -> None:
    async def story() -> None:
        reconciler = world()
        task = own(reconciler, FakeSwitch(names.datapath_id("node1"), "node1"))
        await settle()
        assert "node1" in reconciler.sessions
        await end(task)
        assert not reconciler.sessions

    asyncio.run(story())


def test_one_switch_of_a_name_waits_for_its_node() -> None:
    async def story() -> None:
        reconciler = world()
        switches = [FakeSwitch(names.datapath_id("node9"), "node9") for _ in range(300)]
        tasks = []
        for switch in switches:
            tasks.append(own(reconciler, switch))
            await settle(2)
        assert [switch.closed.is_set() for switch in switches] == [True] * 299 + [False]
        await end(*tasks)
        assert not reconciler.problems

    asyncio.run(story())


def test_switches_that_wait_for_their_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without certificates a stranger may invent as many ids as it likes."""
    monkeypatch.setattr(module, "MAX_UNCLAIMED", 10)

    async def story() -> None:
        reconciler = world()
        tasks = [own(reconciler, FakeSwitch(number)) for number in range(1, 100)]
        await settle()
        assert sum(not task.done() for task in tasks) == 10
        assert len(reconciler.problems) == 10
        await end(*tasks)

    asyncio.run(story())


def invented(number: int) -> Port:
    name = names.port_name("default", f"p{number}", "u", "eth0", f"s{number}")
    return Port(16 + number, name, f"0a:58:0a:f4:01:{number % 250 + 2:02x}")


def test_flood_of_port_events_is_paced_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PORT_EVENTS_BURST", 100)
    monkeypatch.setattr(problems_module, "MAX_OF_NODE", 50)

    async def story() -> None:
        reconciler = world()
        stolen = FakeSwitch(names.datapath_id("node1"), "node1")
        victim = FakeSwitch(names.datapath_id("node2"), "node2")
        tasks = [own(reconciler, stolen), own(reconciler, victim)]
        await settle()
        for number in range(20_000):
            stolen.events.put_nowait(PortStatus(PortReason.ADD, invented(number)))
        reconciler.update([pod_object("victim", "node2", uid="v")], [])
        name = names.port_name("default", "victim", "v", "eth0", "s")
        added = Port(16, name, "0a:58:0a:f4:02:05")
        victim.events.put_nowait(PortStatus(PortReason.ADD, added))
        await settle(10)
        # The other node's pod is attached within a few turns of the loop.
        assert added.name in reconciler.inventory.view.attachments["node2"]
        await settle(1_000)
        # In 1,000 turns: the burst, and what the rate allows in the time that they took.
        assert 100 <= stolen.taken < 1_000
        of_ports = Reporter(ReporterKind.PORTS, "node1")
        assert len(reconciler.problems.of_reporter(of_ports)) == 50
        await end(tasks[0])
        assert not reconciler.problems.of_reporter(of_ports)
        await end(*tasks)

    asyncio.run(story())


def test_next_session_reports_problems_of_ports_again() -> None:
    async def story() -> None:
        reconciler = world()
        for _ in range(2):
            switch = FakeSwitch(names.datapath_id("node1"), "node1")
            port = invented(1)
            switch.ports = {port.ofport: port}
            task = own(reconciler, switch)
            await settle()
            assert list(reconciler.problems.texts()) == [f"port {port.name} of node1"]
            await end(task)
            assert not reconciler.problems

    asyncio.run(story())


def test_reports_of_one_node_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """225 KB of problems 70 times a second made /healthz slow."""
    monkeypatch.setattr(api_module, "REPORTS_BURST", 5)
    monkeypatch.setattr(api_module, "REPORTS_PER_SECOND", 0.001)
    large = encode(NodeProblems(pods={f"default/{n}": "x" * 900 for n in range(MAX_PODS)}))

    async def story() -> None:
        reconciler = world()
        application = Api(reconciler, SETTINGS).application(local=False)
        async with TestClient(TestServer(application)) as client:

            async def tell(node: str, what: str = "problems") -> int:
                async with client.post(f"/v1/nodes/{node}/{what}", data=large) as response:
                    return response.status

            assert [await tell("node1") for _ in range(7)] == [204] * 5 + [429] * 2
            assert await tell("node1", "digest") == 429
            assert await tell("node2") == 204
            assert (await client.get("/healthz")).status == 200
            # Of names that nobody has, nothing is remembered.
            assert {await tell(f"n{number}") for number in range(20)} == {404}

    asyncio.run(story())


def test_attachments_of_a_refused_node_are_not_compiled() -> None:
    async def story() -> None:
        reconciler = world()
        refused = node_object("node3", "", "172.30.1.3", uid="n3")
        reconciler.update([refused, pod_object("a", "node3", uid="u")], [])
        port = Port(16, names.port_name("default", "a", "u", "eth0", "s"), "0a:58:0a:f4:03:05")
        switch = FakeSwitch(names.datapath_id("node3"), "node3")
        switch.ports = {16: port}
        task = own(reconciler, switch)
        await settle()
        assert "node3" in reconciler.sessions
        assert not reconciler.desired.program("node3").cookies
        assert "node3" not in reconciler.inventory.view.attachments
        good = node_object("node3", "10.244.3.0/24", "172.30.1.3", uid="n3")
        reconciler.update([good], [])
        await settle()
        owners = {o for _, o in reconciler.desired.of("node3").values()}
        assert any(str(ref) == "Pod default/a" for each in owners for ref in each)
        await end(task)

    asyncio.run(story())
