"""Shared changes go to all switches, a few at a time.

A shared change makes work for thousands of sessions at once. If all of them did it in one turn of
the event loop, nobody else would be served meanwhile. So each waits for a place. A switch that is
slow or dead gives its place up after a while, and its update goes on beside the others.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

MOST_AT_ONCE: Final = 64
"""Switches that have a place: enough to keep the event loop busy, so few that one turn of it, in
which all of them may have answered, takes some milliseconds."""
LONGEST_PLACE: Final = 0.5
"""Seconds for which a switch keeps its place."""


class Waiting(Protocol):
    """A session that has shared changes to send."""

    def wake(self) -> bool:
        """Begin; False: there is nothing to do any more."""


class FanOut:
    """Gives places to sessions, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[Waiting, None] = {}
        self._places: dict[Waiting, float] = {}
        """Since when each session has its place, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether sessions wait for a place."""
        return bool(self._waiting)

    def add(self, sessions: Iterable[Waiting]) -> None:
        """These have something to send."""
        self._waiting.update(dict.fromkeys(sessions))
        self._give()

    def done(self, session: Waiting) -> None:
        """It has sent everything, or is gone."""
        if self._places.pop(session, None) is not None:
            self._give()

    def remove(self, session: Waiting) -> None:
        """It is gone."""
        self._waiting.pop(session, None)
        self.done(session)

    def _give(self) -> None:
        if not self._waiting:
            return
        now = asyncio.get_running_loop().time()
        while self._waiting and len(self._places) < MOST_AT_ONCE:
            session = next(iter(self._waiting))
            del self._waiting[session]
            if session.wake():
                self._places[session] = now
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LONGEST_PLACE, self._expire)

    def _expire(self) -> None:
        """Take the places of those that keep them for too long."""
        self._timer = None
        oldest = asyncio.get_running_loop().time() - LONGEST_PLACE
        for session, since in [*self._places.items()]:
            if since > oldest:
                break
            del self._places[session]
        self._give()
