"""os-ken's known faults, each worked around in one place (os-ken 4.2).

Everything else imports os-ken's OpenFlow 1.5 from here.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from os_ken.ofproto import nicira_ext, ofproto_v1_5, ofproto_v1_5_parser
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

ofproto: Final[Any] = ofproto_v1_5
parser: Final[Any] = ofproto_v1_5_parser

# os-ken's messages want the connection they are for, of which they only use the version.
DATAPATH: Final[Any] = ProtocolDesc(ofproto_v1_5.OFP_VERSION)

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


def nat(flags: int, range_ipv4_min: str = "") -> Any:
    """An NXActionNAT that may stand inside NXActionCT.

    os-ken counts the padding to 8 bytes in the action's length but does not write it, so whatever
    follows a NAT is read from the wrong place.
    """
    made = parser.NXActionNAT(flags, range_ipv4_min=range_ipv4_min)
    body = bytes(made.serialize_body())
    padded = body.ljust(-(-(_NX_HEADER + len(body)) // 8) * 8 - _NX_HEADER, b"\0")
    made.serialize_body = lambda: padded
    return made


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


def serialized(message: Any) -> bytes:
    """A message as bytes; its xid is 0, as long as none was set."""
    message.serialize()
    return bytes(message.buf)
