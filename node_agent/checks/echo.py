"""Whether datagrams to the tunnel's port reach other nodes, before anything listens there.

While nodes are checked together, each answers at that port, and only to what begins as our own
probes do. An answer has as many bytes, and begins otherwise: nobody can use it to multiply traffic,
nor make two nodes answer each other for ever.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from wire.findings import Peer

MAGIC: Final = b"sluice check "
"""What a probe begins with."""
ANSWER: Final = b"sluice heard "
"""What its answer begins with."""
LONGEST: Final = 64
"""Bytes of a probe."""
INTERVAL: Final = 0.5
"""Seconds between two probes to one node."""


class _Answers(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if data.startswith(MAGIC) and len(data) <= LONGEST:
            self._transport.sendto(ANSWER + data.removeprefix(MAGIC), address)


@asynccontextmanager
async def answering(port: int) -> AsyncIterator[None]:
    """Answer at this port of all addresses. Raises `OSError` if somebody else has it."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Answers, ("0.0.0.0", port))  # noqa: S104
    try:
        yield
    finally:
        transport.close()


class _Probes(asyncio.DatagramProtocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.answered = asyncio.Event()

    def datagram_received(self, data: bytes, _: Any) -> None:
        if data == self._answer:
            self.answered.set()

    def error_received(self, error: Exception) -> None:
        """Nobody listens there yet."""


async def silent(peers: Iterable[Peer], port: int, within: float) -> tuple[Peer, ...]:
    """The nodes that have not answered within so many seconds."""
    given = tuple(peers)
    answered = await asyncio.gather(*(_is_answered(peer, port, within) for peer in given))
    return tuple(peer for peer, is_there in zip(given, answered, strict=True) if not is_there)


async def _is_answered(peer: Peer, port: int, within: float) -> bool:
    token = os.urandom(8).hex().encode()
    loop = asyncio.get_running_loop()
    transport, probes = await loop.create_datagram_endpoint(
        lambda: _Probes(ANSWER + token), remote_addr=(str(peer.address), port)
    )
    try:
        async with asyncio.timeout(within):
            while True:
                transport.sendto(MAGIC + token)
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await probes.answered.wait()
                        return True
    except TimeoutError:
        return False
    finally:
        transport.close()
