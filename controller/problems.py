"""What is wrong: one registry for sources, inventory, compilation, switches and agents.

A problem is one sentence about one subject, told by one owner. Subjects and owners are typed, so
nobody has to read a sentence to learn what it is about. An owner sets and clears its own problems;
when it ends, all of its problems end with it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

import structlog

from flows.refs import ObjectRef
from wire.sentences import readable

log = structlog.get_logger()

MAX_OF_CLUSTER: Final = 10_000
"""Problems kept of an owner that speaks for the whole cluster."""
MAX_OF_NODE: Final = 1_000
"""Problems kept of an owner that speaks for one node. One node must not fill the registry."""
MAX_COUNTED: Final = 100_000
"""Further subjects of one owner that are counted without their text."""


class PortRef(NamedTuple):
    """A port of a node's bridge."""

    node: str
    port: str

    def __str__(self) -> str:
        """`port pabc of n1`."""
        return f"port {self.port} of {self.node}"


class BridgeRef(NamedTuple):
    """A node's bridge, with all of its ports."""

    node: str

    def __str__(self) -> str:
        """`ports of n1`."""
        return f"ports of {self.node}"


class SwitchRef(NamedTuple):
    """A connected switch that is no known node's."""

    datapath_id: int
    peer: str

    def __str__(self) -> str:
        """`switch 00000000000000ab at 192.0.2.1:40000`."""
        return f"switch {self.datapath_id:016x} at {self.peer}"


class FileRef(NamedTuple):
    """A file of the source, by its path below the source's directory."""

    path: str

    def __str__(self) -> str:
        """`file pods/a.yaml`."""
        return f"file {self.path}"


class ApiPathRef(NamedTuple):
    """A collection that the API server serves."""

    path: str

    def __str__(self) -> str:
        """`API server /api/v1/pods`."""
        return f"API server {self.path}"


class Reporter(Enum):
    """What kind of part tells of a problem."""

    SOURCE = "the source"
    """An object, a file or a collection cannot be read."""
    INVENTORY = "the inventory"
    """An object is refused."""
    PORTS = "the ports"
    """A port of a node's switch is refused."""
    COMPILER = "the compiler"
    """The flows of an object cannot be compiled."""
    SWITCH = "the switch"
    """A switch is refused, or has rejected the flows of an object."""
    AGENT = "the agent"
    """A node's agent cannot do something."""


class Owner(NamedTuple):
    """Who tells of a problem, and ends it."""

    reporter: Reporter
    node: str = ""
    """For whose node it speaks; empty: for the whole cluster."""
    session: int = 0
    """Which of the node's sessions, where that matters: a later one has problems of its own."""

    def __str__(self) -> str:
        """`the agent of n1`, `the source`."""
        return f"{self.reporter.value} of {self.node}" if self.node else self.reporter.value


SOURCE: Final = Owner(Reporter.SOURCE)
INVENTORY: Final = Owner(Reporter.INVENTORY)

Subject: TypeAlias = ObjectRef | PortRef | BridgeRef | SwitchRef | FileRef | ApiPathRef | Owner
"""An `Owner` is the subject of one problem alone: that it has more of them than are kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a subject."""

    subject: Subject
    owner: Owner
    text: str
    since: float
    """When it was first told, in seconds since 1970."""
    expires: float | None = None
    """When it ends unless it is told again, by the registry's clock."""

    @property
    def title(self) -> str:
        """The subject, and on which node where that says more, for people."""
        subject, (reporter, node, _) = self.subject, self.owner
        text = str(subject)
        match subject:
            case Owner():
                text = f"further problems of {subject}"
            case ObjectRef(kind, _, name):
                is_node = kind == "Node"
                if reporter is Reporter.AGENT:
                    text = f"agent of {name}" if is_node else f"{subject} on {node}"
                elif reporter is Reporter.SWITCH:
                    text = f"{subject} on the switch of {node}"
                elif reporter is Reporter.COMPILER:
                    text = f"flows of {name if is_node else subject}"
        return readable(text)


