"""Questions to agents: who may answer what, and what a hostile agent can do."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

import msgspec
import pytest

from controller import questions as module
from controller.questions import NoAnswerError, Questions
from wire.questions import (
    MAX_ANSWER,
    MAX_QUESTIONS,
    Asked,
    Failure,
    HostTrace,
    Packet,
    Step,
    TraceHost,
    decode_question,
    encode,
)

PACKET = Packet(6, IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2"), 1, 2)
QUESTION = TraceHost(PACKET, "outside")
MANY_STEPS = msgspec.json.encode(
    {
        "type": "switchTrace",
        "parts": 2 * [{"packet": PACKET, "steps": 1_001 * [Step(0, "0x1", 1)]}],
        "packet": PACKET,
        "macSource": "0a:58:0a:f4:01:02",
        "macDestination": "0a:58:0a:f4:01:02",
    },
    enc_hook=str,
)
ANSWER = HostTrace(("it is for the node itself",), PACKET, "process", PACKET)


def run(story: Callable[[Questions], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await story(Questions({"n1", "n2"}.__contains__))

    asyncio.run(main())


async def first(questions: Questions, node: str = "n1") -> Asked:
    """What the agent of a node is asked, one question."""
    found = await questions.fetch(node, 5)
    assert found is not None
    (asked,) = found.questions
    return asked


async def take(questions: Questions, node: str, name: str, body: bytes) -> bool:
    """Send an answer; whether somebody waited for it."""

    async def read() -> bytes:
        return body

    return await questions.take(node, name, read)


async def seen(questions: Questions, *nodes: str) -> None:
    """Let these agents have asked for questions."""
    for node in nodes:
        assert await questions.fetch(node, 0) is None


def test_agent_that_waits_gets_the_question_and_answers() -> None:
    async def story(questions: Questions) -> None:
        fetching = asyncio.create_task(first(questions))
        await asyncio.sleep(0)
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        asked = await fetching
        assert decode_question(bytes(asked.question)) == QUESTION
        assert await take(questions, "n1", asked.id, encode(ANSWER))
        assert await asking == ANSWER

    run(story)


def test_failure_of_the_agent_is_a_sentence() -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n1")
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        await asyncio.sleep(0)
        asked = await first(questions)
        await take(questions, "n1", asked.id, encode(Failure("ovs-vswitchd does not answer")))
        with pytest.raises(NoAnswerError, match="Node n1: ovs-vswitchd does not answer"):
            await asking

    run(story)


def test_agent_that_never_asked_is_not_waited_for() -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n2")
        with pytest.raises(NoAnswerError, match="Node n1: its agent takes no questions"):
            await questions.ask("n1", QUESTION)

    run(story)


def test_silent_agent_is_waited_for_a_bounded_time() -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n1")
        with pytest.raises(NoAnswerError, match=re.escape("Node n1: no answer in 0.01 s")):
            await questions.ask("n1", QUESTION, 0.01)
        # Nothing is left of it for an agent that comes back.
        await seen(questions, "n1")

    run(story)


def test_other_node_cannot_answer() -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n1", "n2")
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        await asyncio.sleep(0)
        asked = await first(questions)
        assert not await take(questions, "n2", asked.id, encode(ANSWER))
        assert not await take(questions, "n1", "0" * 16, encode(ANSWER))
        assert await take(questions, "n1", asked.id, encode(ANSWER))
        assert not await take(questions, "n1", asked.id, encode(ANSWER))
        assert await asking == ANSWER

    run(story)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 1000,
        b'{"type": "failure", "reason": "x", "more": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"type": "novel"}',
        b'{"type": "hostTrace"}',
        encode(ANSWER).replace(b"10.244.1.2", b"300.1.1.1"),
        encode(ANSWER).replace(b"process", b"heaven"),
        encode(ANSWER).replace(b"itself", b"\\u202eitself"),
        b'{"type": "switchTrace", "parts": [], "packet": {}}',
        MANY_STEPS,
        msgspec.json.encode({"type": "failure", "reason": "x" * 2000}),
        encode(Failure("x")) + b" " * MAX_ANSWER,
    ],
)
def test_answer_that_cannot_be_read_is_a_failure(body: bytes) -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n1")
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        await asyncio.sleep(0)
        asked = await first(questions)
        assert await take(questions, "n1", asked.id, body)
        with pytest.raises(NoAnswerError, match="Node n1: its answer cannot be read"):
            await asking

    run(story)


def test_answer_that_nobody_waits_for_is_not_read() -> None:
    async def story(questions: Questions) -> None:
        async def read() -> bytes:
            raise AssertionError("it is read")

        assert not await questions.take("n1", "0" * 16, read)
        await seen(questions, "n1")
        assert not await questions.take("n1", "0" * 16, read)
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        await asyncio.sleep(0)
        assert not await questions.take("n1", "0" * 16, read)
        asking.cancel()

    run(story)


def test_answer_is_read_once_at_a_time_and_while_somebody_waits() -> None:
    """A node that sends slowly, and again and again, holds no more memory than others."""

    async def story(questions: Questions) -> None:
        begun = 0

        async def slow() -> bytes:
            nonlocal begun
            begun += 1
            await asyncio.Event().wait()
            return b""

        await seen(questions, "n1")
        asking = asyncio.create_task(questions.ask("n1", QUESTION, 0.2))
        await asyncio.sleep(0)
        asked = await first(questions)
        sending = asyncio.create_task(questions.take("n1", asked.id, slow))
        await asyncio.sleep(0)
        assert [await questions.take("n1", asked.id, slow) for _ in range(100)] == [False] * 100
        assert begun == 1
        with pytest.raises(NoAnswerError, match="no answer"):
            await asking
        assert not await sending

    run(story)


def test_questions_of_one_node_are_bounded() -> None:
    async def story(questions: Questions) -> None:
        await seen(questions, "n1", "n2")
        asking = [asyncio.create_task(questions.ask("n1", QUESTION)) for _ in range(MAX_QUESTIONS)]
        await asyncio.sleep(0)
        with pytest.raises(NoAnswerError, match="too many questions"):
            await questions.ask("n1", QUESTION)
        # Other nodes are asked nevertheless.
        other = asyncio.create_task(questions.ask("n2", QUESTION))
        await asyncio.sleep(0)
        assert await first(questions, "n2")
        for each in (*asking, other):
            each.cancel()
        await asyncio.gather(*asking, other, return_exceptions=True)
        await seen(questions, "n1")

    run(story)


def test_questions_of_all_nodes_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 1)

    async def story(questions: Questions) -> None:
        await seen(questions, "n1", "n2")
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        await asyncio.sleep(0)
        with pytest.raises(NoAnswerError, match="too many questions"):
            await questions.ask("n2", QUESTION)
        asking.cancel()

    run(story)


def test_later_long_poll_ends_an_earlier_one() -> None:
    """The agent of the earlier one may be gone; it would take the question with it."""

    async def story(questions: Questions) -> None:
        earlier = asyncio.create_task(questions.fetch("n1", 30))
        await asyncio.sleep(0)
        later = asyncio.create_task(first(questions))
        await asyncio.sleep(0)
        assert await earlier is None
        asking = asyncio.create_task(questions.ask("n1", QUESTION))
        asked = await later
        await take(questions, "n1", asked.id, encode(ANSWER))
        assert await asking == ANSWER

    run(story)


def test_nodes_that_are_gone_are_forgotten() -> None:
    async def story(_: Questions) -> None:
        known = {f"n{number}" for number in range(100)}
        questions = Questions(known.__contains__)
        await seen(questions, *known)
        known.clear()
        known.add("new")
        await seen(questions, "new")
        assert len(questions._nodes) == 1

    run(story)
