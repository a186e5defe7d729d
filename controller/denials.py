"""Connections that policy denied, as agents report them: which Events are due about them.

These are no problems: policy does what it is there for. Anybody who sends packets can cause them,
so only a bounded number has an Event. All others are counted.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from controller import metrics
from controller.events import POLICY_DENIED, Notice, Regarding, Telling, first_telling
from controller.inventory import Inventory
from controller.policy_reports.denied import sentence_of
from controller.policy_reports.pods import Attached
from controller.rates import Rate, Rates
from controller.recent_denials import denied_pod
from flows.family import IPAddress
from flows.policy import Direction
from wire.documents import MAX_DENIED_PAIRS, MAX_DENIED_PORTS, DeniedPair, DeniedPort, NodeDenials

PERIOD: Final = 60.0
"""Seconds in which a pair has one Event."""
FORGET: Final = 600.0
"""Seconds after its last Event in which a pair continues the series of that Event."""
EVENTS_OF_POD: Final = 4
"""In a minute, about one pod."""
EVENTS_PER_SECOND: Final = 1.0
EVENTS_BURST: Final = 10
"""Of the cluster. An API server keeps Events for an hour: at most 3,610 of these."""
MOST: Final = 10_000
"""Pairs that wait for their Event."""
MOST_OF_NODE: Final = MAX_DENIED_PAIRS
MOST_OF_POD: Final = 16
PATIENCE: Final = 120.0
"""Seconds after which a pair that was not reported again stops waiting."""


class Pair(NamedTuple):
    """A pod and another end, in one direction."""

    node: str
    port: str
    """The pod's, on the node's bridge."""
    direction: Direction
    other_end: IPAddress


class _Ports:
    """The first ports of a pair that were denied."""

    __slots__ = ("first", "has_more")

    def __init__(self, first: tuple[DeniedPort, ...] = (), *, has_more: bool = False) -> None:
        self.first = first
        self.has_more = has_more

    def add(self, given: DeniedPair) -> None:
        """Those of a report."""
        found = tuple(dict.fromkeys((*self.first, *given.ports)))
        self.first = found[:MAX_DENIED_PORTS]
        self.has_more |= given.more_ports or len(found) > MAX_DENIED_PORTS


@dataclass(slots=True)
class _Waiting:
    """A pair that was denied since its last Event."""

    pod: Regarding
    ports: _Ports
    reported: float
    """When its last report came."""


@dataclass(frozen=True, slots=True)
class _Told:
    """The last Event of a pair. Because Events are rare, there are not many."""

    at: float
    telling: Telling
    ports: _Ports


class Denials:
    """The pairs that wait for an Event, and those that have one."""

    def __init__(
        self, inventory: Inventory, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._inventory = inventory
        self._monotonic = monotonic
        self._waiting: dict[Pair, _Waiting] = {}
        self._waiting_of: Counter[tuple[str, ...]] = Counter()
        """By node, and by node and port."""
        self._told: dict[Pair, _Told] = {}
        self._events = Rate(EVENTS_PER_SECOND, EVENTS_BURST, monotonic)
        self._events_of_pods = Rates(EVENTS_OF_POD / 60, EVENTS_OF_POD, monotonic)
        self._turns: dict[str, int] = {}
        """By namespace, its last turn; of those with a pair."""
        self._turn = 0

    def take(self, node: str, given: NodeDenials) -> None:
        """What the agent of a node has reported.

        Accepted are attachments of its own node that a policy selects in this direction. A stolen
        node cannot cause an Event about a pod of another node.
        """
        if not self._inventory.view.cluster.log_denials:
            return
        now = self._monotonic()
        left_out = given.left_out
        for each in given.pairs:
            pod = self._judged_pod(node, each)
            if pod is None:
                continue
            pair = Pair(node, each.attachment, each.direction, each.other_end)
            waiting = self._waiting.get(pair) or self._wait(pair, pod, now)
            if waiting is None:
                left_out += 1
                continue
            waiting.pod, waiting.reported = pod, now
            waiting.ports.add(each)
        metrics.DENIALS.labels("left_out").inc(left_out)

    def due(self) -> list[Pair]:
        """The pairs that get an Event now. Namespaces take turns."""
        now = self._monotonic()
        for pair, told in list(self._told.items()):
            if now - told.at >= FORGET:
                del self._told[pair]
        due: dict[str, deque[Pair]] = {}
        for pair, waiting in list(self._waiting.items()):
            last = self._told.get(pair)
            if now - waiting.reported >= PATIENCE:
                self._stop_waiting(pair)
                metrics.DENIALS.labels("left_out").inc()
            elif last is None or now - last.at >= PERIOD:
                due.setdefault(waiting.pod.namespace, deque()).append(pair)
        known = due.keys() | {
            each.telling.notice.regarding.namespace for each in self._told.values()
        }
        self._turns = {name: turn for name, turn in self._turns.items() if name in known}
        turns = deque(sorted(due, key=lambda namespace: self._turns.get(namespace, 0)))
        chosen: list[Pair] = []
        while turns and not self._events.is_used_up:
            namespace = turns.popleft()
            pair = due[namespace].popleft()
            if due[namespace]:
                turns.append(namespace)
            pod = self._waiting[pair].pod
            if self._events_of_pods.allows(f"{pod.namespace}/{pod.name}"):
                self._events.allows()
                self._turn += 1
                self._turns[namespace] = self._turn
                chosen.append(pair)
        return chosen

    def telling(self, pair: Pair) -> Telling | None:
        """The Event of a pair that is due: the last one again, if it would say the same.

        None: the pod has no network any more.
        """
        waiting, told = self._waiting[pair], self._told.get(pair)
        attachment = self._inventory.view.attachments.get(pair.node, {}).get(pair.port)
        if attachment is None:
            self._stop_waiting(pair)
            return None
        group = self._inventory.policies.group(pair.node, pair.port)
        text = sentence_of(
            self._inventory,
            Attached(pair.node, attachment, group),
            pair.direction,
            pair.other_end,
            waiting.ports.first,
            has_more=waiting.ports.has_more,
        )
        notice = Notice(waiting.pod, POLICY_DENIED, text)
        if told is not None and told.telling.notice == notice:
            return told.telling.again()
        return first_telling(notice)

    def told(self, pair: Pair, telling: Telling) -> None:
        """The Event was written, or the API server refused it for good."""
        waiting = self._stop_waiting(pair)
        self._told[pair] = _Told(self._monotonic(), telling, waiting.ports)

    def lost(self, pair: Pair) -> None:
        """The Event to be repeated does not exist any more: write a new one."""
        del self._told[pair]

    def _judged_pod(self, node: str, given: DeniedPair) -> Regarding | None:
        """The pod that was denied; None: there is none that policies select in this direction."""
        pod = denied_pod(self._inventory, node, given)
        if pod is None:
            return None
        return Regarding("Pod", pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)

    def _wait(self, pair: Pair, pod: Regarding, now: float) -> _Waiting | None:
        """Let a pair wait; None: there are too many."""
        if (
            len(self._waiting) >= MOST
            or self._waiting_of[pair.node,] >= MOST_OF_NODE
            or self._waiting_of[pair.node, pair.port] >= MOST_OF_POD
        ):
            return None
        ports, last = _Ports(), self._told.get(pair)
        if last is not None and now - last.at < FORGET:
            # With the ports of its last Event, the sentence changes rarely.
            ports = _Ports(last.ports.first, has_more=last.ports.has_more)
        self._waiting[pair] = made = _Waiting(pod, ports, now)
        self._waiting_of.update(((pair.node,), (pair.node, pair.port)))
        return made

    def _stop_waiting(self, pair: Pair) -> _Waiting:
        for key in ((pair.node,), (pair.node, pair.port)):
            self._waiting_of[key] -= 1
            if not self._waiting_of[key]:
                del self._waiting_of[key]
        return self._waiting.pop(pair)
