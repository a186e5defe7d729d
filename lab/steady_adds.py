"""Pods attached at a steady pace, however long earlier ones take.

with pods_to_add(lab, node) as pods, adding(node, pods) as adds:
    ...                     # kill something
    attempts = adds.stop()
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from lab.commands import LabError
from lab.lab import Lab
from lab.layout import NodeLayout
from lab.network import create_namespace, delete_namespace
from lab.patience import PATIENCE
from lab.runtime import Runtime, Sandbox, new_container_id

NAMESPACE = "adds"
HOLD = 1.0
"""Seconds for which a pod stays attached."""
LONGEST_WAIT = 60 * PATIENCE


@dataclass(frozen=True)
class Attempt:
    """One ADD; times are those of `time.monotonic()`."""

    began: float
    ended: float
    problem: str = ""
    """What the plugin said that is wrong; empty if the pod was attached."""


class SteadyAdds:
    """ADDs of some pods by turns, each time with a new sandbox.

    While all of them are being attached or detached, turns are left out: that bounds how many
    calls run at the same time.
    """

    def __init__(self, node: NodeLayout, pods: Sequence[Sandbox], interval: float) -> None:
        self._runtime = Runtime(node)
        self._interval = interval
        self._idle = deque(pods)
        self._attempts: list[Attempt] = []
        self._problems: list[LabError] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[len(pods)])
        self._thread.start()

    def wait_for(self, count: int) -> None:
        """Wait until so many more ADDs have succeeded. Raises `LabError`."""
        wanted = self._succeeded() + count
        deadline = time.monotonic() + LONGEST_WAIT
        while self._succeeded() < wanted:
            if time.monotonic() > deadline:
                said = self._attempts[-1].problem if self._attempts else ""
                raise LabError(f"not {count} more ADDs succeed in {LONGEST_WAIT:.0f} s: {said}")
            time.sleep(0.01 * PATIENCE)

    def _succeeded(self) -> int:
        return sum(not attempt.problem for attempt in [*self._attempts])

    def stop(self) -> list[Attempt]:
        """Begin no more; all attempts by their end, once they have ended.

        Raises `LabError` if a DEL failed.
        """
        self._stopped.set()
        self._thread.join(LONGEST_WAIT)
        if self._thread.is_alive():
            raise LabError(f"ADDs and DELs do not end in {LONGEST_WAIT:.0f} s")
        if self._problems:
            raise self._problems[0]
        return sorted(self._attempts, key=lambda attempt: attempt.ended)

    def _run(self, most: int) -> None:
        due = time.monotonic()
        with ThreadPoolExecutor(most) as pool:
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                due += self._interval
                if self._idle:
                    pool.submit(self._attach_once, self._idle.popleft())

    def _attach_once(self, pod: Sandbox) -> None:
        sandbox = replace(pod, container_id=new_container_id())
        result, problem = None, ""
        began = time.monotonic()
        try:
            result = self._runtime.add(sandbox)
        except LabError as error:
            problem = str(error)
        self._attempts.append(Attempt(began, time.monotonic(), problem))
        if not problem:
            self._stopped.wait(HOLD)
        try:
            self._runtime.delete(sandbox, result)
        except LabError as error:
            self._problems.append(error)
        self._idle.append(pod)


@contextmanager
def pods_to_add(lab: Lab, node: NodeLayout, count: int = 40) -> Iterator[list[Sandbox]]:
    """Pods of an API server that have a network namespace and are not attached."""
    names = [f"add{number}" for number in range(count)]
    uids = lab.write_pods(NAMESPACE, names, node.name)
    pods = [
        Sandbox("", lab.layout.pod_netns(NAMESPACE, name), NAMESPACE, name, uids[name])
        for name in names
    ]
    try:
        for pod in pods:
            create_namespace(pod.netns)
        yield pods
    finally:
        for pod in pods:
            delete_namespace(pod.netns)


@contextmanager
def adding(
    node: NodeLayout, pods: Sequence[Sandbox], interval: float = 0.1
) -> Iterator[SteadyAdds]:
    """An ADD every `interval` seconds."""
    adds = SteadyAdds(node, pods, interval)
    try:
        yield adds
    finally:
        adds.stop()


def longest_gap(attempts: Sequence[Attempt], since: float, until: float) -> float:
    """The longest time, in seconds, in which no ADD succeeded."""
    ends = [each.ended for each in attempts if not each.problem and since <= each.ended <= until]
    moments = [since, *ends, until]
    return max(later - earlier for earlier, later in pairwise(moments))
