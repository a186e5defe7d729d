"""Whether this controller is of use as the leader: one that is not steps down.

A leader that renews its Lease although it reads nothing, or reaches no switch, keeps those away
that could do better. It is judged by what it does, not by what it is connected to.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final, Protocol

from controller.reconciler import Reconciler
from controller.session import Session

SILENCE: Final = 150.0
"""Seconds since a watch has said anything. Bookmarks come once a minute, and a watch that is silent
for 90 s is begun again."""
SLOW_WRITE: Final = 4.0
"""Seconds that a switch has not acknowledged a write, after which others are asked, too."""
ASKED: Final = 8
"""Switches that are asked: if most of them do not answer, it is not the switches' fault."""
ANSWER: Final = 2.0
"""Seconds in which they have to answer."""
PERIOD: Final = 1.0
"""Seconds between two looks."""
LATE: Final = 1.0
"""Seconds by which the event loop is late if it is overloaded, or was stopped."""
LATE_TIMES: Final = 3
"""So often in a row, once a second, the loop has to be late."""
HANDICAP: Final = 2.0
"""Seconds that a controller of little use leaves a free Lease to others."""
REST: Final = 60.0
"""Seconds until a controller that has stepped down may do so again: perhaps none is better."""


class Watched(Protocol):
    """The source, as seen from here."""

    @property
    def silence(self) -> float:
        """Seconds since the watch that has been silent longest has said something."""


class Usefulness:
    """Judges this controller."""

    def __init__(self, reconciler: Reconciler, source: Watched) -> None:
        self._reconciler = reconciler
        self._source = source
        self._late = 0
        self._unreached = ""
        """What the last question to switches found."""
        self._rested_until = 0.0

    def delay(self) -> float | None:
        """How much longer than others it leaves a free Lease; None: it cannot lead yet."""
        if not self._reconciler.listed.is_set():
            return None
        return HANDICAP if self._weakness() or self._has_few_switches() else 0.0

    async def run(self) -> None:
        """Look at the event loop and the switches once a second; until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(PERIOD)
            is_late = time.monotonic() - before > PERIOD + LATE
            self._late = self._late + 1 if is_late else 0
            slow = [s for s in self._reconciler.sessions.values() if s.unacknowledged > SLOW_WRITE]
            self._unreached = await self._ask(slow) if slow else ""

    def should_step_down(self) -> str:
        """Why, for people; empty: it should not."""
        weakness = self._weakness()
        if not weakness or time.monotonic() < self._rested_until:
            return ""
        self._rested_until = time.monotonic() + REST
        return weakness

    def _weakness(self) -> str:
        if self._source.silence > SILENCE:
            return f"a watch of the API server has been silent for {self._source.silence:.0f} s"
        if self._late >= LATE_TIMES:
            return "the event loop is late again and again"
        return self._unreached

    def _has_few_switches(self) -> bool:
        return 2 * len(self._reconciler.sessions) < len(self._reconciler.inventory.view.nodes)

    async def _ask(self, slow: Sequence[Session]) -> str:
        """Ask switches whether they are there; what is wrong if most of them are not.

        A switch may be stolen and not acknowledge on purpose, so not only slow ones are asked.
        """
        others = [each for each in self._reconciler.sessions.values() if each not in slow]
        asked = [*slow[: ASKED // 2], *random.sample(others, min(len(others), ASKED))][:ASKED]
        answers = await asyncio.gather(*(each.switch.alive(ANSWER) for each in asked))
        silent = answers.count(False)
        if 2 * silent <= len(asked):
            return ""
        return f"{silent} of {len(asked)} switches that were asked do not answer"
