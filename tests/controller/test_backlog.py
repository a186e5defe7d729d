"""Switches and Nodes that come while the flows of many nodes wait to be compiled."""

import asyncio
from ipaddress import IPv4Address, IPv4Network

from controller.inventory import BridgePort, Inventory
from controller.reconciler import Reconciler
from controller.session_state import State
from flows import names
from flows.compile import compile_scope
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE
from openflow.batch import Batch, DeleteByCookie
from openflow.messages import Port
from tests.controller.events import node_object
from tests.controller.test_switch_sessions import NODE, NODE2, Switch, cluster
from tests.flows.worlds import CLUSTER

NODES, PODS = 6, 110


class RecordingSwitch(Switch):
    """Remembers which cookies it was told to delete."""

    def __init__(self, number: int) -> None:
        self.node = f"n{number}"
        super().__init__(names.datapath_id(self.node))
        self.host = f"172.30.2.{number + 1}"
        self.peer = f"{self.host}:1"
        self.deleted: set[int] = set()
        for index, address in enumerate(list(IPv4Network(f"10.244.{number}.0/24"))[2 : PODS + 2]):
            name = names.container_port_name(f"{number}-{index}", "eth0")
            self.ports[200 + index] = Port(200 + index, name, names.mac_of(address))

    async def apply(self, batch: Batch) -> None:
        await asyncio.sleep(0.001)
        await super().apply(batch)
        messages = (message for part in batch.parts for message in part.messages)
        self.deleted |= {each.cookie for each in messages if isinstance(each, DeleteByCookie)}


async def until(condition: object, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


def test_restarted_controller_deletes_no_flow_of_a_running_pod() -> None:
    """All switches return at once, before the flows of all nodes are compiled."""

    async def story() -> None:
        nodes = [
            node_object(f"n{i}", f"10.244.{i}.0/24", f"172.30.2.{i + 1}", "2025-01-01", uid=f"u{i}")
            for i in range(NODES)
        ]
        switches = [RecordingSwitch(number) for number in range(NODES)]
        # What the controller before the restart had installed: everything, with both seals.
        before = Inventory(CLUSTER)
        for node in nodes:
            before.set_object(node)
        before.settle()
        for switch in switches:
            ports = [BridgePort(p.name, p.ofport, p.mac) for p in switch.ports.values()]
            before.set_ports(switch.node, ports)
        shared, right = compile_scope(before.view, CLUSTER_SCOPE), set[int]()
        for switch in switches:
            own = compile_scope(before.view, switch.node)
            right |= own.cookies.keys()
            for flow in (*shared.flows(), shared.seal, *own.flows(), own.seal):
                switch._take(flow)

        after = Reconciler(Inventory(CLUSTER))
        after.update(nodes, [])
        after.source_complete(True)
        await after.listed.wait()
        tasks = [asyncio.create_task(after.on_switch(switch)) for switch in switches]  # type: ignore[arg-type]
        await until(
            lambda: (
                len(after.sessions) == NODES
                and all(session.in_sync for session in after.sessions.values())
            )
        )
        assert not {cookie for switch in switches for cookie in switch.deleted & right}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())


def test_node_that_goes_during_a_round_keeps_its_flows() -> None:
    async def story() -> None:
        known, switch = cluster(), Switch()
        name = names.container_port_name("x", "eth0")
        switch.ports[200] = Port(200, name, names.mac_of(IPv4Address("10.244.1.9")))
        task = asyncio.create_task(known.on_switch(switch))  # type: ignore[arg-type]
        await until(lambda: "node1" in known.sessions and known.sessions["node1"].in_sync)
        own = set(known.desired.program("node1").cookies)
        assert own

        async def lose_the_node() -> None:
            known.update([], [ObjectRef.node("node1")])
            await asyncio.sleep(0.02)

        switch.meanwhile[switch.batches + 1] = lose_the_node
        known.update([NODE2], [])  # a change of shared flows begins a round
        await until(lambda: known.sessions["node1"].state is State.PAUSED)
        assert own <= switch.cookies
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_node_that_is_back_before_it_is_compiled_is_not_forgotten() -> None:
    async def story() -> None:
        known, switch = cluster(NODE2), Switch()
        task = asyncio.create_task(known.on_switch(switch))  # type: ignore[arg-type]
        await until(lambda: "node1" in known.sessions and known.sessions["node1"].in_sync)
        compilation = known.compilation
        # Other work waits, so nothing of the Node is compiled in between.
        compilation._timer = asyncio.get_running_loop().call_later(0.05, compilation._work)
        known.update([], [ObjectRef.node("node1")])
        known.sessions["node1"].changed()
        await until(lambda: known.sessions["node1"].state is State.PAUSED)
        known.update([NODE], [])
        await until(lambda: known.sessions["node1"].in_sync)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
