"""Flows, matches, actions and meters as frozen values.

Field names are those of ovs-fields(7) as `ovs-ofctl` prints them, so a flow here reads like the
flow on the switch. All values are plain integers.

Everything that a switch holds has a canonical form: bytes made of numbers. So two versions of
Sluice give the same flow the same cookie, even if they use different names. Field numbers
(`flows.fields`) and codes of actions never change. Numbers are big-endian, and a part of variable
length begins with its length. docs/decisions.md, *Contracts*, has the full form;
tests/flows/test_canonical.py has examples that must not change.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Literal, TypeAlias

from flows.actions import (
    IN_PORT,
    Action,
    ApplyMeter,
    Ct,
    CtClear,
    Goto,
    Learn,
    Move,
    MoveBits,
    Nat,
    Note,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
)
from flows.fields import FIELD_ORDER, FIELDS, field_bytes, value_bytes

__all__ = [
    "ANY_FRAGMENT",
    "CLASSIFIER_TABLE",
    "CT_STATE_NAMES",
    "IN_PORT",
    "MOST_BUCKETS",
    "Action",
    "ApplyMeter",
    "Bucket",
    "Ct",
    "CtClear",
    "Flow",
    "FormError",
    "Goto",
    "Group",
    "Learn",
    "MatchField",
    "MatchValue",
    "Meter",
    "Move",
    "MoveBits",
    "Nat",
    "Note",
    "Output",
    "OutputReg",
    "Pop",
    "Push",
    "Resubmit",
    "SetField",
    "ToController",
    "ToGroup",
    "ct_state",
    "ip",
    "mac",
    "match",
    "match_field",
    "net",
]

CLASSIFIER_TABLE: Final = 0
"""`Classifier`, the table of the flows that agents wait for. Agents and controllers of different
versions must give these flows the same cookies, so they have a form of their own
(`_classifier_text`)."""

_METHODS: Final = {"dp_hash": 1, "hash": 2}
_DOES_NOT_FIT: Final = (KeyError, OverflowError, ValueError, struct.error)
_FLOW: Final = struct.Struct("!BHB")
_BUCKET: Final = struct.Struct("!IH")
_GROUP: Final = struct.Struct("!IB")

MatchValue: TypeAlias = int | tuple[int, int]
"""A field's exact value, or (value, mask)."""
MatchField: TypeAlias = tuple[str, int, int | None]
"""A field's name, its value, and the mask if there is one."""


class FormError(ValueError):
    """A flow or group has no canonical form: a field is unknown, or a number is too large."""


class _Kept:
    """What is computed of a flow once. There are millions of flows, so a flow has no `__dict__`."""

    __slots__ = ("cookie", "encoded", "key", "new_state", "old_state")

    cookie: int
    """`feature` (8 bits), then 56 bits of a digest of `Flow.canonical`."""
    key: bytes
    """Table, priority and match: no table has two flows with one key."""
    encoded: bytes
    """The message that adds it, if it is shared (`openflow.templates`)."""
    old_state: "Flow"
    new_state: "Flow"
    """The flow in one state of a change of policies (`flows.transition`)."""

    def keep(self, name: str, value: object) -> None:
        """Remember something that was computed."""
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Flow(_Kept):
    """One flow of one table.

    `match` is a tuple of (field, value, mask or None) in `FIELDS` order. Empty `actions` drop the
    packet. `reason` says what the flow is for; it is not on the switch and not part of the cookie.
    """

    feature: int
    table: int
    priority: int
    match: tuple[MatchField, ...]
    actions: tuple[Action, ...]
    reason: str
    is_shared: bool = field(default=False, compare=False)
    """The programs of several nodes hold this object, so its encoded bytes are cached."""

    def __getattr__(self, name: str) -> Any:
        # Python calls it for what is not kept yet. A property would cost a call each time.
        match name:
            case "key":
                made = b"".join([self.head(), *[value_bytes(*field) for field in self.match]])
                self.keep(name, made)
                return made
            case "cookie":
                digest = blake2b(self.canonical(), digest_size=7).digest()
                number = self.feature << 56 | int.from_bytes(digest, "big")
                self.keep(name, number)
                return number
        raise AttributeError(name)

    def canonical(self) -> bytes:
        """All that the switch holds of the flow, as bytes. Raises `FormError`."""
        if self.table == CLASSIFIER_TABLE and (text := _classifier_text(self)) is not None:
            return text.encode()
        try:
            return b"".join(
                [
                    self.head(),
                    *[value_bytes(*field) for field in self.match],
                    *[action.canonical() for action in self.actions],
                ]
            )
        except _DOES_NOT_FIT as error:
            raise FormError(f"flow for {self.reason!r}: {error!r}") from None

    def share(self, is_shared: bool) -> None:
        """Say whether the programs of several nodes will hold this object: before they do."""
        if is_shared != self.is_shared:
            self.keep("is_shared", is_shared)

    def head(self) -> bytes:
        """The first part of `canonical`."""
        return _FLOW.pack(self.table, self.priority, len(self.match))


