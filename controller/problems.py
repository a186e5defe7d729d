"""What is wrong: one registry for sources, inventory, compilation, switches and agents.

A problem is one sentence about one subject, from one reporter. Subjects and reporters are typed, so
no code has to parse a sentence to learn what it is about. A reporter sets and clears its own
problems; when the reporter ends, all of its problems end.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

import structlog

from flows.refs import ObjectRef
from wire.sentences import readable

log = structlog.get_logger()

MAX_OF_CLUSTER: Final = 10_000
"""Problems kept of a reporter that speaks for the whole cluster."""
MAX_OF_NODE: Final = 1_000
"""Problems kept of a reporter that speaks for one node. One node must not fill the registry."""
MAX_COUNTED: Final = 100_000
"""Further subjects of one reporter that are counted without their text."""


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


class ReporterKind(Enum):
    """Which part of Sluice reports a problem."""

    SOURCE = "the source"
    """An object, a file or a collection cannot be read."""
    INVENTORY = "the inventory"
    """An object is refused."""
    POLICIES = "the policies"
    """Something in a policy is invalid, or the policies of a Pod are refused."""
    ADDRESSES = "the address pools"
    """A pool is refused in part, or a Service does not get the address that it asks for."""
    EGRESS = "the egress ledger"
    """An egress address is about to have no source port left."""
    PORTS = "the ports"
    """A port of a node's switch is refused."""
    COMPILER = "the compiler"
    """The flows of an object cannot be compiled."""
    SWITCH = "the switch"
    """A switch is refused, or has rejected the flows of an object."""
    AGENT = "the agent"
    """A node's agent cannot do something."""
    ELECTION = "the election"
    """This controller cannot take part in the election."""
    OWNERS = "the owners of addresses"
    """An address has no owner, or one too many."""
    BGP = "the BGP speaker"
    """A BGPPeer cannot be used, or something is wrong with its session."""


class Reporter(NamedTuple):
    """Who reports a problem, and clears it."""

    kind: ReporterKind
    node: str = ""
    """For whose node it speaks; empty: for the whole cluster."""
    session: int = 0
    """Which of the node's sessions, where that matters: a later one has problems of its own."""

    def __str__(self) -> str:
        """`the agent of n1`, `the source`."""
        return f"{self.kind.value} of {self.node}" if self.node else self.kind.value


SOURCE: Final = Reporter(ReporterKind.SOURCE)
INVENTORY: Final = Reporter(ReporterKind.INVENTORY)
POLICIES: Final = Reporter(ReporterKind.POLICIES)
ELECTION: Final = Reporter(ReporterKind.ELECTION)
OWNERS: Final = Reporter(ReporterKind.OWNERS)

Subject: TypeAlias = ObjectRef | PortRef | BridgeRef | SwitchRef | FileRef | ApiPathRef | Reporter
"""A `Reporter` is the subject of one problem only: that it has more problems than are kept."""
Note: TypeAlias = Callable[[Subject, str], None]
"""Called with a subject and what is wrong with it; empty: the problem is gone."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a subject."""

    subject: Subject
    reporter: Reporter
    text: str
    since: float
    """When it was first reported, in seconds since 1970."""
    expires: float | None = None
    """When it ends unless it is reported again, by the registry's monotonic clock."""

    @property
    def title(self) -> str:
        """The subject, and on which node where that says more, for people."""
        subject, (reporter_kind, node, _) = self.subject, self.reporter
        text = str(subject)
        match subject:
            case Reporter():
                text = f"further problems of {subject}"
            case ObjectRef(kind, _, name):
                is_node = kind == "Node"
                if reporter_kind is ReporterKind.AGENT:
                    text = f"agent of {name}" if is_node else f"{subject} on {node}"
                elif reporter_kind is ReporterKind.SWITCH:
                    text = f"{subject} on the switch of {node}"
                elif reporter_kind is ReporterKind.ADDRESSES and kind == "Service":
                    # The inventory may have a problem with the same Service.
                    text = f"address of {subject}"
                elif reporter_kind is ReporterKind.COMPILER:
                    text = f"flows of {name if is_node else subject}"
        return readable(text)


