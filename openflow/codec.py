"""Flows, meters and bundles as OpenFlow 1.5 bytes, made by os-ken.

Every message has xid 0; who sends it numbers it. Nothing here is fast: `templates` makes the same
bytes for shapes seen before.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Any, Final

from flows.flow import (
    Action,
    ApplyMeter,
    Ct,
    Flow,
    Goto,
    Meter,
    Move,
    Nat,
    Note,
    Output,
    OutputReg,
    SetField,
)
from openflow.compat import (
    DATAPATH,
    nat,
    note,
    ofproto,
    ordered_match,
    output_reg,
    oxm_value,
    oxm_width,
    parser,
    serialized,
)

BUNDLE_ID: Final = 1
"""Bundle ids are per connection, and a connection has one bundle at a time."""
BUNDLE_FLAGS: Final = ofproto.OFPBF_ATOMIC | ofproto.OFPBF_ORDERED

_OXM: Final = {
    "dl_type": "eth_type",
    "nw_proto": "ip_proto",
    "tun_id": "tunnel_id",
    "tun_src": "tun_ipv4_src",
    "tun_dst": "tun_ipv4_dst",
    "dl_src": "eth_src",
    "dl_dst": "eth_dst",
    "nw_src": "ipv4_src",
    "nw_dst": "ipv4_dst",
    "icmp_type": "icmpv4_type",
    "icmp_code": "icmpv4_code",
}
"""Names of ovs-fields(7) that os-ken calls differently; all others are the same."""

_LAYER_4: Final = {6: "tcp", 17: "udp", 132: "sctp"}


class CodecError(ValueError):
    """A flow cannot be written as OpenFlow; the text names flow and field."""


class MeterCommand(IntEnum):
    """enum ofp_meter_mod_command (OpenFlow 1.5.1, 7.3.4.4)."""

    ADD = ofproto.OFPMC_ADD
    MODIFY = ofproto.OFPMC_MODIFY
    DELETE = ofproto.OFPMC_DELETE


class Direction(IntEnum):
    """Of the packets of a connection (enum nx_ct_flush_tlv_type)."""

    ORIGINAL = 0
    REPLY = 1


def flow_add(flow: Flow, stand_in: tuple[int, int | None] | None = None) -> bytes:
    """OFPT_FLOW_MOD that adds a flow, or puts it in the place of one with the same key.

    `stand_in` is (cookie, nw_proto) to use in place of the flow's own; whoever makes a template
    varies the flow's numbers, and these two depend on numbers. Raises `CodecError`.
    """
    cookie, protocol = stand_in or (flow.cookie, protocol_of(flow))
    actions = [_action(a, flow, protocol) for a in flow.actions if not isinstance(a, Goto)]
    instructions = []
    if actions:
        instructions.append(parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions))
    instructions += [
        parser.OFPInstructionGotoTable(a.table) for a in flow.actions if isinstance(a, Goto)
    ]
    message = parser.OFPFlowMod(
        DATAPATH,
        cookie=cookie,
        table_id=flow.table,
        command=ofproto.OFPFC_ADD,
        priority=flow.priority,
        out_port=ofproto.OFPP_ANY,
        out_group=ofproto.OFPG_ANY,
        match=ordered_match(_match_fields(flow, protocol)),
        instructions=instructions,
    )
    try:
        return serialized(message)
    except struct.error as error:
        raise CodecError(f"{described(flow)}: a number does not fit: {error}") from None


def flow_delete(cookie: int) -> bytes:
    """OFPT_FLOW_MOD that deletes, in all tables, the flows with exactly this cookie."""
    return serialized(
        parser.OFPFlowMod(
            DATAPATH,
            cookie=cookie,
            cookie_mask=0xFFFF_FFFF_FFFF_FFFF,
            table_id=ofproto.OFPTT_ALL,
            command=ofproto.OFPFC_DELETE,
            out_port=ofproto.OFPP_ANY,
            out_group=ofproto.OFPG_ANY,
        )
    )


def flow_remove(flow: Flow) -> bytes:
    """OFPT_FLOW_MOD that deletes whatever has this flow's table, priority and match."""
    return serialized(
        parser.OFPFlowMod(
            DATAPATH,
            table_id=flow.table,
            command=ofproto.OFPFC_DELETE_STRICT,
            priority=flow.priority,
            out_port=ofproto.OFPP_ANY,
            out_group=ofproto.OFPG_ANY,
            match=ordered_match(_match_fields(flow, protocol_of(flow))),
        )
    )


def meter_mod(command: MeterCommand, meter: Meter) -> bytes:
    """OFPT_METER_MOD: one band that drops, in packets a second. For DELETE only the id counts."""
    bands = []
    if command != MeterCommand.DELETE:
        bands = [parser.OFPMeterBandDrop(rate=meter.rate, burst_size=meter.burst)]
    flags = ofproto.OFPMF_PKTPS | ofproto.OFPMF_BURST
    return serialized(parser.OFPMeterMod(DATAPATH, command, flags, meter.id, bands))


