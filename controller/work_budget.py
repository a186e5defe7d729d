"""How much work is done at a stretch, so that the event loop answers everybody meanwhile."""

import time
from collections.abc import Callable
from typing import Final

MAX_COST: Final = 500
"""Flows, buckets and meters that one slice compiles; objects that it takes in count ten each."""
MAX_SECONDS: Final = 0.01
"""After which a slice ends too. The loop must not be held for more than 50 ms."""


class WorkBudget:
    """One stretch of work. It ends after the step that used it up: one step is never divided."""

    def __init__(self, *, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock` is in seconds. It is the processor's, so that another process costs nothing."""
        self._clock = clock
        self._end = clock() + MAX_SECONDS
        self._left = MAX_COST
        self._begun = False

    def spend(self, cost: int) -> None:
        """A step was done."""
        self._left -= cost
        self._begun = True

    @property
    def over(self) -> bool:
        """Whether the event loop has to have its turn now."""
        # Without a step in each, nothing would ever be done on a machine that is slow enough.
        return self._begun and (self._left <= 0 or self._clock() >= self._end)
