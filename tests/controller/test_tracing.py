"""Traces whose agents answer anything at all: stolen nodes, old versions, nobody."""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

import msgspec
import pytest

from controller.policy_reports.ends import QuestionError
from controller.questions import NoAnswerError
from controller.reports.trace import TraceReport
from controller.tracing.follow import MOST_HOPS, Tracer
from controller.tracing.hops import MOST_EVENTS
from controller.tracing.start import Asked
from flows import names
from flows.features.protocols import TCP
from flows.pipeline import LAYOUT
from tests.controller.service_inventory import inventory
from tests.controller.service_objects import service
from wire.questions import (
    MAX_PARTS,
    Answer,
    Failure,
    HostTrace,
    Packet,
    Part,
    Question,
    Step,
    SwitchTrace,
    TraceHost,
    TraceSwitch,
)

NODES = {"node1": "172.30.1.1", "node2": "172.30.1.2"}
ASKED = Asked("node1", "10.244.2.9", "80", TCP)


class Agents:
    """In the place of the agents of all nodes."""

    def __init__(self, answer: Callable[[str, Question], Answer]) -> None:
        self.asked: list[tuple[str, Question]] = []
        self._answer = answer

    async def ask(self, node: str, question: Question) -> Answer:
        self.asked.append((node, question))
        answer = self._answer(node, question)
        if isinstance(answer, Failure):
            raise NoAnswerError(f"Node {node}: {answer.reason}")
        return answer


def trace(
    answer: Callable[[str, Question], Answer], asked: Asked = ASKED
) -> tuple[TraceReport, Agents]:
    agents = Agents(answer)
    tracer = Tracer(inventory(service("s")), agents, lambda *_: None, 1)
    return asyncio.run(tracer.trace(asked, reply=True)), agents


def part(packet: Packet, *steps: Step, connection: str = "") -> Part:
    return Part(steps or (Step(0, "0x1", 1),), packet, connection)


def into_switch(question: TraceHost) -> HostTrace:
    return HostTrace(("into the switch",), question.packet, "switch", question.packet)


def leaves(question: TraceSwitch, port: int | None, *parts: Part, to: str = "") -> SwitchTrace:
    mac = names.ROUTER_MAC
    tunnel = IPv4Address(to) if to else None
    return SwitchTrace(parts or (part(question.packet),), question.packet, mac, mac, port, tunnel)


def test_packet_that_goes_in_circles_ends() -> None:
    """Two stolen nodes send it to each other."""

    def answer(node: str, question: Question) -> Answer:
        if isinstance(question, TraceHost):
            return into_switch(question)
        assert isinstance(question, TraceSwitch)
        other = NODES["node2" if node == "node1" else "node1"]
        return leaves(question, names.TUNNEL_OFPORT, to=other)

    report, agents = trace(answer)
    assert len(agents.asked) == MOST_HOPS
    assert not report.delivered
    assert "goes in circles" in report.there.end


def test_tables_and_flows_that_do_not_exist_are_shown_as_they_are() -> None:
    steps = tuple(Step(number, f"{2**64 - 1:#x}", 65535, 255) for number in range(256))

    def answer(_: str, question: Question) -> Answer:
        if isinstance(question, TraceHost):
            return into_switch(question)
        assert isinstance(question, TraceSwitch)
        return leaves(question, None, part(question.packet, *steps))

    report, _ = trace(answer)
    assert "dropped by the switch of node node1: a flow that is not desired" in report.there.end
    (hop,) = (each for each in report.there.hops if each.place == "switch")
    assert [row.table for row in hop.flows[:2]] == ["Classifier", "1"]
    assert {row.reason for row in hop.flows} == {"not desired"}


def test_sentences_about_one_switch_are_bounded() -> None:
    table = LAYOUT.tables["ConntrackState"].number
    state = tuple(Step(table, "0x1", 1) for _ in range(50))

    def answer(_: str, question: Question) -> Answer:
        if isinstance(question, TraceHost):
            return into_switch(question)
        assert isinstance(question, TraceSwitch)
        known = msgspec.structs.replace(
            part(question.packet, *state, connection="trk|est"), is_known=True
        )
        return leaves(question, None, *[known] * MAX_PARTS)

    report, _ = trace(answer)
    assert len(report.there.hops) == 1 + MOST_EVENTS + 1


def test_tunnel_to_nowhere_and_ports_of_nobody_are_told() -> None:
    def nowhere(_: str, question: Question) -> Answer:
        if isinstance(question, TraceHost):
            return into_switch(question)
        assert isinstance(question, TraceSwitch)
        return leaves(question, names.TUNNEL_OFPORT, to="203.0.113.1")

    def nobody(_: str, question: Question) -> Answer:
        if isinstance(question, TraceHost):
            return into_switch(question)
        assert isinstance(question, TraceSwitch)
        return leaves(question, 4_000_000_000)

    assert "no node has the tunnel address 203.0.113.1" in trace(nowhere)[0].there.end
    assert "leaves node node1 by port 4000000000, which is no pod's" in trace(nobody)[0].there.end


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Failure("its agent is too old to answer this"), "Node node1: its agent is too old"),
        (
            SwitchTrace((part(Packet(6, IPv4Address(0), IPv4Address(0))),),
                        Packet(6, IPv4Address(0), IPv4Address(0)),
                        names.ROUTER_MAC, names.ROUTER_MAC),
            "Node node1: its agent gave an answer to something else",
        ),
    ],
)  # fmt: skip
def test_agent_that_gives_no_answer_is_named(answer: Answer, why: str) -> None:
    with pytest.raises(NoAnswerError, match=why):
        trace(lambda *_: answer)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Asked("default/nobody", "10.244.2.9", "80", TCP), "there is no Pod default/nobody"),
        (Asked("node9", "10.244.2.9", "80", TCP), "node9: neither NAMESPACE/NAME of a pod"),
        (Asked("node1", "svc/default/none", "80", TCP), "there is no Service default/none"),
        (Asked("node1", "10.244.2.9", "0", TCP), "PORT 0: not from 1 to 65535"),
        (Asked("node1", "10.244.2.9", "http", TCP), "PORT http"),
        (Asked("node1", "10.244.2.9", "9" * 5000, TCP), "not from 1 to 65535"),
        (Asked("node1", "node2", "9" * 5000, TCP), "not from 1 to 65535"),
        (Asked("node1", "outside", "9" * 5000, TCP), "not from 1 to 65535"),
        (Asked("svc/default/s", "node2", "80", TCP), "a Service opens no connections"),
        (Asked("node1", "svc/default/s", "81", TCP), "Service default/s has no such port"),
        (
            Asked("outside", "svc/default/s", "80", TCP, node="n"),
            "Service default/s has no address",
        ),
        (Asked("outside", "node2", "80", TCP, node="n9"), "Node n9: "),
    ],
)
def test_question_about_nothing_says_what_there_is_not(asked: Asked, why: str) -> None:
    def nobody(*_: object) -> Answer:
        pytest.fail("an agent is asked")

    with pytest.raises(QuestionError, match=why):
        trace(nobody, asked)
