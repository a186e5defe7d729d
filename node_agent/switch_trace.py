"""Follows a packet through this node's switch, with what conntrack holds at this moment.

Open vSwitch's own `ofproto/trace` guesses what a conntrack lookup would find. So the trace is made
in parts, from one lookup to the next: each part begins at the table after the lookup, with the
registers of the part before, and with what the lookup found.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec

from flows import names
from flows.features.protocols import ICMP, LAYER_4_NAMES, TCP
from flows.pipeline import CT_ZONE, KNOWN, LAYOUT, SNAT_ZONE
from node_agent import appctl
from node_agent.faults import NodeFault
from openflow import trace_text
from openflow.trace_text import Resume, Traced, TraceTextError
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

MOST_HASHES: Final = 256
"""A group of method `dp_hash` looks at as many values (Open vSwitch, `ofproto-dpif.c`)."""
_NOWHERE: Final = "0.0.0.0"  # noqa: S104  not an address to listen at
_SYN, _ACK = 0x02, 0x10
_RULE, _RULE_FROM_POD = (LAYOUT.registers[name].register for name in ("DecidedRule", "RuleFromPod"))
_ENTRY: Final = re.compile(
    r"^(?P<protocol>[a-z]+),orig=\((?P<orig>[^)]*)\),reply=\((?P<reply>[^)]*)\)(?P<more>.*)$"
)
_UNSEEN: Final = re.compile(r"state(?:_orig)?=(?:SYN_SENT|SYN_RECV|INIT|COOKIE_WAIT)")


class TraceError(NodeFault):
    """The switch cannot trace this packet; the text says why."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a conntrack lookup found."""

    connection: Connection
    is_reply: bool
    is_known: bool
    """Whether conntrack holds it; else this trace itself has committed it."""


async def trace_switch(run: Path, datapath: str, question: TraceSwitch) -> SwitchTrace:
    """`run` is the directory of ovs-vswitchd's sockets, `datapath` the type of its datapath.

    Raises `TraceError`, `appctl.AppctlError`.
    """
    dumps = {
        zone: await appctl.call(
            run, "dpctl/dump-conntrack", "-m", f"{datapath}@ovs-{datapath}", f"zone={zone}"
        )
        for zone in (CT_ZONE, SNAT_ZONE)
    }
    return await _SwitchTrace(run, dumps, question).run()


class Trace:
    """One trace, part by part. A subclass follows each part."""

    def __init__(self, question: TraceSwitch, dumps: Mapping[int, str]) -> None:
        """`dumps` has what conntrack holds, by zone."""
        self.question = question
        self._dumps = dumps
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
            traced = await self.part(table, state, found)
            steps += len(traced.steps)
            if steps > MAX_STEPS:
                raise TraceError(f"the packet meets more than {MAX_STEPS:,} flows")
            self._parts.append(_part(traced, self._packet, state, found))
            # What the packet has become: flows of policy and topology may have changed addresses.
            self._packet = _packet(self._packet, traced.fields)
            self._fields = trace_text.kept(traced.fields)
            if traced.outputs or traced.resume is None:
                return self._end(traced)
            found, state = self._look_up(traced.resume)
            table = traced.resume.table
        raise TraceError(f"the packet is looked up more than {MAX_PARTS} times")

    def _end(self, traced: Traced) -> SwitchTrace:
        port = None
        if traced.outputs:
            port = traced.outputs[0] if traced.outputs[0] is not None else self.question.in_port
        tunnel = None
        if port == names.TUNNEL_OFPORT:
            tunnel = IPv4Address(traced.fields.get("tun_dst", _NOWHERE))
        return SwitchTrace(
            parts=tuple(self._parts),
            packet=self._packet,
            mac_source=traced.fields["dl_src"],
            mac_destination=traced.fields["dl_dst"],
            out_port=port,
            tunnel=tunnel,
            assumed=tuple(self._assumed),
        )

    async def part(self, table: int, state: str, found: _Found | None) -> Traced:
        """Follow the packet from a table to the next lookup. Raises `TraceError`."""
        raise NotImplementedError

    @property
    def other_end_of_tunnel(self) -> str | None:
        """That flows have chosen; None: none did."""
        to = self._fields.get("tun_dst", _NOWHERE)
        return None if to in (_NOWHERE, self._tunnel.get("tun_dst")) else to

    def packet_text(self, state: str, found: _Found | None) -> str:
        """The packet as ovs-ofctl(8) takes it, with what the last lookup found."""
        packet = self._packet
        fields = {
            name: value
            for name, value in self._fields.items()
            if name not in _PORTS and not name.startswith(("nw_s", "nw_d", "tun_", "tcp_flags"))
        }
        protocol = LAYER_4_NAMES.get(packet.protocol)
        if packet.protocol == ICMP:
            first = "icmp"
            fields |= {
                "icmp_type": str(packet.source_port), "icmp_code": str(packet.destination_port)
            }  # fmt: skip
        elif protocol is not None:
            first = protocol
            fields |= {
                f"{protocol}_src": str(packet.source_port),
                f"{protocol}_dst": str(packet.destination_port),
            }
            if packet.protocol == TCP:
                fields["tcp_flags"] = hex(_SYN | _ACK if packet.is_reply else _SYN)
        else:
            first = f"ip,nw_proto={packet.protocol}"
        fields |= {"nw_src": str(packet.source), "nw_dst": str(packet.destination), **self._tunnel}
        if state:
            fields |= {"ct_state": state, "ct_zone": str(CT_ZONE)}
        if found is not None:
            connection = found.connection
            fields |= {
                "ct_mark": hex(connection.mark),
                "ct_label": connection.label,
                "ct_nw_proto": str(packet.protocol),
                "ct_nw_src": str(connection.source),
                "ct_nw_dst": str(connection.destination),
            }
        return ",".join([first, *(f"{name}={value}" for name, value in fields.items())])

    def _look_up(self, resume: Resume) -> tuple[_Found | None, str]:
        """Translate the packet as the lookup does, and return what it found, and `ct_state`."""
        before = self._packet
        found = self._found(resume.zone, before)
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
            )
            self._assumed.append(connection)
            found = _Found(connection, is_reply=False, is_known=False)
        elif resume.commit:
            value, mask = resume.mark
            mark = (found.connection.mark & ~mask) | value
            changed = msgspec.structs.replace(found.connection, mark=mark)
            self._assumed = [changed if c == found.connection else c for c in self._assumed]
            found = replace(found, connection=changed)
        self._current[resume.zone] = found
        if resume.nat:
            self._packet = _translated(before, found)
        return found, _state(found)

    def _found(self, zone: int, packet: Packet) -> _Found | None:
        current = self._current.get(zone)
        if current is not None and _tuple(_translated(packet, current)) == _tuple(packet):
            return current
        if packet.protocol == ICMP:
            # The identifier is not a part of the packet that is traced.
            known: Iterator[Connection] = iter(())
        else:
            known = _listed(self._dumps.get(zone, ""), zone, packet)
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


