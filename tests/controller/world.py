"""A controller without its processes, and one real switch that is node1's."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from controller.inventory import Inventory
from controller.leadership import Leadership
from controller.reconciler import Reconciler
from controller.session_state import State
from flows import names
from flows.compile import compile_scope
from flows.pipeline import Feature
from flows.view import CLUSTER_SCOPE
from openflow.server import serve
from openflow.switch import Switch
from settings import ClusterSettings
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER
from tests.ovs import Ovs

SETTINGS = ClusterSettings(pod_range=CLUSTER.pod_range, service_range=CLUSTER.service_range)
NODE = node_object("node1", "10.244.1.0/24", "172.30.1.1", "2025-01-01", uid="n1")
PEER = node_object("node2", "10.244.2.0/24", "172.30.1.2", uid="n2")


class World:
    """One controller, without its processes, and one switch that is node1's."""

    def __init__(self, ovs: Ovs, reconciler: Reconciler, port: int, switches: set[Switch]) -> None:
        self.ovs = ovs
        self.reconciler = reconciler
        self.port = port
        self.switches = switches
        """All that have shaken hands."""

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def in_sync(self) -> None:
        def quiet() -> bool:
            session = self.reconciler.sessions.get("node1")
            if session is None or session.dirty.is_set():
                return False
            return session.in_sync or (session.state is State.INCOMPLETE and bool(session.left_out))

        await asyncio.sleep(0.02)  # longer than the tick in which shared changes are gathered
        await self.until(quiet)

    def cookies(self) -> set[int]:
        dump = self.ovs.ofctl("dump-flows", str(self.ovs.mgmt))
        return {int(cookie, 16) for cookie in re.findall(r"cookie=(0x[0-9a-f]+)", dump)}

    def desired(self) -> set[int]:
        """Compiled anew, from nothing."""
        view = self.reconciler.inventory.view
        shared, own = compile_scope(view, CLUSTER_SCOPE), compile_scope(view, "node1")
        seals = (
            {shared.seal.cookie, own.seal.cookie}
            if self.reconciler.desired.source_complete
            else set()
        )
        return {*shared.cookies, *own.cookies} | seals

    def seals(self) -> set[int]:
        """Those that the switch holds."""
        return {cookie for cookie in self.cookies() if cookie >> 56 == Feature.STATE}

    def plug(self, pod: str, uid: str, ofport: int, address: str = "10.244.1.5") -> str:
        """A port as the node agent makes it."""
        name = names.port_name("default", pod, uid, "eth0", f"sandbox-{ofport}")
        octets = [int(part) for part in address.split(".")]
        mac = "0a:58:" + bytes(octets).hex(":")
        self.ovs.vsctl(
            "add-port", "br0", name, "--", "set", "Interface", name, "type=internal",
            f"ofport_request={ofport}", f'mac="{mac}"',
        )  # fmt: skip
        return name


@asynccontextmanager
async def controller(
    ovs: Ovs, *, whole: bool = True, port: int = 0, leadership: Leadership | None = None
) -> AsyncIterator[World]:
    """A controller that knows node1 and node2; the switch dials it.

    With a `leadership`, the test has the switch dial it, and perhaps others.
    """
    reconciler = Reconciler(Inventory(CLUSTER), leadership=leadership)
    reconciler.update([NODE, PEER], [])
    reconciler.source_complete(whole)
    switches: set[Switch] = set()

    async def on_switch(switch: Switch) -> None:
        switches.add(switch)
        try:
            await reconciler.on_switch(switch)
        finally:
            switches.discard(switch)

    async with serve("127.0.0.1", port, on_switch) as server:
        address = server.address
        if not port and leadership is None:
            ovs.vsctl(
                "set", "Bridge", "br0",
                f"other_config:datapath-id={names.datapath_id('node1'):016x}",
            )  # fmt: skip
            ovs.dial(f"tcp:127.0.0.1:{address[1]}")
        yield World(ovs, reconciler, address[1], switches)


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]
