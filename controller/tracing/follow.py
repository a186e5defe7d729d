"""Follows a packet from node to node: switch, tunnel, the nodes' own stacks, and back."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Literal, Protocol, TypeAlias, cast

import msgspec

from controller.inventory import Inventory
from controller.policy_reports.verdict import verdict
from controller.questions import NoAnswerError
from controller.reports.trace import Hop, TraceReport, Way
from controller.service_fields import PROTOCOL_NAMES
from controller.tracing.hops import Explainer, direct_peer, text_of
from controller.tracing.start import Asked, Start, start
from controller.work_budget import in_turns
from flows import names
from flows.features.protocols import ICMP
from flows.flow import Flow
from flows.refs import Owners
from flows.view import Attachment
from wire.questions import (
    Answer,
    Connection,
    HostTrace,
    Packet,
    Question,
    SwitchTrace,
    TraceHost,
    TraceSwitch,
    Translation,
)

MOST_HOPS: Final = 16
"""Switches and stacks that a packet comes to."""
_ECHO_REPLY: Final = 0

FlowOf: TypeAlias = Callable[[str, int], tuple[Flow, Owners] | None]
"""The flow of a node that has a cookie, with its owners."""


class Asking(Protocol):
    """Whoever can be asked about nodes: agents, or the objects of a cluster without any."""

    async def ask(self, node: str, question: Question) -> Answer:
        """Raises `NoAnswerError`."""


@dataclass(frozen=True, slots=True)
class _AtSwitch:
    node: str
    in_port: int
    macs: tuple[str, str]
    tunnel_from: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class _AtHost:
    node: str
    comes_from: Literal["process", "outside", "switch"]


@dataclass(frozen=True, slots=True)
class _End:
    """Where a packet ends."""

    delivered: bool
    text: str
    cure: str
    packet: Packet
    place: _AtSwitch | _AtHost | None = None
    """Where an answer begins."""
    by_policy: bool = False
    """Whether policy dropped it."""


class Tracer:
    """Traces by what nodes answer."""

    def __init__(
        self,
        inventory: Inventory,
        questions: Asking,
        flow_of: FlowOf,
        tunnel_id: int,
        notes: tuple[str, ...] = (),
    ) -> None:
        """`notes` stand in each report."""
        self._inventory = inventory
        self._questions = questions
        self._notes = notes
        self._explainer = Explainer(inventory, flow_of)
        self._tunnel_id = tunnel_id

    async def trace(self, asked: Asked, *, reply: bool, node_dns: bool = False) -> TraceReport:
        """Raises `controller.policy_reports.ends.QuestionError`, `NoAnswerError`."""
        begin = start(self._inventory, asked)
        journey = _Journey(
            self._inventory, self._questions, self._explainer, self._tunnel_id, asked
        )
        there, end = await journey.go(begin.packet, _place(begin))
        if not end.delivered:
            cure = end.cure
            if end.by_policy and not cure:
                cure = await self._policy_cure(asked, begin, end, node_dns=node_dns)
            there = msgspec.structs.replace(there, cure=cure)
        back: Way | None = None
        if reply and end.delivered and end.place is not None:
            back, back_end = await journey.go(_answer(end.packet), end.place)
            back = self._checked_back(back, back_end, journey.first)
        named = {**PROTOCOL_NAMES, ICMP: "ICMP"}
        return TraceReport(
            source=asked.source,
            destination=asked.destination,
            protocol=named.get(asked.protocol, str(asked.protocol)),
            there=there,
            back=back,
            notes=self._notes + begin.notes,
        )

    def _checked_back(self, back: Way, end: _End, first: Packet) -> Way:
        """A reply has to look as if the address that the client asked had sent it."""
        wanted = _answer(first)
        if not end.delivered or _same(end.packet, wanted):
            return back
        return msgspec.structs.replace(
            back,
            delivered=False,
            end=f"{back.end}, but as {text_of(end.packet)}; the client waits for {text_of(wanted)}",
        )

    async def _policy_cure(self, asked: Asked, begin: Start, end: _End, *, node_dns: bool) -> str:
        """What policy would have to allow; empty if that is not known."""
        protocol = PROTOCOL_NAMES.get(asked.protocol, "ICMP")
        opener = asked.source if begin.pod or not begin.is_outside else str(begin.packet.source)
        port = str(end.packet.destination_port) if asked.protocol != ICMP else ""
        to = str(end.packet.destination)
        try:
            work = verdict(self._inventory, (opener, to), port, protocol, node_dns=node_dns)
            found = await in_turns(work)
        except ValueError:
            return ""
        denials = [
            (case, judgement)
            for case in found.cases
            for judgement in case.judgements
            if not judgement.accepted
        ]
        missing = [
            f"{step.policy} {step.field}: {what}"
            for _, judgement in denials
            if (step := judgement.nearest) is not None
            for what in step.missing
        ]
        if denials and not missing:
            (case, judgement), *_ = denials
            missing = [
                f"a policy {judgement.direction} would have to accept"
                f" {_asked_port(case.destination.port, protocol)} from {case.source.name}"
                f" to {case.destination.name}"
            ]
        return "; ".join(missing[:3])


def _asked_port(port: int | None, protocol: str) -> str:
    return protocol if port is None else f"{port}/{protocol}"


class _Journey:
    """One packet and its answer. It remembers the connections that they make."""

    def __init__(
        self,
        inventory: Inventory,
        questions: Asking,
        explainer: Explainer,
        tunnel_id: int,
        asked: Asked,
    ) -> None:
        self._inventory = inventory
        self._questions = questions
        self._explainer = explainer
        self._tunnel_id = tunnel_id
        self._asked = asked
        self._connections: dict[str, tuple[Connection, ...]] = {}
        self._translations: defaultdict[str, list[Translation]] = defaultdict(list)
        self._refusal: tuple[str, str] | None = None
        """Why the switch has the node's own stack refuse the packet, and what would help."""
        self.first = Packet(0, IPv4Address(0), IPv4Address(0))
        """The packet as its sender knows it."""

    async def go(self, packet: Packet, place: _AtSwitch | _AtHost) -> tuple[Way, _End]:
        """Raises `NoAnswerError`."""
        first = packet
        hops: list[Hop] = []
        for number in range(MOST_HOPS):
            step: _AtSwitch | _AtHost | _End
            if isinstance(place, _AtSwitch):
                step, packet = await self._switch(place, packet, hops)
            else:
                before = packet
                step, packet, began = await self._host(place, packet, hops)
                if number == 0 and before == first:
                    first = began
            if isinstance(step, _End):
                if not first.is_reply:
                    self.first = first
                return Way(text_of(first), tuple(hops), step.delivered, step.text, step.cure), step
            place = step
        end = _End(delivered=False, text=f"not delivered: it goes in circles ({MOST_HOPS} hops)",
                   cure="", packet=packet)  # fmt: skip
        return Way(text_of(first), tuple(hops), end.delivered, end.text), end

    async def _switch(
        self, at: _AtSwitch, packet: Packet, hops: list[Hop]
    ) -> tuple[_AtSwitch | _AtHost | _End, Packet]:
        node = self._inventory.view.nodes.get(at.node)
        tunnel = None
        if at.tunnel_from is not None and node is not None:
            tunnel = at.tunnel_from, cast("IPv4Address", node.address), self._tunnel_id
        question = TraceSwitch(
            packet=packet,
            in_port=at.in_port,
            mac_source=at.macs[0],
            mac_destination=at.macs[1],
            tunnel=tunnel,
            endpoint=None if packet.is_reply else self._asked.endpoint,
            assumed=self._connections.get(at.node, ()),
        )
        answer = await self._questions.ask(at.node, question)
        if not isinstance(answer, SwitchTrace):
            raise NoAnswerError(f"Node {at.node}: its agent gave an answer to something else")
        self._connections[at.node] = answer.assumed
        after = msgspec.structs.replace(answer.packet, is_reply=packet.is_reply)
        told = await in_turns(self._explainer.switch(at.node, answer))
        hops += told.hops
        if answer.out_port is None:
            end = _End(False, told.end, told.cure, after, by_policy=told.by_policy)
            return end, after
        self._refusal = (told.end, told.cure) if told.end else None
        return self._leaves(at, answer, after, hops), after

    def _leaves(
        self, at: _AtSwitch, answer: SwitchTrace, packet: Packet, hops: list[Hop]
    ) -> _AtSwitch | _AtHost | _End:
        """What comes after the switch."""
        macs = answer.mac_source, answer.mac_destination
        if answer.out_port == names.TUNNEL_OFPORT:
            peer = self._node_at(answer.tunnel)
            here = self._inventory.view.nodes.get(at.node)
            if peer is None or here is None:
                text = f"not delivered: no node has the tunnel address {answer.tunnel}"
                return _End(False, text, "", packet)
            hops.append(
                Hop("", "network", f"the tunnel carries it from node {at.node} to node {peer}")
            )
            return _AtSwitch(peer, names.TUNNEL_OFPORT, macs, cast("IPv4Address", here.address))
        if answer.out_port == names.GATEWAY_OFPORT:
            return _AtHost(at.node, "switch")
        for each in self._inventory.view.attachments.get(at.node, {}).values():
            if each.ofport == answer.out_port:
                return _End(
                    delivered=True,
                    text=f"delivered to {_pod(each)} on node {at.node}",
                    cure="",
                    packet=packet,
                    place=_AtSwitch(at.node, each.ofport, (each.mac, names.ROUTER_MAC)),
                )
        text = f"it leaves node {at.node} by port {answer.out_port}, which is no pod's"
        return _End(False, text, "", packet)

    async def _host(
        self, at: _AtHost, packet: Packet, hops: list[Hop]
    ) -> tuple[_AtSwitch | _AtHost | _End, Packet, Packet]:
        question = TraceHost(packet, at.comes_from, tuple(self._translations[at.node]))
        answer = await self._questions.ask(at.node, question)
        if not isinstance(answer, HostTrace):
            raise NoAnswerError(f"Node {at.node}: its agent gave an answer to something else")
        after = answer.packet
        if not packet.is_reply:
            # Also where nothing is translated: then nothing translates the replies either.
            self._translations[at.node].append(Translation(answer.first, after))
        hops += [
            Hop(at.node, "host", sentence, packet=text_of(after) if last else "")
            for last, sentence in zip(
                [*[False] * (len(answer.sentences) - 1), True], answer.sentences, strict=False
            )
        ]
        step: _AtSwitch | _AtHost | _End
        match answer.goes_to:
            case "switch":
                macs = names.GATEWAY_MAC, names.ROUTER_MAC
                step = _AtSwitch(at.node, names.GATEWAY_OFPORT, macs)
            case "process":
                perhaps = ", if a process listens there" * answer.is_listener_unknown
                step = _End(True, f"delivered to node {at.node} itself{perhaps}", "", after,
                            _AtHost(at.node, "process"))  # fmt: skip
            case "outside":
                step = self._outside(at, answer, hops)
            case _:
                text, cure = _refused(at.node, answer)
                if at.comes_from == "switch" and self._refusal is not None:
                    text, cure = f"refused by node {at.node}: {self._refusal[0]}", self._refusal[1]
                step = _End(False, text, cure, after)
        return step, after, answer.first

    def _outside(self, at: _AtHost, answer: HostTrace, hops: list[Hop]) -> _AtHost | _End:
        to = answer.packet.destination
        node = self._node_at(to)
        if peer := direct_peer(self._inventory.view, at.node, to):
            node = peer.name
            hops.append(
                Hop("", "network", f"the network carries it from node {at.node} to node {node}")
            )
        if node is not None and node != at.node:
            return _AtHost(node, "outside")
        return _End(
            delivered=True,
            text=f"delivered to the network outside: it leaves node {at.node} by {answer.device}"
            f" from {answer.packet.source}",
            cure="",
            packet=answer.packet,
            place=_AtHost(at.node, "outside"),
        )

    def _node_at(self, address: IPv4Address | None) -> str | None:
        for node in self._inventory.view.nodes.values():
            if address == node.address or address in node.further_addresses:
                return node.name
        return None


