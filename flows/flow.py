"""Flows, matches, actions and meters as frozen values.

Field names are those of ovs-fields(7) as `ovs-ofctl` prints them, so a flow here reads like the
one on the switch. All values are plain integers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, TypeAlias

IN_PORT: Final = 0xFFFF_FFF8
"""OFPP_IN_PORT: back out of where the packet came from (OpenFlow 1.5.1, 7.2.1.2)."""

MatchValue: TypeAlias = int | tuple[int, int]
"""A field's exact value, or (value, mask)."""


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of one OpenFlow port; `IN_PORT` for the one it came in by."""

    port: int


@dataclass(frozen=True, slots=True)
class OutputReg:
    """Send out of the port that a whole 32-bit register holds, e.g. `reg1`."""

    register: str


@dataclass(frozen=True, slots=True)
class SetField:
    """Write a field; with a mask, only those bits (OpenFlow 1.5.1, 7.2.6.7)."""

    field: str
    value: int
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Copy one whole field to another of the same width (OFPAT_COPY_FIELD)."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Push:
    """Put a whole field on the packet's stack (ovs-actions(7), *push*)."""

    field: str


@dataclass(frozen=True, slots=True)
class Pop:
    """Take a whole field from the top of the packet's stack (ovs-actions(7), *pop*)."""

    field: str


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


@dataclass(frozen=True, slots=True)
class Ct:
    """Pass through connection tracking, then go on at `table` (ovs-actions(7), *ct*)."""

    zone: int
    table: int | None = None
    commit: bool = False
    nat: Nat | None = None
    exec: tuple[SetField, ...] = ()


@dataclass(frozen=True, slots=True)
class CtClear:
    """Forget what connection tracking said of the packet (ovs-actions(7), *ct_clear*)."""


@dataclass(frozen=True, slots=True)
class ApplyMeter:
    """Count against a meter and drop what exceeds it."""

    meter: int


@dataclass(frozen=True, slots=True)
class Note:
    """Bytes that the switch keeps with the flow and does nothing with."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on at a later table; always the last of a flow's actions."""

    table: int


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Let a group choose one of its buckets."""

    group: int


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look the packet up in a table, do what is said there, and go on behind this action."""

    table: int


@dataclass(frozen=True, slots=True)
class Learn:
    """Make a flow out of the packet (ovs-actions(7), *learn*).

    The flow matches IPv4, the packet's own values of `match`, and loads those of `load` into the
    same fields. It goes `idle_timeout` seconds after the last packet it met; 0: never by itself.
    """

    table: int
    priority: int
    cookie: int
    idle_timeout: int
    match: tuple[str, ...]
    load: tuple[str, ...]


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
    drops. `reason` says in words what the flow is for; it is not part of the flow's identity.
    """

    feature: int
    table: int
    priority: int
    match: tuple[tuple[str, int, int | None], ...]
    actions: tuple[Action, ...]
    reason: str

    @property
    def key(self) -> tuple[int, int, tuple[tuple[str, int, int | None], ...]]:
        """What a table holds at most one of."""
        return self.table, self.priority, self.match

    @cached_property
    def cookie(self) -> int:
        """`feature` (8 bits), then 56 bits of a digest of everything the switch holds of it."""
        canonical = f"{self.table} {self.priority} {self.match!r} {self.actions!r}"
        digest = blake2b(canonical.encode(), digest_size=7).digest()
        return self.feature << 56 | int.from_bytes(digest, "big")


@dataclass(frozen=True, slots=True)
class Meter:
    """Drops packets beyond `rate` a second, after a burst of `burst` packets."""

    id: int
    rate: int
    burst: int

    @property
    def digest(self) -> int:
        """64 bits of everything the switch holds of it: what a cookie is to a flow."""
        canonical = f"{self.id} {self.rate} {self.burst}"
        return int.from_bytes(blake2b(canonical.encode(), digest_size=8).digest(), "big")


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
        canonical = f"{self.id} {self.weight} {self.actions!r}"
        return int.from_bytes(blake2b(canonical.encode(), digest_size=8).digest(), "big")


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
        """64 bits of everything the switch holds of it, in whatever order it holds the buckets."""
        canonical = f"{self.id} {self.method} {self.fields!r}"
        head = int.from_bytes(blake2b(canonical.encode(), digest_size=8).digest(), "big")
        return (head + sum(bucket.digest for bucket in self.buckets)) & 0xFFFF_FFFF_FFFF_FFFF


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

FIELDS: Final[Mapping[str, int]] = {
    "ct_state": 32,
    "ct_zone": 16,
    "ct_mark": 32,
    "ct_label": 128,
    "ct_nw_src": 32,
    "ct_nw_dst": 32,
    "dl_type": 16,
    "nw_proto": 8,
    **{f"reg{number}": 32 for number in range(16)},
    "tun_id": 64,
    "tun_src": 32,
    "tun_dst": 32,
    "in_port": 32,
    "dl_src": 48,
    "dl_dst": 48,
    "nw_src": 32,
    "nw_dst": 32,
    "arp_spa": 32,
    "arp_tpa": 32,
    "arp_op": 16,
    "arp_sha": 48,
    "arp_tha": 48,
    "nw_frag": 8,
    "icmp_type": 8,
    "icmp_code": 8,
    "icmpv6_type": 8,
    "tp_src": 16,
    "tp_dst": 16,
}
"""Every field that a flow may name, in the order `ovs-ofctl` prints them: width in bits."""

FIELD_ORDER: Final[Mapping[str, int]] = {name: index for index, name in enumerate(FIELDS)}

PORT_FIELDS: Final = ("tcp_src", "tcp_dst", "udp_src", "udp_dst", "sctp_src", "sctp_dst")
"""What actions call a packet's ports; a match says `tp_src` and `tp_dst`, and which protocol."""
