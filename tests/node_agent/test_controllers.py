"""An agent and two controllers: it asks any of them, and tells each."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from aiohttp import web

from flows.policy import Direction
from node_agent import addresses, controller_link, controllers, denied_pairs, problems
from node_agent.controller_link import NodeRefused, configurations
from node_agent.controllers import ControllerError, Controllers, Told
from node_agent.denied_pairs import DeniedPairs
from node_agent.problems import PodProblems
from wire import paths
from wire.documents import (
    DeniedPort,
    NodeAddresses,
    NodeConfig,
    NodeProblems,
    decode_addresses,
    decode_denials,
    decode_problems,
    encode,
)

from .conftest import CONFIG
from .served import Respond, ServedController, eventually, running, served

FIRST, SECOND = (
    NodeAddresses((IPv4Address(f"192.0.2.{number}"),), pod_mtu=1450) for number in (1, 2)
)
NEVER = 1e6
"""Seconds, for what must not be waited for."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(addresses, "_LOOK", 0.01)
    monkeypatch.setattr(problems, "LOOK", 0.01)
    monkeypatch.setattr(denied_pairs, "_LOOK", 0.01)
    monkeypatch.setattr(addresses, "_REPEAT", NEVER)
    monkeypatch.setattr(problems, "REPEAT", NEVER)
    monkeypatch.setattr(controllers, "_PAUSE", (0.01, 0.02))
    monkeypatch.setattr(controllers, "_REPORTING", NEVER)
    monkeypatch.setattr(controller_link, "_BACKOFF", (NEVER, NEVER))
    return


def always(status: int, body: bytes = b"") -> Respond:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    return respond


def refuses(status: int, sentence: str) -> Respond:
    return always(status, msgspec.json.encode({"error": sentence}))


def configured(config: NodeConfig) -> Respond:
    """As the controller does, with a long poll that never ends."""

    async def respond(request: web.Request) -> web.Response:
        if request.query.get(paths.AFTER) == config.revision:
            await asyncio.Event().wait()
        return web.Response(body=encode(config))

    return respond


OURS = msgspec.structs.replace(CONFIG, node="n1")
CHANGED = msgspec.structs.replace(OURS, revision="2")


def test_long_poll_goes_on_at_once_where_its_controller_dies() -> None:
    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond = configured(OURS)
            second.respond = configured(CHANGED)
            async with aclosing(configurations(both)) as seen, asyncio.timeout(30):
                assert await anext(seen) == OURS
                changed = asyncio.ensure_future(anext(seen))
                await eventually(lambda: len(first.requests) == 2)
                assert not second.requests
                await first.stop()
                assert await changed == CHANGED
                (asked, _), *_ = second.requests
                assert "after=1" in asked, "a long poll, as before"
                # And back again: no controller is asked first for ever because it answered once.
                await first.start()
                changed = asyncio.ensure_future(anext(seen))
                await eventually(lambda: len(second.requests) == 2)
                await second.stop()
                assert await changed == OURS

    asyncio.run(story())


def test_controller_that_has_not_read_the_cluster_is_passed_over() -> None:
    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            for unready, ready in ((first, second), (second, first), (first, second)):
                unready.respond = refuses(503, "the controller has not read the cluster yet")
                ready.respond = always(200, b"yes")
                assert await both.ask("GET", "/x", answers={200: bytes}, timeout=30) == b"yes"

    asyncio.run(story())


def test_refusal_counts_only_where_no_other_controller_knows_the_node() -> None:
    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond = refuses(404, "Node n1 is unknown")
            second.respond = refuses(409, "Node n1: spec.podCIDR is missing")
            async with aclosing(configurations(both)) as seen, asyncio.timeout(30):
                # One sentence, though they take turns.
                assert await anext(seen) == NodeRefused("Node n1 is unknown")
                second.respond = configured(OURS)
                assert await anext(seen) == OURS

    asyncio.run(story())


def test_answer_of_any_length_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "MAX_ANSWER", 1 << 20)
    length, sent = 1 << 30, 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        answer.content_length = length
        await answer.prepare(request)
        while sent < length:
            await answer.write(bytes(1 << 16))
            sent += 1 << 16
        return answer

    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond, second.respond = endless, always(200, b"short")
            assert await both.ask("GET", "/x", answers={200: bytes}, timeout=30) == b"short"
            with pytest.raises(ControllerError, match="has more than 1 MiB"):
                await both.each[0].ask("GET", "/x", answers={200: bytes}, timeout=30)

    asyncio.run(story())
    assert sent < length / 8, "the rest of what was sent is in the kernel's buffers"


def test_controller_that_sends_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "_TRANSFER", -29.9)

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b".")
            await asyncio.sleep(0.01)

    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond, second.respond = drip, always(200, b"whole")
            assert await both.ask("GET", "/x", answers={200: bytes}, timeout=30) == b"whole"
            assert both.each[0].is_away

    asyncio.run(story())


