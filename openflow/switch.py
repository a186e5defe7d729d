"""A connected switch, as its owner sees it: one `Connection` on one asyncio transport."""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import zip_longest
from typing import Any, Final

from flows.flow import Meter
from openflow.batch import Batch, Control, Message, Part, message_text
from openflow.codec import CodecError
from openflow.connection import (
    Closed,
    Connection,
    ErrorReply,
    Event,
    HandshakeDone,
    Reply,
    Timeouts,
    Unhandled,
)
from openflow.errors import ConnectionLost, NotWriter, SwitchError
from openflow.messages import (
    ErrorMessage,
    FlowUpdate,
    InstalledFlow,
    InstalledGroup,
    MeterStats,
    PacketIn,
    Port,
    PortReason,
    PortStatus,
    Role,
)

_log = logging.getLogger(__name__)

MAX_UNREAD: Final = 32 << 20
"""Bytes that may wait for a peer that does not read. A part of a batch has a hundredth of that."""

SEND_BUFFER: Final = 1 << 20
"""Bytes that the kernel may hold for a switch: more than a part, so that the switch has work while
the next one is encoded."""

MAX_PORTS: Final = 65_536
"""More than a bridge has. Also the port events that may wait for their reader."""

LONGEST_ANSWER: Final = 60.0
"""Seconds that a switch may take to answer a request, for example to dump all its flows."""


class Rejected(SwitchError):  # noqa: N818
    """The switch rejected messages of a batch.

    `rejections` are (message, error). Nothing of their bundle was done, and nothing that follows it
    in the batch was sent. What precedes it was done.
    """

    def __init__(self, rejections: list[tuple[Message, ErrorMessage]]) -> None:
        self.rejections = rejections
        shown = [f"{message_text(message)}: {error}" for message, error in rejections[:5]]
        if len(rejections) > len(shown):
            shown.append(f"and {len(rejections) - len(shown)} more")
        super().__init__("rejected: " + "; ".join(shown))


class RequestRejected(SwitchError):  # noqa: N818
    """The switch rejected a request that is not part of a batch; `error` says why."""

    def __init__(self, error: ErrorMessage) -> None:
        self.error = error
        super().__init__(str(error))


