"""Actions as frozen values, each with its canonical bytes (`flows.flow`). Codes never change."""

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from flows.fields import field_bytes, value_bytes

IN_PORT: Final = 0xFFFF_FFF8
"""OFPP_IN_PORT: out of the ingress port (OpenFlow 1.5.1, 7.2.1.2)."""

_NO_TABLE: Final = 0xFF
_CT: Final = struct.Struct("!BHBBB")
_NAT_PORTS: Final = struct.Struct("!HH")
_LEARN: Final = struct.Struct("!BBHQHBB")


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of one ofport; `IN_PORT` is the ingress port."""

    port: int

    def canonical(self) -> bytes:
        return b"\x01" + self.port.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class OutputReg:
    """Send out of the ofport in a whole 32-bit register, e.g. `reg1`."""

    register: str

    def canonical(self) -> bytes:
        return b"\x02" + field_bytes(self.register)


@dataclass(frozen=True, slots=True)
class SetField:
    """Write a field; with a mask, only the bits of the mask (OpenFlow 1.5.1, 7.2.6.7)."""

    field: str
    value: int
    mask: int | None = None

    def canonical(self) -> bytes:
        return b"\x03" + value_bytes(self.field, self.value, self.mask)


@dataclass(frozen=True, slots=True)
class Move:
    """Copy one whole field to another of the same width (OFPAT_COPY_FIELD)."""

    source: str
    destination: str

    def canonical(self) -> bytes:
        return b"\x04" + field_bytes(self.source) + field_bytes(self.destination)


@dataclass(frozen=True, slots=True)
class MoveBits:
    """Copy `bits` bits from one field to another, each from its first bit (OFPAT_COPY_FIELD)."""

    source: str
    source_first: int
    destination: str
    destination_first: int
    bits: int

    def canonical(self) -> bytes:
        source, destination = field_bytes(self.source), field_bytes(self.destination)
        ends = (source, self.source_first), (destination, self.destination_first)
        return b"\x0f" + b"".join([f + bytes([at]) for f, at in ends]) + bytes([self.bits])


@dataclass(frozen=True, slots=True)
class Push:
    """Put a whole field on the packet's stack (ovs-actions(7), *push*)."""

    field: str

    def canonical(self) -> bytes:
        return b"\x05" + field_bytes(self.field)


@dataclass(frozen=True, slots=True)
class Pop:
    """Take a whole field from the top of the packet's stack (ovs-actions(7), *pop*)."""

    field: str

    def canonical(self) -> bytes:
        return b"\x06" + field_bytes(self.field)


@dataclass(frozen=True, slots=True)
class Nat:
    """`nat` inside `Ct`: undo or keep an existing translation; with `source`, translate.

    `source=0` keeps the address, and changes the port only if two connections would otherwise have
    the same reply tuple. `ovs-ofctl` takes it as `nat(src=0.0.0.0)` and prints it as
    `nat(src)` (ovs-actions(7), *The nat action*).
    """

    source: int | None = None
    destination: tuple[int, int] | None = None
    """Address and port to translate the destination to."""
    ports: tuple[int, int] | None = None
    """With `source`: the first and last source port to choose from."""
    version: int = 4
    """The IP version of the addresses."""

    def canonical(self) -> bytes:
        given = (self.source is not None) | (self.destination is not None) << 1
        form = bytes([given | (self.ports is not None) << 2 | (self.version == 6) << 3])
        width = 16 if self.version == 6 else 4
        if self.source is not None:
            form += self.source.to_bytes(width, "big")
        if self.destination is not None:
            address, port = self.destination
            form += address.to_bytes(width, "big") + port.to_bytes(2, "big")
        if self.ports is not None:
            form += _NAT_PORTS.pack(*self.ports)
        return form


@dataclass(frozen=True, slots=True)
class Ct:
    """Pass through connection tracking, then continue at `table` (ovs-actions(7), *ct*)."""

    zone: int
    table: int | None = None
    commit: bool = False
    nat: Nat | None = None
    exec: tuple[SetField | MoveBits, ...] = ()

    def canonical(self) -> bytes:
        table = _NO_TABLE if self.table is None else self.table
        flags = self.commit | (self.nat is not None) << 1
        form = _CT.pack(7, self.zone, table, flags, len(self.exec))
        if self.nat is not None:
            form += self.nat.canonical()
        return form + b"".join([field.canonical() for field in self.exec])


@dataclass(frozen=True, slots=True)
class CtClear:
    """Clear the conntrack state of the packet (ovs-actions(7), *ct_clear*)."""

    def canonical(self) -> bytes:
        return b"\x08"


@dataclass(frozen=True, slots=True)
class ApplyMeter:
    """Count against a meter and drop what exceeds it."""

    meter: int

    def canonical(self) -> bytes:
        return b"\x09" + self.meter.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Note:
    """Bytes that the switch stores with the flow, without any effect."""

    data: bytes

    def canonical(self) -> bytes:
        return b"\x0a" + len(self.data).to_bytes(2, "big") + self.data


@dataclass(frozen=True, slots=True)
class Goto:
    """Continue at a later table; always the last action of a flow."""

    table: int

    def canonical(self) -> bytes:
        return bytes([14, self.table])


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Let a group choose one of its buckets."""

    group: int

    def canonical(self) -> bytes:
        return b"\x0b" + self.group.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look the packet up in a table, execute the actions found, then continue behind this one."""

    table: int

    def canonical(self) -> bytes:
        return bytes([12, self.table])


@dataclass(frozen=True, slots=True)
class ToController:
    """Send the first `size` bytes of the packet to the connections that gave themselves this id.

    Others get nothing, the controller's among them (ovs-actions(7), *controller*).
    """

    id: int
    size: int

    def canonical(self) -> bytes:
        return b"\x10" + self.id.to_bytes(2, "big") + self.size.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Learn:
    """Add a flow made from the packet (ovs-actions(7), *learn*).

    The new flow matches IPv4 and the packet's values of the fields `match`. It loads the packet's
    values of the fields `load` into the same fields. The switch removes it `idle_timeout` seconds
    after the last packet that matched it (0: no timeout), or together with the last flow that
    learns with this cookie (`delete_learned`).
    """

    table: int
    priority: int
    cookie: int
    idle_timeout: int
    match: tuple[str, ...]
    load: tuple[str, ...]

    def canonical(self) -> bytes:
        return b"".join(
            [
                _LEARN.pack(
                    13, self.table, self.priority, self.cookie, self.idle_timeout,
                    len(self.match), len(self.load),
                ),
                *map(field_bytes, self.match),
                *map(field_bytes, self.load),
            ]
        )  # fmt: skip


Action: TypeAlias = (
    Output
    | OutputReg
    | SetField
    | Move
    | MoveBits
    | Push
    | Pop
    | Ct
    | CtClear
    | ApplyMeter
    | Note
    | ToGroup
    | Resubmit
    | ToController
    | Learn
    | Goto
)
