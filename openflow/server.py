"""Where switches dial in."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias
from weakref import WeakSet

from openflow.session import Timeouts
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
) -> AsyncIterator[asyncio.Server]:
    """Accept switches while the context lasts; at its end all connections are closed.

    Each switch whose handshake succeeded gets a task that runs `on_switch(switch)`. The connection
    is cut when that returns or raises; the task is cancelled when the connection ends. One that
    fails, or talks garbage, harms no other. Two connections may have the same datapath id: that
    is for `on_switch` to decide. Raises `OSError` if the address cannot be had.
    """
    timeouts = timeouts or Timeouts()
    # Weak, because asyncio forgets without a word whoever fails the TLS handshake.
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

    # With TLS, its handshake comes before ours and has the same time.
    tls_timeout = timeouts.handshake if ssl is not None else None
    server = await asyncio.get_running_loop().create_server(
        accept, host, port, ssl=ssl, ssl_handshake_timeout=tls_timeout, backlog=1024
    )
    try:
        yield server
    finally:
        server.close()
        running = list(tasks.values())
        for switch in list(switches):
            switch.close("the server stops")
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


async def _run(switch: Switch, on_switch: OnSwitch) -> None:
    try:
        await on_switch(switch)
    except Exception:  # noqa: BLE001 - whatever it is, it is this switch's alone
        _log.exception("switch %s (%016x): its task failed", switch.peer, switch.dpid)
    switch.close("its task is done")
