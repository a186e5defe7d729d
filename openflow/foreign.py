"""Flows that nobody here made, in words: for people who look, never for decisions.

os-ken reads one entry at a time, so that one it cannot read (it stumbles over `move`) is shown as
such and spoils no other.
"""

from typing import Any

from os_ken.ofproto import ofproto_v1_5_parser as parser

from openflow.messages import InstalledFlow

_UNREADABLE = "(cannot be read here; ovs-ofctl dump-flows shows it)"
_UNINTERESTING = frozenset(
    ("type", "len", "length", "experimenter", "vendor", "subtype", "max_len")
)


def described(flow: InstalledFlow) -> tuple[str, str]:
    """Match and actions of a dumped flow, in os-ken's names of fields and actions."""
    try:
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
    if isinstance(value, tuple):
        return "/".join(map(_value, value))
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)