class Problems:
    """Every problem of the moment, by owner and subject."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._by_owner: dict[Owner, dict[Subject, Problem]] = {}
        self._by_subject: dict[Subject, dict[Owner, Problem]] = {}
        self._more: dict[Owner, set[Subject]] = {}
        """Subjects that were told of when their owner had as many problems as are kept."""

    def set(
        self, owner: Owner, subject: Subject, text: str, *, lifetime: float | None = None
    ) -> None:
        """Tell what is wrong with a subject; an empty text clears it.

        `lifetime` is in seconds: the problem ends then, unless it is told again. An owner that has
        as many problems as are kept is told to have one more; that one's text is lost.
        """
        if not text:
            self.clear(owner, subject)
            return
        own = self._by_owner.setdefault(owner, {})
        known = own.get(subject)
        if known is None and len(own) >= (MAX_OF_NODE if owner.node else MAX_OF_CLUSTER):
            more = self._more.setdefault(owner, set())
            if len(more) < MAX_COUNTED:
                more.add(subject)
            return
        text = readable(text)
        expires = None if lifetime is None else self._monotonic() + lifetime
        if known is not None and known.text == text:
            told = replace(known, expires=expires)
        else:
            told = Problem(subject, owner, text, self._clock(), expires)
            # A port is often there a moment before its Pod.
            tell = log.info if owner.reporter is Reporter.PORTS else log.warning
            tell("problem", subject=told.title, problem=text, limit_by=_limit_by(told))
        own[subject] = told
        self._by_subject.setdefault(subject, {})[owner] = told
        self._discard_more(owner, subject)

    def clear(self, owner: Owner, subject: Subject) -> None:
        """Nothing is wrong with the subject any more, as this owner says."""
        own = self._by_owner.get(owner, {})
        if own.pop(subject, None) is not None:
            self._drop_from_subject(subject, owner)
            if not own and owner not in self._more:
                del self._by_owner[owner]
        self._discard_more(owner, subject)

    def clear_owner(self, owner: Owner) -> None:
        """All problems of an owner end."""
        for subject in self._by_owner.pop(owner, {}):
            self._drop_from_subject(subject, owner)
        self._more.pop(owner, None)

    def clear_subject(self, subject: Subject) -> None:
        """All problems with a subject end, whoever told of them: the subject is gone."""
        for owner in list(self._by_subject.get(subject, ())):
            self.clear(owner, subject)

    def replace_owner(
        self, owner: Owner, told: Mapping[Subject, str], *, lifetime: float | None = None
    ) -> None:
        """The owner tells all of its problems anew: what is not among them ends."""
        for subject in self._by_owner.get(owner, {}).keys() - told.keys():
            self.clear(owner, subject)
        self._more.pop(owner, None)
        for subject, text in told.items():
            self.set(owner, subject, text, lifetime=lifetime)

    def of_subject(self, subject: Subject) -> list[Problem]:
        """All problems with a subject, the oldest first."""
        found = [p for p in self._by_subject.get(subject, {}).values() if not self._expired(p)]
        return sorted(found, key=lambda problem: problem.since)

    def of_owner(self, owner: Owner) -> list[Problem]:
        """All kept problems of an owner, as they came."""
        return [p for p in self._by_owner.get(owner, {}).values() if not self._expired(p)]

    def text(self, owner: Owner, subject: Subject) -> str:
        """What an owner says is wrong with a subject; empty: nothing."""
        known = self._by_owner.get(owner, {}).get(subject)
        return "" if known is None or self._expired(known) else known.text

    def __iter__(self) -> Iterator[Problem]:
        """Every problem of now, and for each owner with more than are kept how many those are."""
        self._end_expired()
        for owner, own in list(self._by_owner.items()):
            yield from own.values()
            if more := self._more.get(owner):
                count = f"{len(more)}" if len(more) < MAX_COUNTED else f"at least {MAX_COUNTED}"
                yield Problem(owner, owner, f"{count} more are not shown", self._clock())

    def __len__(self) -> int:
        """How many there are now, also of those that are counted alone."""
        self._end_expired()
        return sum(map(len, (*self._by_owner.values(), *self._more.values())))

    def texts(self) -> dict[str, str]:
        """Title -> sentence, for people."""
        return {problem.title: problem.text for problem in self}

    def _expired(self, problem: Problem) -> bool:
        return problem.expires is not None and self._monotonic() > problem.expires

    def _end_expired(self) -> None:
        for owner, own in list(self._by_owner.items()):
            for subject, problem in list(own.items()):
                if problem.expires is None:
                    continue
                if self._expired(problem):
                    self.clear(owner, subject)

    def _drop_from_subject(self, subject: Subject, owner: Owner) -> None:
        owners = self._by_subject[subject]
        del owners[owner]
        if not owners:
            del self._by_subject[subject]

    def _discard_more(self, owner: Owner, subject: Subject) -> None:
        more = self._more.get(owner)
        if more is None:
            return
        more.discard(subject)
        if not more:
            del self._more[owner]
            if not self._by_owner.get(owner):
                self._by_owner.pop(owner, None)


def _limit_by(problem: Problem) -> str:
    """Whose log lines are limited together: a node's, or a namespace's."""
    match problem.subject:
        case _ if problem.owner.node:
            return problem.owner.node
        case PortRef(node) | BridgeRef(node):
            return node
        case ObjectRef(_, namespace):
            return namespace
    return ""
