"""The conntrack flushes that wait for one switch, until it holds the flows of now."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from controller.conntrack_flush import AnyFlush
from openflow.batch import Batch
from openflow.errors import NotWriter
from openflow.switch import Rejected

log = structlog.get_logger()

MAX_TO_FORGET: Final = 4_096
"""Conntrack flushes that wait for one switch."""


class FlushQueue:
    """Sends flushes to a switch, in their order."""

    def __init__(
        self,
        node: str,
        send: Callable[[Callable[[], Batch | None]], Awaitable[None]],
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        """`send` does what `Switch.apply_chosen` does.

        `caught_up` returns when the switch has applied, or rejected, all changes before the call.
        """
        self._node = node
        self._send = send
        self._caught_up = caught_up
        self._waiting: deque[AnyFlush] = deque()
        self._sending: deque[AnyFlush] = deque()
        """Those that are sent once the switch has caught up."""
        self._added = asyncio.Event()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, flushes: Sequence[AnyFlush]) -> None:
        """Flush connections on the switch once it holds the flows of now."""
        room = MAX_TO_FORGET - len(self._waiting)
        if len(flushes) > room:
            log.warning("conntrack flush skipped: queue full", node=self._node)
        self._waiting.extend(flushes[:room])
        self._added.set()

    def clear(self) -> None:
        """Drop those that wait: another controller sends them."""
        self._waiting.clear()
        self._sending.clear()

    async def run(self) -> None:
        """Send what `add` was given; until cancelled. Raises `ConnectionLost`."""
        while True:
            await self._added.wait()
            self._added.clear()
            self._sending, self._waiting = self._waiting, deque()
            # If a flush came earlier, a datagram could still match the old flows, and connection
            # tracking would keep the old translation.
            await self._caught_up()
            while self._sending:
                await self._flush(self._sending.popleft())

    async def _flush(self, flush: AnyFlush) -> None:
        """Send a flush as often as it takes, each time with what is still to be flushed.

        That is read when the switch's turn comes: flows that are sent later make connections that
        must not be flushed.
        """
        try:
            for _ in range(flush.times):
                if flush.batch is None:
                    return
                await self._send(lambda: flush.batch)
        except (NotWriter, Rejected) as refused:
            log.warning("conntrack flush refused", node=self._node, reason=str(refused))
