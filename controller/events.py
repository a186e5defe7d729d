"""Which Events are due: what is wrong now, held against what was told.

Nothing is queued. Every look compares all problems of the moment with the account of what was
told, so whatever was not told yet, for whatever reason, is told at a later look if it is still so.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from controller.inventory import Inventory
from controller.kubernetes_api import MERGE, Write
from controller.sources.objects import API_VERSIONS, Metadata

SETTLE: Final = 5.0
"""Seconds that a problem must last: a port is often there a moment before its Pod."""
CALM: Final = 30.0
"""Seconds without a problem after which it is over; shorter gaps are none."""
PERIOD: Final = 300.0
"""Seconds in which the same sentence is told of the same object once, however often it comes and
goes."""
REPEAT: Final = 1800.0
"""Seconds after which what lasts is told again: API servers forget an Event after an hour."""
MOST: Final = 10_000
"""Problems of which account is kept; more have to wait until some of these are over."""
LONGEST_NOTE: Final = 1024
"""Bytes (ValidateEventCreate in k8s.io/kubernetes, pkg/apis/core/validation/events.go)."""
CONTROLLER: Final = "sluice.dev/controller"


class Regarding(NamedTuple):
    """The object that an Event is about."""

    kind: str
    namespace: str
    name: str
    uid: str


class Problem(NamedTuple):
    """What is wrong with an object: a word for programs, and a sentence for people."""

    regarding: Regarding
    reason: str
    sentence: str


def problems_of(inventory: Inventory, problems: Mapping[str, str]) -> Iterator[Problem]:
    """Those (`Reconciler.all_problems`) whose subject is an object that there is."""
    for subject, sentence in problems.items():
        for form, (reason, prefix) in _FORMS.items():
            if found := form.fullmatch(subject):
                words = found.groupdict()
                if regarding := _regarding(inventory, words):
                    yield Problem(regarding, reason, prefix.format(**words) + sentence)
                break


_POD, _NODE = r"Pod (?P<namespace>\S+)/(?P<pod>\S+)", r"Node (?P<node>\S+)"
_SERVICE = r"Service (?P<namespace>\S+)/(?P<service>\S+)"
_SLICE = r"EndpointSlice (?P<namespace>\S+)/(?P<slice>\S+)"
_FORMS: Final = {
    re.compile(form): (reason, prefix)
    for form, reason, prefix in (
        (_NODE, "NodeRefused", ""),
        (_POD, "PodRefused", ""),
        (_SERVICE, "ServiceRefused", ""),
        (_SLICE, "EndpointsRefused", ""),
        (rf"{_POD} on (?P<on>\S+)", "AttachmentFailed", ""),
        (r"agent of (?P<node>\S+)", "NodeNotSetUp", ""),
        (r"flows of (?P<node>\S+)", "FlowsNotCompiled", ""),
        (r"port (?P<port>\S+) of (?P<on>\S+)", "PortRefused", "port {port}: "),
        (rf"{_POD} on the switch of (?P<on>\S+)", "FlowsRefused", ""),
        (rf"{_NODE} on the switch of (?P<on>\S+)", "FlowsRefused", "on the switch of {on}, "),
        (rf"{_SERVICE} on the switch of (?P<on>\S+)", "FlowsRefused", "on the switch of {on}, "),
    )
}


def _regarding(inventory: Inventory, words: Mapping[str, str]) -> Regarding | None:
    if "port" in words:
        # The port of a Pod that is not there concerns nobody whom an Event could be about.
        pod = inventory.pod_of(words["on"], words["port"])
        return None if pod is None else _reference("Pod", pod.metadata)
    for word, kind in _KINDS.items():
        if word in words:
            found = inventory.metadata(kind, words.get("namespace", ""), words[word])
            return None if found is None else _reference(kind, found)
    return None


_KINDS: Final = {"node": "Node", "pod": "Pod", "service": "Service", "slice": "EndpointSlice"}


def _reference(kind: str, metadata: Metadata) -> Regarding:
    return Regarding(kind, metadata.namespace, metadata.name, metadata.uid)


@dataclass(slots=True)
class _Told:
    at: float
    event: str
    """The Event's name."""
    times: int


