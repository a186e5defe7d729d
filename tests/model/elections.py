"""`controller.election.Election` as a value, so that it can be part of a hashable state.

Each change makes an `Election` of what is recorded, calls it, and records what it is then. So the
model runs the code that controllers run.
"""

from collections import deque
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from controller.election import Election, Lease, Term

_NOW: Final = 1_000.0
"""The time at which everything happens. Only what is recorded becomes older (`Elected.aged`)."""
_LONG_AGO: Final = 0.0
_WALL: Final = 0.0
"""The wall clock stands in the past, which is the worst that it can do."""


class Copy(NamedTuple):
    """A Lease as somebody has read it, or wants it to be."""

    holder: str
    generation: int
    version: str
    """`CURRENT`, `OLD`, or empty for a Lease that is to be created."""

    def __str__(self) -> str:
        return f"{self.holder or 'nobody'}, generation {self.generation}"


CURRENT: Final = "current"
"""The only version that a PUT succeeds with. Others are not told apart, so there are few states."""
OLD: Final = "old"


def outdated(copy: Copy) -> Copy:
    """The same, after the Lease was changed."""
    return copy._replace(version=OLD) if copy.version == CURRENT else copy


class Elected:
    """What an `Election` is at one moment. Equal ones are the same object."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self._parts = parts
        """The attributes of the `Election`, in the order of `_NAMES`."""
        election = self._election()
        lease = election.lease
        self.identity = election.identity
        self.known = election.known
        """Whether it believes that it knows the Lease."""
        self.lease = _copy(lease)
        self.newest = election.generation
        self.generation = election.term.generation if election.term is not None else 0
        """Of its term; 0: it has none."""
        self.may_write = election.holds(_NOW)

    @cache  # noqa: B019 - there are few, and they live as long as the process
    def seen(self, lease: Copy | None) -> "Elected":
        return self._after("seen", _lease(lease), _NOW)

    @cache  # noqa: B019
    def written(self, lease: Copy, is_recent: bool) -> "Elected":
        """`is_recent`: whether the request began within the term that it asks for."""
        return self._after("written", _lease(lease), _NOW if is_recent else _LONG_AGO, _NOW)

    @cache  # noqa: B019
    def due(self, raised: int = 0) -> tuple[Copy | None, "Elected"]:
        """What it writes now, and what it is then; `raised`: to a generation greater than this."""
        election = self._election()
        lease = election.due(_NOW, wall=_WALL)
        if lease is not None and raised:
            lease = election.raised(raised) or lease
        return _copy(lease), _elected(election)

    @cache  # noqa: B019
    def refused(self) -> "Elected":
        return self._after("refused")

    @cache  # noqa: B019
    def dead(self, holder: str) -> "Elected":
        return self._after("dead", holder)

    @cache  # noqa: B019
    def aged(self) -> "Elected":
        """After so long a time that its term is over, and a Lease that nobody renewed is free."""
        election = self._election()
        if election.term is not None:
            election.term = Term(election.term.generation, _LONG_AGO, _LONG_AGO)
        if election._seen_at is not None:
            election._seen_at = _LONG_AGO
        return _elected(election)

    @cache  # noqa: B019
    def outdated(self) -> "Elected":
        """After the Lease was changed: what it has read is an old version."""
        election = self._election()
        if election.lease is not None:
            election.lease = _lease(outdated(_copy(election.lease)))
        return _elected(election)

    def _after(self, method: str, *arguments: Any) -> "Elected":
        election = self._election()
        getattr(election, method)(*arguments)
        return _elected(election)

    def _election(self) -> Election:
        made = Election.__new__(Election)
        for name, part in zip(_NAMES, self._parts, strict=True):
            setattr(made, name, deque(part[1:], part[0]) if type(part) is tuple else part)
        return made


def new(identity: str) -> Elected:
    """Of a process that has just started."""
    return _elected(Election(identity))


_NAMES: Final = tuple(vars(Election("")))


def _elected(election: Election) -> Elected:
    return _interned(
        tuple(
            (part.maxlen, *part) if isinstance(part, deque) else part
            for part in (getattr(election, name) for name in _NAMES)
        )
    )


_interned: Final = lru_cache(maxsize=None)(Elected)


def _copy(lease: Lease | None) -> Copy | None:
    return lease and Copy(lease.holder, lease.transitions, lease.version)


def _lease(copy: Copy | None) -> Lease | None:
    return copy and Lease(*copy)
