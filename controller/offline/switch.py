"""What a switch does with one packet, computed from the flows and groups that it should hold.

As Open vSwitch would do it: the flow of the highest priority in each table, its actions in their
order. Meters let everything pass, and `learn` learns nothing. A conntrack lookup ends a part; who
follows the packet (`wire.tracing.switch`) knows what is found.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final, TypeAlias

from flows.actions import (
    IN_PORT,
    Action,
    ApplyMeter,
    Ct,
    CtClear,
    Goto,
    Move,
    MoveBits,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToGroup,
)
from flows.features.protocols import ICMP, LAYER_4_NAMES
from flows.fields import PORT_FIELDS, WIDTHS
from flows.flow import CT_STATE_NAMES, Bucket, Flow, Group, mac
from flows.pipeline import CT_ZONE, LAYOUT
from flows.traced import Resume, Traced, TracedStep
from wire.questions import MAX_STEPS
from wire.tracing import TraceError
from wire.tracing.switch import NOWHERE, Entry

MOST_RESUBMITS: Final = 64
"""Resubmits within each other (Open vSwitch, `MAX_DEPTH` of ofproto-dpif-xlate.c)."""
_IPV4: Final = 0x0800
_ADDRESSES: Final = ("nw_src", "nw_dst", "tun_src", "tun_dst", "ct_nw_src", "ct_nw_dst")
_MACS: Final = ("dl_src", "dl_dst")
_FROM_CONNTRACK: Final = ("ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_src", "ct_nw_dst")
_ENDPOINT_ADDRESS, _ENDPOINT_PORT = (
    LAYOUT.registers[name] for name in ("EndpointAddress", "EndpointPort")
)

_Masks: TypeAlias = tuple[tuple[str, int], ...]
"""By field, the bits that a flow matches."""


class _Alike:
    """The flows of a table that match the same bits of the same fields."""

    __slots__ = ("flows", "highest", "masks")

    def __init__(self, masks: _Masks) -> None:
        self.masks = masks
        self.flows: dict[tuple[int, ...], Flow] = {}
        self.highest = -1
        """The highest priority."""

    def add(self, flow: Flow) -> None:
        values = tuple(value for _, value, _ in flow.match)
        other = self.flows.get(values)
        if other is None or other.priority < flow.priority:
            self.flows[values] = flow
        self.highest = max(self.highest, flow.priority)


class FlowTables:
    """Flows by table, each table prepared when it is first looked into."""

    def __init__(self, flows: Iterable[Flow]) -> None:
        self._flows: dict[int, list[Flow]] = {}
        for flow in flows:
            self._flows.setdefault(flow.table, []).append(flow)
        self._prepared: dict[int, list[_Alike]] = {}

    def find(self, table: int, fields: Mapping[str, int]) -> Flow | None:
        """The flow of the highest priority that a packet with these fields matches."""
        found: Flow | None = None
        for alike in self._alike(table):
            if found is not None and found.priority >= alike.highest:
                break
            values = tuple([fields.get(name, 0) & mask for name, mask in alike.masks])
            flow = alike.flows.get(values)
            if flow is not None and (found is None or flow.priority > found.priority):
                found = flow
        return found

    def _alike(self, table: int) -> list[_Alike]:
        prepared = self._prepared.get(table)
        if prepared is None:
            by_masks: dict[_Masks, _Alike] = {}
            for flow in self._flows.get(table, ()):
                masks = tuple(
                    (name, (1 << WIDTHS[name]) - 1 if mask is None else mask)
                    for name, _, mask in flow.match
                )
                if masks not in by_masks:
                    by_masks[masks] = _Alike(masks)
                by_masks[masks].add(flow)
            prepared = sorted(by_masks.values(), key=lambda each: -each.highest)
            self._prepared[table] = prepared
        return prepared


class OfflineSwitch:
    """A node's switch as its flows and groups describe it."""

    def __init__(self, tables: Iterable[FlowTables], groups: Mapping[int, Group]) -> None:
        """`tables` together are all flows of the node."""
        self._tables = tuple(tables)
        self._groups = groups

    def find(self, table: int, fields: Mapping[str, int]) -> Flow | None:
        """As `FlowTables.find`."""
        found = [flow for each in self._tables if (flow := each.find(table, fields)) is not None]
        return max(found, key=lambda flow: flow.priority, default=None)

    def group(self, number: int) -> Group | None:
        """The group with this id."""
        return self._groups.get(number)

    def leads_to(self, bucket: Bucket, endpoint: tuple[IPv4Address, int]) -> bool:
        """Whether a bucket, or a group behind it, chooses an endpoint."""
        behind = [bucket]
        for action in bucket.actions:
            # Groups behind groups have endpoints only (`flows.features.endpoints`).
            if isinstance(action, ToGroup) and (group := self._groups.get(action.group)):
                behind += group.buckets
        return any(_translates(each, int(endpoint[0]), endpoint[1]) for each in behind)

    async def part(self, entry: Entry) -> Traced:
        """What happens to a packet until the next conntrack lookup. Raises `TraceError`."""
        return _Part(self, entry).run()


