"""What this agent cannot do, told to the controllers: the leader tells the API server."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from node_agent.cni_call import CniError, Pod
from node_agent.controllers import ControllerApi, Controllers, Told
from wire import paths
from wire.documents import MAX_PODS, NodeProblems
from wire.sentences import readable

LOOK: Final = 2.0
"""Seconds between two looks at whether there is something new."""
REPEAT: Final = 30.0
"""Seconds after which what is still so is said again: a controller forgets what is not repeated."""
REMEMBER: Final = 300.0
"""Seconds after which a failed ADD is forgotten. While the pod is wanted, kubelet tries again."""


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
            while len(self._failed) > MAX_PODS:
                del self._failed[next(iter(self._failed))]
            raise
        self._failed.pop(name, None)

    def current(self) -> dict[str, str]:
        """By `NAMESPACE/NAME`."""
        now = self._monotonic()
        self._failed = {n: (at, s) for n, (at, s) in self._failed.items() if now - at < REMEMBER}
        return {name: sentence for name, (_, sentence) in self._failed.items()}


async def report_loop(
    controllers: Controllers,
    node: Callable[[], str],
    pods: PodProblems,
    services: Callable[[], dict[str, str]],
) -> None:
    """Tell each controller when something has changed, and again while something is wrong.

    `node` says why this node takes no pods; empty: it does. `services` says by Service what of it
    this node cannot do. Never ends.
    """

    def current() -> NodeProblems:
        unserved = {name: readable(sentence) for name, sentence in services().items()}
        return NodeProblems(readable(node()), pods.current(), unserved)

    async with asyncio.TaskGroup() as tasks:
        for controller in controllers.each:
            tasks.create_task(_report_to(controller, current))


async def _report_to(controller: ControllerApi, current: Callable[[], NodeProblems]) -> NoReturn:
    seen = NodeProblems()
    # 404: it knows no such Node, and says so where the configuration is asked for.
    told = Told(controller, paths.PROBLEMS, (204, 404), REPEAT)
    while True:
        # At random, so that a thousand agents do not come at one moment.
        await asyncio.sleep(LOOK * random.uniform(0.8, 1.2))  # noqa: S311
        before, seen = seen, current()
        if seen == before:  # Otherwise it may be over at the next look.
            await told.update(seen, repeat=seen != NodeProblems())


def _one_sentence(error: CniError) -> str:
    return readable(f"{error.message}: {error.details}" if error.details else error.message)
