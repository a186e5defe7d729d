"""What this agent cannot do, told to the controller: it tells the API server, which we cannot."""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp
import structlog

from node_agent.cni_call import CniError, Pod
from settings import Agent
from settings.node import MOST_PODS, NodeProblems, encode
from settings.tls import client_context

LOOK: Final = 2.0
"""Seconds between two looks at whether there is something new."""
REPEAT: Final = 30.0
"""Seconds after which what is still so is said again: the controller may be a new one."""
REMEMBER: Final = 300.0
"""Seconds after which a failed ADD is forgotten. While the pod is wanted, kubelet tries again."""
LONGEST: Final = 1000
"""Characters of a sentence."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)

log = structlog.get_logger()


class PodProblems:
    """Why the last ADD of a pod failed, until one succeeds."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failed: dict[str, tuple[float, str]] = {}

    @contextmanager
    def of(self, pod: Pod | None) -> Iterator[None]:
        """Around an ADD. A `CniError` is noted, and raised on."""
        if pod is None:
            yield  # No Kubernetes object could be told of it.
            return
        name = f"{pod.namespace}/{pod.name}"
        try:
            yield
        except CniError as error:
            self._failed.pop(name, None)
            self._failed[name] = self._monotonic(), _one_sentence(error)
            while len(self._failed) > MOST_PODS:
                del self._failed[next(iter(self._failed))]
            raise
        self._failed.pop(name, None)

    def current(self) -> dict[str, str]:
        """By `NAMESPACE/NAME`."""
        now = self._monotonic()
        self._failed = {n: (at, s) for n, (at, s) in self._failed.items() if now - at < REMEMBER}
        return {name: sentence for name, (_, sentence) in self._failed.items()}


async def tell_for_ever(agent: Agent, node: Callable[[], str], pods: PodProblems) -> None:
    """Tell the controller whenever something has changed, and again while something is wrong.

    `node` says why this node takes no pods; empty: it does.
    """
    url = f"{'http' if agent.tls is None else 'https'}://{agent.controller_api}"
    seen = told = NodeProblems()
    told_at = 0.0
    async with aiohttp.ClientSession(url, timeout=_TIMEOUT) as session:
        while True:
            # At random, so that a thousand agents do not come at one moment.
            await asyncio.sleep(LOOK * random.uniform(0.8, 1.2))  # noqa: S311
            before, seen = seen, NodeProblems(_printable(node()), pods.current())
            if seen != before:
                continue  # It may be over at the next look.
            lasts = seen != NodeProblems() and time.monotonic() - told_at >= REPEAT
            if seen == told and not lasts:
                continue
            try:
                await _tell(session, agent, seen)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                log.debug("problems not told", reason=str(error) or repr(error))
                continue
            told, told_at = seen, time.monotonic()


async def _tell(session: aiohttp.ClientSession, agent: Agent, problems: NodeProblems) -> None:
    tls: ssl.SSLContext | bool = (
        client_context(agent.tls, "agent.tls") if agent.tls is not None else True
    )
    path = f"/v1/nodes/{agent.node}/problems"
    async with session.post(path, data=encode(problems), ssl=tls) as response:
        if response.status != 204:
            body = await response.read()
            raise ValueError(f"the controller answered {response.status}: {body[:200]!r}")


def _one_sentence(error: CniError) -> str:
    return _printable(f"{error.message}: {error.details}" if error.details else error.message)


def _printable(text: str) -> str:
    """What the controller takes; a program's output, for one, has lines."""
    return "".join(c if c >= " " and c != "\x7f" else " " for c in text)[:LONGEST]
