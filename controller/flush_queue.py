"""The conntrack flushes that wait for one switch, until it holds the flows of now."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
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
        """`send` is `Switch.apply_chosen`. `caught_up` returns when the switch has applied, or
        rejected, every change made before the call.
        """  # noqa: D205 - two parameters
        self._node = node
        self._send = send
        self._caught_up = caught_up
        self._waiting: asyncio.Queue[AnyFlush] = asyncio.Queue(MAX_TO_FORGET)

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting.qsize()

    def add(self, flush: AnyFlush) -> None:
        """Flush connections on the switch once it holds the flows of now."""
        try:
            self._waiting.put_nowait(flush)
        except asyncio.QueueFull:
            log.warning("conntrack flush skipped: queue full", node=self._node)

    def clear(self) -> None:
        """Drop those that wait: another controller sends them."""
        while not self._waiting.empty():
            self._waiting.get_nowait()

    async def run(self) -> None:
        """Send what `add` was given; until cancelled. Raises `ConnectionLost`."""
        while True:
            flushes = deque([await self._waiting.get()])
            while not self._waiting.empty():
                flushes.append(self._waiting.get_nowait())
            # If a flush came earlier, a datagram could still match the old flows, and connection
            # tracking would keep the old translation.
            await self._caught_up()
            while flushes:
                await self._flush(flushes.popleft())

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
