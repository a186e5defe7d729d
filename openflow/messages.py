"""Messages of a switch, read with `struct` alone (OpenFlow 1.5.1, chapter 7).

Dumps are walked by their fixed headers and otherwise kept as bytes: os-ken cannot parse a dump
that holds a `move`, and takes 450 ms where this takes 10.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from flows.flow import Meter
from openflow.compat import GROUP_ADD_OR_MOD, ofproto
from openflow.errors import SwitchError

VERSION: Final = 6
"""OpenFlow 1.5 on the wire."""

HEADER: Final = struct.Struct("!BBHI")
"""version, type, length with this header, xid (7.1.1)."""


class ProtocolError(SwitchError):
    """The peer broke the protocol; the connection must not be used any more."""


class Type(IntEnum):
    """enum ofp_type, as far as it is spoken here."""

    HELLO = 0
    ERROR = 1
    ECHO_REQUEST = 2
    ECHO_REPLY = 3
    FEATURES_REQUEST = 5
    FEATURES_REPLY = 6
    SET_CONFIG = 9
    PACKET_IN = 10
    PORT_STATUS = 12
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REPLY = 21
    ROLE_REQUEST = 24
    ROLE_REPLY = 25
    BUNDLE_CONTROL = 33


class Multipart(IntEnum):
    """enum ofp_multipart_type, as far as it is spoken here."""

    FLOW_DESC = 1
    GROUP_DESC = 7
    METER_STATS = 9
    METER_DESC = 10
    PORT_DESC = 13
    FLOW_MONITOR = 16


class PortReason(IntEnum):
    """enum ofp_port_reason."""

    ADD = 0
    DELETE = 1
    MODIFY = 2


class Role(IntEnum):
    """enum ofp_controller_role."""

    NOCHANGE = 0
    EQUAL = 1
    MASTER = 2
    SLAVE = 3


@dataclass(frozen=True, slots=True)
class Port:
    """One port of the bridge. `mac` is in lower case with colons."""

    ofport: int
    name: str
    mac: str


@dataclass(frozen=True, slots=True)
class PortStatus:
    """A port came, went or changed."""

    reason: PortReason
    port: Port


@dataclass(frozen=True, slots=True)
class InstalledFlow:
    """One flow of a dump. `raw` is its whole ofp_flow_desc, counters included."""

    cookie: int
    table: int
    priority: int
    packets: int
    octets: int
    raw: bytes

    def __str__(self) -> str:
        """For people."""
        return f"flow of table {self.table}, priority {self.priority}, cookie {self.cookie:#x}"


@dataclass(frozen=True, slots=True)
class InstalledGroup:
    """One group of a dump. `raw` is its whole ofp_group_desc."""

    id: int
    raw: bytes

    @property
    def type(self) -> int:
        """One of enum ofp_group_type."""
        return self.raw[2]

    def __str__(self) -> str:
        """For people."""
        return f"group {self.id:#x}"


@dataclass(frozen=True, slots=True)
class MeterStats:
    """What a meter has dropped so far."""

    id: int
    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class FlowUpdate:
    """A flow is in a table (it was, it came, it took another's place), or it is gone.

    `key` is opaque: its priority and match, of which a table holds at most one.
    """

    table: int
    key: bytes
    cookie: int
    gone: bool


@dataclass(frozen=True, slots=True)
class PacketIn:
    """A packet that a flow sent to us, with what the pipeline knew of it."""

    table: int
    cookie: int
    in_port: int
    registers: dict[int, int]
    """By number; those that are not 0."""
    data: bytes
    """The frame, from its start; perhaps not all of it."""


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """OFPT_ERROR: its numbers, and what the switch quotes of the rejected message."""

    type: int
    code: int
    data: bytes

    @property
    def is_slave(self) -> bool:
        """Whether the switch refuses a write because another controller is its master."""
        return (self.type, self.code) == (ofproto.OFPET_BAD_REQUEST, ofproto.OFPBRC_IS_SLAVE)

    def __str__(self) -> str:
        """The names of enum ofp_error_type and its codes."""
        if self.type == ofproto.OFPET_EXPERIMENTER:
            return f"OFPET_EXPERIMENTER, code {self.code}"
        kind: str = ofproto.ofp_error_type_to_str(self.type)
        code: str = ofproto.ofp_error_code_to_str(self.type, self.code)
        return f"{kind}, {code}"


def messages(buffer: bytearray) -> Iterator[tuple[int, int, int, memoryview]]:
    """Take whole messages off the buffer: (version, type, xid, body). Raises `ProtocolError`."""
    taken = 0
    try:
        while len(buffer) - taken >= HEADER.size:
            version, kind, length, xid = HEADER.unpack_from(buffer, taken)
            if length < HEADER.size:
                raise ProtocolError(f"a message that claims to be {length} bytes long")
            if len(buffer) - taken < length:
                break
            # A copy: whoever reads the body may keep views of it, and the buffer shrinks.
            body = memoryview(buffer[taken + HEADER.size : taken + length])
            taken += length
            yield version, kind, xid, body
    finally:
        del buffer[:taken]


def hello_versions(version: int, body: memoryview) -> frozenset[int]:
    """The versions that an OFPT_HELLO offers: its bitmap's, or without one, its header's."""
    at = 0
    while at + 4 <= len(body):
        kind, length = struct.unpack_from("!HH", body, at)
        if length < 4 or at + length > len(body):
            raise ProtocolError(f"a HELLO element that claims to be {length} bytes long")
        if kind == ofproto.OFPHET_VERSIONBITMAP and length >= 8:
            (bits,) = struct.unpack_from("!I", body, at + 4)
            return frozenset(number for number in range(32) if bits >> number & 1)
        at += -(-length // 8) * 8
    # Without a bitmap the lower of both sides' versions is spoken (6.3.1).
    return frozenset(range(1, version + 1))


def echo_reply(xid: int, payload: memoryview) -> bytes:
    """OFPT_ECHO_REPLY, with the request's xid and payload."""
    return HEADER.pack(VERSION, Type.ECHO_REPLY, HEADER.size + len(payload), xid) + payload


def error(body: memoryview) -> ErrorMessage:
    """OFPT_ERROR. Of what it quotes, only as much is kept as a switch has to quote (7.5.4)."""
    kind, code = struct.unpack_from("!HH", body)
    return ErrorMessage(kind, code, bytes(body[4:68]))


_PORT: Final = struct.Struct("!IHxx6sxx16s8x")


def port(body: memoryview) -> tuple[Port, int]:
    """One struct ofp_port and its length in bytes, properties included."""
    number, length, mac, name = _PORT.unpack_from(body)
    if not _PORT.size <= length <= len(body):
        raise ProtocolError(f"a port description that claims to be {length} bytes long")
    text = name.partition(b"\0")[0].decode("utf-8", "replace")
    return Port(number, text, mac.hex(":")), length


def ports(body: memoryview) -> Iterator[Port]:
    """The body of OFPMP_PORT_DESC."""
    while body:
        found, length = port(body)
        yield found
        body = body[length:]


def port_status(body: memoryview) -> PortStatus:
    """OFPT_PORT_STATUS."""
    return PortStatus(PortReason(body[0]), port(body[8:])[0])


# length, table, priority, ..., cookie; then ofp_match, ofp_stats and instructions
_FLOW: Final = struct.Struct("!HxxBxHHHHHQ")
_OXS_BASIC: Final = 0x8002
_OXS_IDLE_TIME: Final = 1
_OXS_PACKETS: Final = 4
_OXS_BYTES: Final = 5


def flows(body: memoryview) -> Iterator[InstalledFlow]:
    """The body of OFPMP_FLOW_DESC."""
    while body:
        length, table, priority, _, _, _, _, cookie = _FLOW.unpack_from(body)
        if not _FLOW.size + 16 <= length <= len(body):
            raise ProtocolError(f"a flow description that claims to be {length} bytes long")
        (match_length,) = struct.unpack_from("!H", body, _FLOW.size + 2)
        packets, octets = _counters(body[_FLOW.size + -(-match_length // 8) * 8 : length])
        yield InstalledFlow(cookie, table, priority, packets, octets, bytes(body[:length]))
        body = body[length:]


_STATS_WITHOUT: Final = b"\0\0\0\4\0\0\0\0"
"""A struct ofp_stats without any field."""


def without_counters(flow: InstalledFlow) -> InstalledFlow:
    """The same flow as if no packet had ever matched it, so that equal flows have equal bytes."""
    head, instructions = _around_counters(flow)
    length = len(head) + len(_STATS_WITHOUT) + len(instructions)
    raw = struct.pack("!H", length) + head[2:] + _STATS_WITHOUT + instructions
    return InstalledFlow(flow.cookie, flow.table, flow.priority, 0, 0, raw)


def idle_seconds(flow: InstalledFlow) -> int | None:
    """Whole seconds since a packet met a dumped flow, or since it came; None: it does not tell."""
    (match_length,) = struct.unpack_from("!H", flow.raw, _FLOW.size + 2)
    for field, at in _stats(memoryview(flow.raw)[_FLOW.size + -(-match_length // 8) * 8 :]):
        if field == _OXS_IDLE_TIME:
            seconds: int = struct.unpack_from("!I", at)[0]
            return seconds
    return None


def flow_mod_remove(flow: InstalledFlow) -> bytes:
    """OFPT_FLOW_MOD that deletes this dumped flow, unless another has its place; its xid is 0."""
    head, _ = _around_counters(flow)
    body = _FLOW_MOD.pack(
        flow.cookie, 0xFFFF_FFFF_FFFF_FFFF, flow.table, ofproto.OFPFC_DELETE_STRICT, 0, 0,
        flow.priority, ofproto.OFP_NO_BUFFER, ofproto.OFPP_ANY, ofproto.OFPG_ANY, 0, 0,
    )  # fmt: skip
    body += head[_FLOW.size :]
    return HEADER.pack(VERSION, ofproto.OFPT_FLOW_MOD, HEADER.size + len(body), 0) + body


def flow_mod_add(flow: InstalledFlow) -> bytes:
    """OFPT_FLOW_MOD (7.3.4.2) that puts a dumped flow back as it was; its xid is 0."""
    head, instructions = _around_counters(flow)
    _, table, priority, idle, hard, flags, importance, cookie = _FLOW.unpack_from(head)
    body = _FLOW_MOD.pack(
        cookie, 0, table, ofproto.OFPFC_ADD, idle, hard, priority, ofproto.OFP_NO_BUFFER,
        ofproto.OFPP_ANY, ofproto.OFPG_ANY, flags, importance,
    )  # fmt: skip
    body += head[_FLOW.size :] + instructions
    return HEADER.pack(VERSION, ofproto.OFPT_FLOW_MOD, HEADER.size + len(body), 0) + body


_FLOW_MOD: Final = struct.Struct("!QQBBHHHIIIHH")


def _around_counters(flow: InstalledFlow) -> tuple[bytes, bytes]:
    """What stands before a dumped flow's counters, its match being last, and what stands after."""
    (match_length,) = struct.unpack_from("!H", flow.raw, _FLOW.size + 2)
    stats = _FLOW.size + -(-match_length // 8) * 8
    (stats_length,) = struct.unpack_from("!H", flow.raw, stats + 2)
    return flow.raw[:stats], flow.raw[stats + -(-stats_length // 8) * 8 :]


def _counters(stats: memoryview) -> tuple[int, int]:
    """Packets and bytes of a struct ofp_stats (7.2.4); 0 for what it does not tell."""
    packets = octets = 0
    for field, value in _stats(stats):
        if field == _OXS_PACKETS:
            (packets,) = struct.unpack_from("!Q", value)
        elif field == _OXS_BYTES:
            (octets,) = struct.unpack_from("!Q", value)
    return packets, octets


def _stats(stats: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and value of each basic field of a struct ofp_stats."""
    (end,) = struct.unpack_from("!H", stats, 2)
    at = 4
    while at + 4 <= end:
        kind, field, length = struct.unpack_from("!HBB", stats, at)
        if kind == _OXS_BASIC:
            yield field >> 1, stats[at + 4 :]
        at += 4 + length


# length, type, id, length of the buckets; then the buckets, then properties
_GROUP: Final = struct.Struct("!HBxIH6x")


def groups(body: memoryview) -> Iterator[InstalledGroup]:
    """The body of OFPMP_GROUP_DESC (7.3.5.10)."""
    while body:
        length, _, number, buckets = _GROUP.unpack_from(body)
        if not _GROUP.size + buckets <= length <= len(body):
            raise ProtocolError(f"a group description that claims to be {length} bytes long")
        group = InstalledGroup(number, bytes(body[:length]))
        group_parts(group)
        yield group
        body = body[length:]


def group_parts(group: InstalledGroup) -> tuple[list[bytes], bytes]:
    """The buckets of a dumped group, and its properties. Raises `ProtocolError`, but of no dump."""
    _, _, _, length = _GROUP.unpack_from(group.raw)
    array, properties = group.raw[_GROUP.size :][:length], group.raw[_GROUP.size + length :]
    buckets = []
    while array:
        (size,) = struct.unpack_from("!H", array)
        if not 8 <= size <= len(array):
            raise ProtocolError(f"a bucket that claims to be {size} bytes long")
        buckets.append(array[:size])
        array = array[size:]
    return buckets, properties


def group_mod_set(group: InstalledGroup) -> bytes:
    """OFPT_GROUP_MOD (7.3.4.3) that puts a dumped group back as it was; its xid is 0."""
    _, kind, number, buckets = _GROUP.unpack_from(group.raw)
    body = _GROUP_MOD.pack(GROUP_ADD_OR_MOD, kind, number, buckets, ofproto.OFPG_BUCKET_ALL)
    body += group.raw[_GROUP.size :]
    return HEADER.pack(VERSION, ofproto.OFPT_GROUP_MOD, HEADER.size + len(body), 0) + body


def group_set_by(message: bytes) -> InstalledGroup:
    """What a switch describes as a group that this OFPT_GROUP_MOD has set: the inverse."""
    _, kind, number, buckets, _ = _GROUP_MOD.unpack_from(message, HEADER.size)
    rest = message[HEADER.size + _GROUP_MOD.size :]
    return InstalledGroup(
        number, _GROUP.pack(_GROUP.size + len(rest), kind, number, buckets) + rest
    )


_GROUP_MOD: Final = struct.Struct("!HBxIHxxI")


def meters(body: memoryview) -> Iterator[Meter]:
    """The body of OFPMP_METER_DESC. A meter of another make than ours has rate and burst 0."""
    while body:
        length, flags, number = struct.unpack_from("!HHI", body)
        if not 8 <= length <= len(body):
            raise ProtocolError(f"a meter description that claims to be {length} bytes long")
        rate = burst = 0
        if flags & ofproto.OFPMF_PKTPS and length == 24:
            kind, _, band_rate, band_burst = struct.unpack_from("!HHII", body, 8)
            if kind == ofproto.OFPMBT_DROP:
                rate, burst = band_rate, band_burst
        yield Meter(number, rate, burst)
        body = body[length:]


def meter_stats(body: memoryview) -> Iterator[MeterStats]:
    """The body of OFPMP_METER (7.3.5.14): what the bands of each meter have counted."""
    while body:
        number, length = struct.unpack_from("!IH", body)
        if not _METER_STATS <= length <= len(body):
            raise ProtocolError(f"statistics of a meter that claim to be {length} bytes long")
        end = length - (length - _METER_STATS) % 16
        bands = list(struct.iter_unpack("!QQ", body[_METER_STATS:end]))
        packets, octets = (sum(column) for column in zip(*bands, strict=True)) if bands else (0, 0)
        yield MeterStats(number, packets, octets)
        body = body[length:]


_METER_STATS: Final = 40
"""struct ofp_meter_stats up to its bands."""


def packet_in(body: memoryview) -> PacketIn:
    """The body of OFPT_PACKET_IN (7.4.1)."""
    table, cookie = struct.unpack_from("!BQ", body, _PACKET_IN_TABLE)
    (length,) = struct.unpack_from("!H", body, _PACKET_IN_MATCH + 2)
    in_port, registers = 0, {}
    at, end = _PACKET_IN_MATCH + 4, _PACKET_IN_MATCH + length
    while at < end:
        kind, number, size = struct.unpack_from("!HBB", body, at)
        value = bytes(body[at + 4 : at + 4 + size])
        if (kind, number) == (_OPENFLOW_BASIC, ofproto.OFPXMT_OFB_IN_PORT << 1):
            in_port = int.from_bytes(value, "big")
        elif kind == _NXM_1 and number >> 1 < _REGISTERS:
            registers[number >> 1] = int.from_bytes(value[:4], "big")
        elif kind == _PACKET_REGISTERS:
            high, low = struct.unpack_from("!II", value)
            registers |= {number & ~1: high, number | 1: low}
        at += 4 + size
    data = bytes(body[_PACKET_IN_MATCH + -(-length // 8) * 8 + 2 :])
    return PacketIn(table, cookie, in_port, {n: v for n, v in registers.items() if v}, data)


_PACKET_IN_TABLE: Final = 7
_PACKET_IN_MATCH: Final = 16
"""Of struct ofp_packet_in: buffer id, total length and reason stand before the table."""
_OPENFLOW_BASIC: Final = 0x8000
_PACKET_REGISTERS: Final = 0x8001
_NXM_1: Final = 0x0001
_REGISTERS: Final = 16


def flow_updates(body: memoryview) -> Iterator[FlowUpdate]:
    """The body of OFPMP_FLOW_MONITOR (7.3.5.18.2). Pause and resume are not reported.

    While paused, a switch keeps reporting what goes, and reports what came when it resumes.
    """
    while body:
        length, event = struct.unpack_from("!HH", body)
        if not 4 <= length <= len(body):
            raise ProtocolError(f"a flow update that claims to be {length} bytes long")
        if event in _FULL_UPDATES:
            table, _, _, _, priority, _, cookie = struct.unpack_from("!BBHHHIQ", body, 4)
            (match_length,) = struct.unpack_from("!H", body, _UPDATE_SIZE + 2)
            key = struct.pack("!H", priority) + body[_UPDATE_SIZE : _UPDATE_SIZE + match_length]
            yield FlowUpdate(table, key, cookie, event == ofproto.OFPFME_REMOVED)
        body = body[length:]


_UPDATE_SIZE: Final = 24
"""struct ofp_flow_update_full up to its match."""
_FULL_UPDATES: Final = frozenset(
    (
        ofproto.OFPFME_INITIAL,
        ofproto.OFPFME_ADDED,
        ofproto.OFPFME_REMOVED,
        ofproto.OFPFME_MODIFIED,
    )
)
