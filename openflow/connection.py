"""One OpenFlow 1.5 connection from the controller's side, without I/O and without a clock.

Bytes go in by `receive`, time by `tick`; both give events. Bytes to send are taken by
`data_to_send`. The same machine serves a switch that dialled us and a switch that we dialled.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any, Final, TypeAlias

from openflow import messages
from openflow.batch import BATCH_XID
from openflow.compat import DATAPATH, ofproto, parser, serialized
from openflow.messages import (
    VERSION,
    ErrorMessage,
    FlowUpdate,
    Multipart,
    PacketIn,
    Port,
    PortStatus,
    ProtocolError,
    Role,
    Type,
)
from openflow.templates import numbered


class ConnectionState(Enum):
    """The state of a connection."""

    OPENING = "waiting for the peer's HELLO"
    IDENTIFYING = "waiting for the datapath id"
    LISTING = "waiting for the list of ports"
    READY = "in use"
    CLOSED = "closed"


TRANSITIONS: Final[Mapping[tuple[ConnectionState, Type], ConnectionState]] = {
    # Both sides sent HELLO at once; the peer's tells whether we share version 1.5.
    (ConnectionState.OPENING, Type.HELLO): ConnectionState.IDENTIFYING,
    # We know who it is. Only now it may talk unasked (SET_CONFIG), so no port is missed between
    # the list, which we ask for behind it, and what changes after.
    (ConnectionState.IDENTIFYING, Type.FEATURES_REPLY): ConnectionState.LISTING,
    # The last part of PORT_DESC.
    (ConnectionState.LISTING, Type.MULTIPART_REPLY): ConnectionState.READY,
}
"""Which message leads from one state to the next. Every state also leads to CLOSED, by an error, a
timeout or the end of the connection. CLOSED is final."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds."""

    handshake: float = 10.0
    """From the connection until its list of ports."""
    idle: float = 15.0
    """Silence after which we ask for an echo."""
    answer: float = 30.0
    """Silence after that until the connection is cut. Longer than any pause of the controller."""


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """The handshake is done."""

    datapath_id: int
    ports: dict[int, Port]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the request with this xid.

    `value` is a list of `InstalledFlow` or of `InstalledGroup`, a dict of `Meter` by id, a `Role`
    with its generation, or None where the answer is all there is (barrier, echo, bundle control,
    flow monitor).
    """

    xid: int
    value: Any


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The switch rejected the message with this xid."""

    xid: int
    error: ErrorMessage


