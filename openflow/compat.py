"""os-ken's known faults, each worked around in one place (os-ken 4.2).

Everything else imports os-ken's OpenFlow 1.5 from here.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

from openflow.os_ken_codec import (
    nicira_ext,
    ofproto_protocol,
    ofproto_v1_5,
    ofproto_v1_5_parser,
    oxm_fields,
    type_desc,
)

ofproto: Final[Any] = ofproto_v1_5
parser: Final[Any] = ofproto_v1_5_parser

# os-ken's messages want the connection they are for, of which they only use the version.
DATAPATH: Final[Any] = ofproto_protocol.ProtocolDesc(ofproto_v1_5.OFP_VERSION)

GROUP_ADD_OR_MOD: Final = 0x8000
"""Open vSwitch's own command: add a group, or put it in another's place (its openflow-1.5.h)."""

# Fields of the original direction's tuple, which os-ken lacks (ovs-fields(7), *ct_nw_src*).
ofproto_v1_5.oxm_types += [
    oxm_fields.NiciraExtended1("ct_nw_src", 120, type_desc.IPv4Addr),
    oxm_fields.NiciraExtended1("ct_nw_dst", 121, type_desc.IPv4Addr),
    oxm_fields.NiciraExtended1("ct_ipv6_src", 122, type_desc.IPv6Addr),
    oxm_fields.NiciraExtended1("ct_ipv6_dst", 123, type_desc.IPv6Addr),
]
oxm_fields.generate(ofproto_v1_5.__name__)

_TYPES: Final[Mapping[str, Any]] = {field.name: field.type for field in ofproto_v1_5.oxm_types}


def oxm_width(oxm: str) -> int:
    """A field's width in bytes."""
    width: int = _TYPES[oxm].size
    return width


def oxm_value(oxm: str, value: int, mask: int | None) -> Any:
    """A plain integer (and mask) in the form that os-ken wants for this field: an address is text.

    Raises `OverflowError` where a value does not fit its field.
    """
    kind = _TYPES[oxm]
    user = kind.to_user(value.to_bytes(kind.size, "big"))
    return user if mask is None else (user, kind.to_user(mask.to_bytes(kind.size, "big")))


def ordered_match(fields: Iterable[tuple[str, Any]]) -> Any:
    """An OFPMatch with its fields in the order given.

    `OFPMatch(**fields)` sorts by class and number, which puts NXM fields before the OXM eth_type
    they need: the switch answers BAD_PREREQ. It also clears value bits that the mask clears.
    """
    return parser.OFPMatch(_ordered_fields=list(fields))


def nat(flags: int, address: str = "", ports: tuple[int, int] | None = None) -> Any:
    """An NXActionNAT that may stand inside NXActionCT; translates to `address`, and to `ports`.

    `ports` are the first and the last; a single one is written once, as `ovs-ofctl` does.
    """
    first, last = ports or (None, None)
    made = parser.NXActionNAT(
        flags,
        range_ipv4_min=address,
        range_proto_min=first,
        range_proto_max=last if last != first else None,
    )
    return _padded(made)


def learn(table: int, specs: list[Any], **settings: int) -> Any:
    """An NXActionLearn behind which anything may stand."""
    return _padded(parser.NXActionLearn(table, specs, **settings))


def _padded(action: Any) -> Any:
    """The same NX action with all the bytes that it claims to have.

    os-ken counts the padding to 8 bytes in an action's length but does not write it, so whatever
    follows, in `ct` or a bucket, is read from the wrong place.
    """
    make = action.serialize_body

    def padded() -> bytes:
        body = bytes(make())
        return body + bytes(-(_NX_HEADER + len(body)) % 8)

    action.serialize_body = padded
    return action


_NX_HEADER: Final = 10
"""type, length, experimenter and subtype in front of an NX action's body."""


def output_reg(oxm: str) -> Any:
    """Output to the port that a whole 32-bit register holds."""
    return parser.NXActionOutputReg2(
        ofs_nbits=nicira_ext.ofs_nbits(0, 31), src=oxm, max_len=ofproto.OFPCML_NO_BUFFER
    )


def note(data: bytes) -> Any:
    """A note; os-ken appends its padding to the list it was given, so it gets one of its own."""
    return parser.NXActionNote(note=list(data))


def push(oxm: str, bits: int) -> Any:
    """Put a whole field, of so many bits, on the stack."""
    return _padded(parser.NXActionStackPush(nxm_name(oxm), start=0, end=bits))


def pop(oxm: str, bits: int) -> Any:
    """Take a whole field, of so many bits, from the stack."""
    return _padded(parser.NXActionStackPop(nxm_name(oxm), start=0, end=bits))


def nxm_name(oxm: str) -> str:
    """The name of a field inside `learn`, `push` and `pop`, where Open vSwitch says NXM numbers."""
    return f"{oxm}_nxm" if f"{oxm}_nxm" in _TYPES else oxm


class SelectionMethod:
    """The group property that says how Open vSwitch chooses a bucket (its netronome-ext.h).

    os-ken has properties of whole words only, and the fields that are hashed are not.
    """

    def __init__(self, method: str, oxms: Iterable[str]) -> None:
        self._method = method
        self._oxms = oxms

    def serialize(self) -> bytes:
        """The property with its padding. Raises `KeyError` for a field that there is not."""
        fields = bytearray()
        for oxm in self._oxms:
            # A field is named by its header and a value of ones.
            kind = _TYPES[oxm]
            whole = oxm_value(oxm, (1 << 8 * kind.size) - 1, None)
            number, value, _ = ofproto_v1_5.oxm_from_user(oxm, whole)
            ofproto_v1_5.oxm_serialize(number, value, None, fields, len(fields))
        head = _SELECTION_METHOD.pack(
            ofproto.OFPGPT_EXPERIMENTER, _SELECTION_METHOD.size + len(fields), _NETRONOME, 1,
            self._method.encode(), 0,
        )  # fmt: skip
        return head + bytes(fields) + bytes(-(len(head) + len(fields)) % 8)


_SELECTION_METHOD: Final = struct.Struct("!HHII4x16sQ")
_NETRONOME: Final = 0x0000_154D


def serialized(message: Any) -> bytes:
    """A message as bytes; its xid is 0, as long as none was set."""
    message.serialize()
    return bytes(message.buf)
