"""`sluice trace` without a cluster: the switches and hosts are computed from what they should hold.

It differs from a trace on a running cluster: nothing is known of connections that exist, of the
hosts' routes, hostPorts and processes, or of flows that somebody changed by hand. Each answer says
so.
"""

import asyncio
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, cast

import msgspec

from cli.controller import RequestError
from controller.inventory import Inventory
from controller.offline.switch import SimulationError, Tables, run
from controller.programs import CompiledPrograms
from controller.questions import NoAnswerError, Questions
from controller.tracing.follow import Tracer
from controller.tracing.start import asked_of
from flows import names
from flows.features.protocols import LAYER_4_NAMES
from flows.flow import Flow
from flows.refs import Owners
from flows.view import Node
from node_agent.switch_trace import Trace, TraceError
from openflow.trace_text import Traced
from wire.questions import Answer, HostTrace, Packet, Question, TraceHost, TraceSwitch

NOTE: Final = (
    "computed from the objects, not asked of the switches: connections that exist, and the nodes'"
    " routes, hostPorts and processes are not known"
)
_NOBODY: Final = IPv4Address(0)
_LINK_LOCAL: Final = (IPv4Network((names.HAIRPIN_ADDRESS, 31)), names.HOST_DNAT_RANGE)
"""Addresses that stand for the host itself where its own would meet: see `flows.names`."""


def trace(inventory: Inventory, programs: CompiledPrograms, query: Mapping[str, str]) -> Any:
    """The answer at /v1/trace. Raises `RequestError` and `QuestionError`."""

    def flow_of(node: str, cookie: int) -> tuple[Flow, Owners] | None:
        return programs.of(node).get(cookie)

    # It asks questions, no matter of whom.
    nodes = cast("Questions", _Nodes(inventory, programs))
    tracer = Tracer(inventory, nodes, flow_of, tunnel_id=1)
    dns = inventory.view.cluster.node_local_dns
    try:
        asked = asked_of(query.get)
        report = asyncio.run(tracer.trace(asked, reply="reply" in query, node_dns=dns))
    except NoAnswerError as error:
        raise RequestError(str(error)) from error
    return msgspec.structs.replace(report, notes=(NOTE, *report.notes))


class _Nodes:
    """Answers for the agents of all nodes."""

    def __init__(self, inventory: Inventory, programs: CompiledPrograms) -> None:
        self._inventory = inventory
        self._programs = programs
        self._tables: dict[str, Tables] = {}

    async def ask(self, node: str, question: Question) -> Answer:
        """As `controller.questions.Questions.ask`. Raises `NoAnswerError`."""
        known = self._inventory.view.nodes.get(node)
        if known is None:
            raise NoAnswerError(f"Node {node}: {self._inventory.nodes.reason(node)}")
        if isinstance(question, TraceHost):
            return _Host(self._inventory, known, question).trace()
        assert isinstance(question, TraceSwitch)  # noqa: S101  a trace asks nothing else
        if node not in self._tables:
            flows = (flow for flow, _ in self._programs.of(node).values())
            groups = self._programs.groups_of(node)
            self._tables[node] = Tables(flows, {n: group for n, (group, _) in groups.items()})
        try:
            return await _SimulatedTrace(self._tables[node], question).run()
        except TraceError as error:
            raise NoAnswerError(f"Node {node}: {error}") from error


class _SimulatedTrace(Trace):
    """A trace of a switch that holds what it should, and tracks no connection yet."""

    def __init__(self, tables: Tables, question: TraceSwitch) -> None:
        super().__init__(question, {})
        self._simulated = tables

    async def part(self, table: int, state: str, found: Any) -> Traced:
        """As `Trace.part`."""
        packet = self.packet_text(state, found)
        if (to := self.other_end_of_tunnel) is not None:
            packet += f",tun_dst={to}"
        try:
            return run(self._simulated, table, packet, self.question.endpoint)
        except SimulationError as error:
            raise TraceError(str(error)) from error


