"""Accepts TCP connections, and bounds their number per client and in total.

With TLS, a connection without a verified certificate is a *stranger's*. The strangers of one
address, and all strangers together, are bounded. At a bound the oldest connection is closed: it had
time for its handshake or its request. Each certificate has a bound of its own. Without TLS clients
cannot be distinguished, and only the total is bounded.

asyncio's own server has no such bounds. It also logs each failed `accept` when descriptors run out,
a thousand times a second, and it leaves a cycle of references behind each failed handshake, which
holds the connection's buffers until the garbage collector runs.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import traceback
from asyncio import sslproto
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from openflow.switch import name_in

_log = logging.getLogger(__name__)

TLS_BUFFER: Final = 32 << 10
"""Bytes of the buffer that asyncio allocates for each TLS connection; its default is 256 KB. Two
TLS records (RFC 8446, 5.1) fit."""
sslproto.SSLProtocol.max_size = TLS_BUFFER

BACKLOG: Final = 1024
"""Connections that wait in the kernel until they are accepted."""
_ACCEPTS_PER_TURN: Final = 16
"""Connections accepted in one turn of the event loop; then other tasks run."""
_PAUSE: Final = 0.5
"""Seconds without `accept` when no more connections are possible."""
_MOST_AT_ONCE: Final = 5
"""The most connections that one node opens at the same time."""
_LEAST_AGE: Final = 1.0
"""Seconds that a stranger's connection is kept at least, if its address has at most
`_MOST_AT_ONCE`: nodes that all reconnect at once do not close each other's connections."""
_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections one listener holds at a time."""

    connections: int = 32_768
    """All together. Beyond it, connections wait in the kernel."""
    strangers: int = 512
    """All together. At this number, the address with the most strangers loses its oldest one."""
    strangers_of_address: int = 32
    """Beyond it, the address loses its oldest stranger."""
    of_certificate: int = 64
    """Beyond it, the certificate's owner loses its oldest connection."""


