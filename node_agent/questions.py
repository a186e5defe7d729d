"""Answers what the controllers ask of this node: each its own questions."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

import msgspec
import structlog
from pyroute2 import AsyncIPRoute

from node_agent import appctl
from node_agent.capture import CaptureError, capture
from node_agent.checks.local import CheckError, answer_check
from node_agent.controllers import ControllerApi, ControllerError, Controllers
from node_agent.faults import NodeFault
from node_agent.host_table import HostTable
from node_agent.host_trace import trace_host
from node_agent.leases import Leases
from node_agent.switch_trace import trace_switch
from settings import Agent
from wire import paths
from wire.documents import NodeConfig
from wire.questions import (
    MAX_QUESTIONS,
    Answer,
    Asked,
    CapturePod,
    CheckNode,
    Failure,
    NodeQuestions,
    Question,
    TraceHost,
    TraceSwitch,
    decode_question,
    decode_questions,
    encode,
)
from wire.sentences import readable
from wire.tracing import TraceError
from wire.version import VERSION

_WAIT: Final = 30
"""Seconds that the controller may hold a request that has no news."""
_SLOW: Final = 10.0
"""Seconds that it may take beside."""
_BACKOFF: Final = (1.0, 8.0)
"""Seconds before the second try, and at most."""
_UNKNOWN: Final = 60.0
"""Seconds until the next try, where the controller is too old to ask, or does not know the Node."""
_TELLING: Final = 10.0
_TURN: Final = 5.0
"""Seconds that a check waits for another one to end."""

log = structlog.get_logger()

Answerer: TypeAlias = Callable[[Question], Awaitable[Answer]]


def answerer(
    agent: Agent,
    netlink: AsyncIPRoute,
    table: HostTable,
    leases: Leases,
    config: Callable[[], NodeConfig | None],
) -> Answerer:
    """Answers every kind of question that this version knows.

    `config` is what the controller has said of the node; None: nothing yet.
    """
    one_check, one_capture = asyncio.Lock(), asyncio.Lock()

    async def answer(question: Question) -> Answer:
        match question:
            case TraceSwitch():
                return await trace_switch(agent.ovs_run, agent.datapath, question)
            case TraceHost():
                return await trace_host(netlink, table, question)
            case CapturePod():
                if one_capture.locked():
                    raise CaptureError("another capture runs on this node; try again")
                async with one_capture:
                    return await capture(leases, question)
            case CheckNode():
                # Those that wait long are nobody's any more: the controller has given up.
                try:
                    async with asyncio.timeout(_TURN):
                        await one_check.acquire()
                except TimeoutError:
                    raise CheckError("another check runs on this node; try again") from None
                try:
                    return await answer_check(agent, config(), question)
                finally:
                    one_check.release()

    return answer


async def answer_loop(controllers: Controllers, ovs_run: Path, answerer: Answerer) -> None:
    """Fetch the questions of each controller and answer them. Never ends.

    Of all questions, a bounded number is answered at the same time. A `NodeFault`, `TraceError` or
    `OSError` of `answerer` is a `Failure`. `ovs_run` is where Open vSwitch says its version.
    """
    working = asyncio.Semaphore(MAX_QUESTIONS)
    async with asyncio.TaskGroup() as tasks:
        for controller in controllers.each:
            tasks.create_task(_answer_all(controller, ovs_run, answerer, working))


async def _answer_all(
    controller: ControllerApi, ovs_run: Path, answerer: Answerer, working: asyncio.Semaphore
) -> NoReturn:
    """Answer the questions of one controller.

    A controller that does not take its answers delays no other one: those hold none of `working`.
    """
    delay = _BACKOFF[0]
    turns = asyncio.Semaphore(MAX_QUESTIONS)
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                asked = await _fetch(controller, ovs_run)
            except ControllerError as error:
                log.debug("no questions", controller=controller.url, reason=str(error))
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  no secret
                delay = min(delay * 2, _BACKOFF[1])
                continue
            delay = _BACKOFF[0]
            if asked is None:
                await asyncio.sleep(_UNKNOWN * random.uniform(0.5, 1))  # noqa: S311
                continue
            for each in asked.questions:
                await turns.acquire()
                task = tasks.create_task(_answer(controller, each, answerer, working))
                task.add_done_callback(lambda _: turns.release())


async def _fetch(controller: ControllerApi, ovs_run: Path) -> NodeQuestions | None:
    """None: the controller is too old, or does not know the Node. Raises `ControllerError`."""

    def read(body: bytes) -> NodeQuestions:
        try:
            return decode_questions(body)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the questions cannot be read: {error}") from error

    asked: NodeQuestions | None = await controller.ask(
        "GET",
        paths.path_for(paths.QUESTIONS, controller.node),
        answers={
            200: read,
            304: lambda _: NodeQuestions(()),
            **dict.fromkeys((404, 405), lambda _: None),
        },
        timeout=_WAIT + _SLOW,
        params={
            paths.WAIT: str(_WAIT),
            paths.AGENT: VERSION,
            paths.OPEN_VSWITCH: await appctl.version(ovs_run),
        },
    )
    return asked


async def _answer(
    controller: ControllerApi, asked: Asked, answerer: Answerer, working: asyncio.Semaphore
) -> None:
    answer: Answer
    try:
        question = decode_question(bytes(asked.question))
        async with working:
            answer = await answerer(question)
    except (msgspec.MsgspecError, ValueError) as error:
        log.info("a question is not understood", reason=readable(str(error)))
        answer = Failure("its agent is too old to answer this")
    except (NodeFault, TraceError, OSError) as error:
        answer = Failure(readable(str(error)))
    except Exception:
        # Somebody looks; whatever is wrong with that must not stop what the node is for.
        log.exception("a question is not answered")
        answer = Failure("its agent failed to answer; the agent's log says why")
    try:
        await controller.ask(
            "POST",
            paths.path_for(paths.ANSWER, controller.node, question=asked.id),
            answers=dict.fromkeys((204, 404, 410), bytes),
            timeout=_TELLING,
            data=encode(answer),
        )
    except ControllerError as error:
        log.debug("an answer is not told", reason=str(error))