class Switch(asyncio.Protocol):
    """One switch. Given to its owner when the handshake is done."""

    dpid: int
    """The datapath id."""
    host: str
    """The address it came from, alone."""
    peer: str
    """The address it came from, for people."""
    certificate_name: str | None
    """The name in the peer's verified certificate; None without TLS. See `name_in`."""
    ports: dict[int, Port]
    """By ofport; kept up to date."""
    may_write: Callable[[], bool]
    """Asked before each part of a batch is sent, and before a bundle is committed."""

    def __init__(
        self,
        on_ready: Callable[["Switch"], None],
        on_closed: Callable[["Switch", str], None],
        on_flow_update: Callable[[FlowUpdate], None] | None = None,
        timeouts: Timeouts | None = None,
        on_packet: Callable[[PacketIn], None] | None = None,
    ) -> None:
        """Must be made on the event loop; `on_closed` is also told the reason."""
        self.dpid = 0
        self.host, self.peer = "", "?"
        self.certificate_name = None
        self.ports = {}
        self.may_write = lambda: True
        self._on_ready = on_ready
        self._on_closed = on_closed
        self._on_flow_update = on_flow_update
        self._on_packet = on_packet
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(self._loop.time(), timeouts)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._part: Part | None = None
        self._rejections: dict[int, ErrorMessage] = {}
        self._applying = asyncio.Lock()
        self._port_events: deque[PortStatus] = deque()
        self._news = asyncio.Event()
        """Set when there is a port event to read, or when the connection is over."""

    # What the owner does.

    async def dump_flows(
        self, table: int | None = None, cookie: int = 0, cookie_mask: int = 0
    ) -> list[InstalledFlow]:
        """The flows of one table or all, those whose cookie agrees under the mask.

        Raises `ConnectionLost`, `RequestRejected`.
        """
        found: list[InstalledFlow] = await self._request(
            self._connection.request_flows(table, cookie, cookie_mask)
        )
        return found

    async def dump_groups(self) -> list[InstalledGroup]:
        """All groups. Raises `ConnectionLost`, `RequestRejected`."""
        found: list[InstalledGroup] = await self._request(self._connection.request_groups())
        return found

    async def dump_meters(self) -> dict[int, Meter]:
        """All meters by id. Raises `ConnectionLost`, `RequestRejected`."""
        found: dict[int, Meter] = await self._request(self._connection.request_meters())
        return found

    async def dump_meter_stats(self) -> list[MeterStats]:
        """What each meter has dropped. Raises `ConnectionLost`, `RequestRejected`."""
        found: list[MeterStats] = await self._request(self._connection.request_meter_stats())
        return found

    async def apply(self, batch: Batch) -> None:
        """Send a batch; return when the switch has acknowledged all of it.

        One batch at a time: a second call waits for the first. One part of the batch is under way
        at a time, which is also what bounds the bytes on the wire. Raises `Rejected`, `NotWriter`
        (`may_write` forbids the rest, or the switch has another master), `ConnectionLost` (outcome
        unknown), and `codec.CodecError` before anything of that part is sent. Cancelled in between,
        it cuts the connection, because nobody would know the outcome.
        """
        await self.apply_chosen(lambda: batch)

    async def apply_chosen(self, choose: Callable[[], Batch | None]) -> None:
        """As `apply`, with the batch that `choose` returns when its turn comes; None: nothing.

        The choice knows all changes that were made until then, and is sent before later ones.
        """
        async with self._applying:
            parts = batch.parts if (batch := choose()) else ()
            for part, following in zip_longest(parts, parts[1:]):
                await self._apply(part, following)

    async def alive(self, timeout: float) -> bool:  # noqa: ASYNC109 - the answer is a bool
        """Whether the switch answers an echo within so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._request(self._connection.request_echo())
        except RequestRejected:
            return True  # no honest switch refuses an echo; it is an answer nevertheless
        except (TimeoutError, ConnectionLost):
            return False
        return True

    async def request_role(self, role: Role, generation: int) -> tuple[Role, int]:
        """Take a role; the answer is the role and generation in force.

        Raises `RequestRejected` for a generation that is older than one the switch has seen, and
        `ConnectionLost`.
        """
        granted: tuple[Role, int] = await self._request(
            self._connection.request_role(role, generation)
        )
        return granted

    async def port_events(self) -> AsyncIterator[PortStatus]:
        """Port events since the handshake, as they come; for one reader. Ends with the connection.

        `ports` already holds what an event tells.
        """
        while True:
            while self._port_events:
                yield self._port_events.popleft()
                # One switch that tells a lot must not keep the others waiting.
                await asyncio.sleep(0)
            if self._connection.closed:
                return
            self._news.clear()
            await self._news.wait()

    async def monitor_flows(self, table: int) -> None:
        """Have a table's flows reported to `on_flow_update`, now and as they come and go.

        Returns when all that are there now have been reported. Raises `ConnectionLost`,
        `RequestRejected`.
        """
        await self._request(self._connection.monitor_flows(table))

    def identify(self, number: int) -> None:
        """Have the packets that flows send to this id reported to `on_packet`."""
        self._connection.identify(number)
        self._flush()

    def close(self, reason: str) -> None:
        """Cut the connection. Everything in progress ends with `ConnectionLost`."""
        self._dispatch(self._connection.close(reason))

    async def wait_closed(self) -> str:
        """Why the connection is over, once it is."""
        return await asyncio.shield(self._closed)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own contract
        if self._connection.closed:
            transport.abort()
            return
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        address = transport.get_extra_info("peername")
        self.peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
        self.host = str(address[0]) if isinstance(address, tuple) else ""
        self.certificate_name = name_in(transport.get_extra_info("peercert"))
        self._flush()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Bytes of the switch."""
        self._dispatch(self._connection.receive(data, self._loop.time()))
        # An answered probe brings the next deadline nearer; anything else only moves it away,
        # which the timer finds out when it fires.
        if self._timer is not None and self._connection.deadline() < self._timer.when():
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._dispatch(self._connection.close(f"connection lost: {exc or 'closed by the peer'}"))

    # How it works.

    async def _apply(self, part: Part, following: Part | None) -> None:
        data = part.data
        if not self.may_write():
            raise NotWriter("this controller may not write any more")
        self._part, self._rejections = part, {}
        try:
            reply = self._expect(part.checked_xid)
            self._write(data)
            if following is not None:
                # Encoded while the switch is busy; what cannot be is told when its turn comes.
                with contextlib.suppress(CodecError):
                    _ = following.data
            await reply
            if part.in_bundle:
                may_write = self.may_write()
                refused = bool(self._rejections) or not may_write
                await self._exchange(part.discard if refused else part.commit, part.last_xid)
                if not may_write:
                    raise NotWriter("this controller may not write any more")
        except asyncio.CancelledError:
            self.close("a batch was cancelled half-way")
            raise
        finally:
            self._part = None
        if any(error.is_slave for error in self._rejections.values()):
            raise NotWriter("the switch has another master")
        if self._rejections:
            rejections = [
                (part.messages[xid - part.first_xid], error)
                for xid, error in self._rejections.items()
            ]
            # The failed commit is reported only if no other message of the bundle was rejected.
            named = [each for each in rejections if not isinstance(each[0], Control)]
            raise Rejected(named or rejections)

    async def _exchange(self, data: bytes, xid: int) -> None:
        """Write, and wait for the answer to this xid, which may be a refusal."""
        reply = self._expect(xid)
        self._write(data)
        await reply

    async def _request(self, xid: int) -> Any:
        reply = self._expect(xid)
        self._flush()
        try:
            async with asyncio.timeout(LONGEST_ANSWER):
                value = await reply
        except TimeoutError:
            # It may answer echoes, and yet would never be in sync.
            self.close(f"a request was not answered in {LONGEST_ANSWER:g} s")
            raise ConnectionLost(self._closed.result()) from None
        finally:
            self._replies.pop(xid, None)
        if isinstance(value, ErrorMessage):
            raise RequestRejected(value)
        return value

    def _expect(self, xid: int) -> asyncio.Future[Any]:
        if self._connection.closed:
            raise ConnectionLost(self._closed.result())
        reply = self._loop.create_future()
        self._replies[xid] = reply
        return reply

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self.close("the peer does not read")

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._connection.closed:
            self._timer = self._loop.call_at(self._connection.deadline(), self._tick)

    def _tick(self) -> None:
        self._dispatch(self._connection.tick(self._loop.time()))
        self._wake()

    def _dispatch(self, events: list[Event]) -> None:
        self._flush()
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case HandshakeDone(datapath_id, ports):
                self.dpid, self.ports = datapath_id, ports
                self._wake()
                self._on_ready(self)
            case PortStatus():
                self._port_status(event)
            case Reply(xid, value):
                self._answer(xid, value)
            case ErrorReply(xid, error):
                if self._part is not None and self._part.first_xid <= xid <= self._part.last_xid:
                    self._rejections[xid] = error
                self._answer(xid, error)
            case FlowUpdate() if self._on_flow_update is not None:
                self._on_flow_update(event)
            case PacketIn() if self._on_packet is not None:
                self._on_packet(event)
            case FlowUpdate() | PacketIn() | Unhandled():
                _log.debug("switch %s: %r ignored", self.peer, event)
            case Closed(reason):
                self._end(reason)

    def _answer(self, xid: int, value: Any) -> None:
        reply = self._replies.pop(xid, None)
        if reply is not None and not reply.done():
            reply.set_result(value)

    def _port_status(self, event: PortStatus) -> None:
        if event.reason is PortReason.DELETE:
            self.ports.pop(event.port.ofport, None)
        else:
            self.ports[event.port.ofport] = event.port
        if len(self._port_events) >= MAX_PORTS:
            self.close("its port events are not read")
        elif len(self.ports) > MAX_PORTS:
            self.close("it has too many ports")
        self._port_events.append(event)
        self._news.set()

    def _end(self, reason: str) -> None:
        self._closed.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
        self._news.set()
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(ConnectionLost(reason))
        if self._transport is not None:
            # Not `close`: nobody waits for a peer that does not read, or for its end of TLS.
            self._transport.abort()
        self._on_closed(self, reason)


def name_in(certificate: Any) -> str | None:
    """The name in a certificate, of `SSLSocket.getpeercert`: the CN, or the first DNS name.

    None without a certificate; empty if the certificate has neither.
    """
    if not certificate:
        return None
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    names = (value for key, value in certificate.get("subjectAltName", ()) if key == "DNS")
    return next(names, "")
