"""Follows a packet through a switch, part by part: from one conntrack lookup to the next.

Each part begins at the table after the lookup, with the registers of the part before, and with what
the lookup found.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final, TypeAlias

import msgspec

from flows import names
from flows.features.protocols import ICMP, LAYER_4_NAMES
from flows.pipeline import EGRESS_ADDRESS, LAYOUT
from flows.traced import Resume, Traced
from wire.questions import (
    MAX_PARTS,
    MAX_STEPS,
    Connection,
    Packet,
    Part,
    Step,
    SwitchTrace,
    TraceSwitch,
)
from wire.tracing import TraceError

NOWHERE: Final = "0.0.0.0"  # noqa: S104  not an address to listen at
_RULE, _RULE_FROM_POD = (LAYOUT.registers[name].register for name in ("DecidedRule", "RuleFromPod"))
_KEPT: Final = re.compile(
    r"reg\d+|in_port|dl_src|dl_dst|nw_src|nw_dst|nw_ttl|tp_src|tp_dst|icmp_type|icmp_code"
    r"|tun_src|tun_dst|tun_id|tcp_flags"
)
"""Fields that a packet keeps from one part to the next. Conntrack's are found anew."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A packet as it begins a part."""

    table: int
    packet: Packet
    fields: Mapping[str, str]
    """Registers and other fields, as `Traced.fields`. Those of `packet` and `tunnel` may be old."""
    tunnel: Mapping[str, str]
    """The fields of the tunnel that it came from; empty: from none."""
    state: str
    """`ct_state`, for example `trk|new`; empty: it was not looked up yet."""
    connection: Connection | None
    """What the lookup found."""
    endpoint: tuple[IPv4Address, int] | None
    """Where a Service chooses, this endpoint; None: any."""

    @property
    def tunnel_destination(self) -> str | None:
        """Where a part before has decided to send it by a tunnel."""
        to = self.fields.get("tun_dst", NOWHERE)
        return None if to in (NOWHERE, self.tunnel.get("tun_dst")) else to

    def is_other_endpoint(self, traced: Traced) -> bool:
        """Whether a Service has chosen another endpoint than the one that is wanted."""
        wanted = self.endpoint
        if wanted is None or traced.resume is None or traced.resume.destination is None:
            return False
        return bool(traced.groups) and traced.resume.destination != wanted


PartOf: TypeAlias = Callable[[Entry], Awaitable[Traced]]
"""Traces one part."""
Known: TypeAlias = Callable[[int, Packet], Awaitable[Iterable[Connection]]]
"""The connections that conntrack has in a zone, as far as the packet may belong to them."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a conntrack lookup found."""

    connection: Connection
    is_reply: bool
    is_known: bool
    """Whether conntrack holds it; else this trace itself has committed it."""


async def trace_switch(question: TraceSwitch, part_of: PartOf, known: Known) -> SwitchTrace:
    """Raises `TraceError`, and what `part_of` and `known` raise."""
    return await _Trace(question, part_of, known).run()