def _classifier_text(flow: Flow) -> str | None:
    """The form of the classifier flows of ports; None: the flow has the usual form.

    It is text because the first versions used text. The names in it never change.
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
        """A digest (64 bits) of all that the switch holds of the meter."""
        # Agents of all versions compute it, so this ASCII form never changes.
        canonical = f"{self.id} {self.rate} {self.burst}"
        return _digest64(canonical.encode())


@dataclass(frozen=True)
class Bucket:
    """One bucket of a group. Its actions are a *set*: one `Ct`, or `SetField`s and `Resubmit`.

    Open vSwitch silently drops a `ct` next to a `resubmit`.
    """

    id: int
    weight: int
    actions: tuple[Action, ...]

    @cached_property
    def digest(self) -> int:
        """A digest (64 bits) of all that the switch holds of the bucket."""
        actions = [action.canonical() for action in self.actions]
        return _digest64(b"".join([_BUCKET.pack(self.id, self.weight), *actions]))


MOST_BUCKETS: Final = 500
"""The most buckets of one group. Open vSwitch accepts more, but its description of the group is
then longer than an OpenFlow message (64 KB): it writes the rest anyway, and the rest of each dump
of groups is unreadable (seen with 3.1 and 1,000 buckets). For more choices, let a group choose
among groups."""


@dataclass(frozen=True)
class Group:
    """A select group (OpenFlow 1.5.1, 5.10): each packet, or connection, gets one bucket.

    `method` is how Open vSwitch chooses. "dp_hash": in the datapath, with 256 slots for all buckets
    and no upcall for each connection. "hash": by `fields`, with an upcall for each value of them.
    """

    id: int
    method: Literal["dp_hash", "hash"]
    fields: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    """Sorted by id; ids are unique."""

    @cached_property
    def digest(self) -> int:
        """A digest (64 bits) of all that the switch holds of the group, in any order of buckets.

        Raises `FormError`.
        """
        try:
            head = [_GROUP.pack(self.id, _METHODS[self.method]), *map(field_bytes, self.fields)]
            total = _digest64(b"".join(head)) + sum(bucket.digest for bucket in self.buckets)
        except _DOES_NOT_FIT as error:
            raise FormError(f"group {self.id:#x}: {error!r}") from None
        return total & 0xFFFF_FFFF_FFFF_FFFF


def match(fields: Mapping[str, MatchValue]) -> tuple[MatchField, ...]:
    """The match of a flow, in the order of `FIELDS`.

    Raises `ValueError` for a field that is not in `FIELDS`, or a value with bits outside its mask
    (the switch would store another flow).
    """
    made: list[MatchField] = []
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
        made.append(match_field(name, value, mask))
    return tuple(sorted(made, key=lambda field: FIELD_ORDER[field[0]]))


@lru_cache(4_096)
def match_field(name: str, value: int, mask: int | None) -> MatchField:
    """A field of a match. The flows of one pod, or one set, share it."""
    return name, value, mask


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
"""`nw_frag` of every fragment, including the first: value and mask (ovs-fields(7), *ip_frag*)."""