class Listener:
    """Accepts connections of one address and port; see `listen`."""

    def __init__(
        self,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
        handshake_timeout: float,
        bounds: Bounds,
    ) -> None:
        """Start to accept."""
        self.address: Any = sock.getsockname()
        self._socket = sock
        self._factory = factory
        self._context = context
        self._handshake_timeout = handshake_timeout
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        # Sockets only: to keep a transport would keep its buffers. A dict keeps the order.
        self._strangers: dict[socket.socket, str] = {}
        """By connection, the address it came from; oldest first."""
        self._since: dict[socket.socket, float] = {}
        """By stranger's connection, when it came."""
        self._known: dict[socket.socket, str] = {}
        """By connection, the name in its certificate; without TLS the empty name."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._resume()

    @property
    def port(self) -> int:
        """The TCP port."""
        port: int = self.address[1]
        return port

    def close(self) -> None:
        """Stop accepting; open connections stay open."""
        if self._socket.fileno() < 0:
            return
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._loop.remove_reader(self._socket)
        self._socket.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until every handshake has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._socket, self._accept)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket)
        self._paused = self._loop.call_later(_PAUSE, self._resume)

    def _accept(self) -> None:
        for number in range(_ACCEPTS_PER_TURN):
            if not self._has_room():
                # Close a connection only if another one surely waits. For the first `accept` of a
                # turn the event loop reported one; for later ones nobody knows.
                if number:
                    return
                if not self._make_room():
                    self._pause()
                    return
            try:
                connection, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # Only this connection failed (accept(2), "Error handling").
                _log.warning("%s: cannot accept connections: %s", self.address, error.strerror)
                self._pause()
                return
            connection.setblocking(False)
            self._take(connection, address)

    def _take(self, connection: socket.socket, address: Any) -> None:
        # The peer of a unix socket has no address.
        host = str(address[0]) if isinstance(address, tuple) else ""
        if self._context is None:
            self._known[connection] = ""
        else:
            self._strangers[connection] = host
            self._since[connection] = self._loop.time()
            self._bound_address(host)
        task = self._loop.create_task(self._handshake(connection, host))
        self._tasks.add(task)
        task.add_done_callback(partial(self._handshake_ended, connection))

    def _handshake_ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # Perhaps before its coroutine started.
            connection.close()

    def _has_room(self) -> bool:
        total = len(self._strangers) + len(self._known)
        return total < self._bounds.connections and len(self._strangers) < self._bounds.strangers

    def _make_room(self) -> bool:
        """Return whether one more connection fits; close the oldest stranger if necessary."""
        self._forget_closed()
        if self._has_room():
            return True
        if self._strangers:
            by_address = Counter(self._strangers.values())
            greediest = max(by_address, key=by_address.__getitem__)
            oldest = _oldest(self._strangers, greediest)
            age = self._loop.time() - self._since[oldest]
            if by_address[greediest] > _MOST_AT_ONCE or age >= _LEAST_AGE:
                self._end(oldest)
                return self._has_room()
        _log.warning("%s: no more connections are accepted for now", self.address)
        return False

    def _bound_address(self, host: str) -> None:
        """Close a stranger's connection if its address has too many."""
        most = self._bounds.strangers_of_address
        if len(self._strangers) > most and _count(self._strangers, host) > most:
            self._forget_closed()
            if _count(self._strangers, host) > most:
                self._end(_oldest(self._strangers, host))

    def _bound_known(self, name: str) -> None:
        """Close a connection of this certificate if it has too many."""
        most = self._bounds.of_certificate
        if len(self._known) > most and _count(self._known, name) > most:
            self._forget_closed()
            if _count(self._known, name) > most:
                self._end(_oldest(self._known, name))

    def _forget_closed(self) -> None:
        for connections in (self._strangers, self._since, self._known):
            for connection in [each for each in connections if each.fileno() < 0]:
                del connections[connection]

    def _end(self, connection: socket.socket) -> None:
        """Shut a connection down. Its transport then reads the end of the stream, and closes."""
        owner = self._known.get(connection) or self._strangers.get(connection)
        for connections in (self._strangers, self._since, self._known):
            connections.pop(connection, None)
        _log.warning("%s: too many connections; the oldest one is ended", owner)
        with contextlib.suppress(OSError):  # It may have ended already.
            connection.shutdown(socket.SHUT_RDWR)

    async def _handshake(self, connection: socket.socket, host: str) -> None:
        def admit(transport: asyncio.BaseTransport) -> asyncio.BaseProtocol:
            self._identify(connection, transport)
            return self._factory()

        timeout = self._handshake_timeout if self._context is not None else None
        try:
            with _without_cycle():
                await self._loop.connect_accepted_socket(
                    lambda: _HandshakeProtocol(admit),
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=timeout,
                )
        except OSError as error:  # SSLError, TimeoutError and ConnectionError are all OSErrors.
            for connections in (self._strangers, self._since):
                connections.pop(connection, None)
            connection.close()
            _log.warning("%s: TLS handshake failed: %s", host, _reason(error))

    def _identify(self, connection: socket.socket, transport: asyncio.BaseTransport) -> None:
        """The handshake is done: a connection with a certificate is no stranger's any more."""
        name = name_in(transport.get_extra_info("peercert"))
        if name is not None and self._strangers.pop(connection, None) is not None:
            del self._since[connection]
            self._known[connection] = name
            self._bound_known(name)


class _HandshakeProtocol(asyncio.Protocol):
    """The protocol during the TLS handshake. After it, the real protocol is created."""

    def __init__(self, admit: Callable[[asyncio.BaseTransport], asyncio.BaseProtocol]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Replace this protocol by the real one, before any data arrives."""
        protocol = self._admit(transport)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


@asynccontextmanager
async def listen(
    sock: socket.socket,
    factory: Callable[[], asyncio.BaseProtocol],
    *,
    context: ssl.SSLContext | None = None,
    handshake_timeout: float = 10.0,
    bounds: Bounds | None = None,
) -> AsyncIterator[Listener]:
    """Accept connections on a bound socket while the context lasts; `factory` makes protocols.

    `handshake_timeout` is in seconds, for TLS. At the end no new connections are accepted; the
    caller closes open ones.
    """
    sock.listen(BACKLOG)
    sock.setblocking(False)
    listener = Listener(sock, factory, context, handshake_timeout, bounds or Bounds())
    try:
        yield listener
    finally:
        listener.close()
        await listener.wait_closed()


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket of this address, not listening yet. Raises `OSError`."""
    host = host.strip("[]")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return made


def _count(connections: dict[socket.socket, str], owner: str) -> int:
    return sum(other == owner for other in connections.values())


def _oldest(connections: dict[socket.socket, str], owner: str) -> socket.socket:
    return next(connection for connection, other in connections.items() if other == owner)


@contextmanager
def _without_cycle() -> Iterator[None]:
    """Break the reference cycle of an exception and its frames: clear the frames.

    asyncio's future of a handshake holds its exception, the traceback holds the frame, and the
    frame holds the future and the transport with its buffers.
    """
    try:
        yield
    except BaseException as error:
        seen: BaseException | None = error
        while seen is not None:
            traceback.clear_frames(seen.__traceback__)
            seen = seen.__context__
        raise


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__
