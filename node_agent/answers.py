"""Answers strangers' HTTP requests on ports of the host: each one short, and few at a time.

Load balancers and monitoring ask. They may come from anywhere, so a connection has one request,
a deadline, and a place among a bounded number. At the bound the oldest connection has to go: a
client that sends nothing cannot keep others out.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

MAX_CONNECTIONS: Final = 256
MAX_CONNECTIONS_PER_ADDRESS: Final = 32
DEADLINE: Final = 5.0
"""Seconds from accept(2) to the last byte."""
_MAX_HEAD: Final = 8192
"""Bytes of a request's line and headers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To a GET."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """With `Connection: close`: there is no second request."""
        headers = {
            "Content-Type": "application/json",
            "X-Content-Type-Options": "nosniff",
            **self.headers,
            "Content-Length": str(len(self.body)),
            "Connection": "close",
        }
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class AnswerServer:
    """Listens on any number of ports; `answer` gets the port and the path that are asked for."""

    def __init__(self, answer: Callable[[int, str], Answer]) -> None:
        self._answer = answer
        self._listening: dict[int, asyncio.Server] = {}
        self._connections: dict[asyncio.Task[None], str] = {}
        """Oldest first, each with its client's address."""
        self._ended: set[asyncio.Task[None]] = set()
        """Cancelled, and not done yet."""

    @property
    def ports(self) -> set[int]:
        """Where it listens."""
        return set(self._listening)

    async def listen(self, port: int, address: str = "0.0.0.0") -> None:  # noqa: S104
        """Raises `OSError`."""
        self._listening[port] = await asyncio.start_server(
            self._connected, address, port, limit=_MAX_HEAD
        )

    def stop(self, port: int) -> None:
        """Listen on this port no more; open connections end by themselves."""
        self._listening.pop(port).close()

    async def close(self) -> None:
        """End everything."""
        for port in self.ports:
            self.stop(port)
        open_ones = [*self._connections, *self._ended]
        for connection in open_ones:
            connection.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None  # noqa: S101  asyncio makes a task of each connection
        peer = writer.get_extra_info("peername")
        self._connections[connection] = peer[0] if peer else ""
        self._make_room(self._connections[connection])
        try:
            async with asyncio.timeout(DEADLINE):
                await self._serve(reader, writer)
        except (
            TimeoutError, OSError, ValueError, asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):  # fmt: skip
            pass  # A client that does not behave hears nothing.
        finally:
            self._connections.pop(connection, None)
            self._ended.discard(connection)
            writer.transport.abort()

    def _make_room(self, address: str) -> None:
        counts = Counter(self._connections.values())
        of_address = counts[address] > MAX_CONNECTIONS_PER_ADDRESS
        if of_address or len(self._connections) > MAX_CONNECTIONS:
            candidates = self._connections.items()
            oldest = next(task for task, other in candidates if not of_address or other == address)
            # At once: a burst of connections is accepted before a cancelled task has its turn.
            del self._connections[oldest]
            self._ended.add(oldest)
            oldest.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        match head.split(b"\r\n", 1)[0].decode("ascii").split(" "):
            case ["GET" | "HEAD", path, version] if version.startswith("HTTP/1."):
                port = writer.get_extra_info("sockname")[1]
                answer = self._answer(port, path)
            case _:
                answer = Answer(HTTPStatus.BAD_REQUEST, b"")
        writer.write(answer.encode())
        await writer.drain()
        writer.write_eof()
        with suppress(OSError):
            await reader.read()  # Until the client has closed: an abort could overtake the answer.
