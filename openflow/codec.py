"""Flows, meters and bundles as OpenFlow 1.5 bytes, made by os-ken.

Every message has xid 0; who sends it numbers it. Nothing here is fast: `templates` makes the same
bytes for shapes seen before.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final

from flows.features.protocols import LAYER_4_NAMES
from flows.flow import (
    MOST_BUCKETS,
    Action,
    ApplyMeter,
    Bucket,
    Ct,
    CtClear,
    Flow,
    FormError,
    Goto,
    Group,
    Learn,
    Meter,
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
from openflow.compat import (
    DATAPATH,
    GROUP_ADD_OR_MOD,
    SelectionMethod,
    learn,
    nat,
    note,
    nxm_name,
    ofproto,
    ordered_match,
    output_reg,
    oxm_value,
    oxm_width,
    parser,
    pop,
    push,
    serialized,
)
from openflow.conntrack import CtTuple
from openflow.errors import SwitchError

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
    "nw_frag": "ip_frag",
}
"""Names of ovs-fields(7) that os-ken calls differently; all others are the same."""


class CodecError(SwitchError, ValueError):
    """A flow or group cannot be written as OpenFlow; the text names it and the field."""


class MeterCommand(IntEnum):
    """enum ofp_meter_mod_command (OpenFlow 1.5.1, 7.3.4.4)."""

    ADD = ofproto.OFPMC_ADD
    MODIFY = ofproto.OFPMC_MODIFY
    DELETE = ofproto.OFPMC_DELETE


def flow_add(flow: Flow, stand_in: tuple[int, int | None] | None = None) -> bytes:
    """OFPT_FLOW_MOD that adds a flow, or puts it in the place of one with the same key.

    `stand_in` is (cookie, nw_proto) to use in place of the flow's own; whoever makes a template
    varies the flow's numbers, and these two depend on numbers. Raises `CodecError`.
    """
    no_form: FormError | None = None
    try:
        cookie, protocol = stand_in or (flow.cookie, protocol_of(flow))
    except FormError as error:
        # What follows names the field more exactly, if it can.
        cookie, protocol, no_form = 0, protocol_of(flow), error
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
        data = serialized(message)
    except struct.error as error:
        raise CodecError(f"{described(flow)}: a number does not fit: {error}") from None
    if no_form is not None:
        raise CodecError(str(no_form))
    return data


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


def group_set(group: Group) -> bytes:
    """OFPT_GROUP_MOD that adds a group, or puts it in the place of one with the same id.

    The command for both is Open vSwitch's own. Raises `CodecError`.
    """
    if len(group.buckets) > MOST_BUCKETS:
        raise CodecError(
            f"{described(group)}: {len(group.buckets)} buckets, of which it may have {MOST_BUCKETS}"
        )
    return _group_mod(GROUP_ADD_OR_MOD, group.id, group.buckets, [_selection_method(group)])


def buckets_insert(group: int, buckets: Iterable[Bucket]) -> bytes:
    """OFPT_GROUP_MOD that gives a group more buckets. Raises `CodecError`."""
    return _group_mod(
        ofproto.OFPGC_INSERT_BUCKET, group, buckets, position=ofproto.OFPG_BUCKET_LAST
    )


def bucket_remove(group: int, bucket: int) -> bytes:
    """OFPT_GROUP_MOD that takes one bucket away from a group, by its id."""
    return _group_mod(ofproto.OFPGC_REMOVE_BUCKET, group, position=bucket)


def group_delete(group: int) -> bytes:
    """OFPT_GROUP_MOD that deletes a group, and with it whatever flows use it."""
    return _group_mod(ofproto.OFPGC_DELETE, group)


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


def conntrack_flush(zone: int, protocol: int, original: CtTuple, reply: CtTuple) -> bytes:
    """NXT_CT_FLUSH (OVS from 3.1): forget the connections of a zone whose packets are like this.

    `protocol` 0 stands for all; a port needs one that has ports.
    """
    data = struct.pack("!B7x", protocol)
    for kind, given in ((_CT_ORIGINAL, original), (_CT_REPLY, reply)):
        fields = b"".join(_tuple_fields(given))
        if fields:
            data += struct.pack("!HH4x", kind, 8 + len(fields)) + fields
    data += struct.pack("!HHHxx", _CT_ZONE_ID, 8, zone)
    return serialized(parser.OFPExperimenter(DATAPATH, _NX_VENDOR_ID, _NXT_CT_FLUSH, data))


def _tuple_fields(given: CtTuple) -> Iterable[bytes]:
    for kind, address in ((_CT_SOURCE, given.source), (_CT_DESTINATION, given.destination)):
        if address is not None:
            prefix = b"" if address.version == 6 else bytes(10) + b"\xff\xff"
            mapped = prefix + address.packed
            yield struct.pack("!HH16s4x", kind, 4 + len(mapped), mapped)
    for kind, port in (
        (_CT_SOURCE_PORT, given.source_port),
        (_CT_DESTINATION_PORT, given.destination_port),
    ):
        if port is not None:
            yield struct.pack("!HHHxx", kind, 8, port)


# Of OVS's include/openflow/nicira-ext.h.
_NX_VENDOR_ID: Final = 0x2320
_NXT_CT_FLUSH: Final = 32
_CT_ORIGINAL: Final = 0
_CT_REPLY: Final = 1
_CT_ZONE_ID: Final = 2
_CT_SOURCE: Final = 0
_CT_DESTINATION: Final = 1
_CT_SOURCE_PORT: Final = 2
_CT_DESTINATION_PORT: Final = 3


def _group_mod(
    command: int,
    group: int,
    buckets: Iterable[Bucket] = (),
    properties: Sequence[Any] = (),
    position: int = ofproto.OFPG_BUCKET_ALL,
) -> bytes:
    message = parser.OFPGroupMod(
        DATAPATH,
        command,
        ofproto.OFPGT_SELECT,
        group,
        command_bucket_id=position,
        buckets=[_bucket(bucket) for bucket in buckets],
        properties=properties,
    )
    try:
        return serialized(message)
    except struct.error as error:
        raise CodecError(f"group {group:#x}: a number does not fit: {error}") from None


def _bucket(bucket: Bucket) -> Any:
    weight = parser.OFPGroupBucketPropWeight(ofproto.OFPGBPT_WEIGHT, weight=bucket.weight)
    actions = [_action(action, bucket, None) for action in bucket.actions]
    return parser.OFPBucket(bucket.id, actions, [weight])


def _selection_method(group: Group) -> SelectionMethod:
    oxms = [_OXM.get(field, field) for field in group.fields]
    method = SelectionMethod(group.method, oxms)
    try:
        method.serialize()
    except KeyError as error:
        raise CodecError(f"{described(group)}: {error}: no such field") from None
    return method


def protocol_of(flow: Flow) -> int | None:
    """The layer 4 protocol that a flow matches: it says which fields `tp_src` and `tp_dst` are."""
    return next((value for name, value, _ in flow.match if name == "nw_proto"), None)


def described(subject: Flow | Group | Bucket) -> str:
    """A flow, a group or a bucket in a few words for people."""
    match subject:
        case Flow():
            try:
                cookie = f"{subject.cookie:#x}"
            except FormError:
                cookie = "none"
            return (
                f"flow {subject.reason!r} (table {subject.table}, priority {subject.priority},"
                f" cookie {cookie})"
            )
        case Group():
            return f"group {subject.id:#x}"
        case Bucket():
            return f"bucket {subject.id} ({subject.actions!r})"


def _match_fields(flow: Flow, protocol: int | None) -> Iterable[tuple[str, Any]]:
    for name, value, mask in flow.match:
        oxm = _oxm_name(name, protocol, flow)
        yield oxm, _value(oxm, value, mask, flow)


def _value(oxm: str, value: int, mask: int | None, whose: Flow | Bucket) -> Any:
    try:
        return oxm_value(oxm, value, mask)
    except KeyError:
        raise CodecError(f"{described(whose)}: {oxm}: no such field") from None
    except OverflowError:
        raise CodecError(f"{described(whose)}: {oxm}: {value:#x} does not fit the field") from None


def _oxm_name(field: str, protocol: int | None, whose: Flow | Bucket) -> str:
    if field in ("tp_src", "tp_dst"):
        if protocol not in LAYER_4_NAMES:
            raise CodecError(f"{described(whose)}: {field} needs nw_proto 6, 17 or 132")
        return LAYER_4_NAMES[protocol] + field.removeprefix("tp")
    return _OXM.get(field, field)


def _action(action: Action, whose: Flow | Bucket, protocol: int | None) -> Any:  # noqa: C901, PLR0911, PLR0912 - one line each
    match action:
        case Output(port):
            return parser.OFPActionOutput(port, ofproto.OFPCML_NO_BUFFER)
        case OutputReg(register):
            return output_reg(register)
        case SetField(field, value, mask):
            oxm = _oxm_name(field, protocol, whose)
            return parser.OFPActionSetField(**{oxm: _value(oxm, value, mask, whose)})
        case Move(source, destination):
            oxms = [_oxm_name(name, protocol, whose) for name in (source, destination)]
            bits = 8 * oxm_width(oxms[0])
            if bits != 8 * oxm_width(oxms[1]):
                raise CodecError(f"{described(whose)}: {source} and {destination} differ in width")
            return parser.OFPActionCopyField(n_bits=bits, oxm_ids=oxms)
        case MoveBits(source, source_first, destination, destination_first, bits):
            oxms = [_oxm_name(name, protocol, whose) for name in (source, destination)]
            for oxm, first in zip(oxms, (source_first, destination_first), strict=True):
                if not 0 <= first < first + bits <= _bits(oxm, whose):
                    raise CodecError(f"{described(whose)}: {oxm} has no bits {first} + {bits}")
            return parser.OFPActionCopyField(bits, source_first, destination_first, oxms)
        case Push(field) | Pop(field):
            oxm = _oxm_name(field, protocol, whose)
            make = push if isinstance(action, Push) else pop
            return make(oxm, _bits(oxm, whose))
        case CtClear():
            return parser.NXActionCTClear()
        case ApplyMeter(meter):
            return parser.OFPActionMeter(meter)
        case Note(data):
            return note(data)
        case ToGroup(group):
            return parser.OFPActionGroup(group)
        case Resubmit(table):
            return parser.NXActionResubmitTable(table_id=table)
        case ToController(number, size):
            return parser.NXActionController(size, number, ofproto.OFPR_APPLY_ACTION)
        case Learn():
            return learn(
                action.table,
                list(_learned(action, whose, protocol)),
                idle_timeout=action.idle_timeout,
                priority=action.priority,
                cookie=action.cookie,
                flags=_DELETE_LEARNED,
            )
        case Ct():
            return parser.NXActionCT(
                flags=_CT_COMMIT if action.commit else 0,
                zone_src="",
                zone_ofs_nbits=action.zone,
                recirc_table=_CT_NO_TABLE if action.table is None else action.table,
                alg=0,
                actions=list(_in_ct(action, whose, protocol)),
            )
    raise CodecError(f"{described(whose)}: cannot encode {action!r}")


def _in_ct(action: Ct, whose: Flow | Bucket, protocol: int | None) -> Iterable[Any]:
    match action.nat:
        case None:
            pass
        case Nat(version=6):
            raise CodecError(f"{described(whose)}: IPv6 is not translated yet: {action.nat!r}")
        case Nat(None, None, None):
            yield nat(flags=0)
        case Nat(0, None, None):
            yield nat(_NAT_SOURCE)
        case Nat(int(source), None, ports) if source:
            for port in ports or ():
                _value("tcp_src", port, None, whose)  # os-ken would cut off what does not fit
            yield nat(_NAT_SOURCE, _value("ipv4_src", source, None, whose), ports)
        case Nat(None, (address, port), None):
            _value("tcp_dst", port, None, whose)
            yield nat(_NAT_DESTINATION, _value("ipv4_dst", address, None, whose), (port, port))
        case _:
            raise CodecError(f"{described(whose)}: cannot encode {action.nat!r}")
    for field in action.exec:
        yield _action(field, whose, protocol)


def _learned(action: Learn, whose: Flow | Bucket, protocol: int | None) -> Iterable[Any]:
    yield parser.NXFlowSpecMatch(src=_IPV4, dst=("eth_type_nxm", 0), n_bits=16)
    for fields, spec in (
        (action.match, parser.NXFlowSpecMatch),
        (action.load, parser.NXFlowSpecLoad),
    ):
        for field in fields:
            oxm = _oxm_name(field, protocol, whose)
            whole = (nxm_name(oxm), 0)
            yield spec(src=whole, dst=whole, n_bits=_bits(oxm, whose))


def _bits(oxm: str, whose: Flow | Bucket) -> int:
    try:
        return 8 * oxm_width(oxm)
    except KeyError:
        raise CodecError(f"{described(whose)}: {oxm}: no such field") from None


# Of ovs-actions(7) and OVS's lib/ofp-actions.c.
_CT_COMMIT: Final = 1
_CT_NO_TABLE: Final = 0xFF
_DELETE_LEARNED: Final = 2
"""NX_LEARN_F_DELETE_LEARNED: what was learned goes with the last flow that learns it."""
_NAT_SOURCE: Final = 1
_NAT_DESTINATION: Final = 2
_IPV4: Final = 0x0800
