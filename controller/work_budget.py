"""How much work one turn of the event loop may do, so that it can serve everybody else too.

Two figures bound a turn. `MAX_SECONDS` is when a turn stops taking further steps: 10 ms of this
thread's CPU time. The event loop must not be blocked for more than 50 ms of real time. The rest is
reserve: the last step runs to its end whatever it costs, and other processes may use the CPU
meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar, cast

T = TypeVar("T")

MAX_COST: Final = 500
"""Flows, buckets and meters that one turn compiles; each object that it takes in counts ten."""
MAX_SECONDS: Final = 0.01
"""CPU time after which a turn takes no further step."""
REPORT_SECONDS: Final = 0.002
"""The same for a report to people. A request of a switch or an agent takes some turns of the event
loop, and between each two of them lies a turn of each report that is made."""


class WorkBudget:
    """The budget of one turn. The step that uses it up is still finished: steps are not divided."""

    def __init__(
        self, *, clock: Callable[[], float] = time.thread_time, seconds: float | None = None
    ) -> None:
        """`clock` is in seconds. The default is CPU time, which other processes do not use up."""
        self._clock = clock
        self._end = clock() + (MAX_SECONDS if seconds is None else seconds)
        self._left = MAX_COST
        self._begun = False

    def spend(self, cost: int) -> None:
        """A step of this cost was done."""
        self._left -= cost
        self._begun = True

    @property
    def over(self) -> bool:
        """Whether the work has to stop here and go on in a later turn."""
        # At least one step in each turn, or a very slow machine would never make progress.
        return self._begun and (self._left <= 0 or self._clock() >= self._end)


async def in_turns(work: Generator[None, None, T]) -> T:
    """Make a report in several turns of the event loop; it yields between its steps.

    What it reads may change meanwhile: then the result is about both moments.
    """
    budget = WorkBudget(seconds=REPORT_SECONDS)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast("T", end.value)
        if budget.over:
            await asyncio.sleep(0)
            budget = WorkBudget(seconds=REPORT_SECONDS)
        budget.spend(1)