def test_redirection_is_not_followed() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://127.0.0.2:{request.url.port}/secret")

    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            first.respond = elsewhere
            with pytest.raises(ControllerError, match="answered 302"):
                await both.each[0].ask("GET", "/x", answers={200: bytes}, timeout=30)
            assert not second.requests

    asyncio.run(story())


class Node:
    """What an agent has to tell, and the loops that tell it."""

    def __init__(self) -> None:
        self.addresses = FIRST
        self.problem = ""
        self.denied = [DeniedPairs(), DeniedPairs()]

    async def tell(self, both: Controllers) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(addresses.report_loop(both, lambda: self.addresses))
            tasks.create_task(problems.report_loop(both, lambda: self.problem, PodProblems(), dict))
            tasks.create_task(denied_pairs.report_loop(both, self.denied))

    def deny(self) -> None:
        for each in self.denied:
            each.add("p" + "a" * 14, Direction.TO_POD, IPv4Address("10.0.0.1"), DeniedPort(6, 80))


def told(controller: ServedController) -> tuple[Any, Any, int]:
    """The last addresses, the last problem, and how often denials were told."""
    found = [decode_addresses(each) for each in controller.to("/addresses")]
    problem = [decode_problems(each).node for each in controller.to("/problems")]
    denials = [decode_denials(each) for each in controller.to("/denials")]
    return found[-1:], problem[-1:], len(denials)


@pytest.mark.parametrize("how", ["silent", "away"])
def test_controller_that_does_not_answer_delays_no_report_to_another(how: str) -> None:
    async def story() -> None:
        async with served(**{how: True}) as (agent, _, second), Controllers(agent) as both:
            node = Node()
            second.respond = always(204)
            async with running(node.tell(both)):
                node.problem = "broken"
                node.deny()
                await eventually(lambda: told(second) == ([FIRST], ["broken"], 1))
                node.addresses, node.problem = SECOND, ""
                await eventually(lambda: told(second) == ([SECOND], [""], 1))

    asyncio.run(story())


def test_controller_that_comes_back_is_told_what_it_missed() -> None:
    async def story() -> None:
        async with served(away=True) as (agent, first, second), Controllers(agent) as both:
            node = Node()
            first.respond = second.respond = always(204)
            async with running(node.tell(both)):
                node.problem = "broken"
                node.deny()
                await eventually(lambda: told(second) == ([FIRST], ["broken"], 1))
                counted = len(second.requests)
                await first.start()
                await eventually(lambda: told(first) == ([FIRST], ["broken"], 1))
                assert len(second.requests) == counted, "that one has missed nothing"

    asyncio.run(story())


def test_controller_that_was_started_anew_is_told_again() -> None:
    """It was told all, and knows nothing of it; nothing has changed meanwhile."""

    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            node = Node()
            first.respond = second.respond = always(204)
            async with running(node.tell(both)):
                node.problem = "broken"
                await eventually(lambda: told(first) == told(second) == ([FIRST], ["broken"], 0))

                async def hold(_: web.Request) -> web.Response:
                    await asyncio.Event().wait()
                    raise AssertionError

                # What notices is a long poll: each controller has one of each agent.
                first.respond = hold
                poll = asyncio.ensure_future(
                    both.each[0].ask("GET", "/questions", answers={}, timeout=NEVER)
                )
                await eventually(lambda: bool(first.to("/questions")))
                first.requests.clear()
                counted = len(second.requests)
                await first.stop()
                with pytest.raises(ControllerError):
                    await poll
                first.respond = always(204)
                await first.start()
                await eventually(lambda: told(first) == ([FIRST], ["broken"], 0))
                assert len(second.requests) == counted

    asyncio.run(story())


def test_problem_that_is_over_while_the_connection_is_lost_is_told() -> None:
    async def story() -> None:
        async with served() as (agent, first, _), Controllers(agent) as both:
            first.respond = always(204)
            one = Told(both.each[0], paths.PROBLEMS, (204,), NEVER)
            await one.update(NodeProblems("broken"))
            await first.stop()
            await one.update(NodeProblems())
            await first.start()
            await eventually(lambda: told(first)[1] == ["broken"])
            async with asyncio.timeout(30):
                while told(first)[1] != [""]:
                    await one.update(NodeProblems())
                    await asyncio.sleep(0.01)
            counted = len(first.requests)
            await one.update(NodeProblems())
            assert len(first.requests) == counted

    asyncio.run(story())


def test_controller_that_is_away_gets_a_bounded_number_of_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controllers, "_PAUSE", (NEVER, NEVER))

    async def story() -> None:
        async with served() as (agent, first, _), Controllers(agent) as both:
            first.respond = always(204)
            one = both.each[0]
            await first.stop()
            assert not await one.tell(paths.ADDRESSES, FIRST, (204,))
            await first.start()
            for _ in range(3):
                assert not await one.tell(paths.ADDRESSES, FIRST, (204,))
            assert not first.requests
            # Any request that is answered ends the pause: agents have a long poll at each.
            await one.ask("GET", "/x", answers={204: bytes}, timeout=30)
            assert await one.tell(paths.ADDRESSES, FIRST, (204,))

    asyncio.run(story())
