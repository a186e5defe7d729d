"""Checks a cluster completely: the evaluator's verdicts against the flows that the switches hold.

Each packet is checked four times: policy from the pod, policy to the pod, its whole way to where it
is sent, and the same for a packet of an established connection, which no policy concerns.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from random import Random
from typing import Final

from flows import names
from flows.pipeline import LAYOUT, Source
from tests.flows.worlds import CLUSTER
from tests.policy.controlled import ofport_of
from tests.policy.evaluator import Cluster, Evaluator, Packet, gateway, node_addresses
from tests.policy.simulator import FRAGMENTS, IN_PORT, Columns, PacketSet, numbers
from tests.policy.space import NUMBERS, Kind, Space, number_of
from tests.policy.switches import Contents, Switches, sent_by

_FORWARDING, _AFTER = (LAYOUT.tables[name].number for name in ("Forwarding", "Hairpin"))
NEW, ESTABLISHED = 0x21, 0x22
"""What conntrack says: +trk+new and +trk+est."""
_SOURCE: Final = LAYOUT.registers["Source"]
_GATEWAY_MAC: Final = int(names.GATEWAY_MAC.replace(":", ""), 16)


@dataclass(frozen=True)
class Difference:
    """A packet for which evaluator and switch differ."""

    check: str
    packet: Packet
    allowed: bool
    """What the evaluator says."""

    def __str__(self) -> str:
        source, destination = (
            end.pod or (f"{end.node}, by {end.address}" if end.node else end.address)
            for end in (self.packet.source, self.packet.destination)
        )
        port = "" if self.packet.port is None else f" port {self.packet.port}"
        verdict = "allows, the switch does not" if self.allowed else "denies, the switch does not"
        return (
            f"{self.check}: {source} to {destination}, {self.packet.protocol}{port}: the evaluator"
            f" {verdict}"
        )


class Proof:
    """One cluster, in the switches and in the evaluator."""

    def __init__(
        self,
        cluster: Cluster,
        contents: Mapping[str, Contents],
        switches: Switches,
        *,
        before: Cluster | None = None,
    ) -> None:
        """Make the switches hold `contents`, by node.

        `before`: the switches should let pass only what the policies of both clusters allow, which
        have the same pods.
        """
        self.cluster = cluster
        self.nodes = switches.nodes
        self._switches = switches
        for node in self.nodes:
            switches.hold(node, contents[node])
        clusters = [cluster] if before is None else [cluster, before]
        self.tables = {node: switches.tables(node) for node in self.nodes}
        self.space = Space(clusters, self.tables.values())
        self._evaluators = [Evaluator(each) for each in clusters]

    @cached_property
    def checked(self) -> PacketSet:
        """All packets that can be sent, and that nothing but policy drops."""
        packets = 0
        for node in self.space.nodes:
            packets |= self.space.sent_from(node)
        return packets & ~self._guarded()

    @property
    def pairs(self) -> int:
        """How many packets are checked."""
        return self.checked.bit_count()

    def _guarded(self) -> PacketSet:
        """What is dropped without policy: tunnel packets and fragments of pods to nodes."""
        space = self.space
        addresses = {a for node in space.nodes.values() for a in node_addresses(node)}
        nodes = 0
        for index, end in enumerate(space.destinations):
            if end.address in addresses:
                nodes |= space.to_destination(index)
        udp = space.columns["nw_proto"][NUMBERS["UDP"]]
        fragments = space.columns["nw_frag"]
        fragment = fragments.get(FRAGMENTS["first"], 0) | fragments.get(FRAGMENTS["later"], 0)
        tunnel = space.columns["tp_dst"].get(CLUSTER.tunnel_port, 0)
        return nodes & udp & (fragment | tunnel)

    # --- what the evaluator says ---

    @property
    def expected(self) -> tuple[PacketSet, PacketSet]:
        """The packets that pass policy from the pod, and those that pass policy to the pod."""
        from_pod = to_pod = ~0
        for passes_from, passes_to in self.verdicts:
            from_pod &= passes_from
            to_pod &= passes_to
        return from_pod, to_pod

    @cached_property
    def verdicts(self) -> list[tuple[PacketSet, PacketSet]]:
        """The same for each of the clusters."""
        return [self._verdicts(evaluator) for evaluator in self._evaluators]

    def _verdicts(self, evaluator: Evaluator) -> tuple[PacketSet, PacketSet]:
        space = self.space
        width = len(space.kinds)
        every_kind = (1 << width) - 1
        from_pod: list[str] = []
        to_pod: list[str] = []
        number = 0
        for source in space.sources:
            for destination in space.destinations:
                checked = self.checked >> number & every_kind
                number += width
                passes_from = passes_to = 0
                if checked:
                    for bit, kind in enumerate(space.kinds):
                        packet = Packet(source, destination, kind.protocol, kind.port)
                        passes_from |= evaluator.allows_from_pod(packet) << bit
                        passes_to |= evaluator.allows_to_pod(packet) << bit
                from_pod.append(f"{passes_from & checked:0{width}b}")
                to_pod.append(f"{passes_to & checked:0{width}b}")
        return int("".join(reversed(from_pod)), 2), int("".join(reversed(to_pod)), 2)

    # --- what the switches do ---

    def _columns(self, node: str, ct_state: int, *, tunnel_from: str = "") -> Columns:
        """The columns of packets that come into a node's switch."""
        space = self.space
        columns = dict(space.columns)
        everything = (1 << space.count) - 1
        columns["ct_state"] = {ct_state: everything}
        if tunnel_from:
            columns["in_port"] = {names.TUNNEL_OFPORT: everything}
            columns["tun_src"] = {self._outer(tunnel_from): everything}
            return columns
        ports: dict[int, PacketSet] = {}
        macs: dict[int, PacketSet] = {}
        for index, end in enumerate(space.sources):
            if not end.pod:
                port, mac = names.GATEWAY_OFPORT, _GATEWAY_MAC
            elif end.node == node:
                port = ofport_of(end.address)
                mac = int(names.mac_of(IPv4Address(end.address)).replace(":", ""), 16)
            else:
                continue
            packets = space.from_source(index)
            ports[port] = ports.get(port, 0) | packets
            macs[mac] = macs.get(mac, 0) | packets
        columns["in_port"], columns["dl_src"] = ports, macs
        return columns

    def sent(self, ct_state: int) -> tuple[PacketSet, PacketSet]:
        """The packets that pass policy from the pod, and those that arrive.

        `ct_state` is what conntrack says of all of them.
        """
        passed, arrived = 0, 0
        for node in self.nodes:
            packets = self.space.sent_from(node)
            run = self.tables[node].run(packets, self._columns(node, ct_state))
            passed |= run.reached.get(_FORWARDING, 0) & packets
            arrived |= self._arrived(node, run.sent)
            tunnelled = run.sent.get(names.TUNNEL_OFPORT, 0)
            for other in self.space.nodes:
                over = tunnelled & run.columns.get("tun_dst", {}).get(self._outer(other), 0)
                arrived |= self._through_tunnel(over, node, other, ct_state)
        for node in self.space.nodes.keys() - set(self.nodes):
            # A node without pods: its own stack sends through the tunnel.
            packets = self.space.sent_from(node)
            passed |= packets
            for other in self.nodes:
                over = packets & self._to_node(other)
                arrived |= self._through_tunnel(over, node, other, ct_state)
        return passed, arrived

    def _through_tunnel(
        self, packets: PacketSet, node: str, other: str, ct_state: int
    ) -> PacketSet:
        """Those of these packets that arrive, after one node sent them to the other."""
        if not packets:
            return 0
        if other not in self.nodes:
            return packets & self._to_gateway(other)
        columns = self._columns(other, ct_state, tunnel_from=node)
        return self._arrived(other, self.tables[other].run(packets, columns).sent)

    def _passed_to(self, node: str) -> PacketSet:
        """Policy to the pods of a node, for all packets to them, from wherever."""
        space = self.space
        passed = 0
        for origin in space.nodes:
            packets = space.sent_from(origin) & self._to_node(node)
            columns = self._columns(node, NEW, tunnel_from="" if origin == node else origin)
            everything = (1 << space.count) - 1
            sources: dict[int, PacketSet] = {}
            for index, end in enumerate(space.sources):
                if origin != node:
                    source = Source.PEER
                elif end.pod:
                    source = Source.POD
                else:
                    source = Source.HOST if end.node == node else Source.GATEWAY
                value, _ = _SOURCE.value(source)
                sources[value] = sources.get(value, 0) | space.from_source(index)
            columns[_SOURCE.register] = {v: p & everything for v, p in sources.items()}
            run = self.tables[node].run(packets, columns, _FORWARDING)
            passed |= run.reached.get(_AFTER, 0)
        return passed

    def _to_node(self, node: str) -> PacketSet:
        """The packets to pods of a node."""
        found = 0
        for index, end in enumerate(self.space.destinations):
            if end.pod and end.node == node:
                found |= self.space.to_destination(index)
        return found

    def _to_themselves(self) -> PacketSet:
        """The packets of pods to themselves, which are judged when they are sent."""
        space = self.space
        found = 0
        for index, end in enumerate(space.destinations):
            if end.pod:
                own = space.from_source(space.sources.index(end))
                found |= space.to_destination(index) & own
        return found

    def _to_gateway(self, node: str) -> PacketSet:
        found = 0
        for index, end in enumerate(self.space.destinations):
            if end.address == gateway(self.space.nodes[node]):
                found |= self.space.to_destination(index)
        return found

    def _arrived(self, node: str, sent: Mapping[int, PacketSet]) -> PacketSet:
        """Those of the packets that a switch sent which went where they should."""
        space = self.space
        arrived = 0
        for index, end in enumerate(space.destinations):
            to_end = space.to_destination(index)
            port = names.GATEWAY_OFPORT
            if end.pod:
                if end.node != node:
                    continue
                port = ofport_of(end.address)
                own = space.from_source(space.sources.index(end))
                arrived |= sent.get(IN_PORT, 0) & to_end & own
            elif end.node and end.node != node:
                continue
            arrived |= sent.get(port, 0) & to_end
        return arrived

    # --- both ---

    def differences(self) -> Iterator[Difference]:
        """The packets for which evaluator and switches differ."""
        expected_from, expected_to = self.expected
        actual_from, arrived = self.sent(NEW)
        _, established = self.sent(ESTABLISHED)
        actual_to = to_pods = 0
        for node in self.nodes:
            actual_to |= self._passed_to(node)
            to_pods |= self._to_node(node)
        for check, expected, actual, of in (
            ("from the pod", expected_from, actual_from, self.checked),
            ("to the pod", expected_to, actual_to, self.checked & to_pods & ~self._to_themselves()),
            ("all the way", expected_from & expected_to, arrived, self.checked),
            ("established", self.checked, established, self.checked),
        ):
            for number in numbers((expected ^ actual) & of):
                allowed = bool(expected >> number & 1)
                yield Difference(check, self.space.packet(number), allowed)

    # --- the same by the switch's own trace ---

    def traced(self, random: Random, count: int) -> Iterator[tuple[Packet, bool, bool]]:
        """Some packets, with what the evaluator and `ofproto/trace` say of their whole way."""
        for number in random.choices(list(numbers(self.checked)), k=count if self.checked else 0):
            packet = self.space.packet(number)
            yield (
                packet,
                all(each.allows(packet) for each in self._evaluators),
                self.goes(packet, self.space.kind(number)),
            )

    def goes(self, packet: Packet, kind: Kind) -> bool:
        """Whether a packet gets where it should, by the trace of each switch on its way."""
        first = packet.source.node or packet.destination.node
        if first in self.nodes:
            sent = self._trace(first, self._entering(packet, kind))
            if not packet.destination.pod or packet.destination.node == first:
                return self._is_there(packet, sent)
            if [port for port, _ in sent] != [names.TUNNEL_OFPORT]:
                return False
        tunnel = f"in_port={names.TUNNEL_OFPORT},tun_src={IPv4Address(self._outer(first))}"
        return self._is_there(
            packet, self._trace(packet.destination.node, f"{_header(packet, kind)},{tunnel}")
        )

    def _outer(self, node: str) -> int:
        """The address of a node outside its tunnels."""
        return number_of(node_addresses(self.space.nodes[node])[0])

    def _entering(self, packet: Packet, kind: Kind) -> str:
        source = packet.source
        port, mac = names.GATEWAY_OFPORT, names.GATEWAY_MAC
        if source.pod:
            port = ofport_of(source.address)
            mac = names.mac_of(IPv4Address(source.address))
        return f"{_header(packet, kind)},in_port={port},dl_src={mac},dl_dst={names.ROUTER_MAC}"

    def _trace(self, node: str, packet: str) -> list[tuple[int, str]]:
        trace = self._switches.trace(node, packet, "trk,new", "trk,new")
        own = [(IN_PORT, "")] if re.search(r"^\s+IN_PORT$", trace, re.MULTILINE) else []
        return sent_by(trace) + own

    def _is_there(self, packet: Packet, sent: list[tuple[int, str]]) -> bool:
        if not sent:
            return False
        ((port, tunnel),) = sent
        end = packet.destination
        if end.pod:
            own = ofport_of(end.address)
            return port == (IN_PORT if end == packet.source else own)
        if end.node and end.node != packet.source.node:
            return (port, tunnel) == (
                names.TUNNEL_OFPORT,
                str(IPv4Address(self._outer(end.node))),
            )
        return port == names.GATEWAY_OFPORT


def _header(packet: Packet, kind: Kind) -> str:
    protocol = kind.protocol.lower()
    text = protocol if protocol != "gre" else f"ip,nw_proto={NUMBERS['GRE']}"
    text += f",nw_src={packet.source.address},nw_dst={packet.destination.address},nw_ttl=64"
    if kind.port is not None:
        text += f",{protocol}_src=40000,{protocol}_dst={kind.port}"
    return text + (f",nw_frag={kind.fragment}" if kind.fragment != "no" else "")
