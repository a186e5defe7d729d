"""Packet fields: the name as `ovs-ofctl` prints it, a number, and the width.

The numbers are part of the canonical form of flows, and cookies are digests of that form. They
never change and are never reused (docs/decisions.md, *Contracts*). A name may change.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Field(NamedTuple):
    """A packet field."""

    number: int
    """Below 128: the top bit of the byte means "with a mask"."""
    bits: int


_FIELDS: Final[Mapping[str, Field]] = {
    "ct_state": Field(1, 32),
    "ct_zone": Field(2, 16),
    "ct_mark": Field(3, 32),
    "ct_label": Field(4, 128),
    "ct_nw_src": Field(5, 32),
    "ct_nw_dst": Field(6, 32),
    "ct_ipv6_src": Field(7, 128),
    "ct_ipv6_dst": Field(8, 128),
    "dl_type": Field(10, 16),
    "nw_proto": Field(11, 8),
    **{f"reg{number}": Field(64 + number, 32) for number in range(16)},
    "tun_id": Field(15, 64),
    "tun_src": Field(16, 32),
    "tun_dst": Field(17, 32),
    "tun_ipv6_src": Field(18, 128),
    "tun_ipv6_dst": Field(19, 128),
    "in_port": Field(20, 32),
    "dl_src": Field(21, 48),
    "dl_dst": Field(22, 48),
    "nw_src": Field(23, 32),
    "nw_dst": Field(24, 32),
    "ipv6_src": Field(25, 128),
    "ipv6_dst": Field(26, 128),
    "arp_spa": Field(30, 32),
    "arp_tpa": Field(31, 32),
    "arp_op": Field(32, 16),
    "arp_sha": Field(33, 48),
    "arp_tha": Field(34, 48),
    "nw_frag": Field(35, 8),
    "icmp_type": Field(36, 8),
    "icmp_code": Field(37, 8),
    "icmpv6_type": Field(38, 8),
    "tp_src": Field(40, 16),
    "tp_dst": Field(41, 16),
}
"""Every field that a match may name, in the order `ovs-ofctl` prints them."""

_WIDE_REGISTERS: Final[Mapping[str, Field]] = {
    f"xreg{number}": Field(80 + number, 64) for number in range(8)
}

_PORT_FIELDS: Final[Mapping[str, Field]] = {
    "tcp_src": Field(42, 16),
    "tcp_dst": Field(43, 16),
    "udp_src": Field(44, 16),
    "udp_dst": Field(45, 16),
    "sctp_src": Field(46, 16),
    "sctp_dst": Field(47, 16),
}

FIELDS: Final[Mapping[str, int]] = {name: field.bits for name, field in _FIELDS.items()}
"""The width in bits of every field that a match may name."""
FIELD_ORDER: Final[Mapping[str, int]] = {name: index for index, name in enumerate(FIELDS)}
PORT_FIELDS: Final = tuple(_PORT_FIELDS)
"""The names of transport ports in actions. A match has `tp_src` and `tp_dst`, and a protocol."""
WIDE_REGISTERS: Final = tuple(_WIDE_REGISTERS)
"""Pairs of registers in actions: `xreg4` is `reg8` (high) and `reg9`. A match has the registers."""
WIDTHS: Final[Mapping[str, int]] = {
    name: field.bits for name, field in {**_FIELDS, **_PORT_FIELDS, **_WIDE_REGISTERS}.items()
}
"""The width in bits of every field, also of those that only actions name."""

# By name: the number as a byte, the same with the bit for a mask, the width in bytes.
_CODES: Final[Mapping[str, tuple[bytes, bytes, int]]] = {
    name: (bytes([field.number]), bytes([field.number | 0x80]), field.bits // 8)
    for name, field in {**_FIELDS, **_PORT_FIELDS, **_WIDE_REGISTERS}.items()
}


def field_bytes(name: str) -> bytes:
    """The number of a field, as one byte. Raises `KeyError` for an unknown field."""
    return _CODES[name][0]


def value_bytes(name: str, value: int, mask: int | None) -> bytes:
    """A field with a value, and the mask if there is one, as bytes.

    Raises `KeyError` for an unknown field, `OverflowError` for a value that does not fit.
    """
    exact, masked, width = _CODES[name]
    if mask is None:
        return exact + value.to_bytes(width, "big")
    return masked + value.to_bytes(width, "big") + mask.to_bytes(width, "big")
