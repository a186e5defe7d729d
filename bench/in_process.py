"""The controller's own code in this process, with the switches of a bare lab.

So no API server and no file lies between a change and the controller. The ports of Pods are told to
the controller alone: its switches hold their flows as if the ports were there.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec
from pyroute2 import netns

from bench.controller import node_manifest
from bench.nodes import dial, make_bridge
from controller import garbage
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.sources.objects import from_manifest
from flows.features import state
from flows.view import Cluster, Node
from lab import Lab
from lab.layout import CONTROL_ADDRESS, OPENFLOW_PORT, POD_RANGE, SERVICE_RANGE, NodeLayout
from openflow.messages import FlowUpdate
from openflow.server import serve
from openflow.watch import connect

PATIENCE = 120.0
_GLANCE = 0.0005
"""Seconds between looks whether everything is acknowledged."""
_CLUSTER = Cluster(POD_RANGE, SERVICE_RANGE, 6081, 1000)

T = TypeVar("T")


@asynccontextmanager
async def controller(
    lab: Lab, nodes: int, cluster: Cluster = _CLUSTER, known: Iterable[Node] = ()
) -> AsyncIterator[Reconciler]:
    """The controller in a bare lab, with its switches in sync.

    `known` are the Nodes, if they are not the lab's, or if there are more than it has.
    """
    garbage.collect_rarely()
    reconciler = Reconciler(Inventory(cluster))
    switches = lab.layout.nodes(nodes)
    known = [*known] or [Node(n.name, n.name, n.address, n.pod_cidr) for n in switches]
    reconciler.update([from_manifest(node_manifest(each)) for each in known], [])
    reconciler.source_complete(True)
    async with AsyncExitStack() as stack:
        netns.pushns(lab.layout.netns("control"))
        try:
            listening = serve(str(CONTROL_ADDRESS), OPENFLOW_PORT, reconciler.on_switch)
            await stack.enter_async_context(listening)
        finally:
            netns.popns()
        for node in switches:
            await asyncio.to_thread(make_bridge, node)
            await asyncio.to_thread(dial, node, f"{CONTROL_ADDRESS}:{OPENFLOW_PORT}")
        await acknowledged(reconciler, nodes)
        yield reconciler


async def acknowledged(reconciler: Reconciler, nodes: int) -> None:
    """Until the switches of so many nodes have acknowledged everything that was reported."""

    def done() -> bool:
        sessions = reconciler.sessions.values()
        in_sync = reconciler.is_idle and all(each.in_sync for each in sessions)
        return in_sync and len(sessions) == nodes

    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(_GLANCE)


def decoded(data: bytes, kind: type[T]) -> list[T]:
    """A list in JSON, decoded as `controller.sources.kubernetes` does it, one by one."""
    items = msgspec.json.decode(data, type=list[msgspec.Raw])
    return [msgspec.json.decode(item, type=kind) for item in items]


@asynccontextmanager
async def sealed_anew(nodes: Sequence[NodeLayout]) -> AsyncIterator["asyncio.Future[list[None]]"]:
    """Done when each switch has a new seal, which comes last in the bundle it vouches for."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = [loop.create_future() for _ in nodes]
    watching = False
    async with AsyncExitStack() as stack:
        for node, sealed in zip(nodes, waiting, strict=True):

            def on_update(update: FlowUpdate, sealed: "asyncio.Future[None]" = sealed) -> None:
                new = not update.gone and state.is_seal(update.table, update.cookie)
                if watching and new and not sealed.done():
                    sealed.set_result(None)

            switch = await stack.enter_async_context(connect(node.mgmt, on_update))
            await switch.monitor_flows(state.TABLE)
        watching = True
        yield asyncio.gather(*waiting)