@dataclass(slots=True)
class _Spell:
    """A time in which a problem was there, with gaps shorter than `CALM`."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Telling:
    """An Event to be written, and what to note once it is."""

    problem: Problem
    """For the end of all problems: its sentence says so."""
    event: str
    times: int
    at: datetime

    def write(self, instance: str) -> Write:
        """The request; `instance` says which controller this is."""
        regarding = self.problem.regarding
        # Where the object has no namespace, the API server wants this one.
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
            "type": "Normal" if self.problem.reason == IN_ORDER else "Warning",
            "reason": self.problem.reason,
            "action": "Connecting",
            "note": _at_most(self.problem.sentence, LONGEST_NOTE),
            "regarding": {key: value for key, value in reference.items() if value},
            "reportingController": CONTROLLER,
            "reportingInstance": instance[:128],
        }
        return Write("POST", path, body)


IN_ORDER: Final = "InOrder"


class Account:
    """What was told, and since when there is what was not."""

    def __init__(self) -> None:
        self._spells: dict[Problem, _Spell] = {}
        self._told: dict[Problem, _Told] = {}
        self._uneasy: dict[Regarding, float] = {}
        """Objects of which a Warning was told and not its end; when each last had a problem."""
        self.untold = 0
        """Problems of the last look of which nobody has been told yet."""

    def look(self, problems: Iterable[Problem], inventory: Inventory, now: float) -> list[Telling]:
        """What to tell, the oldest first. `now` is in seconds, of a clock that never jumps."""
        present = list(problems)
        self._take_in(present, now)
        due = [telling for problem in present if (telling := self._due(problem, now))]
        self.untold = sum(problem not in self._told for problem in present)
        return due + self._ended(inventory, now)

    def _take_in(self, present: Iterable[Problem], now: float) -> None:
        for problem in present:
            if spell := self._spells.get(problem):
                spell.last = now
            elif len(self._spells) < MOST:
                self._spells[problem] = _Spell(now, now)
            if problem.regarding in self._uneasy:
                self._uneasy[problem.regarding] = now
        self._spells = {p: s for p, s in self._spells.items() if now - s.last < CALM}
        self._told = {
            problem: told
            for problem, told in self._told.items()
            if problem in self._spells or now - told.at < PERIOD
        }

    def _due(self, problem: Problem, now: float) -> Telling | None:
        spell = self._spells.get(problem)
        if spell is None or now - spell.first < SETTLE:
            return None
        told = self._told.get(problem)
        if told is None:
            return _telling(problem)
        pause = PERIOD if told.at < spell.first else REPEAT
        if now - told.at < pause:
            return None
        return Telling(problem, told.event, told.times + 1, datetime.now(UTC))

    def _ended(self, inventory: Inventory, now: float) -> list[Telling]:
        calm = [object_ for object_, last in self._uneasy.items() if now - last >= CALM]
        due = []
        for regarding in calm:
            kind, namespace, name, uid = regarding
            known = inventory.metadata(kind, namespace, name)
            if known is None or known.uid != uid:
                del self._uneasy[regarding]
                continue
            sentence = f"the network of this {kind} is in order again"
            due.append(_telling(Problem(regarding, IN_ORDER, sentence)))
        return due

    def told(self, telling: Telling, now: float) -> None:
        """It was written, or the API server will have none of it."""
        problem = telling.problem
        if problem.reason == IN_ORDER:
            self._uneasy.pop(problem.regarding, None)
            return
        self._told[problem] = _Told(now, telling.event, telling.times)
        self._uneasy[problem.regarding] = now

    def lost(self, telling: Telling) -> None:
        """The Event that was to be told again is not there any more: tell it anew."""
        self._told.pop(telling.problem, None)


def _telling(problem: Problem) -> Telling:
    now = datetime.now(UTC)
    # As client-go's recorder names them.
    name = problem.regarding.name[:200].rstrip(".-")
    event = f"{name}.{int(now.timestamp() * 1e6):x}{hash(problem) & 0xFFFF:04x}"
    return Telling(problem, event, 1, now)


def _at_most(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
