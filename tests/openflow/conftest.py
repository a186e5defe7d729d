"""A real switch that dials a server in the test's own process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

from openflow.connection import Timeouts
from openflow.server import serve
from openflow.switch import Switch
from tests.ovs import Ovs


@asynccontextmanager
async def connected(
    ovs: Ovs, timeouts: Timeouts | None = None, ssl: SSLContext | None = None
) -> AsyncIterator[Switch]:
    """The bridge's connection to a server in this process."""
    found: asyncio.Queue[Switch] = asyncio.Queue()

    async def on_switch(switch: Switch) -> None:
        await found.put(switch)
        await switch.wait_closed()

    async with serve("127.0.0.1", 0, on_switch, ssl, timeouts) as server:
        port = server.port
        ovs.dial(f"{'ssl' if ssl else 'tcp'}:127.0.0.1:{port}")
        async with asyncio.timeout(60):
            switch = await found.get()
        yield switch


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """For what this process's event loop has yet to do; nothing here waits for a fixed time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