def _place(begin: Start) -> _AtSwitch | _AtHost:
    if begin.pod is not None:
        attachment = begin.pod.attachment
        return _AtSwitch(begin.node, attachment.ofport, (attachment.mac, names.ROUTER_MAC))
    return _AtHost(begin.node, "outside" if begin.is_outside else "process")


def _refused(node: str, answer: HostTrace) -> tuple[str, str]:
    """Who does not take the packet, and what would have to differ."""
    to = f"{answer.packet.destination}:{answer.packet.destination_port}"
    if answer.goes_to == "nobody":
        return (
            f"refused by node {node}: no process listens on {to}",
            f"a process on node {node} would have to listen on {to}, or a Service to have the port",
        )
    why = answer.sentences[-1] if answer.sentences else "its own stack drops the packet"
    return f"refused by node {node}: {why}", ""


def _answer(packet: Packet) -> Packet:
    return Packet(
        protocol=packet.protocol,
        source=packet.destination,
        destination=packet.source,
        source_port=_ECHO_REPLY if packet.protocol == ICMP else packet.destination_port,
        destination_port=0 if packet.protocol == ICMP else packet.source_port,
        is_reply=True,
    )


def _same(one: Packet, other: Packet) -> bool:
    return text_of(one) == text_of(other)


def _pod(attachment: Attachment) -> str:
    return f"pod {attachment.pod}" if attachment.pod else f"container {attachment.port}"
