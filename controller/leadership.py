"""Whether this controller may write to switches and to the API server, and as which generation."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

ALONE: Final = 5.0
"""Seconds without a leader after which none is expected at any moment."""
LONGEST_DOUBT: Final = 30.0
"""Seconds until `Leadership.confirmed` gives up."""


def clock() -> float:
    """Seconds; it goes on while the machine sleeps, and nobody can set it (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Follower(Protocol):
    """What begins and stops to write."""

    def lead(self) -> None:
        """Begin to write."""

    def follow(self) -> None:
        """Stop writing: another controller may."""

    def follow_next(self) -> None:
        """Another controller leads than before; this one has not led meanwhile."""


class Leadership:
    """The right to write, as an election gives and takes it; permanent without an election."""

    def __init__(self, *, elected: bool = False, clock: Callable[[], float] = clock) -> None:
        """`elected`: there may be other controllers; until `grant` this one does not write."""
        self.elected = elected
        self.generation = 0
        """Of the term; without an election 0. Also the newest that is known of others."""
        self.since = time.time()
        """When this controller began to lead, or to follow, in seconds since 1970."""
        self.began = time.monotonic()
        """The same, as `time.monotonic` has it."""
        self.wanted_generation = 0
        """Switches refuse all generations up to this one; 0: they do not."""
        self.leader = ""
        """The identity of the controller that leads, if it is known; empty: perhaps none does."""
        self.last_led = float("-inf")
        """The last time when this or another controller was known to lead."""
        self.others_until = 0.0
        """The controller that led before may believe to lead until then."""
        self._started = clock()
        self._clock = clock
        self._until = 0.0 if elected else float("inf")
        self._renewed = 0.0 if elected else float("inf")
        self._leads = not elected
        self._followers: list[Follower] = []
        self._changed = asyncio.Event()
        self._doubted = asyncio.Event()
        self._end: asyncio.TimerHandle | None = None

    def holds(self) -> bool:
        """Whether this controller may write at this moment. Ask before every write."""
        return self._leads and self._clock() < self._until

    def is_alone(self) -> bool:
        """Whether no controller has led for a while, nor this one since it was started."""
        return self._clock() - max(self.last_led, self._started) > ALONE

    def now(self) -> float:
        """A time for `confirmed`."""
        return self._clock()

    def tell(self, follower: Follower) -> None:
        """Call `follower` on each change from now on."""
        self._followers.append(follower)

    # --- what the election says ---

    def grant(self, generation: int, until: float, renewed: float) -> None:
        """Allow to write until then. `renewed`: when this was asked for."""
        is_new = not self.holds() or generation != self.generation
        if is_new and self._leads:
            self.withdraw()
        self._until, self._renewed, self.generation = until, renewed, generation
        self._leads = True
        self._wake()
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(until - self._clock(), self._expire)
        if is_new:
            self._note_change()
            for each in self._followers:
                each.lead()

    def withdraw(self) -> None:
        """Forbid to write."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._leads and self.elected:
            self._leads = False
            self._note_change()
            self._wake()
            for each in self._followers:
                each.follow()

    def follows(self, leader: str) -> None:
        """Another controller leads, or this one; empty: perhaps none does."""
        self.leader = leader
        if leader:
            self.last_led = self._clock()

    def learn(self, generation: int) -> None:
        """Another controller has this generation."""
        if self._leads or generation <= self.generation:
            return
        self.generation = generation
        for each in self._followers:
            each.follow_next()

    def _expire(self) -> None:
        # The loop's clock and ours are not the same: this may be a moment early.
        if self.holds():
            left = self._until - self._clock()
            self._end = asyncio.get_running_loop().call_later(left, self._expire)
        else:
            self.withdraw()

    def _note_change(self) -> None:
        self.since, self.began = time.time(), time.monotonic()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- what those who write ask ---

    async def confirmed(self, since: float) -> bool:
        """Whether a renewal that began after `since` has succeeded; waits for one.

        Whoever became a switch's master at `since` was its master while it held the Lease, then.
        """
        try:
            async with asyncio.timeout(LONGEST_DOUBT):
                while self.holds() and self._renewed <= since:
                    self.doubt()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return self.holds()

    async def ceases(self, timeout: float) -> None:  # noqa: ASYNC109
        """Return when this controller may not write any more, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.holds():
                    await self._changed.wait()

    def doubt(self) -> None:
        """Have the Lease renewed at once: it may be somebody else's already."""
        self._doubted.set()

    async def doubted(self, timeout: float) -> None:  # noqa: ASYNC109
        """Return when somebody doubts, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._doubted.wait()
        self._doubted.clear()
