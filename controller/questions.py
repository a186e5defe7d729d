"""Questions to agents: what only a node itself knows, for example what its conntrack holds.

An agent fetches its questions by a long poll, so it needs no port that listens. A question waits
for an answer for a bounded time. Agents answer only what they were asked: the name of an answer is
a secret between the controller and one node.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from wire.questions import (
    MAX_ANSWER,
    MAX_QUESTIONS,
    Answer,
    Asked,
    Failure,
    NodeQuestions,
    Question,
    decode_answer,
    encode,
)

MOST_AT_ONCE: Final = 512
"""Questions to all agents together that wait for an answer."""
PATIENCE: Final = 15.0
"""Seconds for an answer."""
ABSENT: Final = 90.0
"""Seconds after its last long poll in which an agent counts as there."""


class NoAnswerError(Exception):
    """An agent gives no answer; the text says which and why."""


class Versions(NamedTuple):
    """What runs on a node, as its agent says; empty: unknown."""

    agent: str = ""
    open_vswitch: str = ""


_UNKNOWN: Final = Versions()


class _Node:
    """What one node is asked."""

    __slots__ = (
        "answers", "asked", "change", "polls", "seen", "sending", "until", "versions",
    )  # fmt: skip

    def __init__(self) -> None:
        self.asked: dict[str, Asked] = {}
        """By name, not fetched yet."""
        self.answers: dict[str, asyncio.Future[Answer]] = {}
        """By name, what is waited for."""
        self.until: dict[str, float] = {}
        """By name, when nobody waits for it any more."""
        self.sending: set[str] = set()
        """Of these, what the agent sends at the moment."""
        self.change = asyncio.Event()
        self.seen: float | None = None
        """When the last long poll ended or began; None: there was none."""
        self.polls = 0
        """Long polls so far."""
        self.versions = _UNKNOWN


class Questions:
    """All questions that wait. `fetch` and `take` are the agents' side."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        """`is_known` says whether there is such a Node."""
        self._is_known = is_known
        self._nodes: dict[str, _Node] = {}
        self._waiting = 0

    async def ask(self, node: str, question: Question, patience: float = PATIENCE) -> Answer:
        """The answer of the node's agent.

        A `Failure` of the agent is a `NoAnswerError`, too.
        """
        known = self._nodes.get(node)
        if known is None or not self.takes(node):
            raise NoAnswerError(
                f"Node {node}: its agent takes no questions; it does not run, or is too old"
            )
        if len(known.answers) >= MAX_QUESTIONS or self._waiting >= MOST_AT_ONCE:
            raise NoAnswerError(f"Node {node}: too many questions wait for an answer; try again")
        name = secrets.token_hex(8)
        known.asked[name] = Asked(name, msgspec.Raw(encode(question)))
        future = known.answers[name] = asyncio.get_running_loop().create_future()
        known.until[name] = asyncio.get_running_loop().time() + patience
        known.change.set()
        self._waiting += 1
        try:
            async with asyncio.timeout_at(known.until[name]):
                answer: Answer = await future
        except TimeoutError:
            raise NoAnswerError(f"Node {node}: no answer in {patience:g} s") from None
        finally:
            self._waiting -= 1
            del known.answers[name], known.until[name]
            known.asked.pop(name, None)
        if isinstance(answer, Failure):
            raise NoAnswerError(f"Node {node}: {answer.reason}")
        return answer

    def takes(self, node: str) -> bool:
        """Whether the node's agent is there to be asked."""
        known = self._nodes.get(node)
        now = asyncio.get_running_loop().time()
        return known is not None and known.seen is not None and now - known.seen <= ABSENT

    def versions(self, node: str) -> Versions:
        """What the node's agent has said last."""
        known = self._nodes.get(node)
        return known.versions if known is not None else _UNKNOWN

    async def fetch(
        self, node: str, wait: float, versions: Versions = _UNKNOWN
    ) -> NodeQuestions | None:
        """What the node is asked now; None: nothing in so many seconds.

        A later long poll of the node ends an earlier one, whose agent may be gone.
        """
        known = self._nodes.get(node) or self._add(node)
        known.seen = asyncio.get_running_loop().time()
        known.polls += 1
        known.versions = versions
        this = known.polls
        known.change.set()
        try:
            async with asyncio.timeout(wait):
                while not known.asked:
                    known.change.clear()
                    await known.change.wait()
                    if known.polls != this:
                        return None
        except TimeoutError:
            return None
        finally:
            known.seen = asyncio.get_running_loop().time()
        asked = tuple(known.asked.values())
        known.asked.clear()
        return NodeQuestions(asked)

    async def take(self, node: str, name: str, read: Callable[[], Awaitable[bytes]]) -> bool:
        """An answer; whether there was such a question.

        Only then its body is read, and only as long as somebody waits for it: a node may send
        slowly, and often. An answer that cannot be read is a failure, as is one of more than
        `MAX_ANSWER` bytes.
        """
        known = self._nodes.get(node)
        future = known.answers.get(name) if known is not None else None
        if known is None or future is None or future.done() or name in known.sending:
            return False
        known.sending.add(name)
        try:
            async with asyncio.timeout_at(known.until[name]):
                body = await read()
        except TimeoutError:
            return False
        finally:
            known.sending.discard(name)
        if future.done():
            return False
        try:
            if len(body) > MAX_ANSWER:
                raise ValueError("it is too long")  # noqa: TRY301
            answer = decode_answer(body)
        except (msgspec.MsgspecError, ValueError) as error:
            answer = Failure(f"its answer cannot be read: {str(error)[:200]}")
        future.set_result(answer)
        return True

    def _add(self, node: str) -> _Node:
        for gone in [name for name in self._nodes if not self._is_known(name)]:
            del self._nodes[gone]
        self._nodes[node] = _Node()
        return self._nodes[node]
