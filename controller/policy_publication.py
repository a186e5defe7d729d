"""How changes of policy reach the switches, so that no mixture of two states allows too much.

Policy from the pod and policy to the pod of one connection are judged by two switches. If both
change, and one switch is ahead of the other one, a packet may pass that neither the old nor the new
state allows. So such a change has two phases:

1. Each switch judges new connections by the old *and* by the new state (`flows.transition`). When
   every switch has acknowledged that, and its datapath follows, all switches allow only what both
   states allow.
2. Each switch judges by the new state.

Changes that are safe in any mixture (`controller.policy_effects`) have one phase. Changes that come
while another one waits for its second phase are gathered, and are the next change.

The second phase waits for the switches that were connected when the first one began, `LONGEST_WAIT`
at most: one that restarts may be back by then. A switch that is slower, or away, keeps the old
state, perhaps while the others already have the new one. It is not waited for again until it has
caught up.

A node's program in transition is content like any other. A controller that starts in the middle
compiles the new state and knows nothing of the old one. This is safe: a switch that has the new
state meets switches that allow the old state only where the new one allows it, too.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

import structlog

from controller import metrics
from controller.desired import Desired
from controller.policy_effects import Change, Effect, Effects, Judge
from controller.policy_order import BOTH
from controller.work_budget import WorkBudget
from flows.compile import Fragment
from flows.kinds import ATTACHMENT, ISOLATION, PEER_MEMBER, PEER_SET, PORT_SET, WALK
from flows.pipeline import PipelineError
from flows.policy import Direction
from flows.refs import ObjectRef
from flows.transition import transition
from flows.view import Key
from openflow.batch import BUNDLE_SIZE

log = structlog.get_logger()

LONGEST_WAIT: Final = 2.0
"""Seconds that the second phase waits for the first one."""
SLICE: Final = 200
"""Keys of one node that are taken in at a time."""
MAX_NAMED: Final = 10
"""Slow switches that the log names."""
CONTROL: Final = ObjectRef("PolicyTransition", "", "")
"""The owner of the flows that switch between old and new policy."""


class Follower(Protocol):
    """The session of a connected switch, as this module sees it."""

    @property
    def held_version(self) -> int:
        """The version of the node's own program that the switch has acknowledged."""

    @property
    def settle_time(self) -> float:
        """Seconds in which its datapath follows what it has acknowledged."""


@dataclass
class _Transaction:
    """Changes that are published together."""

    changes: dict[str, dict[Key, Fragment | None]]
    """By node, the new fragments."""
    began: float
    effects: Effects = field(default_factory=Effects)
    effective: dict[str, dict[Key, Change]] = field(default_factory=dict)
    """By node, the changes that have an effect, which are all that need a transition."""
    is_large: bool = False
    """Whether the changes of a node, which open and close, may not fit into one bundle."""
    transitions: dict[tuple[Key, int, int], Fragment] = field(default_factory=dict)
    """Made, and encoded, once for several nodes. The numbers name two fragments of `effective`."""

    ranked: dict[str, tuple[list[Key], ...]] = field(default_factory=dict)
    """By node, the keys in the reverse of the order in which its program takes them in."""
    of_node: dict[str, Effects] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    """By node, at most so many are needed for its program."""

    def first_phase(self, node: str, keys: Iterable[Key]) -> dict[Key, Fragment | None]:
        """The fragments with which the node's program judges by the old and the new state.

        What has no effect by itself is added now. If it goes, the old state may still need it.
        """
        effective = self.effective[node]
        found: dict[Key, Fragment | None] = {}
        for key in keys:
            new = self.changes[node][key]
            if (change := effective.get(key)) is not None:
                name = key, id(change.old), id(change.new)
                if name not in self.transitions:
                    self.transitions[name] = _transition(change)
                found[key] = self.transitions[name]
            elif new is not None:
                found[key] = new
        return found


