"""Foreign flows as text: for people to read, never for decisions.

os-ken reads one entry at a time, so that one it cannot read (it stumbles over `move`) is shown as
such and spoils no other. What is not even well formed it is not shown: over an action that claims
to be 0 bytes long it goes on for ever, and takes all memory.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

from openflow.compat import ofproto, parser
from openflow.messages import InstalledFlow, InstalledGroup, group_parts
from openflow.os_ken_codec import ofproto_common

_UNREADABLE = "(cannot be read here; ovs-ofctl dump-flows shows it)"
_UNINTERESTING = frozenset(
    ("type", "len", "length", "experimenter", "vendor", "subtype", "max_len")
)


def described(flow: InstalledFlow) -> tuple[str, str]:
    """Match and actions of a dumped flow, in os-ken's names of fields and actions."""
    try:
        _check(flow.raw)
        read = parser.OFPFlowDesc.parser(flow.raw, 0)
        fields = ",".join(
            f"{_NAMES.get(name, name)}={_value(value)}" for name, value in read.match.items()
        )
        actions = [
            _action(action)
            for instruction in read.instructions
            for action in getattr(instruction, "actions", None) or [instruction]
        ]
    except Exception:  # noqa: BLE001 - whatever a parser raises over bytes it does not know
        return _UNREADABLE, _UNREADABLE
    return fields, ",".join(actions) or "drop"


def described_buckets(group: InstalledGroup) -> list[dict[str, Any]]:
    """The buckets of a dumped group: id, weight, the endpoint or group it leads to, and actions."""
    found = []
    for bucket in group_parts(group)[0]:
        _, length, number = _BUCKET.unpack_from(bucket)
        row = {"id": number, "weight": 0, "endpoint": "", "group": None, "actions": _UNREADABLE}
        found.append(row)
        try:
            _check_actions(bucket[_BUCKET.size :][:length])
            for _ in _entries(bucket[_BUCKET.size + length :]):
                pass
            read = parser.OFPBucket.parser(bucket, 0)
            row["weight"] = sum(getattr(each, "weight", 0) for each in read.properties)
            row["actions"] = ",".join(map(_action, read.actions)) or "drop"
            groups = (
                one.group_id for one in read.actions if isinstance(one, parser.OFPActionGroup)
            )
            row["group"] = next(groups, None)
            inner = [each for one in read.actions for each in getattr(one, "actions", ())]
            row["endpoint"] = next(filter(None, map(_translated, inner)), "")
        except Exception:  # noqa: BLE001, S112 - as in `described`
            continue
    return found


def _translated(action: Any) -> str:
    """`ADDRESS:PORT` where that is what a `nat` makes of the destination."""
    if not isinstance(action, parser.NXActionNAT) or not action.flags & _NAT_DESTINATION:
        return ""
    port = action.range_proto_min
    return f"{action.range_ipv4_min}:{port}" if port else str(action.range_ipv4_min)


_BUCKET: Final = struct.Struct("!HHI")
"""struct ofp_bucket: length, length of its actions, id; then actions, then properties (7.3.4.3)."""
_NAT_DESTINATION: Final = 2
"""NX_NAT_F_DST (Open vSwitch, ofp-actions.c)."""
_HEAD: Final = struct.Struct("!HH")
"""Type and length, of matches, statistics, instructions and actions alike (7.2)."""
_WITH_ACTIONS: Final = (ofproto.OFPIT_WRITE_ACTIONS, ofproto.OFPIT_APPLY_ACTIONS)
_NESTED: Final = {35: 24, 42: 16}
"""Where in Nicira's actions ct and clone (by subtype) the actions begin that they hold."""


def _check(flow: bytes) -> None:
    """Raise `ValueError` or `struct.error` where a length leaves no way on behind it."""
    at = 24  # behind the fixed part; then the match and the statistics
    for _ in range(2):
        at += -(-_HEAD.unpack_from(flow, at)[1] // 8) * 8
    for kind, body in _entries(flow[at:]):
        if kind in _WITH_ACTIONS:
            _check_actions(body[8:])


def _check_actions(actions: bytes) -> None:
    for kind, body in _entries(actions):
        if kind == ofproto.OFPAT_EXPERIMENTER:
            maker, subtype = struct.unpack_from("!IH", body, 4)
            if maker == ofproto_common.NX_EXPERIMENTER_ID and subtype in _NESTED:
                _check_actions(body[_NESTED[subtype] :])


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and whole bytes of each of a row of entries."""
    while data:
        kind, length = _HEAD.unpack_from(data)
        if not 8 <= length <= len(data):
            raise ValueError("no way on")
        yield kind, data[:length]
        data = data[length:]


# By what names ovs-ofctl has them, where os-ken's are others.
_NAMES = {
    "eth_type": "dl_type",
    "eth_src": "dl_src",
    "eth_dst": "dl_dst",
    "ip_proto": "nw_proto",
    "ipv4_src": "nw_src",
    "ipv4_dst": "nw_dst",
    **{f"{p}_{end}": f"tp_{end}" for p in ("tcp", "udp", "sctp") for end in ("src", "dst")},
}


def _action(action: Any) -> str:
    if isinstance(action, parser.OFPInstructionGotoTable):
        return f"goto_table:{action.table_id}"
    if isinstance(action, parser.OFPActionSetField):
        return f"set_field:{_value(action.value)}->{_NAMES.get(action.key, action.key)}"
    if isinstance(action, parser.OFPActionOutput):
        return f"output:{action.port}"
    if endpoint := _translated(action):
        return f"nat(dst={endpoint})"
    if isinstance(action, parser.OFPActionGroup):
        return f"group:{action.group_id}"
    name = type(action).__name__
    for prefix in ("OFPAction", "OFPInstruction", "NXAction"):
        name = name.removeprefix(prefix)
    values = ",".join(
        f"{key}={_value(value)}"
        for key, value in sorted(vars(action).items())
        if key not in _UNINTERESTING and not key.startswith("_") and value is not None
    )
    return f"{name}({values})"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_action, value))}]"
    if isinstance(value, tuple):
        return "/".join(map(_value, value))
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)
