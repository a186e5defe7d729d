"""The server that switches connect to."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias
from weakref import WeakSet

from openflow.connection import Timeouts
from openflow.listener import Bounds, Listener, bound_socket, listen
from openflow.switch import Switch

_log = logging.getLogger(__name__)

OnSwitch: TypeAlias = Callable[[Switch], Awaitable[None]]


@asynccontextmanager
async def serve(
    host: str,
    port: int,
    on_switch: OnSwitch,
    ssl: ssl.SSLContext | None = None,
    timeouts: Timeouts | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[Listener]:
    """Accept switches while the context lasts; at its end all connections are closed.

    Each switch whose handshake succeeds gets a task that runs `on_switch(switch)`. The connection
    is cut when that returns or raises; the task is cancelled when the connection ends. A switch
    that fails, or sends garbage, affects no other. Two connections may have the same datapath id:
    `on_switch` decides what to do. Raises `OSError` if it cannot listen on this address.
    """
    timeouts = timeouts or Timeouts()
    # Weak, because nobody tells us of a failed TLS handshake.
    switches: WeakSet[Switch] = WeakSet()
    tasks: dict[Switch, asyncio.Task[None]] = {}

    def accept() -> Switch:
        switch = Switch(on_ready, on_closed, timeouts=timeouts)
        switches.add(switch)
        return switch

    def on_ready(switch: Switch) -> None:
        name = f"switch {switch.dpid:016x}"
        tasks[switch] = task = asyncio.create_task(_run(switch, on_switch), name=name)
        task.add_done_callback(lambda _: tasks.pop(switch))

    def on_closed(switch: Switch, reason: str) -> None:
        _log.info("switch %s (%016x): %s", switch.peer, switch.dpid, reason)
        if switch in tasks:
            tasks[switch].cancel()

    sock = bound_socket(host, port)
    # The TLS handshake comes before ours and has the same time.
    async with listen(
        sock, accept, context=ssl, handshake_timeout=timeouts.handshake, bounds=bounds
    ) as listener:
        try:
            yield listener
        finally:
            listener.close()
            running = list(tasks.values())
            for switch in list(switches):
                switch.close("the server stops")
            await asyncio.gather(*running, return_exceptions=True)


async def _run(switch: Switch, on_switch: OnSwitch) -> None:
    try:
        await on_switch(switch)
    except Exception:  # noqa: BLE001 - no error of one switch may reach the others
        _log.exception("switch %s (%016x): its task failed", switch.peer, switch.dpid)
    switch.close("its task is done")
