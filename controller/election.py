"""Which of several controllers writes: the one that holds a Lease. Pure: no I/O, no clock.

The Lease (coordination.k8s.io/v1) is used as client-go uses it (k8s.io/client-go,
tools/leaderelection): the holder renews it, and another replica takes it when it has not changed
for as long as it lasts. Each replica measures that by its own monotonic clock, from the moment when
it saw the last change, so the clocks of different machines are never compared.

Differences:

- `leaseTransitions` is raised in the same PUT that takes the Lease. It is the generation that
  switches are told (OpenFlow 1.5.1, 6.3.6), so no two terms have the same one.
- A holder that could not renew in time stops writing by itself, earlier than others may take over.
- A holder that is known to be dead need not be waited for (`Election.dead`). Should that be wrong,
  the switches refuse its writes, because its generation is older.

Times are seconds of one monotonic clock.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

LONGEST_TERM: Final = 3.0
"""Seconds after the start of the last successful renewal. After that a leader does not write."""
DURATION: Final = 4
"""Seconds without a change after which the Lease is free (`leaseDurationSeconds`). The difference
from `LONGEST_TERM` is more than clocks can differ in that time."""
LONGEST_DURATION: Final = 60
"""At most so many seconds are waited for a Lease that somebody has given a longer duration."""
MOST_TRANSITIONS: Final = (1 << 31) - 1
"""The field has 32 bits."""
_MINUTE: Final = 60
_MOST_DEAD: Final = 16


@dataclass(frozen=True, slots=True)
class Lease:
    """What matters of the object."""

    holder: str
    """The identity of a process; empty: nobody's."""
    transitions: int
    """How often it was taken: the generation of the holder."""
    version: str
    """Its `resourceVersion`: a PUT with an older one is refused."""
    duration: float = DURATION
    address: str = ""
    """`HOST:PORT` of the holder's API."""


@dataclass(frozen=True, slots=True)
class Term:
    """The right to write."""

    generation: int
    until: float
    """Not at this time, and not later."""
    renewed: float
    """When the last successful renewal began."""


class Election:
    """What one replica knows of the Lease, and what it does about it."""

    def __init__(self, identity: str, address: str = "") -> None:
        """`identity`: of this process, and never of another one."""
        self.identity = identity
        self.term: Term | None = None
        """Ours, if we hold the Lease. It may be over (`holds`)."""
        self.lease: Lease | None = None
        """As it was seen last."""
        self.known = False
        """Whether `lease` can be the current one. It is None if there is none."""
        self.address = address
        """Where the others reach the API of this replica; empty: unknown."""
        self._seen_at: float | None = None
        """When `lease` was seen first as it is."""
        self._newest = 0
        """The largest number of transitions that was ever seen."""
        self._dead: deque[str] = deque(maxlen=_MOST_DEAD)
        """Holders from which the Lease was taken because they were taken for dead."""
        self._suspect = ""
        self.others_until = 0.0
        """Until then the holder before may believe that it may write: the Lease was taken from it
        before it was free by time, or was deleted."""

    def holds(self, now: float) -> bool:
        """Whether this replica may write."""
        return self.term is not None and now < self.term.until

    @property
    def generation(self) -> int:
        """The newest one that is known."""
        return self._newest

    @property
    def problem(self) -> str:
        """Why nobody can take the Lease, for people; empty: somebody can."""
        if self._newest < MOST_TRANSITIONS:
            return ""
        return f"leaseTransitions is {self._newest}, and cannot be raised: nobody takes the Lease"

    def leader(self, now: float) -> str:
        """The identity of the replica that leads, as far as is known; empty: perhaps none does."""
        if self.lease is None or self._seen_at is None:
            return ""
        return "" if now - self._seen_at >= DURATION else self.lease.holder

    # --- what is learned ---

    def seen(self, lease: Lease | None, now: float) -> None:
        """The Lease was read, at some time between the question and `now`."""
        if self._seen_at is None or lease != self.lease:
            self._seen_at = now
        self.known, self.lease = True, lease
        if lease is not None:
            self._newest = max(self._newest, lease.transitions)
        # That it is ours does not say when it was renewed: others may have waited since then.
        if self.term is not None and not self._is_ours(self.term.generation):
            self.term = None

    def written(self, lease: Lease, asked: float, now: float) -> None:
        """The API server took what `due` returned; `asked`: when the request began."""
        before = self.lease.holder if self.lease is not None else ""
        if lease.holder == self.identity != before and (
            not self.lease or before == self._suspect != ""
        ):
            self.others_until = now + LONGEST_TERM
        self.seen(lease, now)
        if before and before == self._suspect and lease.holder == self.identity:
            self._dead.append(before)
        if lease.holder == self.identity:
            self.term = Term(lease.transitions, asked + LONGEST_TERM, asked)
        else:
            self.term = None

    def refused(self) -> None:
        """Somebody else has changed the Lease: it has to be read."""
        self.known = False

    def dead(self, holder: str) -> None:
        """Free the Lease of a holder whose process is dead.

        Believed once of each holder. If it lives, and takes the Lease again, the two would
        otherwise take it from each other for ever.
        """
        if holder not in self._dead:
            self._suspect = holder

    # --- what is to be done ---

    def due(self, now: float, *, wall: float, delay: float | None = 0.0) -> Lease | None:
        """What to write now, in place of `lease`; None: nothing.

        `wall` is in seconds since 1970, for a Lease that does not exist yet. `delay`: so many
        seconds longer a free Lease is left to others; None: this replica is not fit to lead.
        """
        if not self.known:
            return None
        if self.lease is not None and self.lease.holder == self.identity:
            return self._renewed(self.lease)
        if delay is None or not self._is_free(now, delay):
            return None
        # A new Lease must not have a generation that switches have seen already. Nobody takes a
        # Lease once a minute for long, so this is more than the lost one had.
        before = self._newest if self.lease is not None else max(self._newest, int(wall) // _MINUTE)
        if before >= MOST_TRANSITIONS:
            return None
        version = self.lease.version if self.lease is not None else ""
        return Lease(self.identity, before + 1, version, address=self.address)

    def _renewed(self, lease: Lease) -> Lease:
        # A Lease that was restored from a backup has a generation that is older than one of ours.
        is_newest = lease.transitions >= min(self._newest, MOST_TRANSITIONS)
        newer = min(self._newest + 1, MOST_TRANSITIONS)
        return lease if is_newest else replace(lease, transitions=newer)

    def raised(self, generation: int) -> Lease | None:
        """What to write for a new term of a generation greater than this; None: nothing.

        For a Lease that was restored from a backup: switches refuse its generation.
        """
        lease = self.lease
        if lease is None or lease.holder != self.identity or generation < lease.transitions:
            return None
        return replace(lease, transitions=min(generation + 1, MOST_TRANSITIONS))

    def release(self) -> Lease | None:
        """What to write to give the Lease back, and stop at once; None: it is not ours."""
        self.term = None
        if self.lease is None or self.lease.holder != self.identity:
            return None
        return replace(self.lease, holder="", address="")

    def _is_free(self, now: float, delay: float) -> bool:
        waited = now - self._seen_at if self._seen_at is not None else 0.0
        if self.lease is None or not self.lease.holder:
            return waited >= delay
        if self.lease.holder == self._suspect and self._suspect not in self._dead:
            return True
        duration = min(max(self.lease.duration, DURATION), LONGEST_DURATION)
        return waited >= duration + delay

    def _is_ours(self, generation: int) -> bool:
        lease = self.lease
        return (
            lease is not None and lease.holder == self.identity and lease.transitions == generation
        )
