"""What a switch does with one packet, computed from the flows that it should hold.

One part of a way: from a table to the next conntrack lookup, as `ofproto/trace` of Open vSwitch
tells it. Not simulated are meters (they let everything pass), learned flows (there are none) and
packets to a controller.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from flows.fields import PORT_FIELDS, WIDE_REGISTERS, WIDTHS
from flows.flow import (
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
from flows.pipeline import LAYOUT
from openflow.trace_text import Resume, Traced, TracedStep

MOST_STEPS: Final = 2_000
"""Flows that a packet meets in one part."""
DEEPEST: Final = 64
"""Resubmits within each other, as in Open vSwitch."""
_ADDRESSES: Final = frozenset(("nw_src", "nw_dst", "tun_src", "tun_dst"))
_MACS: Final = frozenset(("dl_src", "dl_dst"))
_CT_FIELDS: Final = ("ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_src", "ct_nw_dst")
_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
_TEXT_ONLY: Final = frozenset(("dp_hash", "tcp_flags", "nw_ttl", "ct_nw_proto"))

Endpoint = tuple[IPv4Address, int]


class SimulationError(ValueError):
    """The packet cannot be followed; the text says why."""


class _Fork(Exception):  # noqa: N818  no error
    """A conntrack lookup, after which another part begins."""

    def __init__(self, resume: Resume) -> None:
        self.resume = resume


class Tables:
    """The flows and groups of one switch."""

    def __init__(self, flows: Iterable[Flow], groups: Mapping[int, Group]) -> None:
        self.groups = groups
        self._tables: dict[int, list[Flow]] = {}
        for flow in flows:
            self._tables.setdefault(flow.table, []).append(flow)
        for table in self._tables.values():
            table.sort(key=lambda flow: -flow.priority)

    def best(self, table: int, fields: Mapping[str, int]) -> Flow | None:
        """The flow that matches, of the highest priority."""
        return next((f for f in self._tables.get(table, ()) if _matches(f, fields)), None)


def _matches(flow: Flow, fields: Mapping[str, int]) -> bool:
    for name, value, mask in flow.match:
        given = fields.get(name, 0)
        if (given if mask is None else given & mask) != value:
            return False
    return True


def run(tables: Tables, table: int, packet: str, endpoint: Endpoint | None) -> Traced:
    """One part, from `table` on. `packet` is a flow as ovs-ofctl(8) takes it.

    `endpoint` is what a group is to choose; None: any. Raises `SimulationError`.
    """
    part = _Part(tables, _parsed(packet), endpoint)
    resume = None
    try:
        part.table(table, 0)
    except _Fork as fork:
        resume = fork.resume
    return Traced(
        tuple(part.steps), _texts(part.fields), resume, tuple(part.outputs),
        tuple(part.meters), tuple(part.groups),
    )  # fmt: skip


@dataclass
class _Part:
    """The packet, and what has happened to it."""

    tables: Tables
    fields: dict[str, int]
    endpoint: Endpoint | None
    steps: list[TracedStep] = field(default_factory=list)
    outputs: list[int | None] = field(default_factory=list)
    meters: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    stack: list[int] = field(default_factory=list)

    def table(self, number: int, depth: int) -> None:
        """Process the packet from a table on."""
        if depth > DEEPEST:
            raise SimulationError(f"the packet is resubmitted more than {DEEPEST} times")
        following: int | None = number
        while following is not None:
            if len(self.steps) >= MOST_STEPS:
                raise SimulationError(f"the packet meets more than {MOST_STEPS:,} flows")
            flow = self.tables.best(following, self.fields)
            if flow is None:
                self.steps.append(TracedStep(following, None, 0, depth))
                return
            self.steps.append(TracedStep(following, flow.cookie, flow.priority, depth))
            following = self.apply(flow.actions, depth)

    def apply(self, actions: Iterable[Action], depth: int) -> int | None:
        """Do the actions; the table to which the packet goes then."""
        following = None
        for action in actions:
            match action:
                case Goto(table):
                    following = table
                case Resubmit(table):
                    self.table(table, depth + 1)
                case ToGroup(number):
                    self._group(number, depth)
                case Ct():
                    self._ct(action)
                case _:
                    self._change(action)
        return following

    def _change(self, action: Action) -> None:
        """What changes fields, or sends the packet."""
        match action:
            case SetField(name, value, mask):
                self._set(name, value, mask)
            case Move(source, destination):
                self._set(destination, self._get(source), None)
            case MoveBits(source, source_first, destination, first, bits):
                value = self._get(source) >> source_first & ((1 << bits) - 1)
                self._set(destination, value << first, ((1 << bits) - 1) << first)
            case Push(name):
                self.stack.append(self._get(name))
            case Pop(name):
                self._set(name, self.stack.pop() if self.stack else 0, None)
            case CtClear():
                for name in _CT_FIELDS:
                    self.fields.pop(name, None)
            case _:
                self._send(action)

    def _send(self, action: Action) -> None:
        match action:
            case ApplyMeter(meter):
                self.meters.append(meter)
            case Output(port):
                self._output(port)
            case OutputReg(register):
                self._output(self._get(register))

    def _output(self, port: int) -> None:
        if port == IN_PORT:
            self.outputs.append(None)
        elif port != self.fields.get("in_port"):
            # Open vSwitch sends nothing out of the port that it came in by.
            self.outputs.append(port)

    def _get(self, name: str) -> int:
        if name in WIDE_REGISTERS:
            first = int(name.removeprefix("xreg")) * 2
            return self._get(f"reg{first}") << 32 | self._get(f"reg{first + 1}")
        return self.fields.get(_matched_name(name), 0)

    def _set(self, name: str, value: int, mask: int | None) -> None:
        if mask is not None:
            value |= self._get(name) & ~mask
        if name in WIDE_REGISTERS:
            first = int(name.removeprefix("xreg")) * 2
            self.fields[f"reg{first}"] = value >> 32
            self.fields[f"reg{first + 1}"] = value & 0xFFFF_FFFF
        else:
            self.fields[_matched_name(name)] = value & ((1 << WIDTHS[name]) - 1)

    # --- groups ---

    def _group(self, number: int, depth: int) -> None:
        group = self.tables.groups.get(number)
        if group is None:
            return
        self.groups.append(number)
        bucket = self._bucket(group)
        if bucket is not None:
            # A bucket is a set of actions: what changes fields comes first.
            for action in bucket.actions:
                if not isinstance(action, Resubmit | ToGroup | Ct):
                    self._change(action)
            self.apply([a for a in bucket.actions if isinstance(a, Resubmit | ToGroup | Ct)], depth)

    def _bucket(self, group: Group) -> Bucket | None:
        buckets = [bucket for bucket in group.buckets if bucket.weight]
        if self.endpoint is None:
            return next(iter(buckets), None)
        found = next((each for each in buckets if self._leads_to(each)), None)
        if found is None:
            address, port = self.endpoint
            raise SimulationError(f"{address}:{port} is no endpoint that the Service chooses here")
        return found

    def _leads_to(self, bucket: Bucket) -> bool:
        address, port = LAYOUT.registers["EndpointAddress"], LAYOUT.registers["EndpointPort"]
        loaded: dict[str, int] = {}
        for action in bucket.actions:
            match action:
                case Ct(nat=nat) if nat is not None and nat.destination is not None:
                    return self._is_endpoint(*nat.destination)
                case ToGroup(number) if (behind := self.tables.groups.get(number)) is not None:
                    return any(map(self._leads_to, behind.buckets))
                case SetField(name, value):
                    loaded[name] = value
        return self._is_endpoint(loaded.get(address.register, 0), loaded.get(port.register, 0))

    def _is_endpoint(self, address: int, port: int) -> bool:
        return (IPv4Address(address), port) == self.endpoint

    # --- conntrack ---

    def _ct(self, action: Ct) -> None:
        if action.table is None:
            return  # It only notes something about a connection that exists.
        destination: tuple[IPv4Address, int | None] | None = None
        source: IPv4Address | None = None
        if action.nat is not None:
            if action.nat.destination is not None:
                address, port = action.nat.destination
                destination = IPv4Address(address), port
            if action.nat.source:
                source = IPv4Address(action.nat.source)
        value = mask = 0
        for each in action.exec:
            if isinstance(each, SetField) and each.field == "ct_mark":
                bits = 0xFFFF_FFFF if each.mask is None else each.mask
                value, mask = (value & ~bits) | each.value, mask | bits
        raise _Fork(
            Resume(
                table=action.table,
                zone=action.zone,
                commit=action.commit,
                nat=action.nat is not None,
                destination=destination,
                source=source,
                mark=(value, mask),
            )
        )


def _matched_name(name: str) -> str:
    """Of a transport port, the name that a match has for it."""
    return f"tp_{name.rpartition('_')[2]}" if name in PORT_FIELDS else name


def _parsed(packet: str) -> dict[str, int]:
    """The fields of a packet. Raises `SimulationError`."""
    fields = {"dl_type": 0x0800}
    try:
        for part in packet.split(","):
            name, sign, text = part.partition("=")
            if not sign:
                fields |= {"nw_proto": _PROTOCOLS[name]} if name != "ip" else {}
            elif name == "ct_state":
                fields[name] = sum(1 << CT_STATE_NAMES.index(each) for each in text.split("|"))
            elif name not in _TEXT_ONLY:
                fields[_matched_name(name)] = _number(name, text)
    except (KeyError, ValueError) as error:
        raise SimulationError(f"a packet that cannot be read: {error}") from error
    return fields


def _number(name: str, text: str) -> int:
    if name in _ADDRESSES or name in {"ct_nw_src", "ct_nw_dst"}:
        return int(IPv4Address(text))
    if name in _MACS:
        return int(text.replace(":", ""), 16)
    return int(text, 0)


def _texts(fields: Mapping[str, int]) -> dict[str, str]:
    return {name: _text(name, value) for name, value in fields.items()}


def _text(name: str, value: int) -> str:
    if name in _ADDRESSES:
        return str(IPv4Address(value))
    if name in _MACS:
        return value.to_bytes(6, "big").hex(":")
    return hex(value) if name.startswith("reg") or name == "tun_id" else str(value)