@dataclass(frozen=True, slots=True)
class Unhandled:
    """A message that was not asked for."""

    type: int
    xid: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection has ended, for any reason; always the last event."""

    reason: str


Event: TypeAlias = (
    HandshakeDone | PortStatus | Reply | ErrorReply | FlowUpdate | PacketIn | Unhandled | Closed
)

MAX_REPLY: Final = 256 << 20
"""Bytes in memory of all unfinished multipart replies of one connection: about 600,000 flows. More
is an attack."""
MAX_PORTS_REPLY: Final = 16 << 20
"""Bytes in memory of the list of ports, which every peer may send after its HELLO: 65,536 ports."""
_ENTRY_COST: Final = 150
"""Bytes in memory of one entry of a reply, beside those on the wire."""
_NX_VENDOR_ID: Final = 0x2320
_NXT_SET_CONTROLLER_ID: Final = 20


@dataclass(slots=True)
class _Multipart:
    """A multipart reply that is coming in, parsed part by part."""

    type: Multipart
    found: list[Any] = field(default_factory=list)
    size: int = 0


class Connection:
    """The state of one connection."""

    def __init__(self, now: float, timeouts: Timeouts | None = None) -> None:
        self.state = ConnectionState.OPENING
        self._timeouts = timeouts or Timeouts()
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._xids = count(1)
        self._multiparts: dict[int, _Multipart] = {}
        self._monitors: set[int] = set()
        self._datapath_id = 0
        self._heard = now
        self._probed = False
        self._started = now
        bitmap = parser.OFPHelloElemVersionBitmap(versions=[VERSION])
        self._send(parser.OFPHello(DATAPATH, [bitmap]))

    # What the owner asks for. Each gives the xid that its `Reply` or `ErrorReply` will have.

    def request_flows(self, table: int | None = None, cookie: int = 0, cookie_mask: int = 0) -> int:
        """Ask for the flows of one table or all, those whose cookie agrees under the mask."""
        request = parser.OFPFlowDescStatsRequest(
            DATAPATH,
            table_id=ofproto.OFPTT_ALL if table is None else table,
            cookie=cookie,
            cookie_mask=cookie_mask,
        )
        return self._ask(Multipart.FLOW_DESC, request)

    def request_meters(self) -> int:
        """Ask for all meters."""
        return self._ask(Multipart.METER_DESC, parser.OFPMeterDescStatsRequest(DATAPATH))

    def request_meter_stats(self) -> int:
        """Ask what all meters have dropped."""
        return self._ask(Multipart.METER_STATS, parser.OFPMeterStatsRequest(DATAPATH))

    def request_groups(self) -> int:
        """Ask for all groups."""
        return self._ask(
            Multipart.GROUP_DESC, parser.OFPGroupDescStatsRequest(DATAPATH, 0, ofproto.OFPG_ALL)
        )

    def request_role(self, role: Role, generation: int) -> int:
        """Ask for a role; the switch refuses a generation older than one it has seen."""
        return self._send(
            parser.OFPRoleRequest(DATAPATH, role, short_id=0xFFFF, generation_id=generation)
        )

    def request_echo(self) -> int:
        """Ask for an echo, to see whether the switch still answers."""
        return self._send(parser.OFPEchoRequest(DATAPATH, b""))

    def identify(self, number: int) -> None:
        """Give this connection an id: it gets the packets that flows send to this id (`PacketIn`).

        There is no answer (NXT_SET_CONTROLLER_ID of OVS's nicira-ext.h).
        """
        data = struct.pack("!6xH", number)
        self._send(parser.OFPExperimenter(DATAPATH, _NX_VENDOR_ID, _NXT_SET_CONTROLLER_ID, data))

    def monitor_flows(self, table: int) -> int:
        """Ask to be told of a table's flows, now and as they come and go, by `FlowUpdate`.

        The `Reply` comes when all that are there now have been told.
        """
        # Not NO_ABBREV: OVS 3.1 refuses it, in an error without the request's xid. It concerns
        # only changes made by this very connection.
        flags = (
            ofproto.OFPFMF_INITIAL
            | ofproto.OFPFMF_ADD
            | ofproto.OFPFMF_REMOVED
            | ofproto.OFPFMF_MODIFY
        )
        xid = self._send(
            parser.OFPFlowMonitorRequest(
                DATAPATH,
                monitor_id=1,
                out_port=ofproto.OFPP_ANY,
                out_group=ofproto.OFPG_ANY,
                monitor_flags=flags,
                table_id=table,
                command=ofproto.OFPFMC_ADD,
            )
        )
        self._monitors.add(xid)
        return xid

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self.state is ConnectionState.CLOSED

    def data_to_send(self) -> bytes:
        """The bytes to write now; each is returned once."""
        data = b"".join(self._to_send)
        self._to_send.clear()
        return data

    # What happens to the connection.

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Bytes of the peer."""
        events: list[Event] = []
        if self.closed:
            return events
        self._received += data
        try:
            for version, kind, xid, body in messages.messages(self._received):
                self._heard, self._probed = now, False
                try:
                    events += self._message(version, kind, xid, body)
                except (struct.error, ValueError, IndexError) as error:
                    raise ProtocolError(f"a malformed message of type {kind}: {error}") from error
                if self.closed:
                    break
        except ProtocolError as error:
            events += self.close(f"protocol error: {error}")
        return events

    def deadline(self) -> float:
        """When `tick` wants to be called, at the latest."""
        if self.state is ConnectionState.CLOSED:
            return float("inf")
        if self.state is not ConnectionState.READY:
            return self._started + self._timeouts.handshake
        silence = self._timeouts.idle + (self._timeouts.answer if self._probed else 0)
        return self._heard + silence

    def tick(self, now: float) -> list[Event]:
        """Time has passed: ask for an echo, or give up."""
        if now < self.deadline():
            return []
        if self.state is not ConnectionState.READY:
            return self.close(f"handshake not done in time: {self.state.value}")
        if self._probed:
            return self.close(f"silent for {now - self._heard:.0f} s")
        self._probed = True
        # However late this tick is, the answer has its time.
        self._heard = now - self._timeouts.idle
        self.request_echo()
        return []

    def close(self, reason: str) -> list[Event]:
        """End the connection, whether its owner, its peer or the network wants it."""
        if self.state is ConnectionState.CLOSED:
            return []
        self.state = ConnectionState.CLOSED
        self._received.clear()
        self._multiparts.clear()
        return [Closed(reason)]

    # One method per kind of message.

    def _message(self, version: int, kind: int, xid: int, body: memoryview) -> Iterator[Event]:
        if self.state is ConnectionState.OPENING and kind not in (Type.HELLO, Type.ERROR):
            raise ProtocolError(f"message type {kind} before HELLO")
        if version != VERSION and kind not in (Type.HELLO, Type.ERROR):
            raise ProtocolError(f"wire version {version} after version {VERSION} was settled")
        handle = _HANDLERS.get(kind)
        if handle is None:
            yield Unhandled(kind, xid)
        else:
            yield from handle(self, version, xid, body)

    def _advance(self, kind: Type) -> bool:
        """Go to the next state if this message leads there; whether it does."""
        next_state = TRANSITIONS.get((self.state, kind))
        if next_state is None:
            return False
        self.state = next_state
        return True

    def _hello(self, version: int, xid: int, body: memoryview) -> Iterator[Event]:
        offered = messages.hello_versions(version, body)
        if VERSION not in offered:
            text = b"OpenFlow 1.5 is needed"
            self._send(
                parser.OFPErrorMsg(
                    DATAPATH,
                    type_=ofproto.OFPET_HELLO_FAILED,
                    code=ofproto.OFPHFC_INCOMPATIBLE,
                    data=text,
                )
            )
            known = ", ".join(f"1.{number - 1}" for number in sorted(offered) if number)
            yield from self.close(
                f"the peer offers OpenFlow {known or 'nothing'} and not 1.5;"
                " does the bridge's `protocols` hold OpenFlow15?"
            )
        elif self._advance(Type.HELLO):
            self._send(parser.OFPFeaturesRequest(DATAPATH))
        else:
            yield Unhandled(Type.HELLO, xid)

    def _features(self, _version: int, xid: int, body: memoryview) -> Iterator[Event]:
        (self._datapath_id,) = struct.unpack_from("!Q", body)
        if not self._advance(Type.FEATURES_REPLY):
            yield Unhandled(Type.FEATURES_REPLY, xid)
            return
        # A connection of type `service` gets no asynchronous message while this is 0.
        self._send(parser.OFPSetConfig(DATAPATH, ofproto.OFPC_FRAG_NORMAL, 0xFFFF))
        self._ask(Multipart.PORT_DESC, parser.OFPPortDescStatsRequest(DATAPATH))

    def _echo_request(self, _version: int, xid: int, body: memoryview) -> Iterator[Event]:
        # Not by os-ken: whoever floods us with them should not be able to keep us busy.
        self._to_send.append(messages.echo_reply(xid, body))
        yield from ()

    def _plain_reply(self, _version: int, xid: int, _body: memoryview) -> Iterator[Event]:
        yield Reply(xid, None)

    def _role(self, _version: int, xid: int, body: memoryview) -> Iterator[Event]:
        role, _, generation = struct.unpack_from("!IHxxQ", body)
        yield Reply(xid, (Role(role), generation))

    def _port_status(self, _version: int, _xid: int, body: memoryview) -> Iterator[Event]:
        status = messages.port_status(body)
        # Before the list of ports is here, what the switch reports is in that list.
        if self.state is ConnectionState.READY:
            yield status

    def _packet_in(self, _version: int, _xid: int, body: memoryview) -> Iterator[Event]:
        yield messages.packet_in(body)

    def _error(self, _version: int, xid: int, body: memoryview) -> Iterator[Event]:
        error = messages.error(body)
        if self.state is not ConnectionState.READY:
            yield from self.close(f"refused by the peer during the handshake: {error}")
        else:
            self._multiparts.pop(xid, None)
            yield ErrorReply(xid, error)

    def _multipart(self, _version: int, xid: int, body: memoryview) -> Iterator[Event]:
        kind, flags = struct.unpack_from("!HH", body)
        more = bool(flags & ofproto.OFPMPF_REPLY_MORE)
        body = body[8:]
        if kind == Multipart.FLOW_MONITOR:
            yield from messages.flow_updates(body)
            # The list of what is there has its request's xid; later updates have 0.
            if xid in self._monitors and not more:
                self._monitors.discard(xid)
                yield Reply(xid, None)
            return
        reply = self._multiparts.get(xid)
        if reply is None or reply.type != kind:
            yield Unhandled(Type.MULTIPART_REPLY, xid)
            return
        before = len(reply.found)
        reply.found += _PARTS[reply.type](body)
        reply.size += len(body) + _ENTRY_COST * (len(reply.found) - before)
        if reply.type is Multipart.PORT_DESC and reply.size > MAX_PORTS_REPLY:
            raise ProtocolError(f"a list of ports of more than {MAX_PORTS_REPLY >> 20} MiB")
        # Whoever does not end one reply may begin others.
        if sum(each.size for each in self._multiparts.values()) > MAX_REPLY:
            raise ProtocolError(f"replies of more than {MAX_REPLY >> 20} MiB")
        if more:
            return
        del self._multiparts[xid]
        if reply.type is Multipart.PORT_DESC:
            if self._advance(Type.MULTIPART_REPLY):
                yield HandshakeDone(self._datapath_id, {port.ofport: port for port in reply.found})
        elif reply.type is Multipart.METER_DESC:
            yield Reply(xid, {meter.id: meter for meter in reply.found})
        else:
            yield Reply(xid, reply.found)

    def _ask(self, kind: Multipart, request: Any) -> int:
        xid = self._send(request)
        self._multiparts[xid] = _Multipart(kind)
        return xid

    def _send(self, message: Any) -> int:
        xid = next(self._xids) % BATCH_XID
        self._to_send.append(numbered(serialized(message), xid))
        return xid


_PARTS: Final[Mapping[Multipart, Any]] = {
    Multipart.PORT_DESC: messages.ports,
    Multipart.FLOW_DESC: messages.flows,
    Multipart.GROUP_DESC: messages.groups,
    Multipart.METER_DESC: messages.meters,
    Multipart.METER_STATS: messages.meter_stats,
}

_HANDLERS: Final[Mapping[int, Any]] = {
    Type.HELLO: Connection._hello,  # noqa: SLF001 - the class's own table
    Type.ERROR: Connection._error,  # noqa: SLF001
    Type.ECHO_REQUEST: Connection._echo_request,  # noqa: SLF001
    Type.ECHO_REPLY: Connection._plain_reply,  # noqa: SLF001
    Type.FEATURES_REPLY: Connection._features,  # noqa: SLF001
    Type.PACKET_IN: Connection._packet_in,  # noqa: SLF001
    Type.PORT_STATUS: Connection._port_status,  # noqa: SLF001
    Type.MULTIPART_REPLY: Connection._multipart,  # noqa: SLF001
    Type.BARRIER_REPLY: Connection._plain_reply,  # noqa: SLF001
    Type.ROLE_REPLY: Connection._role,  # noqa: SLF001
    Type.BUNDLE_CONTROL: Connection._plain_reply,  # noqa: SLF001
}