class Problems:
    """Every problem of the moment, by reporter and subject."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._by_reporter: dict[Reporter, dict[Subject, Problem]] = {}
        self._by_subject: dict[Subject, dict[Reporter, Problem]] = {}
        self._more: dict[Reporter, set[Subject]] = {}
        """Subjects of the problems that came after their reporter had reached its bound."""

    def set(
        self, reporter: Reporter, subject: Subject, text: str, *, lifetime: float | None = None
    ) -> None:
        """Report what is wrong with a subject; an empty text clears it.

        `lifetime` is in seconds: the problem ends then, unless it is reported again. Of a reporter
        that has reached its bound, a further problem is only counted; its text is lost.
        """
        if not text:
            self.clear(reporter, subject)
            return
        own = self._by_reporter.setdefault(reporter, {})
        known = own.get(subject)
        if known is None and len(own) >= (MAX_OF_NODE if reporter.node else MAX_OF_CLUSTER):
            more = self._more.setdefault(reporter, set())
            if len(more) < MAX_COUNTED:
                more.add(subject)
            return
        text = readable(text)
        expires = None if lifetime is None else self._monotonic() + lifetime
        if known is not None and known.text == text:
            told = replace(known, expires=expires)
        else:
            told = Problem(subject, reporter, text, self._clock(), expires)
            # A port is often there a moment before its Pod.
            tell = log.info if reporter.kind is ReporterKind.PORTS else log.warning
            tell("problem", subject=told.title, problem=text, limit_by=_limit_by(told))
        own[subject] = told
        self._by_subject.setdefault(subject, {})[reporter] = told
        self._discard_more(reporter, subject)

    def clear(self, reporter: Reporter, subject: Subject) -> None:
        """Nothing is wrong with the subject any more, as this reporter says."""
        own = self._by_reporter.get(reporter, {})
        if own.pop(subject, None) is not None:
            self._drop_from_subject(subject, reporter)
            if not own and reporter not in self._more:
                del self._by_reporter[reporter]
        self._discard_more(reporter, subject)

    def clear_reporter(self, reporter: Reporter) -> None:
        """All problems of a reporter end."""
        for subject in self._by_reporter.pop(reporter, {}):
            self._drop_from_subject(subject, reporter)
        self._more.pop(reporter, None)

    def clear_subject(self, subject: Subject) -> None:
        """All problems with a subject end, whoever reported them: the subject is gone."""
        for reporter in list(self._by_subject.get(subject, ())):
            self.clear(reporter, subject)

    def replace_all(
        self, reporter: Reporter, told: Mapping[Subject, str], *, lifetime: float | None = None
    ) -> None:
        """Replace all problems of a reporter: those that are not in `told` end."""
        for subject in self._by_reporter.get(reporter, {}).keys() - told.keys():
            self.clear(reporter, subject)
        self._more.pop(reporter, None)
        for subject, text in told.items():
            self.set(reporter, subject, text, lifetime=lifetime)

    def of_subject(self, subject: Subject) -> list[Problem]:
        """All problems with a subject, the oldest first."""
        found = [p for p in self._by_subject.get(subject, {}).values() if not self._expired(p)]
        return sorted(found, key=lambda problem: problem.since)

    def of_reporter(self, reporter: Reporter) -> list[Problem]:
        """All kept problems of a reporter, in the order in which they came."""
        return [p for p in self._by_reporter.get(reporter, {}).values() if not self._expired(p)]

    def text(self, reporter: Reporter, subject: Subject) -> str:
        """What a reporter says is wrong with a subject; empty: nothing."""
        known = self._by_reporter.get(reporter, {}).get(subject)
        return "" if known is None or self._expired(known) else known.text

    def __iter__(self) -> Iterator[Problem]:
        """Every current problem, and for each reporter past its bound the number of the others."""
        self._end_expired()
        for reporter, own in list(self._by_reporter.items()):
            yield from own.values()
            if more := self._more.get(reporter):
                count = f"{len(more)}" if len(more) < MAX_COUNTED else f"at least {MAX_COUNTED}"
                yield Problem(reporter, reporter, f"{count} more are not shown", self._clock())

    def __len__(self) -> int:
        """How many there are now, with those that are only counted."""
        self._end_expired()
        return sum(map(len, (*self._by_reporter.values(), *self._more.values())))

    def counts(self) -> Counter[ReporterKind]:
        """How many of them each kind of reporter reports, with those that are only counted."""
        self._end_expired()
        found: Counter[ReporterKind] = Counter()
        for reporter, own in self._by_reporter.items():
            found[reporter.kind] += len(own)
        for reporter, more in self._more.items():
            found[reporter.kind] += len(more)
        return found

    def texts(self) -> dict[str, str]:
        """Title -> sentence, for people."""
        return {problem.title: problem.text for problem in self}

    def _expired(self, problem: Problem) -> bool:
        return problem.expires is not None and self._monotonic() > problem.expires

    def _end_expired(self) -> None:
        for reporter, own in list(self._by_reporter.items()):
            for subject, problem in list(own.items()):
                if problem.expires is None:
                    continue
                if self._expired(problem):
                    self.clear(reporter, subject)

    def _drop_from_subject(self, subject: Subject, reporter: Reporter) -> None:
        reporters = self._by_subject[subject]
        del reporters[reporter]
        if not reporters:
            del self._by_subject[subject]

    def _discard_more(self, reporter: Reporter, subject: Subject) -> None:
        more = self._more.get(reporter)
        if more is None:
            return
        more.discard(subject)
        if not more:
            del self._more[reporter]
            if not self._by_reporter.get(reporter):
                self._by_reporter.pop(reporter, None)


def _limit_by(problem: Problem) -> str:
    """Whose log lines are limited together: a node's, or a namespace's."""
    match problem.subject:
        case _ if problem.reporter.node:
            return problem.reporter.node
        case PortRef(node) | BridgeRef(node):
            return node
        case ObjectRef(_, namespace):
            return namespace
    return ""
