"""Follows a packet through this node's switch, with what conntrack holds at this moment.

Open vSwitch's own `ofproto/trace` guesses what a conntrack lookup would find. So the trace is made
in parts (`wire.tracing.switch`), each by one `ofproto/trace`.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from flows import names
from flows.features.protocols import ICMP, LAYER_4_NAMES, TCP
from flows.pipeline import CT_ZONE, KNOWN, SNAT_ZONE
from flows.traced import Traced
from node_agent import appctl
from openflow import trace_text
from openflow.trace_text import TraceTextError
from wire.questions import Connection, Packet, SwitchTrace, TraceSwitch
from wire.tracing import TraceError, switch
from wire.tracing.switch import Entry

LONGEST: Final = 12.0
"""Seconds for a trace. The controller waits a little longer, and so learns why it gets none."""
MOST_HASHES: Final = 256
"""A group of method `dp_hash` looks at as many values (Open vSwitch, `ofproto-dpif.c`)."""
_SYN, _ACK = 0x02, 0x10
_ENTRY: Final = re.compile(
    r"^(?P<protocol>[a-z]+),orig=\((?P<orig>[^)]*)\),reply=\((?P<reply>[^)]*)\)(?P<more>.*)$"
)
_UNSEEN: Final = re.compile(r"state(?:_orig)?=(?:SYN_SENT|SYN_RECV|INIT|COOKIE_WAIT)")


async def trace_switch(run: Path, datapath: str, question: TraceSwitch) -> SwitchTrace:
    """`run` is the directory of ovs-vswitchd's sockets, `datapath` the type of its datapath.

    Raises `TraceError`, also after `LONGEST`, and `appctl.AppctlError`.
    """

    async def known(zone: int, packet: Packet) -> Iterable[Connection]:
        if zone not in (CT_ZONE, SNAT_ZONE):
            return ()
        ends = _ends(packet)
        dump = await appctl.call(
            run, "dpctl/dump-conntrack", "-m", f"{datapath}@ovs-{datapath}", f"zone={zone}",
            having=ends,
        )  # fmt: skip
        return _listed(dump, ends, zone)

    async def part_of(entry: Entry) -> Traced:
        return await _part(run, entry)

    try:
        async with asyncio.timeout(LONGEST):
            return await switch.trace_switch(question, part_of, known)
    except TimeoutError:
        raise TraceError(f"ovs-vswitchd has not traced the packet in {LONGEST:g} s") from None


async def _part(run: Path, entry: Entry) -> Traced:
    """By the first hash with which a Service chooses the endpoint that is wanted."""
    actions = [f"resubmit(,{entry.table})"]
    if (to := entry.tunnel_destination) is not None:
        # As a field of the packet it would be where the packet came from.
        actions.insert(0, f"set_field:{to}->tun_dst")
    flow = _flow(entry)
    traced: Traced | None = None
    for number in range(MOST_HASHES):
        text = await appctl.call(
            run, "ofproto/trace-packet-out", names.INTEGRATION_BRIDGE,
            f"{flow},dp_hash={number + 1:#x}", ",".join(actions),
        )  # fmt: skip
        try:
            traced = trace_text.read(text, names.INTEGRATION_BRIDGE)
        except TraceTextError as error:
            raise TraceError(str(error)) from error
        if not entry.is_other_endpoint(traced):
            break
    assert traced is not None  # noqa: S101
    return traced


def _flow(entry: Entry) -> str:
    """The packet as a flow of Open vSwitch."""
    packet = entry.packet
    fields = {
        name: value
        for name, value in entry.fields.items()
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
    fields |= {"nw_src": str(packet.source), "nw_dst": str(packet.destination), **entry.tunnel}
    if entry.state:
        fields |= {"ct_state": entry.state, "ct_zone": str(CT_ZONE)}
    if (connection := entry.connection) is not None:
        fields |= {
            "ct_mark": hex(connection.mark),
            "ct_label": connection.label,
            "ct_nw_proto": str(packet.protocol),
            "ct_nw_src": str(connection.source),
            "ct_nw_dst": str(connection.destination),
        }
    return ",".join([first, *(f"{name}={value}" for name, value in fields.items())])


_PORTS: Final = {
    *("tp_src", "tp_dst", "icmp_type", "icmp_code"),
    *(f"{name}_{end}" for name in LAYER_4_NAMES.values() for end in ("src", "dst")),
}


def _ends(packet: Packet) -> str:
    """As a dump of conntrack has one direction of a connection."""
    return (
        f"src={packet.source},dst={packet.destination},"
        f"sport={packet.source_port},dport={packet.destination_port})"
    )


def _listed(dump: str, ends: str, zone: int) -> Iterator[Connection]:
    """The connections of a dump that have these ends."""
    for line in dump.splitlines():
        if ends in line and (connection := _connection(line, zone)):
            yield connection


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
