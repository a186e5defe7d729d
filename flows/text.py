"""Flows as text: as Open vSwitch prints them, or for people.

Without labels, `flow_text` equals the line of `ovs-ofctl --names dump-flows` for the installed flow
(without cookie and statistics). With `Labels`, register fields, ofports and Service
ports have names: `Source=POD` for `reg0=0x1/0xf`, `OutputPort=16 (default/a1)` for `reg1=0x10`.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from flows.fields import WIDTHS
from flows.flow import (
    ANY_FRAGMENT,
    CT_STATE_NAMES,
    IN_PORT,
    Action,
    ApplyMeter,
    Bucket,
    Ct,
    CtClear,
    Flow,
    Goto,
    Group,
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
from flows.labels import Labels, bits_name, register_field
from flows.pipeline import LAYOUT

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_PROTOCOLS = {
    (_IPV4, 1): "icmp",
    (_IPV4, 6): "tcp",
    (_IPV4, 17): "udp",
    (_IPV4, 132): "sctp",
    (_IPV6, 6): "tcp6",
    (_IPV6, 17): "udp6",
    (_IPV6, 58): "icmp6",
}
_ETHERTYPES = {_IPV4: "ip", _ARP: "arp", _IPV6: "ipv6"}
_MACS = frozenset(("dl_src", "dl_dst", "arp_sha", "arp_tha"))
_ADDRESSES = frozenset(
    ("nw_src", "nw_dst", "arp_spa", "arp_tpa", "tun_src", "tun_dst", "ct_nw_src", "ct_nw_dst")
)
_IPV6_ADDRESSES = frozenset(
    ("ipv6_src", "ipv6_dst", "tun_ipv6_src", "tun_ipv6_dst", "ct_ipv6_src", "ct_ipv6_dst")
)
_HEXADECIMAL = frozenset(("ct_mark", "ct_label", "tun_id"))
# The names in set_field, where they differ from the names in a match (ovs-fields(7)).
_WRITTEN_NAMES = {
    "dl_src": "eth_src",
    "dl_dst": "eth_dst",
    "nw_src": "ip_src",
    "nw_dst": "ip_dst",
}
_NXM_NAMES = {"nw_src": "NXM_OF_IP_SRC"}
_MOVED_NAMES = {
    "dl_src": "NXM_OF_ETH_SRC",
    "dl_dst": "NXM_OF_ETH_DST",
    "arp_sha": "NXM_NX_ARP_SHA",
    "arp_tha": "NXM_NX_ARP_THA",
    "arp_spa": "NXM_OF_ARP_SPA",
    "arp_tpa": "NXM_OF_ARP_TPA",
    "nw_src": "NXM_OF_IP_SRC",
    "nw_dst": "NXM_OF_IP_DST",
    "tcp_src": "NXM_OF_TCP_SRC",
    "tcp_dst": "NXM_OF_TCP_DST",
    "udp_src": "NXM_OF_UDP_SRC",
    "udp_dst": "NXM_OF_UDP_DST",
    "sctp_src": "OXM_OF_SCTP_SRC",
    "sctp_dst": "OXM_OF_SCTP_DST",
}


def flow_text(flow: Flow, labels: Labels | None = None) -> str:
    """`table=NAME, priority=N,MATCH actions=ACTIONS`."""
    match_, actions = match_text(flow, labels), actions_text(flow, labels)
    return f"table={table_name(flow.table)}, {match_} actions={actions}"


def table_name(number: int) -> str:
    """The name of a table, or its number if it has none."""
    table = LAYOUT.by_number.get(number)
    return table.name if table else str(number)


def match_text(flow: Flow, labels: Labels | None = None) -> str:
    """`priority=N,MATCH`."""
    parts = [f"priority={flow.priority}"]
    given = {name: value for name, value, _ in flow.match}
    ethertype, protocol = given.get("dl_type"), given.get("nw_proto")
    shorthand = _PROTOCOLS.get((ethertype or 0, protocol or 0))
    for name, value, mask in flow.match:
        if name == "dl_type":
            parts.append(shorthand or _ETHERTYPES.get(value) or f"dl_type={value:#06x}")
        elif name == "nw_proto":
            if shorthand is None:
                parts.append(f"nw_proto={value}")
        elif (name, value, mask) == ("nw_frag", *ANY_FRAGMENT):
            parts.append("nw_frag=yes")
        elif name == "ct_state":
            parts.append(f"ct_state={_ct_state(value, mask)}")
        elif labels and name.startswith("reg"):
            wide = labels.wide(name, given, flow.table)
            fields = labels.fields(name, value, mask, flow.table) if wide is None else wide
            parts += ("=".join(each) for each in fields)
        elif labels and name == "in_port":
            parts.append(f"in_port={labels.ofport(value)}")
        else:
            printed = "icmp_type" if name == "icmpv6_type" else name
            parts.append(f"{printed}={_value(name, value, mask)}")
    return ",".join(parts)


def actions_text(flow: Flow, labels: Labels | None = None) -> str:
    """Comma-separated; `drop` for none."""
    texts = (action_text(action, labels, flow.table) for action in flow.actions)
    return ",".join(texts) or "drop"


def golden(flows: Iterable[Flow], labels: Labels | None = None) -> str:
    """Flows by table and falling priority, one a line, each with its reason."""
    ordered = sorted(flows, key=lambda flow: (flow.table, -flow.priority, match_text(flow)))
    lines = []
    table = None
    for flow in ordered:
        if flow.table != table:
            table = flow.table
            lines.append(f"# {table_name(table)} ({table})")
        text = f"{match_text(flow, labels)} actions={actions_text(flow, labels)}"
        lines.append(f"{text}  # {flow.reason}")
    return "\n".join(lines) + "\n"


def _value(name: str, value: int, mask: int | None) -> str:
    if name in _MACS:
        octets = value.to_bytes(6, "big").hex(":")
        return octets if mask is None else f"{octets}/{mask.to_bytes(6, 'big').hex(':')}"
    if name in _ADDRESSES:
        address = str(IPv4Address(value))
        return address if mask is None else f"{address}/{_prefix(mask)}"
    if name in _IPV6_ADDRESSES:
        address = str(IPv6Address(value))
        return address if mask is None else f"{address}/{_prefix(mask, 128)}"
    if name.startswith(("reg", "xreg")) or name in _HEXADECIMAL:
        # As printf's %#x: zero has no prefix.
        text = f"{value:#x}" if value else "0"
        return text if mask is None else f"{text}/{mask:#x}"
    if mask is not None:
        return f"{value:#x}/{mask:#x}"
    return str(value)


def _prefix(mask: int, bits: int = 32) -> str:
    length = mask.bit_count()
    contiguous = mask == (1 << bits) - (1 << (bits - length))
    return (
        str(length) if contiguous else str(IPv4Address(mask) if bits == 32 else IPv6Address(mask))
    )


def _ct_state(value: int, mask: int | None) -> str:
    bits = value if mask is None else mask
    return "".join(
        ("+" if value >> index & 1 else "-") + name
        for index, name in enumerate(CT_STATE_NAMES)
        if bits >> index & 1
    )


def action_text(action: Action, labels: Labels | None = None, table: int = 0) -> str:  # noqa: C901, PLR0911, PLR0912 - one line per kind
    """One action of a flow of this table."""
    match action:
        case Output(port):
            if port == IN_PORT:
                return "IN_PORT"
            return f"output:{labels.ofport(port) if labels else port}"
        case OutputReg(register) if labels:
            return f"output:{register_field(register, table)}"
        case OutputReg(register):
            return f"output:NXM_NX_{register.upper()}[]"
        case SetField(name, value, mask) if labels and name.startswith(("reg", "xreg")):
            written = labels.fields(name, value, mask, table)
            return ",".join(f"set_field:{text}->{field}" for field, text in written)
        case SetField(name, value, mask):
            text = _value(name, value, mask)
            return f"set_field:{text}->{_WRITTEN_NAMES.get(name, name)}"
        case Move(source, destination):
            return f"move:{_MOVED_NAMES[source]}[]->{_MOVED_NAMES[destination]}[]"
        case MoveBits(source, first, destination, to, bits):
            ends = ((source, first), (destination, to))
            if labels:
                return "move:" + "->".join(bits_name(*end, bits, table) for end in ends)
            return "move:" + "->".join(_bits_text(*end, bits) for end in ends)
        case Push(name) | Pop(name):
            return f"{type(action).__name__.lower()}:{_MOVED_NAMES[name]}[]"
        case Ct():
            return _ct(action, labels, table)
        case CtClear():
            return "ct_clear"
        case ApplyMeter(meter):
            return f"meter:{meter}"
        case Note(data):
            return "note:" + data.hex(".")
        case ToGroup(group):
            return f"group:{labels.group(group) if labels else group}"
        case Resubmit(table):
            return f"resubmit(,{table_name(table)})"
        case ToController(number, size):
            return f"controller(max_len={size},id={number})"
        case Learn():
            return _learn(action, labels)
        case Goto(table):
            return f"goto_table:{table_name(table)}"


def _ct(ct: Ct, labels: Labels | None, table: int) -> str:
    parts = ["commit"] if ct.commit else []
    if ct.table is not None:
        parts.append(f"table={table_name(ct.table)}")
    parts.append(f"zone={ct.zone}")
    if ct.nat is not None:
        parts.append(_nat(ct.nat))
    if ct.exec:
        parts.append(f"exec({','.join(action_text(each, labels, table) for each in ct.exec)})")
    return f"ct({','.join(parts)})"


def _bits_text(field: str, first: int, bits: int) -> str:
    name = _MOVED_NAMES.get(field, f"NXM_NX_{field.upper()}")
    if bits == WIDTHS[field]:
        return f"{name}[]"
    return f"{name}[{first}]" if bits == 1 else f"{name}[{first}..{first + bits - 1}]"


def _nat(nat: Nat) -> str:
    if nat.destination is not None:
        address, port = nat.destination
        to = f"[{IPv6Address(address)}]" if nat.version == 6 else str(IPv4Address(address))
        return f"nat(dst={to}:{port})"
    if nat.source is None:
        return "nat"
    source = IPv6Address(nat.source) if nat.version == 6 else IPv4Address(nat.source)
    address_text = f"={source}" if nat.source else ""
    ports = ":{}-{}".format(*nat.ports) if nat.ports else ""
    return f"nat(src{address_text}{ports})"


def _learn(learn: Learn, labels: Labels | None) -> str:
    parts = [f"table={table_name(learn.table)}"]
    if learn.idle_timeout:
        parts.append(f"idle_timeout={learn.idle_timeout}")
    parts += [f"priority={learn.priority}", "delete_learned"]
    parts += [f"cookie={learn.cookie:#x}", "eth_type=0x800"]
    if labels:
        parts += (register_field(name, learn.table) for name in learn.match)
        loads = (register_field(name, learn.table) for name in learn.load)
        return f"learn({','.join((*parts, *(f'load:{name}->{name}' for name in loads)))})"
    parts += (f"{_NXM_NAMES.get(n, f'NXM_NX_{n.upper()}')}[]" for n in learn.match)
    for name in learn.load:
        register = f"NXM_NX_{name.upper()}[]"
        parts.append(f"load:{register}->{register}")
    return f"learn({','.join(parts)})"


def group_text(group: Group, labels: Labels | None = None) -> str:
    """As `ovs-ofctl --names dump-groups` prints it; with labels, for people."""
    number = labels.group(group.id) if labels else group.id
    parts = [f"group_id={number},type=select,selection_method={group.method}"]
    fields = [_WRITTEN_NAMES.get(name, name) for name in group.fields]
    if len(fields) == 1:
        parts.append(f"fields={fields[0]}")
    elif fields:
        parts.append(f"fields({','.join(fields)})")
    for bucket in group.buckets:
        actions = bucket_text(bucket, labels)
        parts.append(f"bucket=bucket_id:{bucket.id},weight:{bucket.weight},actions={actions}")
    return ",".join(parts)


def bucket_text(bucket: Bucket, labels: Labels | None = None) -> str:
    """The actions of a bucket; `drop` for none."""
    table = LAYOUT.tables["EndpointChoice"].number
    return ",".join(action_text(each, labels, table) for each in bucket.actions) or "drop"
