"""64-bit digests of flows as the switch holds them. The audit finds changes by hand with them.

The cookie cannot show such a change: `ovs-ofctl mod-flows` keeps it. So both sides hash all that
decides what the flow does. Open vSwitch dumps instructions byte for byte as they were sent, but
orders match fields itself, and dumps registers in pairs (OXM packet registers). This module
converts matches to one form. Sums of digests, one per range of cookies, show in 2 KB whether a
switch of any size differs, and in which ranges.
"""

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from flows.flow import Flow, Group, Meter
from openflow.messages import InstalledGroup, group_parts, group_set_by
from openflow.templates import FlowEncoder, GroupEncoder

RANGES: Final = 256
"""A flow's range is the last byte of its cookie, by which a switch can be asked for it."""

_DUMPED: Final = struct.Struct("!HxxBxHHHHHQ")
"""ofp_flow_desc up to its match: length, table, priority, timeouts, flags, importance, cookie."""
_MATCH_OF_FLOW_MOD: Final = 48
_LENGTH: Final = struct.Struct("!H")
_OXM: Final = struct.Struct("!HBB")
_PACKET_REGISTERS: Final = 0x8001
_NXM_1: Final = 0x0001
_REGISTERS: Final = 16
_encoder: Final = FlowEncoder()
_group_encoder: Final = GroupEncoder()


def of_entry(raw: bytes) -> int:
    """Of a dumped flow (`InstalledFlow.raw`), its counters and age left out."""
    _, table, priority, *settings, cookie = _DUMPED.unpack_from(raw)
    match, end = _fields(raw, _DUMPED.size)
    (stats,) = struct.unpack_from("!H", raw, end + 2)
    return _digest(table, priority, settings, cookie, match, raw[end + -(-stats // 8) * 8 :])


def without_counters(raw: bytes) -> bytes:
    """A dumped flow without what changes by itself: two that agree in this have one digest."""
    (match,) = _LENGTH.unpack_from(raw, _DUMPED.size + 2)
    end = _DUMPED.size + -(-match // 8) * 8
    (stats,) = _LENGTH.unpack_from(raw, end + 2)
    return raw[2:end] + raw[end + -(-stats // 8) * 8 :]


def registers(raw: bytes) -> dict[int, int]:
    """The registers that a dumped flow matches whole, by number."""
    found: dict[int, int] = {}
    for field in _fields(raw, _DUMPED.size)[0]:
        kind, number, size = _OXM.unpack_from(field)
        if kind == _NXM_1 and number < 2 * _REGISTERS and size == 4:
            found[number >> 1] = int.from_bytes(field[4:], "big")
    return found


def of_flow(flow: Flow) -> int:
    """Of a flow of ours: what `of_entry` makes of it once a switch holds it unchanged."""
    message = _encoder.add(flow)
    match, end = _fields(message, _MATCH_OF_FLOW_MOD)
    no_timeouts_or_flags = [0, 0, 0, 0]
    return _digest(
        flow.table, flow.priority, no_timeouts_or_flags, flow.cookie, match, message[end:]
    )


def of_meters(meters: Iterable[Meter]) -> int:
    """Of all meters of a switch."""
    return total(meter.digest for meter in meters)


def of_group_entry(group: InstalledGroup) -> int:
    """Of a dumped group, whatever order its buckets are in."""
    buckets, properties = group_parts(group)
    head = struct.pack("!BI", group.type, group.id) + properties
    return total(
        int.from_bytes(blake2b(part, digest_size=8).digest(), "big") for part in (head, *buckets)
    )


def of_group(group: Group) -> int:
    """Of a group of ours: what `of_group_entry` makes of it once a switch holds it unchanged."""
    return of_group_entry(group_set_by(_group_encoder.set(group)))


def sums(digests: Iterable[tuple[int, int]]) -> list[int]:
    """(cookie, digest) of any number of flows -> a sum of 64 bits for each range."""
    found = [0] * RANGES
    for cookie, digest in digests:
        found[cookie % RANGES] += digest
    return [value & _MASK for value in found]


def total(digests: Iterable[int]) -> int:
    """A sum of 64 bits."""
    return sum(digests) & _MASK


_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


def _digest(
    table: int, priority: int, settings: list[int], cookie: int, match: list[bytes], rest: bytes
) -> int:
    head = struct.pack("!BHHHHHQ", table, priority, *settings, cookie)
    return int.from_bytes(blake2b(head + b"".join(match) + rest, digest_size=8).digest(), "big")


def _fields(data: bytes, start: int) -> tuple[list[bytes], int]:
    """The fields of the ofp_match at `start` in one form, and where it ends with its padding."""
    _, length = struct.unpack_from("!HH", data, start)
    fields: list[bytes] = []
    at, end = start + 4, start + length
    while at < end:
        kind, field, size = _OXM.unpack_from(data, at)
        value = data[at + 4 : at + 4 + size]
        if kind == _PACKET_REGISTERS:
            fields += _registers(field, value)
        else:
            fields.append(data[at : at + 4] + value)
        at += 4 + size
    return sorted(fields), start + -(-length // 8) * 8


def _registers(field: int, value: bytes) -> Iterable[bytes]:
    """A match on a pair of registers as matches on the two, where they are matched at all."""
    number, masked = field >> 1, field & 1
    mask = value[8:] if masked else b"\xff" * 8
    for index in (0, 1):
        word, bits = value[4 * index : 4 * index + 4], mask[4 * index : 4 * index + 4]
        register = 2 * number + index
        if bits == b"\xff" * 4:
            yield _OXM.pack(_NXM_1, register << 1, 4) + word
        elif bits != bytes(4):
            yield _OXM.pack(_NXM_1, register << 1 | 1, 8) + word + bits
