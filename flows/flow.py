"""Flows, matches, actions and meters as frozen values.

Field names are those of ovs-fields(7) as `ovs-ofctl` prints them, so a flow here reads like the
one on the switch. All values are plain integers.

Everything that a switch holds has a canonical form: bytes made of numbers, so that two versions of
Sluice give the same flow the same cookie, even if they use different names. Field numbers
(`flows.fields`) and codes of actions are fixed for ever. Numbers are big-endian, and a part of
variable length begins with its length. docs/decisions.md, *Contracts*, has
it in full; tests/flows/test_canonical.py has examples that must not change.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, TypeAlias

from flows.fields import FIELD_ORDER, FIELDS, field_bytes, value_bytes

IN_PORT: Final = 0xFFFF_FFF8
"""OFPP_IN_PORT: back out of where the packet came from (OpenFlow 1.5.1, 7.2.1.2)."""

ENTRY_TABLE: Final = 0
"""The table of the flows that agents wait for. Agents and controllers of different versions must
give these the same cookies, so their form is a contract of its own (see `_entry_text`)."""

_NO_TABLE: Final = 0xFF
_METHODS: Final = {"dp_hash": 1, "hash": 2}
_DOES_NOT_FIT: Final = (KeyError, OverflowError, struct.error)
_FLOW: Final = struct.Struct("!BHB")
_CT: Final = struct.Struct("!BHBBB")
_NAT_PORTS: Final = struct.Struct("!HH")
_LEARN: Final = struct.Struct("!BBHQHBB")
_BUCKET: Final = struct.Struct("!IH")
_GROUP: Final = struct.Struct("!IB")

MatchValue: TypeAlias = int | tuple[int, int]
"""A field's exact value, or (value, mask)."""


class FormError(ValueError):
    """A flow or group has no canonical form: it names an unknown field, or a number is too big."""


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of one OpenFlow port; `IN_PORT` for the one it came in by."""

    port: int

    def canonical(self) -> bytes:
        return b"\x01" + self.port.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class OutputReg:
    """Send out of the port that a whole 32-bit register holds, e.g. `reg1`."""

    register: str

    def canonical(self) -> bytes:
        return b"\x02" + field_bytes(self.register)


@dataclass(frozen=True, slots=True)
class SetField:
    """Write a field; with a mask, only those bits (OpenFlow 1.5.1, 7.2.6.7)."""

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

    `source=0` leaves the address alone and moves the port only where two connections would
    otherwise share one reply tuple. `ovs-ofctl` takes it as `nat(src=0.0.0.0)` and prints it as
    `nat(src)` (ovs-actions(7), *The nat action*).
    """

    source: int | None = None
    destination: tuple[int, int] | None = None
    """Address and port to translate the destination to."""
    ports: tuple[int, int] | None = None
    """With `source`: the first and last port that the source's may become."""
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
    """Pass through connection tracking, then go on at `table` (ovs-actions(7), *ct*)."""

    zone: int
    table: int | None = None
    commit: bool = False
    nat: Nat | None = None
    exec: tuple[SetField, ...] = ()

    def canonical(self) -> bytes:
        table = _NO_TABLE if self.table is None else self.table
        flags = self.commit | (self.nat is not None) << 1
        form = _CT.pack(7, self.zone, table, flags, len(self.exec))
        if self.nat is not None:
            form += self.nat.canonical()
        return form + b"".join([field.canonical() for field in self.exec])


@dataclass(frozen=True, slots=True)
class CtClear:
    """Forget what connection tracking said of the packet (ovs-actions(7), *ct_clear*)."""

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
    """Bytes that the switch keeps with the flow and does nothing with."""

    data: bytes

    def canonical(self) -> bytes:
        return b"\x0a" + len(self.data).to_bytes(2, "big") + self.data


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on at a later table; always the last of a flow's actions."""

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
    """Look the packet up in a table, do what is said there, and go on behind this action."""

    table: int

    def canonical(self) -> bytes:
        return bytes([12, self.table])


@dataclass(frozen=True, slots=True)
class Learn:
    """Make a flow out of the packet (ovs-actions(7), *learn*).

    The flow matches IPv4, the packet's own values of `match`, and loads those of `load` into the
    same fields. It goes `idle_timeout` seconds after the last packet it met (0: never by itself),
    and with the last flow that learns with this cookie (`delete_learned`).
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
    | Push
    | Pop
    | Ct
    | CtClear
    | ApplyMeter
    | Note
    | ToGroup
    | Resubmit
    | Learn
    | Goto
)


@dataclass(frozen=True)
class Flow:
    """One entry of one table.

    `match` is a tuple of (field, value, mask or None) in `FIELDS` order. An empty `actions`
    drops. `reason` says in words what the flow is for; the switch does not hold it.
    """

    feature: int
    table: int
    priority: int
    match: tuple[tuple[str, int, int | None], ...]
    actions: tuple[Action, ...]
    reason: str
    is_shared: bool = field(default=False, compare=False)
    """Several nodes' programs hold this very object, so its encoded bytes are worth keeping."""

    @cached_property
    def key(self) -> tuple[int, int, tuple[tuple[str, int, int | None], ...]]:
        """What a table holds at most one of."""
        return self.table, self.priority, self.match

    @cached_property
    def cookie(self) -> int:
        """`feature` (8 bits), then 56 bits of a digest of everything the switch holds of it."""
        digest = blake2b(self.canonical(), digest_size=7).digest()
        return self.feature << 56 | int.from_bytes(digest, "big")

    def canonical(self) -> bytes:
        """Everything the switch holds of it. Raises `FormError`."""
        if self.table == ENTRY_TABLE and (text := _entry_text(self)) is not None:
            return text.encode()
        try:
            return b"".join(
                [
                    _FLOW.pack(self.table, self.priority, len(self.match)),
                    *[value_bytes(*field) for field in self.match],
                    *[action.canonical() for action in self.actions],
                ]
            )
        except _DOES_NOT_FIT as error:
            raise FormError(f"flow for {self.reason!r}: {error!r}") from None