class _Stage(Enum):
    """What happens to the transaction that is worked on."""

    JUDGED = "its effects are found"
    WHOLE = "it is taken into the programs, as its only phase"
    FIRST = "its first phase is taken into the programs"
    SECOND = "its second phase is"


class PolicyPublication:
    """Takes the changed fragments of policy of all nodes into their programs, in safe order."""

    def __init__(
        self,
        desired: Desired,
        judge: Judge,
        sessions: Mapping[str, Follower],
        *,
        on_node: Callable[[str], None],
        on_refused: Callable[[str, Key, str], None],
    ) -> None:
        """`sessions` are of the connected switches, by node, and change in place.

        `on_node` is called when the program of a node has changed, `on_refused` with a key of a
        node that cannot be part of its program, and why.
        """
        self._desired = desired
        self._judge = judge
        self._sessions = sessions
        self._on_node = on_node
        self._on_refused = on_refused
        self._waiting: dict[str, dict[Key, Fragment | None]] = {}
        """Changes for the next transaction."""
        self._current: _Transaction | None = None
        """The transaction that is worked on, in slices: node by node."""
        self._stage = _Stage.JUDGED
        self._todo: deque[str] = deque()
        """Its nodes that this stage has not done yet."""
        self._keys: list[Key] | None = None
        """The keys that are left of the first of them; None: it has not begun."""
        self._second: _Transaction | None = None
        """The transaction whose second phase waits until everything earlier is in force."""
        self._flight = Effects()
        """Changes that may be on some switches and not yet on others."""
        self._versions: dict[str, int] = {}
        """By node, the version of its program that has all of `_flight`."""
        self._lagging: set[str] = set()
        """Nodes whose switch did not acknowledge a change in time; they are not waited for."""
        self._next: asyncio.Handle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def is_behind(self) -> bool:
        """Whether changes wait, so that the programs have an older policy than the view."""
        return bool(self._waiting or self._current or self._second)

    def offer(self, changes: Mapping[str, dict[Key, Fragment | None]]) -> None:
        """Publish these changes as soon as that is safe, all of them together.

        They belong to this object from now on: there may be very many.
        """
        for node, keys in changes.items():
            if node in self._waiting:
                self._waiting[node].update(keys)
            else:
                self._waiting[node] = keys
        self._proceed()

    def forget(self, node: str, key: Key) -> None:
        """The fragment of this key was changed without this object: drop older changes of it."""
        for changes in self._all_changes():
            if node in changes:
                changes[node].pop(key, None)

    def forget_node(self, node: str) -> None:
        """The node's program is gone."""
        for changes in self._all_changes():
            changes.pop(node, None)
        self._versions.pop(node, None)
        self._lagging.discard(node)
        self.acknowledged(node)

    def _all_changes(self) -> Iterator[dict[str, dict[Key, Fragment | None]]]:
        yield self._waiting
        for transaction in (self._current, self._second):
            if transaction is not None:
                yield transaction.changes

    # --- waiting for the switches ---

    def acknowledged(self, node: str) -> None:
        """The node's switch has acknowledged its program, or is gone."""
        if node in self._lagging and self._holds(node, self._desired.program(node).version):
            self._lagging.discard(node)
        waits = self._flight and self._current is None and self._settling is None
        if waits and not self._unacknowledged():
            self._settling = asyncio.get_running_loop().call_later(
                self._settle_time(), self._settled
            )

    def _holds(self, node: str, version: int) -> bool:
        session = self._sessions.get(node)
        return session is not None and session.held_version >= version

    def _unacknowledged(self) -> set[str]:
        behind = {
            node for node, version in self._versions.items() if not self._holds(node, version)
        }
        return behind - self._lagging

    def _settle_time(self) -> float:
        sessions = (self._sessions.get(node) for node in self._versions)
        return max((s.settle_time for s in sessions if s is not None), default=0.0)

    def _settled(self) -> None:
        self._settling = None
        if not self._unacknowledged():
            self._land("in_force")

    def _give_up(self) -> None:
        slow = self._unacknowledged()
        self._lagging |= slow
        # None: all have acknowledged, but a datapath may not have followed yet.
        log.warning(
            "a change of policy does not wait for slow switches any more",
            nodes=sorted(slow)[:MAX_NAMED],
            count=len(slow),
        )
        self._land("late")

    def _land(self, outcome: str) -> None:
        """Nothing is waited for any more."""
        if self._deadline is not None:
            metrics.POLICY_WAITS.labels(outcome).inc()
        self._cancel_deadline()
        self._clear_flight(Effects())
        self._proceed()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _clear_flight(self, effects: Effects) -> None:
        """Only these changes are under way now."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        self._flight, self._versions = effects, {}

    # --- what is next ---

    def _proceed(self) -> None:
        """Do what can be done now; what takes long goes on in the next turn."""
        if self._next is not None:
            return
        budget = WorkBudget()
        while not budget.over:
            if self._current is not None:
                self._work(self._current, budget)
            elif self._second is not None:
                if self._flight:
                    return
                second, self._second = self._second, None
                self._cancel_deadline()
                self._clear_flight(Effects(set(second.changes), set(Direction), {Effect.OPENS}))
                self._start(second, _Stage.SECOND)
            elif self._waiting:
                waiting, self._waiting = self._waiting, {}
                self._start(_Transaction(waiting, time.monotonic()), _Stage.JUDGED)
            else:
                return
        self._next = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._next = None
        self._proceed()

    def _start(self, transaction: _Transaction, stage: _Stage) -> None:
        self._current, self._stage = transaction, stage
        self._todo = deque(transaction.changes)
        self._keys = None

    def _work(self, transaction: _Transaction, budget: WorkBudget) -> None:
        """Do a part of the next node, or end the stage."""
        if not self._todo:
            self._end_stage(transaction)
            return
        node = self._todo[0]
        changes = transaction.changes.get(node)
        if changes is None:
            self._end_node(node)
            return
        if self._keys is None:
            if self._stage is _Stage.JUDGED:
                self._keys = list(changes)
            else:
                self._keys = [key for keys in transaction.ranked[node] for key in keys]
                # The switch gets all of it as one change.
                self._desired.hold(node)
        part = [key for key in self._keys[-SLICE:] if key in changes]
        del self._keys[-SLICE:]
        self._do_part(transaction, node, part)
        fragments = [fragment for key in part if (fragment := changes[key]) is not None]
        budget.spend(1 + len(part) + sum([len(fragment.flows) for fragment in fragments]))
        if not self._keys:
            self._end_node(node)

    def _do_part(self, transaction: _Transaction, node: str, part: Iterable[Key]) -> None:
        """Do what the stage does with these keys of a node."""
        changes = transaction.changes[node]
        if self._stage is _Stage.JUDGED:
            self._judge_part(transaction, node, changes, part)
        elif self._stage is _Stage.FIRST:
            self._update(node, transaction.first_phase(node, part))
            if not self._keys and transaction.effective[node]:
                self._update(node, {_control_key(node): Fragment((CONTROL,), BOTH)})
        else:
            self._update(node, {key: changes[key] for key in part})
            if not self._keys and self._stage is _Stage.SECOND:
                self._update(node, {_control_key(node): None})

    def _end_node(self, node: str) -> None:
        """The stage is done with a node."""
        self._todo.popleft()
        self._keys = None
        if self._stage is not _Stage.JUDGED and self._desired.release(node):
            if node in self._sessions:
                self._versions[node] = self._desired.program(node).version
            self._on_node(node)

    def _end_stage(self, transaction: _Transaction) -> None:
        self._current = None
        if self._stage is _Stage.JUDGED:
            self._decide(transaction)
            return
        if self._stage is not _Stage.FIRST:
            metrics.POLICY_SECONDS.observe(time.monotonic() - transaction.began)
        # Perhaps no switch is connected, so that none will acknowledge.
        self.acknowledged("")

    def _decide(self, transaction: _Transaction) -> None:
        """Publish a transaction of known effects, or its first phase."""
        effects = transaction.effects
        if effects.may_follow(self._flight) and not transaction.is_large:
            metrics.POLICY_CHANGES.labels("one").inc()
            self._fly(effects)
            self._start(transaction, _Stage.WHOLE)
            return
        metrics.POLICY_CHANGES.labels("two").inc()
        self._second = transaction
        self._deadline = asyncio.get_running_loop().call_later(LONGEST_WAIT, self._give_up)
        if effects.closes:
            self._fly(Effects(set(effects.nodes), set(effects.directions), {Effect.CLOSES}))
            self._start(transaction, _Stage.FIRST)

    def _fly(self, effects: Effects) -> None:
        """These changes are under way too."""
        flight = self._flight
        flight.update(effects)
        versions = self._versions
        self._clear_flight(flight)
        if flight:
            self._versions = versions

    def _judge_part(
        self,
        transaction: _Transaction,
        node: str,
        changes: Mapping[Key, Fragment | None],
        part: Iterable[Key],
    ) -> None:
        fragments = self._desired.program(node).fragments

        def change_of(key: Key) -> Change | None:
            return Change(fragments.get(key), changes[key]) if key in changes else None

        effects = transaction.of_node.setdefault(node, Effects())
        effective = transaction.effective.setdefault(node, {})
        ranked = transaction.ranked.setdefault(node, tuple([] for _ in range(_MOST_RANKS)))
        messages = 0
        for key in part:
            ranked[_rank(key, changes[key])].append(key)
            change = Change(fragments.get(key), changes[key])
            if self._judge.add_effects(effects, node, key, change, change_of):
                effective[key] = change
            for each in change:
                if each is not None:
                    messages += len(each.flows)
        transaction.messages[node] += messages
        if node in self._sessions:
            # A switch that is away keeps the old state, whatever the others do.
            transaction.effects.update(effects)
        # In the first phase, an old flow takes two messages.
        is_large = 2 * transaction.messages[node] >= BUNDLE_SIZE
        transaction.is_large |= is_large and effects.opens and effects.closes

    def _update(self, node: str, changes: Mapping[Key, Fragment | None]) -> None:
        """Take changes into a node's program."""
        try:
            self._desired.update_node(node, changes)
        except PipelineError:
            for key, fragment in changes.items():
                self._update_one(node, key, fragment)

    def _update_one(self, node: str, key: Key, fragment: Fragment | None) -> None:
        try:
            self._desired.update_node(node, {key: fragment})
        except PipelineError as error:
            self._on_refused(node, key, str(error))
            if key.kind == ISOLATION.name and key not in self._desired.program(node).fragments:
                # Without its isolation an attachment must not be connected.
                self._update(node, {key._replace(kind=ATTACHMENT.name): None})


def _rank(key: Key, new: Fragment | None) -> int:
    """A fragment goes before the fragments that its flows lead to, and before new ones of a kind.

    A new one may have the flow of an old one. What has the highest rank comes first.
    """
    return 2 * _RANKS.get(key.kind, 0) + (new is not None)


_RANKS: Final = {WALK.name: 1, PEER_SET.name: 2, PEER_MEMBER.name: 2, PORT_SET.name: 3}
_MOST_RANKS: Final = 8


def _control_key(node: str) -> Key:
    return Key(node, "policy-transition", "")


def _transition(change: Change) -> Fragment:
    old, new = change
    both = [fragment for fragment in (new, old) if fragment is not None]
    owners = dict.fromkeys(owner for fragment in both for owner in fragment.owners)
    directions = frozenset[Direction]().union(*(fragment.directions for fragment in both))
    flows = transition(old.flows if old else (), new.flows if new else ())
    return Fragment(tuple(owners), tuple(flows), directions=directions)
