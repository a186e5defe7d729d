"""Which Events are due: current problems, compared with the Events written so far.

Nothing is queued. Every look compares all current problems with the account of written Events. An
Event that could not be written is due again at the next look, if its problem still exists.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from controller.inventory import Inventory
from controller.kubernetes_api import MERGE, Write
from controller.problems import PortRef, Problem, ReporterKind
from controller.sources.metadata import Metadata
from controller.sources.objects import API_VERSIONS
from flows.refs import ObjectRef

SETTLE: Final = 5.0
"""Seconds that a problem must last: a port is often there a moment before its Pod."""
RESOLVED_AFTER: Final = 30.0
"""Seconds without the problem after which it counts as resolved; shorter gaps are ignored."""
PERIOD: Final = 300.0
"""Seconds in which the same sentence about the same object is written once, however often the
problem comes and goes."""
REPEAT: Final = 1800.0
"""Seconds after which a lasting problem is written again: API servers drop Events after an hour."""
MOST: Final = 10_000
"""Problems of which account is kept; further ones wait until some of these are resolved."""
LONGEST_NOTE: Final = 1024
"""Bytes (ValidateEventCreate in k8s.io/kubernetes, pkg/apis/core/validation/events.go)."""
CONTROLLER: Final = "sluice.dev/controller"


class Regarding(NamedTuple):
    """The object that an Event is about."""

    kind: str
    namespace: str
    name: str
    uid: str


class Notice(NamedTuple):
    """What an Event says about an object: a reason for programs, and a sentence for people."""

    regarding: Regarding
    reason: str
    sentence: str


def notices_of(inventory: Inventory, problems: Iterable[Problem]) -> Iterator[Notice]:
    """The notices of the problems that concern an object of the source. Others have no Event."""
    for problem in problems:
        subject = problem.subject
        reason = _reason(problem, inventory)
        if not reason:
            continue
        prefix = ""
        metadata: Metadata | None = None
        if isinstance(subject, PortRef):
            # A port without a Pod concerns no object that an Event could be about.
            pod = inventory.pod_of(subject.node, subject.port)
            kind, metadata = "Pod", pod.metadata if pod else None
            prefix = f"port {subject.port}: "
        elif isinstance(subject, ObjectRef):
            kind, metadata = subject.kind, inventory.metadata(*subject)
            if reason == "FlowsRefused" and kind != "Pod":
                prefix = f"on the switch of {problem.reporter.node}, "
        if metadata is not None:
            regarding = Regarding(kind, metadata.namespace, metadata.name, metadata.uid)
            yield Notice(regarding, reason, prefix + problem.text)


def _reason(problem: Problem, inventory: Inventory) -> str:
    """The reason of the Event; empty: no Event is written."""
    subject, nodes = problem.subject, inventory.view.nodes
    kind = subject.kind if isinstance(subject, ObjectRef) else ""
    reporter = problem.reporter.kind
    # A Node may take part and have a problem, for example with one of its addresses.
    if reporter in _REFUSING and kind == "Node" and getattr(subject, "name", "") in nodes:
        return "NodeProblem"
    reasons = _REASONS[reporter]
    return reasons.get(kind, reasons.get("", ""))


_REFUSED: Final = {
    "Node": "NodeRefused",
    "Pod": "PodRefused",
    "Service": "ServiceRefused",
    "EndpointSlice": "EndpointsRefused",
    "Namespace": "NamespaceRefused",
    "NetworkPolicy": "PolicyRefused",
    "ClusterNetworkPolicy": "PolicyRefused",
    "BGPPeer": "PeerRefused",
    "AddressPool": "PoolRefused",
    "EgressAddress": "EgressAddressRefused",
}
_REFUSING: Final = (ReporterKind.SOURCE, ReporterKind.INVENTORY)
_REASONS: Final[dict[ReporterKind, dict[str, str]]] = {
    ReporterKind.SOURCE: _REFUSED,
    ReporterKind.INVENTORY: _REFUSED,
    ReporterKind.POLICIES: {"Pod": "PoliciesRefused", "": "PolicyProblem"},
    ReporterKind.ADDRESSES: {"AddressPool": "PoolProblem", "": "AddressProblem"},
    ReporterKind.PORTS: {"": "PortRefused"},
    ReporterKind.COMPILER: {"": "FlowsNotCompiled"},
    ReporterKind.SWITCH: {"": "FlowsRefused"},
    ReporterKind.AGENT: {"Pod": "AttachmentFailed", "Node": "NodeNotSetUp"},
    ReporterKind.BGP: {"": "PeerProblem"},
    ReporterKind.OWNERS: {"": "AddressOwnerProblem"},
    ReporterKind.EGRESS: {"": "SourcePortsNearlyUsed"},
    # The controller that has this problem does not write to the API server.
    ReporterKind.ELECTION: {},
}
"""By reporter and kind of the subject, the reason of an Event; an empty kind stands for others."""


@dataclass(slots=True)
class _Told:
    at: float
    event: str
    """The Event's name."""
    times: int