def _entry_text(flow: Flow) -> str | None:
    """The form of flows that admit packets by the port they came in; None: it has the usual form.

    It is text, because the first versions had text. The names in it are constants.
    """
    actions = []
    for action in flow.actions:
        match action:
            case SetField(name, value, mask):
                actions.append(f"SetField(field='{name}', value={value}, mask={mask})")
            case Goto(table):
                actions.append(f"Goto(table={table})")
            case _:
                return None
    fields = [f"('{name}', {value}, {mask})" for name, value, mask in flow.match]
    return f"{flow.table} {flow.priority} {_tuple_text(fields)} {_tuple_text(actions)}"


def _tuple_text(items: list[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _digest64(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Meter:
    """Drops packets beyond `rate` a second, after a burst of `burst` packets."""

    id: int
    rate: int
    burst: int

    @property
    def digest(self) -> int:
        """64 bits of everything the switch holds of it: what a cookie is to a flow."""
        # Agents of all versions compute it: a contract of its own, in ASCII.
        canonical = f"{self.id} {self.rate} {self.burst}"
        return _digest64(canonical.encode())


@dataclass(frozen=True)
class Bucket:
    """One choice of a group. Its actions are a *set*: a `Ct` alone, or `SetField`s and `Resubmit`.

    Open vSwitch silently drops a `ct` that stands beside a `resubmit`.
    """

    id: int
    weight: int
    actions: tuple[Action, ...]

    @cached_property
    def digest(self) -> int:
        """64 bits of everything the switch holds of it."""
        actions = [action.canonical() for action in self.actions]
        return _digest64(b"".join([_BUCKET.pack(self.id, self.weight), *actions]))


MOST_BUCKETS: Final = 500
"""Of one group. Open vSwitch takes more, but what it then says of the group is longer than an
OpenFlow message can be (64 KB): it writes the rest all the same, and every dump of groups is
unreadable from there on (seen with 3.1 and 1,000 buckets). Where there is more to choose from, let
a group choose among groups."""


@dataclass(frozen=True)
class Group:
    """A select group (OpenFlow 1.5.1, 5.10): each packet, or connection, gets one of its buckets.

    `method` is how Open vSwitch chooses: "dp_hash" in the datapath, 256 slots for all buckets and
    no upcall for a connection; "hash" over `fields` by an upcall for each value of them.
    """

    id: int
    method: Literal["dp_hash", "hash"]
    fields: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    """In the order of their ids, of which each is there once."""

    @cached_property
    def digest(self) -> int:
        """64 bits of everything the switch holds of it, in any order of the buckets.

        Raises `FormError`.
        """
        try:
            head = [_GROUP.pack(self.id, _METHODS[self.method]), *map(field_bytes, self.fields)]
            total = _digest64(b"".join(head)) + sum(bucket.digest for bucket in self.buckets)
        except _DOES_NOT_FIT as error:
            raise FormError(f"group {self.id:#x}: {error!r}") from None
        return total & 0xFFFF_FFFF_FFFF_FFFF


def match(fields: Mapping[str, MatchValue]) -> tuple[tuple[str, int, int | None], ...]:
    """A flow's match in the one order that all flows use.

    Raises `ValueError` for a field that is not in `FIELDS`, or a value with bits that its mask
    clears (the switch would store another flow than the one named here).
    """
    made = []
    for name, given in fields.items():
        if name not in FIELD_ORDER:
            raise ValueError(f"unknown match field {name!r}")
        value, mask = given if isinstance(given, tuple) else (given, None)
        if mask is not None:
            if value & ~mask:
                raise ValueError(f"{name}: value {value:#x} has bits outside its mask {mask:#x}")
            if mask == (1 << FIELDS[name]) - 1:
                mask = None
            elif mask == 0:
                continue
        made.append((name, value, mask))
    return tuple(sorted(made, key=lambda field: FIELD_ORDER[field[0]]))


def ip(address: IPv4Address | IPv6Address) -> int:
    """An address as a match value."""
    return int(address)


def net(network: IPv4Network | IPv6Network) -> tuple[int, int]:
    """A CIDR as a masked match value."""
    return int(network.network_address), int(network.netmask)


def mac(text: str) -> int:
    """A MAC address as a match value."""
    return int(text.replace(":", ""), 16)


_CT_STATE_BITS = {
    "new": 0x01, "est": 0x02, "rel": 0x04, "rpl": 0x08,
    "inv": 0x10, "trk": 0x20, "snat": 0x40, "dnat": 0x80,
}  # fmt: skip
CT_STATE_NAMES: Final = tuple(_CT_STATE_BITS)


def ct_state(text: str) -> tuple[int, int]:
    """`+trk+new-inv` as a masked match value (ovs-fields(7), *ct_state*)."""
    value = mask = 0
    for flag in text.replace("+", " +").replace("-", " -").split():
        bit = _CT_STATE_BITS[flag[1:]]
        mask |= bit
        value |= bit if flag[0] == "+" else 0
    return value, mask


ANY_FRAGMENT: Final = (1, 1)
"""`nw_frag` of every fragment, the first one too, as value and mask (ovs-fields(7), *ip_frag*)."""