def bundle_control(kind: int) -> bytes:
    """OFPT_BUNDLE_CONTROL; `kind` is one of enum ofp_bundle_ctrl_type."""
    return serialized(parser.OFPBundleCtrlMsg(DATAPATH, BUNDLE_ID, kind, BUNDLE_FLAGS, []))


def barrier() -> bytes:
    """OFPT_BARRIER_REQUEST."""
    return serialized(parser.OFPBarrierRequest(DATAPATH))


def conntrack_flush(zone: int, direction: Direction, source: IPv4Address) -> bytes:
    """NXT_CT_FLUSH (OVS from 3.1): forget the connections that have this source in a direction."""
    mapped = bytes(10) + b"\xff\xff" + source.packed
    address = struct.pack("!HH", _CT_TUPLE_SRC, 4 + len(mapped)) + mapped + bytes(4)
    tuple_ = struct.pack("!HH4x", direction, 8 + len(address)) + address
    in_zone = struct.pack("!HHHxx", _CT_ZONE_ID, 8, zone)
    # Of all protocols.
    data = bytes(8) + tuple_ + in_zone
    return serialized(parser.OFPExperimenter(DATAPATH, _NX_VENDOR_ID, _NXT_CT_FLUSH, data))


# Of OVS's include/openflow/nicira-ext.h.
_NX_VENDOR_ID: Final = 0x2320
_NXT_CT_FLUSH: Final = 32
_CT_ZONE_ID: Final = 2
_CT_TUPLE_SRC: Final = 0


def protocol_of(flow: Flow) -> int | None:
    """The layer 4 protocol that a flow matches: it says which fields `tp_src` and `tp_dst` are."""
    return next((value for name, value, _ in flow.match if name == "nw_proto"), None)


def described(flow: Flow) -> str:
    """A flow in a few words for people."""
    return (
        f"flow {flow.reason!r} (table {flow.table}, priority {flow.priority},"
        f" cookie {flow.cookie:#x})"
    )


def _match_fields(flow: Flow, protocol: int | None) -> Iterable[tuple[str, Any]]:
    for name, value, mask in flow.match:
        oxm = _oxm_name(name, protocol, flow)
        yield oxm, _value(oxm, value, mask, flow)


def _value(oxm: str, value: int, mask: int | None, flow: Flow) -> Any:
    try:
        return oxm_value(oxm, value, mask)
    except KeyError:
        raise CodecError(f"{described(flow)}: {oxm}: no such field") from None
    except OverflowError:
        raise CodecError(f"{described(flow)}: {oxm}: {value:#x} does not fit the field") from None


def _oxm_name(field: str, protocol: int | None, flow: Flow) -> str:
    if field in ("tp_src", "tp_dst"):
        if protocol not in _LAYER_4:
            raise CodecError(f"{described(flow)}: {field} needs nw_proto 6, 17 or 132")
        return _LAYER_4[protocol] + field.removeprefix("tp")
    return _OXM.get(field, field)


def _action(action: Action, flow: Flow, protocol: int | None) -> Any:  # noqa: PLR0911 - one line each
    match action:
        case Output(port):
            return parser.OFPActionOutput(port, ofproto.OFPCML_NO_BUFFER)
        case OutputReg(register):
            return output_reg(register)
        case SetField(field, value, mask):
            oxm = _oxm_name(field, protocol, flow)
            return parser.OFPActionSetField(**{oxm: _value(oxm, value, mask, flow)})
        case Move(source, destination):
            oxms = [_oxm_name(name, protocol, flow) for name in (source, destination)]
            bits = 8 * oxm_width(oxms[0])
            if bits != 8 * oxm_width(oxms[1]):
                raise CodecError(f"{described(flow)}: {source} and {destination} differ in width")
            return parser.OFPActionCopyField(n_bits=bits, oxm_ids=oxms)
        case ApplyMeter(meter):
            return parser.OFPActionMeter(meter)
        case Note(data):
            return note(data)
        case Ct():
            return parser.NXActionCT(
                flags=_CT_COMMIT if action.commit else 0,
                zone_src="",
                zone_ofs_nbits=action.zone,
                recirc_table=_CT_NO_TABLE if action.table is None else action.table,
                alg=0,
                actions=list(_in_ct(action, flow, protocol)),
            )
    raise CodecError(f"{described(flow)}: cannot encode {action!r}")


def _in_ct(action: Ct, flow: Flow, protocol: int | None) -> Iterable[Any]:
    match action.nat:
        case Nat(source=None):
            yield nat(flags=0)
        case Nat(source=0):
            yield nat(_NAT_SOURCE)
        case Nat(source=int(source)):
            yield nat(_NAT_SOURCE, oxm_value("ipv4_src", source, None))
    for field in action.exec:
        yield _action(field, flow, protocol)


# Of ovs-actions(7) and OVS's lib/ofp-actions.c.
_CT_COMMIT: Final = 1
_CT_NO_TABLE: Final = 0xFF
_NAT_SOURCE: Final = 1