@dataclass(slots=True)
class _Spell:
    """A time in which a notice was there, with gaps shorter than `RESOLVED_AFTER`."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Telling:
    """An Event to be written, and what to record once it is."""

    notice: Notice
    """When all problems of the object are resolved, a notice that says so."""
    event: str
    times: int
    at: datetime

    def again(self) -> "Telling":
        """The same Event, once more."""
        return Telling(self.notice, self.event, self.times + 1, datetime.now(UTC))

    def write(self, instance: str) -> Write:
        """The request; `instance` says which controller this is."""
        regarding = self.notice.regarding
        # For objects without a namespace, the API server requires this one.
        namespace = regarding.namespace or "default"
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        now = self.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if self.times > 1:
            series = {"count": self.times, "lastObservedTime": now}
            return Write("PATCH", f"{path}/{self.event}", {"series": series}, MERGE)
        reference = {"apiVersion": API_VERSIONS[regarding.kind], **regarding._asdict()}
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self.event, "namespace": namespace},
            "eventTime": now,
            "type": "Normal" if self.notice.reason in _NORMAL else "Warning",
            "reason": self.notice.reason,
            "action": "Connecting",
            "note": _at_most(self.notice.sentence, LONGEST_NOTE),
            "regarding": {key: value for key, value in reference.items() if value},
            "reportingController": CONTROLLER,
            "reportingInstance": instance[:128],
        }
        return Write("POST", path, body)


IN_ORDER: Final = "InOrder"
POLICY_DENIED: Final = "PolicyDenied"
"""Not about a problem (see `controller.denials`)."""
_NORMAL: Final = frozenset({IN_ORDER, POLICY_DENIED})
"""Reasons for which nothing is wrong with the object. Somebody else's packets cause `PolicyDenied`:
as a Warning, it would let a stranger raise alarms about any pod that a policy protects."""


class Account:
    """Which Events were written, and since when the other notices exist."""

    def __init__(self) -> None:
        self._spells: dict[Notice, _Spell] = {}
        self._told: dict[Notice, _Told] = {}
        self._objects_with_problem: dict[Regarding, float] = {}
        """Objects with a Warning that is not resolved yet; when each had its last notice."""
        self.untold = 0
        """Problems of the last look for which no Event was written yet."""

    def look(self, notices: Iterable[Notice], inventory: Inventory, now: float) -> list[Telling]:
        """Which Events are due, the oldest first. `now` is in seconds of a monotonic clock."""
        present = list(notices)
        self._take_in(present, now)
        due = [telling for notice in present if (telling := self._due(notice, now))]
        self.untold = sum(notice not in self._told for notice in present)
        return due + self._ended(inventory, now)

    def _take_in(self, present: Iterable[Notice], now: float) -> None:
        for notice in present:
            if spell := self._spells.get(notice):
                spell.last = now
            elif len(self._spells) < MOST:
                self._spells[notice] = _Spell(now, now)
            if notice.regarding in self._objects_with_problem:
                self._objects_with_problem[notice.regarding] = now
        self._spells = {p: s for p, s in self._spells.items() if now - s.last < RESOLVED_AFTER}
        self._told = {
            notice: told
            for notice, told in self._told.items()
            if notice in self._spells or now - told.at < PERIOD
        }

    def _due(self, notice: Notice, now: float) -> Telling | None:
        spell = self._spells.get(notice)
        if spell is None or now - spell.first < SETTLE:
            return None
        told = self._told.get(notice)
        if told is None:
            return first_telling(notice)
        pause = PERIOD if told.at < spell.first else REPEAT
        if now - told.at < pause:
            return None
        return Telling(notice, told.event, told.times + 1, datetime.now(UTC))

    def _ended(self, inventory: Inventory, now: float) -> list[Telling]:
        resolved = [
            object_
            for object_, last in self._objects_with_problem.items()
            if now - last >= RESOLVED_AFTER
        ]
        due = []
        for regarding in resolved:
            kind, namespace, name, uid = regarding
            known = inventory.metadata(kind, namespace, name)
            if known is None or known.uid != uid:
                del self._objects_with_problem[regarding]
                continue
            sentence = f"the network of this {kind} is in order again"
            due.append(first_telling(Notice(regarding, IN_ORDER, sentence)))
        return due

    def told(self, telling: Telling, now: float) -> None:
        """The Event was written, or the API server refused it for good."""
        notice = telling.notice
        if notice.reason == IN_ORDER:
            self._objects_with_problem.pop(notice.regarding, None)
            return
        self._told[notice] = _Told(now, telling.event, telling.times)
        self._objects_with_problem[notice.regarding] = now

    def lost(self, telling: Telling) -> None:
        """The Event to be repeated does not exist any more: write a new one."""
        self._told.pop(telling.notice, None)


def first_telling(notice: Notice) -> Telling:
    """A new Event."""
    now = datetime.now(UTC)
    # As client-go's recorder names them.
    name = notice.regarding.name[:200].rstrip(".-")
    event = f"{name}.{int(now.timestamp() * 1e6):x}{hash(notice) & 0xFFFF:04x}"
    return Telling(notice, event, 1, now)


def _at_most(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