def _translates(bucket: Bucket, address: int, port: int) -> bool:
    """Whether a bucket itself translates to an endpoint, or loads it into registers."""
    loaded: dict[str, int] = {}
    for action in bucket.actions:
        match action:
            case Ct(nat=nat) if nat is not None and nat.destination == (address, port):
                return True
            case SetField(name, value):
                loaded[name] = value
            case _:
                pass
    return all(
        loaded.get(field.register) == value << field.bits[0]
        for field, value in ((_ENDPOINT_ADDRESS, address), (_ENDPOINT_PORT, port))
    )


class _Part:
    """One part of a trace."""

    def __init__(self, switch: OfflineSwitch, entry: Entry) -> None:
        self._switch = switch
        self._entry = entry
        self._fields = _begin(entry)
        self._stack: list[int] = []
        self._steps: list[TracedStep] = []
        self._outputs: list[int | None] = []
        self._meters: list[int] = []
        self._groups: list[int] = []
        self._resume: Resume | None = None
        self._commits: list[Resume] = []

    def run(self) -> Traced:
        self._look_up(self._entry.table, 0)
        return Traced(
            tuple(self._steps), _texts(self._fields), self._resume,
            tuple(self._outputs), tuple(self._meters), tuple(self._groups), tuple(self._commits),
        )  # fmt: skip

    def _look_up(self, first: int, depth: int) -> None:
        _check(depth)
        table: int | None = first
        while table is not None:
            if len(self._steps) >= MAX_STEPS:
                raise TraceError(f"the packet meets more than {MAX_STEPS:,} flows")
            flow = self._switch.find(table, self._fields)
            if flow is None:
                self._steps.append(TracedStep(table, None, 0, depth))
                return
            self._steps.append(TracedStep(table, flow.cookie, flow.priority, depth))
            table = self._execute(flow.actions, depth)

    def _execute(self, actions: tuple[Action, ...], depth: int) -> int | None:
        """The table where the packet goes on; None: nowhere."""
        for action in actions:
            match action:
                case Goto(table):
                    return table
                case Resubmit(table):
                    self._look_up(table, depth + 1)
                case ToGroup(number):
                    self._choose(number, depth)
                case Ct():
                    self._conntrack(action)
                case Output(port):
                    self._outputs.append(None if port == IN_PORT else port)
                case OutputReg(register):
                    self._outputs.append(self._fields.get(register, 0))
                case ApplyMeter(meter):
                    self._meters.append(meter)
                case _:
                    self._change(action)
        return None

    def _change(self, action: Action) -> None:
        """Change the packet or its registers; what does neither is ignored."""
        match action:
            case SetField(name, value, mask):
                self._write(name, value, (1 << WIDTHS[name]) - 1 if mask is None else mask)
            case Move(source, destination):
                self._write(destination, self._read(source), (1 << WIDTHS[destination]) - 1)
            case MoveBits(source, first, destination, to, bits):
                ones = (1 << bits) - 1
                value = (self._read(source) >> first & ones) << to
                self._write(destination, value, ones << to)
            case Push(name):
                self._stack.append(self._read(name))
            case Pop(name):
                # An empty stack changes nothing.
                if self._stack:
                    self._write(name, self._stack.pop(), (1 << WIDTHS[name]) - 1)
            case CtClear():
                for name in _FROM_CONNTRACK:
                    self._fields.pop(name, None)
            case _:
                pass

    def _choose(self, number: int, depth: int) -> None:
        _check(depth)
        self._groups.append(number)
        group = self._switch.group(number)
        if group is None or not group.buckets:
            return
        wanted = self._entry.endpoint
        bucket = next(
            (
                each
                for each in group.buckets
                if wanted is not None and self._switch.leads_to(each, wanted)
            ),
            group.buckets[0],
        )
        # A bucket changes a copy of the packet.
        before = dict(self._fields)
        self._execute(bucket.actions, depth + 1)
        self._fields = before

    def _conntrack(self, ct: Ct) -> None:
        if self._resume is not None:
            return
        destination: tuple[IPv4Address, int | None] | None = None
        source: IPv4Address | None = None
        if ct.nat is not None and ct.nat.destination is not None:
            address, port = ct.nat.destination
            destination = IPv4Address(address), port
        if ct.nat is not None and ct.nat.source:
            source = IPv4Address(ct.nat.source)
        value = mask = 0
        for each in ct.exec:
            if isinstance(each, SetField) and each.field == "ct_mark":
                bits = 0xFFFF_FFFF if each.mask is None else each.mask
                value, mask = value & ~bits | each.value, mask | bits
        found = Resume(
            ct.table or 0,
            ct.zone,
            ct.commit,
            ct.nat is not None,
            destination,
            source,
            (value, mask),
        )
        if ct.table is not None:
            self._resume = found
        elif ct.commit:
            self._commits.append(found)
            # The packet goes on as one that no lookup has seen (ovs-actions(7), ct).
            self._fields = {n: v for n, v in self._fields.items() if not n.startswith("ct_")}

    def _read(self, name: str) -> int:
        if name.startswith("xreg"):
            high, low = _halves(name)
            return self._fields.get(high, 0) << 32 | self._fields.get(low, 0)
        return self._fields.get(_as_matched(name), 0)

    def _write(self, name: str, value: int, mask: int) -> None:
        if name.startswith("xreg"):
            high, low = _halves(name)
            self._write(high, value >> 32, mask >> 32)
            self._write(low, value & 0xFFFF_FFFF, mask & 0xFFFF_FFFF)
            return
        name = _as_matched(name)
        self._fields[name] = self._fields.get(name, 0) & ~mask | value & mask


