"""What an agent does with questions: how many at a time, and what bounds each."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from node_agent import questions
from node_agent.checks.local import CheckError
from node_agent.controllers import Controllers
from node_agent.questions import answer_loop, answerer
from wire.questions import (
    MAX_QUESTIONS,
    Asked,
    CheckNode,
    Failure,
    NodeQuestions,
    Question,
    decode_answer,
    encode,
)

from .served import ServedController, eventually, running, served

NOBODY: Any = None


def test_checks_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_TURN", 0.01)

    async def story() -> None:
        gate = asyncio.Event()

        async def check(*_: object) -> str:
            await gate.wait()
            return "checked"

        monkeypatch.setattr(questions, "answer_check", check)
        answer: Any = answerer(NOBODY, NOBODY, NOBODY, NOBODY, lambda: None)
        async with asyncio.timeout(30):
            first = asyncio.create_task(answer(CheckNode()))
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(CheckError, match="another check runs on this node"):
                    await answer(CheckNode())
            gate.set()
            assert await first == "checked"
            # A check that failed to get its turn has left nothing.
            assert await answer(CheckNode()) == "checked"

    asyncio.run(story())


def named(name: str, number: int) -> set[str]:
    return {f"{name * 15}{each:x}" for each in range(number)}


def asks(controller: ServedController, name: str, number: int, *, takes: bool = True) -> None:
    """Have a controller ask some questions, once. `takes`: it takes the answers."""
    question = msgspec.Raw(encode(CheckNode()))
    waiting = [Asked(each, question) for each in sorted(named(name, number))]

    async def respond(request: web.Request) -> web.Response:
        if request.method == "GET" and waiting:
            given = NodeQuestions(tuple(waiting[:MAX_QUESTIONS]))
            del waiting[:MAX_QUESTIONS]
            return web.Response(body=encode(given))
        if request.method == "GET" or not takes:
            await asyncio.Event().wait()
        return web.Response(status=204)

    controller.respond = respond


def answers(controller: ServedController) -> set[str]:
    """The names of the questions that were answered."""
    for path, body in controller.requests:
        if "/answers/" in path:
            assert decode_answer(body) == Failure("busy")
    return {path.rpartition("/")[2] for path, _ in controller.requests if "/answers/" in path}


def test_each_controller_gets_the_answers_to_its_own_questions(tmp_path: Path) -> None:
    """A node answers a bounded number at a time, whoever asks."""
    at_work = most = 0

    async def answer(_: Question) -> Failure:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.005)
        at_work -= 1
        return Failure("busy")

    async def story() -> None:
        async with served() as (agent, first, second), Controllers(agent) as both:
            asks(first, "a", 2 * MAX_QUESTIONS)
            asks(second, "b", 2 * MAX_QUESTIONS)
            async with running(answer_loop(both, tmp_path, answer)), asyncio.timeout(30):
                for controller, name in (first, "a"), (second, "b"):
                    while answers(controller) != named(name, 2 * MAX_QUESTIONS):
                        await asyncio.sleep(0.005)

    asyncio.run(story())
    assert most == MAX_QUESTIONS


@pytest.mark.parametrize("how", ["away", "silent", "takes no answers"])
def test_controller_that_does_not_answer_delays_no_question_of_another(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_TELLING", 1e6)

    monkeypatch.setattr(questions, "_BACKOFF", (0.01, 0.01))

    async def answer(_: Question) -> Failure:
        return Failure("busy")

    async def not_ready(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async def story() -> None:
        async with (
            served(silent=how == "silent", away=how == "away") as (agent, first, second),
            Controllers(agent) as both,
        ):
            asks(first, "a", 2 * MAX_QUESTIONS, takes=False)
            second.respond = not_ready
            async with running(answer_loop(both, tmp_path, answer)):
                if how == "takes no answers":
                    await eventually(lambda: len(answers(first)) == MAX_QUESTIONS)
                asks(second, "b", 3)
                await eventually(lambda: answers(second) == named("b", 3))

    asyncio.run(story())