class _Host:
    """The stack of a node as its agent sets it up, with one uplink and no other routes."""

    def __init__(self, inventory: Inventory, node: Node, question: TraceHost) -> None:
        cluster = inventory.view.cluster
        self._ranges = (cluster.pod_range, cluster.service_range, *_LINK_LOCAL)
        self._node = node
        self._address = cast("IPv4Address", node.address)
        self._gateway = cast("IPv4Address", node.gateway)
        self._own = {node.address, node.gateway, *node.further_addresses}
        self._services = inventory.services.hosts.wanted(node.name)
        self._question = question
        self._packet = self._first = question.packet
        self._said: list[str] = []

    def trace(self) -> HostTrace:
        """Where the packet goes."""
        is_reply = self._translate_back()
        if self._packet.source == _NOBODY:
            self._choose_source()
        if not is_reply:
            self._translate(is_local=self._packet.destination in self._own)
        to_switch = self._goes_to_switch(marked=True)
        if self._packet.destination in self._own:
            self._said.append("it is for the node itself; whether a process listens is not known")
            return self._end("process")
        if to_switch and self._question.comes_from == "switch":
            self._said.append(
                "it came from the switch and would go into it again: the host refuses it"
                " (nftables table ip sluice, chain forward)"
            )
            return self._end("dropped")
        if not is_reply:
            self._masquerade(to_switch=to_switch)
        if to_switch:
            self._said.append(f"the host's routes send it into the switch by {names.GATEWAY_PORT}")
            return self._end("switch", names.GATEWAY_PORT)
        self._said.append("the host's routes send it by the uplink")
        return self._end("outside", "the uplink")

    def _choose_source(self) -> None:
        """As the kernel does, before the packet gets its mark or is translated."""
        to = self._packet.destination
        if to in self._own:
            source = to
        else:
            source = self._gateway if self._goes_to_switch(marked=False) else self._address
        self._packet = msgspec.structs.replace(self._packet, source=source)
        self._first = msgspec.structs.replace(self._first, source=source)

    def _end(self, goes_to: Any, device: str = "") -> HostTrace:
        return HostTrace(
            sentences=tuple(self._said),
            packet=self._packet,
            goes_to=goes_to,
            device=device,
            first=self._first,
        )

    def _goes_to_switch(self, *, marked: bool) -> bool:
        """Whether the routes lead there. `marked`: also for single ports of an address."""
        to = self._packet.destination
        if any(to in network for network in self._ranges):
            return to not in self._own
        if to not in self._services.addresses:
            return False
        ports = [each.ports for each in self._services.external_ports if to in each.addresses]
        port = self._packet.protocol, self._packet.destination_port
        return not ports or (marked and any(port in some for some in ports))

    def _translate_back(self) -> bool:
        """Whether the packet is a reply to one that was traced before."""
        for each in self._question.assumed:
            if _ends(self._packet) != _ends(_reversed(each.after)):
                continue
            back = _reversed(each.before)
            if _ends(back) != _ends(self._packet):
                self._said.append(
                    f"the host translates it back: from {back.source}:{back.source_port}"
                    f" to {back.destination}:{back.destination_port}"
                )
            self._packet = msgspec.structs.replace(
                back, is_reply=self._packet.is_reply, protocol=self._packet.protocol
            )
            return True
        return False

    def _translate(self, *, is_local: bool) -> None:
        """As the agent's chains `prerouting` and `output` do."""
        packet = self._packet
        if packet.protocol not in LAYER_4_NAMES:
            return
        port = packet.protocol, packet.destination_port
        to: tuple[Any, int] | None = None
        if self._question.comes_from == "outside":
            to = next(
                (
                    (each.endpoint, each.endpoint_port)
                    for each in self._services.host_endpoints
                    if (each.protocol, each.port) == port
                    and (each.address == packet.destination or (each.address is None and is_local))
                ),
                None,
            )
        if to is None and is_local and self._question.comes_from != "switch":
            own = (
                (each.dnat_address, each.port)
                for each in self._services.own_addresses
                if (each.address, each.protocol, each.port) == (packet.destination, *port)
            )
            to = next(own, None)
            if to is None and port in {(p.protocol, p.port) for p in self._services.node_ports}:
                to = names.NODE_PORT_ADDRESS, packet.destination_port
        if to is None:
            return
        self._packet = msgspec.structs.replace(
            packet, destination=cast("IPv4Address", to[0]), destination_port=to[1]
        )
        self._said.append(
            f"the host translates its destination {packet.destination}:{packet.destination_port}"
            f" to {to[0]}:{to[1]} (nftables table ip sluice)"
        )

    def _masquerade(self, *, to_switch: bool) -> None:
        """As the agent's chain `postrouting` does."""
        packet, pods = self._packet, self._ranges[0]
        is_pods = packet.source in self._node.pod_cidr
        if not to_switch:
            leaves = is_pods and packet.destination not in pods
            if not leaves and packet.source != names.HAIRPIN_ADDRESS:
                return
            source, why = self._address, "from pods or Services to the world outside"
        elif (
            packet.source in self._own - {self._gateway}
            and packet.destination in pods
            and packet.destination not in self._node.pod_cidr
        ):
            source, why = self._gateway, "from the host's other addresses to other nodes' pods"
        else:
            return
        self._packet = msgspec.structs.replace(packet, source=source)
        self._said.append(
            f"the host translates its source {packet.source} to {source}: {why}"
            " (nftables table ip sluice, chain postrouting)"
        )


def _ends(packet: Packet) -> tuple[IPv4Address, int, IPv4Address, int]:
    if packet.protocol not in LAYER_4_NAMES:
        return packet.source, 0, packet.destination, 0
    return packet.source, packet.source_port, packet.destination, packet.destination_port


def _reversed(packet: Packet) -> Packet:
    return msgspec.structs.replace(
        packet,
        source=packet.destination,
        source_port=packet.destination_port,
        destination=packet.source,
        destination_port=packet.source_port,
    )