class _SwitchTrace(Trace):
    """Open vSwitch follows each part."""

    def __init__(self, run: Path, dumps: Mapping[int, str], question: TraceSwitch) -> None:
        super().__init__(question, dumps)
        self._run = run

    async def part(self, table: int, state: str, found: _Found | None) -> Traced:
        """Follow the packet from a table to the next lookup. Raises `TraceError`."""
        flow = self.packet_text(state, found)
        actions = [f"resubmit(,{table})"]
        if (to := self.other_end_of_tunnel) is not None:
            # As a field of the packet it would be where the packet came from.
            actions.insert(0, f"set_field:{to}->tun_dst")
        traced: Traced | None = None
        for number in range(MOST_HASHES):
            text = await appctl.call(
                self._run, "ofproto/trace-packet-out", names.INTEGRATION_BRIDGE,
                f"{flow},dp_hash={number + 1:#x}", ",".join(actions),
            )  # fmt: skip
            try:
                traced = trace_text.read(text, names.INTEGRATION_BRIDGE)
            except TraceTextError as error:
                raise TraceError(str(error)) from error
            if not self._is_other_endpoint(traced):
                return traced
        assert traced is not None  # noqa: S101
        address, port = self.question.endpoint or ("", 0)
        raise TraceError(f"{address}:{port} is no endpoint that the Service chooses here")

    def _is_other_endpoint(self, traced: Traced) -> bool:
        wanted = self.question.endpoint
        if wanted is None or traced.resume is None or traced.resume.destination is None:
            return False
        return bool(traced.groups) and traced.resume.destination != wanted


_PORTS: Final = {
    *("tp_src", "tp_dst", "icmp_type", "icmp_code"),
    *(f"{name}_{end}" for name in LAYER_4_NAMES.values() for end in ("src", "dst")),
}
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


def _listed(dump: str, zone: int, packet: Packet) -> Iterator[Connection]:
    """The connections of a dump that this packet may belong to."""
    ends = (
        f"src={packet.source},dst={packet.destination},"
        f"sport={packet.source_port},dport={packet.destination_port})"
    )
    at = dump.find(ends)
    while at >= 0:
        begin, end = dump.rfind("\n", 0, at) + 1, dump.find("\n", at)
        line = dump[begin : end if end >= 0 else len(dump)]
        if connection := _connection(line, zone):
            yield connection
        at = dump.find(ends, at + 1)


def _connection(line: str, zone: int) -> Connection | None:
    if (found := _ENTRY.match(line)) is None:
        return None
    protocols = {name: number for number, name in LAYER_4_NAMES.items()}
    protocol = protocols.get(found["protocol"])
    if protocol is None:
        return None
    more = dict(pair.partition("=")[::2] for pair in found["more"].split(","))
    one, other = (
        dict(pair.partition("=")[::2] for pair in found[name].split(","))
        for name in ("orig", "reply")
    )
    status, mark = more.get("status", "0"), int(more.get("mark", "0"), 0)
    return Connection(
        zone=zone,
        protocol=protocol,
        source=IPv4Address(one["src"]),
        source_port=int(one["sport"]),
        destination=IPv4Address(one["dst"]),
        destination_port=int(one["dport"]),
        reply_source=IPv4Address(other["src"]),
        reply_source_port=int(other["sport"]),
        reply_destination=IPv4Address(other["dst"]),
        reply_destination_port=int(other["dport"]),
        mark=mark,
        label=more.get("labels", "0x0"),
        is_answered=_is_answered(status, mark, found["more"]),
    )


def _is_answered(status: str, mark: int, shown: str) -> bool:
    """The userspace datapath shows no status, and of UDP nothing else either.

    Then a connection that was never allowed has no answers, and any other one is taken to have.
    """
    if status != "0":
        return "SEEN_REPLY" in status
    return bool(mark & KNOWN) and _UNSEEN.search(shown) is None


def _packet(packet: Packet, fields: Mapping[str, str]) -> Packet:
    changes: dict[str, object] = {
        "source": IPv4Address(fields.get("nw_src", str(packet.source))),
        "destination": IPv4Address(fields.get("nw_dst", str(packet.destination))),
    }
    if packet.protocol in LAYER_4_NAMES:
        changes["source_port"] = int(fields.get("tp_src", packet.source_port))
        changes["destination_port"] = int(fields.get("tp_dst", packet.destination_port))
    return msgspec.structs.replace(packet, **changes)


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
