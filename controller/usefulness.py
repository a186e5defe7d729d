"""Whether this controller is of use as the leader: one that is not steps down.

A leader that renews its Lease although it reads nothing, or reaches no switch, keeps those away
that could do better. It is judged by what it does, not by what it is connected to.
"""

import asyncio
import random
import time
from typing import Final, Protocol

from controller.reconciler import Reconciler
from controller.session_state import PENDING, WORKING

SILENCE: Final = 150.0
"""Seconds since a watch has said anything. Bookmarks come once a minute, and a watch that is silent
for 90 s is begun again."""
ASKED: Final = 8
"""Switches that are asked at a time for an echo. They are chosen at random: one alone may be
stolen, and not answer on purpose."""
ANSWER: Final = 3.0
"""Seconds in which they have to answer."""
SILENT_TIMES: Final = 2
"""So often in a row most of them do not, if this controller does not reach the switches."""
STUCK: Final = 60.0
"""Seconds without an acknowledgement although most switches have something to acknowledge."""
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

    def retry(self) -> None:
        """The API server answers again."""


class Usefulness:
    """Judges this controller."""

    def __init__(self, reconciler: Reconciler, source: Watched) -> None:
        self._reconciler = reconciler
        self._source = source
        self._late = 0
        self._silent = 0
        """How often in a row most of the switches that were asked did not answer."""
        self._has_reached = False
        """Whether a switch was connected since this controller began to lead."""
        self._rested_until = float("-inf")
        """Until then it leaves a free Lease to others, and does not step down again."""

    def delay(self) -> float | None:
        """How much longer than others it leaves a free Lease; None: it cannot lead yet."""
        if not self._reconciler.listed.is_set():
            return None
        rests = time.monotonic() < self._rested_until
        return HANDICAP if rests or self._weakness() or self._has_few_switches() else 0.0

    async def run(self) -> None:
        """Look at the event loop and the switches once a second; until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(PERIOD)
            is_late = time.monotonic() - before > PERIOD + LATE
            self._late = self._late + 1 if is_late else 0
            if not self._reconciler.leadership.holds():
                self._silent, self._has_reached = 0, False
            elif await self._are_silent():
                self._silent += 1
            else:
                self._silent = 0

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
        if self._reconciler.leadership.holds() and self._are_stuck():
            return f"no switch has acknowledged anything for {STUCK:g} s, and most have work"
        if self._silent >= SILENT_TIMES:
            return "most switches do not answer"
        return ""

    def _has_few_switches(self) -> bool:
        return 2 * len(self._reconciler.sessions) < len(self._reconciler.inventory.view.nodes)

    def _are_stuck(self) -> bool:
        """Whether most switches have something to acknowledge, and none does."""
        reconciler = self._reconciler
        since = max(reconciler.acknowledged_at, reconciler.leadership.began)
        if time.monotonic() - since < STUCK:
            return False
        sessions = reconciler.sessions.values()
        busy = sum(each.state in PENDING or each.state in WORKING for each in sessions)
        return 2 * busy > len(sessions)

    async def _are_silent(self) -> bool:
        """Whether most switches do not answer, or none is connected any more."""
        sessions = list(self._reconciler.sessions.values())
        if not sessions:
            return self._has_reached and bool(self._reconciler.inventory.view.nodes)
        self._has_reached = True
        asked = random.sample(sessions, min(len(sessions), ASKED))
        answers = await asyncio.gather(*(each.switch.alive(ANSWER) for each in asked))
        return 2 * answers.count(False) > len(asked)