def _check(depth: int) -> None:
    if depth > MOST_RESUBMITS:
        raise TraceError(f"more than {MOST_RESUBMITS} resubmits within each other")


def _as_matched(name: str) -> str:
    """Actions name a port with its protocol, matches do not."""
    return f"tp_{name[-3:]}" if name in PORT_FIELDS else name


def _halves(name: str) -> tuple[str, str]:
    number = 2 * int(name.removeprefix("xreg"))
    return f"reg{number}", f"reg{number + 1}"


def _begin(entry: Entry) -> dict[str, int]:
    """The fields of a packet by number. A field that is not there is 0."""
    packet = entry.packet
    known = {**entry.fields, "tun_src": NOWHERE, "tun_dst": NOWHERE, "tun_id": "0", **entry.tunnel}
    if entry.tunnel_destination is not None:
        known["tun_dst"] = entry.tunnel_destination
    fields = {name: _number(name, text) for name, text in known.items() if name in WIDTHS}
    fields |= {
        "dl_type": _IPV4,
        "nw_proto": packet.protocol,
        "nw_src": int(packet.source),
        "nw_dst": int(packet.destination),
    }
    for name in ("tp_src", "tp_dst", "icmp_type", "icmp_code"):
        fields.pop(name, None)
    ports = ("icmp_type", "icmp_code") if packet.protocol == ICMP else ("tp_src", "tp_dst")
    if packet.protocol == ICMP or packet.protocol in LAYER_4_NAMES:
        fields |= dict(zip(ports, (packet.source_port, packet.destination_port), strict=True))
    if entry.state:
        bits = entry.state.split("|")
        fields["ct_state"] = sum(1 << CT_STATE_NAMES.index(bit) for bit in bits)
        fields["ct_zone"] = CT_ZONE
    if (connection := entry.connection) is not None:
        fields |= {
            "ct_mark": connection.mark,
            "ct_label": int(connection.label, 16),
            "ct_nw_src": int(connection.source),
            "ct_nw_dst": int(connection.destination),
        }
    return fields


def _number(name: str, text: str) -> int:
    if name in _ADDRESSES:
        return int(IPv4Address(text))
    return mac(text) if name in _MACS else int(text, 0)


def _texts(fields: Mapping[str, int]) -> dict[str, str]:
    """The inverse of `_number`."""
    return {name: _text(name, value) for name, value in fields.items()}


def _text(name: str, value: int) -> str:
    if name in _ADDRESSES:
        return str(IPv4Address(value))
    if name in _MACS:
        return value.to_bytes(6, "big").hex(":")
    return hex(value) if name.startswith(("reg", "ct_", "tun_")) else str(value)
