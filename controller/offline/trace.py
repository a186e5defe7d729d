"""`sluice trace` without a cluster: answers to questions for agents, computed from the objects."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Final

from controller.inventory import Inventory
from controller.offline.host import OfflineHost
from controller.offline.switch import FlowTables, OfflineSwitch
from controller.policy_reports.ends import QuestionError
from controller.programs import CompiledPrograms
from controller.questions import NoAnswerError
from controller.reports.trace import TraceReport
from controller.tracing.follow import Tracer
from controller.tracing.start import asked_of
from flows.flow import Flow
from flows.refs import Owners
from wire.questions import Answer, Connection, Packet, Question, TraceHost, TraceSwitch
from wire.tracing import TraceError
from wire.tracing.host import trace_host
from wire.tracing.switch import trace_switch

NOTES: Final = (
    "no switch was asked: these are the flows that there should be, without the connections that"
    " exist now",
    "no node was asked: hostPorts, other routes and the processes that listen are unknown",
)
_TUNNEL_ID: Final = 1
"""Any: no flow depends on it."""


class OfflineAnswers:
    """Answers as agents would."""

    def __init__(self, inventory: Inventory, programs: CompiledPrograms) -> None:
        """`inventory` must not change."""
        self._inventory = inventory
        self._programs = programs
        self._switches: dict[str, OfflineSwitch] = {}

    async def ask(self, node: str, question: Question) -> Answer:
        """Raises `NoAnswerError`."""
        known = self._inventory.view.nodes.get(node)
        if known is None:
            raise NoAnswerError(f"Node {node}: {self._inventory.nodes.reason(node)}")
        try:
            match question:
                case TraceSwitch():
                    return await trace_switch(question, self._switch(node).part, _no_connections)
                case TraceHost():
                    return await trace_host(OfflineHost(self._inventory, known), question)
        except TraceError as error:
            raise NoAnswerError(f"Node {node}: {error}") from error
        raise NoAnswerError(f"Node {node}: only a running cluster knows this")

    def flow(self, node: str, cookie: int) -> tuple[Flow, Owners] | None:
        """The flow of a node that has a cookie, with its owners."""
        program, shared = self._programs.program(node), self._programs.shared
        return program.cookies.get(cookie) or shared.cookies.get(cookie)

    def _switch(self, node: str) -> OfflineSwitch:
        if node not in self._switches:
            own = FlowTables(self._programs.program(node).flows())
            groups = {**self._programs.shared.groups, **self._programs.program(node).groups}
            self._switches[node] = OfflineSwitch((self._shared, own), groups)
        return self._switches[node]

    @cached_property
    def _shared(self) -> FlowTables:
        return FlowTables(self._programs.shared.flows())


def trace(
    inventory: Inventory, programs: CompiledPrograms, query: Mapping[str, str]
) -> TraceReport:
    """The answer at /v1/trace. Raises `QuestionError`."""
    answers = OfflineAnswers(inventory, programs)
    tracer = Tracer(inventory, answers, answers.flow, _TUNNEL_ID, notes=NOTES)
    asked = asked_of(query.get)
    dns = inventory.view.cluster.node_local_dns
    try:
        return asyncio.run(tracer.trace(asked, reply="reply" in query, node_dns=dns))
    except NoAnswerError as error:
        raise QuestionError(str(error)) from error


async def _no_connections(_: int, __: Packet) -> Iterable[Connection]:
    return ()
