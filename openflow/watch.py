"""The local bridge, through its management socket `BRIDGE.mgmt`."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flows import names
from openflow.connection import Timeouts
from openflow.errors import ConnectionLost, SwitchError
from openflow.messages import FlowUpdate, InstalledFlow, PacketIn
from openflow.switch import Switch

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts to connect; doubled each time."""
_MONITOR_TIMEOUT: Final = 10.0
"""Seconds for the switch to tell what the table holds."""


@asynccontextmanager
async def connect(
    path: Path,
    on_flow_update: Callable[[FlowUpdate], None] | None = None,
    timeouts: Timeouts | None = None,
    on_packet: Callable[[PacketIn], None] | None = None,
) -> AsyncIterator[Switch]:
    """A bridge by its management socket, closed at the end of the context.

    We dial, but are the controller all the same. Raises `OSError`, and `ConnectionLost` if the
    handshake fails.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Switch] = loop.create_future()

    def on_closed(_: Switch, reason: str) -> None:
        if not ready.done():
            ready.set_exception(ConnectionLost(f"{path}: {reason}"))

    _, switch = await loop.create_unix_connection(
        lambda: Switch(ready.set_result, on_closed, on_flow_update, timeouts, on_packet), str(path)
    )
    try:
        yield await ready
    finally:
        switch.close("not needed any more")


async def read_flows(path: Path) -> list[InstalledFlow]:
    """All flows of a bridge, read once. Raises `OSError`, `ConnectionLost`, `RequestRejected`."""
    async with connect(path) as switch:
        return await switch.dump_flows()


class FlowWatch:
    """Follows which flows one table of a bridge holds, by cookie, and gets packets for the agent.

    Keeps one connection to the bridge's management socket, and connects again when it is lost.
    Meanwhile the contents of the table are unknown; afterwards the switch reports them again.
    """

    def __init__(
        self, path: Path, table: int, on_packet: Callable[[PacketIn], None] | None = None
    ) -> None:
        """`on_packet` gets the packets that flows send to `names.AGENT_CONNECTION`."""
        self._path = path
        self._on_packet = on_packet
        self._table = table
        self._cookies: dict[bytes, int] = {}
        self._waiting: defaultdict[int, set[asyncio.Future[None]]] = defaultdict(set)
        self._connected = False
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the switch has told all that the table holds, and will tell what changes."""
        return self._connected

    async def wait_for(self, cookie: int, timeout: float) -> bool:  # noqa: ASYNC109 - gives a bool
        """Whether a flow with this cookie is in the table, or comes within so many seconds."""
        if cookie in self._cookies.values():
            return True
        appeared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[cookie]
        waiting.add(appeared)
        try:
            async with asyncio.timeout(timeout):
                await appeared
        except TimeoutError:
            return False
        finally:
            waiting.discard(appeared)
            if not waiting and self._waiting.get(cookie) is waiting:
                del self._waiting[cookie]
        return True

    async def __aenter__(self) -> Self:
        """Begin to watch; does not wait for the connection."""
        self._task = asyncio.create_task(self._run(), name=f"flow watch {self._path}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                async with connect(
                    self._path, self._on_update, on_packet=self._on_packet
                ) as switch:
                    if self._on_packet is not None:
                        switch.identify(names.AGENT_CONNECTION)
                    async with asyncio.timeout(_MONITOR_TIMEOUT):
                        await switch.monitor_flows(self._table)
                    self._connected = True
                    pause = _FIRST_PAUSE
                    problem = await switch.wait_closed()
            except (OSError, SwitchError) as error:
                problem = str(error)
            finally:
                self._connected = False
                self._cookies.clear()
            _log.info("%s: %s; trying again in %.2f s", self._path, problem, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _on_update(self, update: FlowUpdate) -> None:
        if update.gone:
            self._cookies.pop(update.key, None)
            return
        self._cookies[update.key] = update.cookie
        for appeared in self._waiting.pop(update.cookie, ()):
            if not appeared.done():
                appeared.set_result(None)
