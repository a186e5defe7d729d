"""Which denied pairs the agent tells the controller, by a clock of the test's own."""

import asyncio
from ipaddress import IPv4Address

import pytest
from aiohttp import web

from flows.policy import Direction
from node_agent import denied_pairs
from node_agent.controllers import Controllers
from node_agent.denied_pairs import MAX_OF_POD, PATIENCE, PERIOD, DeniedPairs, report_loop
from wire.documents import (
    MAX_DENIED_PAIRS,
    MAX_DENIED_PORTS,
    DeniedPair,
    DeniedPort,
    NodeDenials,
    decode_denials,
    encode,
)

from .served import eventually, running, served

A, B = "paaaaaaaaaaaaaa", "pbbbbbbbbbbbbbb"
FROM, TO = Direction.FROM_POD, Direction.TO_POD
END = IPv4Address("10.244.2.5")
HTTP, DNS = DeniedPort(6, 80), DeniedPort(17, 53, 7)
NOTHING = NodeDenials()


class Story:
    def __init__(self) -> None:
        self.now = 0.0
        self.pairs = DeniedPairs(monotonic=lambda: self.now)

    def denied(self, *ports: DeniedPort, of: str = A, end: IPv4Address = END) -> None:
        for port in ports:
            self.pairs.add(of, TO, end, port)

    def tell(self) -> NodeDenials:
        """The controller takes what is due."""
        due = self.pairs.due()
        self.pairs.told(due)
        return due


def test_pair_is_told_at_once_and_then_once_a_minute() -> None:
    story = Story()
    assert story.tell() == NOTHING
    told = []
    for second in range(0, 180, 5):
        story.now = float(second)
        story.denied(HTTP)
        if story.tell() == NodeDenials((DeniedPair(A, TO, END, (HTTP,)),)):
            told.append(second)
    assert told == [0, 60, 120]
    story.now += PERIOD
    story.tell()
    story.now += PERIOD
    assert story.tell() == NOTHING
    assert not story.pairs._pairs
    assert not story.pairs._of_pod


def test_ports_and_rules_of_a_pair_are_told_together() -> None:
    story = Story()
    story.denied(DNS, HTTP, DNS)
    story.pairs.add(A, FROM, END, HTTP)
    assert story.tell().pairs == (
        DeniedPair(A, TO, END, (DNS, HTTP)),
        DeniedPair(A, FROM, END, (HTTP,)),
    )


def test_what_comes_while_the_controller_answers_is_told_later() -> None:
    story = Story()
    story.denied(HTTP)
    due = story.pairs.due()
    story.denied(HTTP, DNS)
    story.pairs.told(due)
    assert story.tell() == NOTHING
    story.now = PERIOD
    assert story.tell().pairs == (DeniedPair(A, TO, END, (DNS,)),)


def test_scan_of_10_000_ports_is_one_pair() -> None:
    story = Story()
    story.denied(*(DeniedPort(6, number) for number in range(10_000)))
    (pair,) = story.tell().pairs
    assert pair.ports == tuple(DeniedPort(6, number) for number in range(MAX_DENIED_PORTS))
    assert pair.more_ports


def test_pod_that_scans_addresses_leaves_room_for_others() -> None:
    story = Story()
    for number in range(10_000):
        story.denied(HTTP, end=IPv4Address(number))
    story.denied(HTTP, of=B)
    told = story.tell()
    assert [pair.attachment for pair in told.pairs] == [A] * MAX_OF_POD + [B]
    assert [int(pair.other_end) for pair in told.pairs[:-1]] == list(range(MAX_OF_POD))
    assert told.left_out == 10_000 - MAX_OF_POD
    story.now = PERIOD
    assert story.tell() == NOTHING
    story.denied(HTTP)
    assert story.tell() == NodeDenials((DeniedPair(A, TO, END, (HTTP,)),))


def test_pairs_of_a_node_are_bounded() -> None:
    story = Story()
    for number in range(10_000):
        story.denied(HTTP, of=f"p{number}")
    assert len(story.pairs._pairs) == len(story.pairs._of_pod) == MAX_DENIED_PAIRS
    told = story.tell()
    assert (len(told.pairs), told.left_out) == (MAX_DENIED_PAIRS, 10_000 - MAX_DENIED_PAIRS)


def test_pair_that_cannot_be_told_is_counted_in_the_end() -> None:
    story = Story()
    story.denied(HTTP)
    story.now = PATIENCE - 1
    assert story.pairs.due().pairs
    story.now = PATIENCE
    assert story.pairs.due() == NOTHING
    story.denied(DNS)
    assert story.tell() == NodeDenials((DeniedPair(A, TO, END, (DNS,)),), left_out=1)


def test_number_of_the_left_out_stays_in_the_range_of_the_document() -> None:
    story = Story()
    story.pairs._left_out = 2**32 - 2
    for number in range(MAX_OF_POD + 9):
        story.denied(HTTP, end=IPv4Address(number))
    assert decode_denials(encode(story.tell())).left_out == 2**32 - 1


@pytest.mark.parametrize("answer", [204, 404, 405])
def test_report_is_repeated_until_the_controller_answers(
    answer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 and 405 are what a controller of an older version answers."""
    monkeypatch.setattr(denied_pairs, "_LOOK", 0.01)
    story = Story()
    given: list[tuple[str, NodeDenials]] = []

    async def take(request: web.Request) -> web.Response:
        given.append((request.path, decode_denials(await request.read())))
        return web.Response(status=answer if len(given) > 2 else 503)

    async def main() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond = second.respond = take
            # The other controller's are its own; here nothing is due to it.
            async with running(report_loop(both, [story.pairs, DeniedPairs()])):
                story.denied(HTTP)
                await eventually(lambda: not story.pairs.due().pairs)

    asyncio.run(main())
    assert given == [("/v1/nodes/n1/denials", NodeDenials((DeniedPair(A, TO, END, (HTTP,)),)))] * 3