class _Trace:
    """One trace, part by part."""

    def __init__(self, question: TraceSwitch, part_of: PartOf, known: Known) -> None:
        self._question = question
        self._part_of = part_of
        self._known = known
        self._assumed = list(question.assumed)
        self._current: dict[int, _Found] = {}
        """By zone, the connection that the packet belongs to: translated, it still does."""
        self._parts: list[Part] = []
        self._packet = question.packet
        self._fields: dict[str, str] = {
            "in_port": str(question.in_port),
            "dl_src": question.mac_source,
            "dl_dst": question.mac_destination,
            "nw_ttl": "64",
        }
        self._tunnel: dict[str, str] = {}
        if question.tunnel is not None:
            source, destination, key = question.tunnel
            self._tunnel = {"tun_src": str(source), "tun_dst": str(destination),
                            "tun_id": hex(key)}  # fmt: skip
            self._fields |= self._tunnel

    async def run(self) -> SwitchTrace:
        found: _Found | None = None
        state = ""
        table = 0
        steps = 0
        for _ in range(MAX_PARTS):
            traced = await self._part(table, state, found)
            steps += len(traced.steps)
            if steps > MAX_STEPS:
                raise TraceError(f"the packet meets more than {MAX_STEPS:,} flows")
            self._parts.append(_part(traced, self._packet, state, found))
            # What the packet has become: flows of policy and topology may have changed addresses.
            self._packet = _packet(self._packet, traced.fields)
            self._fields = {
                name: value for name, value in traced.fields.items() if _KEPT.fullmatch(name)
            }
            egress = _egress(traced.fields)
            for commit in traced.commits:
                await self._look_up(commit, egress)
            if traced.outputs or traced.resume is None:
                return self._end(traced)
            found, state = await self._look_up(traced.resume, egress)
            table = traced.resume.table
        raise TraceError(f"the packet is looked up more than {MAX_PARTS} times")

    def _end(self, traced: Traced) -> SwitchTrace:
        port = None
        if traced.outputs:
            port = traced.outputs[0] if traced.outputs[0] is not None else self._question.in_port
        tunnel = None
        if port == names.TUNNEL_OFPORT:
            tunnel = IPv4Address(traced.fields.get("tun_dst", NOWHERE))
        return SwitchTrace(
            parts=tuple(self._parts),
            packet=self._packet,
            mac_source=traced.fields["dl_src"],
            mac_destination=traced.fields["dl_dst"],
            out_port=port,
            tunnel=tunnel,
            assumed=tuple(self._assumed),
        )

    async def _part(self, table: int, state: str, found: _Found | None) -> Traced:
        entry = Entry(
            table, self._packet, self._fields, self._tunnel, state,
            found.connection if found else None, self._question.endpoint,
        )  # fmt: skip
        traced = await self._part_of(entry)
        if entry.is_other_endpoint(traced):
            address, port = self._question.endpoint or ("", 0)
            raise TraceError(f"{address}:{port} is no endpoint that the Service chooses here")
        return traced

    async def _look_up(self, resume: Resume, egress: int) -> tuple[_Found | None, str]:
        """Translate the packet as the lookup does, and return what it found, and `ct_state`.

        `egress`: the egress address that a commit stores.
        """
        before = self._packet
        found = await self._found(resume.zone, before)
        if found is None:
            if not resume.commit:
                return None, "trk|new"
            after = before
            if resume.destination is not None:
                address, port = resume.destination
                after = msgspec.structs.replace(
                    after, destination=address,
                    destination_port=after.destination_port if port is None else port,
                )  # fmt: skip
            if resume.source is not None:
                after = msgspec.structs.replace(after, source=resume.source)
            connection = Connection(
                zone=resume.zone,
                protocol=before.protocol,
                source=before.source,
                source_port=before.source_port,
                destination=before.destination,
                destination_port=before.destination_port,
                reply_source=after.destination,
                reply_source_port=after.destination_port,
                reply_destination=after.source,
                reply_destination_port=after.source_port,
                mark=resume.mark[0],
                label=hex(egress),
            )
            self._assumed.append(connection)
            found = _Found(connection, is_reply=False, is_known=False)
        elif resume.commit:
            value, mask = resume.mark
            mark = (found.connection.mark & ~mask) | value
            label = hex(int(found.connection.label, 16) | egress)
            changed = msgspec.structs.replace(found.connection, mark=mark, label=label)
            self._assumed = [changed if c == found.connection else c for c in self._assumed]
            found = replace(found, connection=changed)
        self._current[resume.zone] = found
        if resume.nat:
            self._packet = _translated(before, found)
        return found, _state(found)

    async def _found(self, zone: int, packet: Packet) -> _Found | None:
        current = self._current.get(zone)
        if current is not None and _tuple(_translated(packet, current)) == _tuple(packet):
            return current
        if packet.protocol == ICMP:
            # The identifier is not a part of the packet that is traced.
            known: Iterable[Connection] = ()
        else:
            known = await self._known(zone, packet)
        for is_known, each in [
            *((False, each) for each in self._assumed),
            *((True, each) for each in known),
        ]:
            if each.zone != zone or each.protocol != packet.protocol:
                continue
            if _tuple(packet) == _original(each):
                return _Found(each, is_reply=False, is_known=is_known)
            if _tuple(packet) == _reply(each):
                return _Found(each, is_reply=True, is_known=is_known)
        return None


_Tuple = tuple[IPv4Address, int, IPv4Address, int]


def _tuple(packet: Packet) -> _Tuple:
    if packet.protocol == ICMP:
        return packet.source, 0, packet.destination, 0
    return packet.source, packet.source_port, packet.destination, packet.destination_port


def _original(c: Connection) -> _Tuple:
    if c.protocol == ICMP:
        return c.source, 0, c.destination, 0
    return c.source, c.source_port, c.destination, c.destination_port


def _reply(c: Connection) -> _Tuple:
    if c.protocol == ICMP:
        return c.reply_source, 0, c.reply_destination, 0
    return c.reply_source, c.reply_source_port, c.reply_destination, c.reply_destination_port


def _translated(packet: Packet, found: _Found) -> Packet:
    c = found.connection
    # In each direction a packet becomes the reverse of the other direction's packets.
    ends = (_original if found.is_reply else _reply)(c)
    changes = {"source": ends[2], "destination": ends[0]}
    if packet.protocol == ICMP:
        return msgspec.structs.replace(packet, **changes)
    return msgspec.structs.replace(packet, **changes, source_port=ends[3], destination_port=ends[1])


def _state(found: _Found) -> str:
    """`ct_state` of a packet of the connection (ovs-fields(7))."""
    c = found.connection
    if found.is_reply:
        return "trk|est|rpl"
    bits = ["trk", "est" if found.is_known and c.is_answered else "new"]
    if (c.reply_source, c.reply_source_port) != (c.destination, c.destination_port):
        bits.append("dnat")
    if (c.reply_destination, c.reply_destination_port) != (c.source, c.source_port):
        bits.append("snat")
    return "|".join(bits)


def _packet(packet: Packet, fields: Mapping[str, str]) -> Packet:
    changes: dict[str, object] = {
        "source": IPv4Address(fields.get("nw_src", str(packet.source))),
        "destination": IPv4Address(fields.get("nw_dst", str(packet.destination))),
    }
    if packet.protocol in LAYER_4_NAMES:
        changes["source_port"] = int(fields.get("tp_src", packet.source_port))
        changes["destination_port"] = int(fields.get("tp_dst", packet.destination_port))
    return msgspec.structs.replace(packet, **changes)


def _egress(fields: Mapping[str, str]) -> int:
    """The egress address of a packet, as ct_label has it."""
    register = LAYOUT.registers["EgressAddress"]
    value = int(fields.get(register.register, "0"), 0) & register.mask
    return EGRESS_ADDRESS.value(value >> register.bits[0])[0]


def _part(traced: Traced, packet: Packet, state: str, found: _Found | None) -> Part:
    from_pod, to_pod = (int(traced.fields.get(each, "0"), 0) for each in (_RULE_FROM_POD, _RULE))
    if found is not None and found.is_known and not (from_pod or to_pod):
        label = int(found.connection.label, 16)
        from_pod, to_pod = label & 0xFFFF_FFFF, label >> 32 & 0xFFFF_FFFF
    return Part(
        steps=_steps(traced),
        packet=packet,
        connection=state,
        is_known=found is not None and found.is_known,
        rule_from_pod=from_pod,
        rule_to_pod=to_pod,
        group=traced.groups[0] if traced.groups else 0,
        meters=traced.meters[:16],
    )


def _steps(traced: Traced) -> tuple[Step, ...]:
    return tuple(
        Step(each.table, f"{each.cookie or 0:#x}", each.priority, each.depth)
        for each in traced.steps
    )
