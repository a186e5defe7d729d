"""What a change of policy does to new connections, and in which direction.

Policy from the pod and policy to the pod of one pair of pods are judged by two switches, which
change at different times. So a change may be mixed with the state before it. These changes are
safe, because no mixture allows what neither state allows:

- of one node;
- of one direction;
- that only allow less than what is on the switches, or only more.

Everything else is published in two phases (`controller.policy_publication`).
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from flows.compile import Fragment
from flows.kinds import ATTACHMENT, ISOLATION, PEER_MEMBER, PEER_SET, WALK
from flows.pipeline import LAYOUT
from flows.policy import (
    DIRECTIONS,
    Direction,
    Isolation,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    Walks,
)
from flows.view import SOME_SCOPE, ClusterView, Key


class Effect(Enum):
    """What a change does to new connections."""

    OPENS = "allows more"
    CLOSES = "allows less"
    MIXED = "may do both"

    __hash__ = object.__hash__  # as `Direction`


@dataclass
class Effects:
    """Effects of changes, and the nodes and directions that they concern."""

    nodes: set[str] = field(default_factory=set)
    directions: set[Direction] = field(default_factory=set)
    effects: set[Effect] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.effects)

    @property
    def opens(self) -> bool:
        """Whether something may be allowed that was not."""
        return bool(self.effects - {Effect.CLOSES})

    @property
    def closes(self) -> bool:
        """Whether something may not be allowed any more."""
        return bool(self.effects - {Effect.OPENS})

    def add(self, node: str, direction: Direction, effect: Effect) -> None:
        """One more."""
        self.nodes.add(node)
        self.directions.add(direction)
        self.effects.add(effect)

    def update(self, other: "Effects") -> None:
        """All of these as well."""
        self.nodes |= other.nodes
        self.directions |= other.directions
        self.effects |= other.effects

    def may_follow(self, earlier: "Effects") -> bool:
        """Whether any mixture of these changes and the earlier ones is safe.

        The earlier ones are on some switches and not yet on others.
        """
        if len(self.nodes | earlier.nodes) < 2 or len(self.directions | earlier.directions) < 2:
            return True
        if not self.opens:
            return True
        # What is allowed now was not allowed, perhaps, before something was closed.
        return not earlier.closes and (not self.closes or len(self.directions) < 2)


class DenyingSets:
    """The peer sets that steps with another action than Accept use, kept up to date."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._by_walk: dict[str, frozenset[int | None]] = {}
        self._uses: Counter[int | None] = Counter()

    def follow(self, key: Key) -> None:
        """The walk of this key changed."""
        # The cost must not depend on how many sets there are.
        for peers in self._by_walk.pop(key.name, ()):
            self._uses[peers] -= 1
            if not self._uses[peers]:
                del self._uses[peers]
        walk = self._view.walks.get(key.name)
        steps = walk.steps if walk is not None else ()
        if used := {step.peers for step in steps if step.action is not PolicyAction.ACCEPT}:
            self._by_walk[key.name] = frozenset(used)
            self._uses.update(used)

    def __contains__(self, peer_set: int) -> bool:
        return peer_set in self._uses


class AttachedAddresses:
    """The addresses of all attachments, kept up to date."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._by_key: dict[Key, str] = {}
        self._count: Counter[str] = Counter()

    def follow(self, key: Key) -> None:
        """The attachment of this key changed."""
        if (old := self._by_key.pop(key, None)) is not None:
            self._count[old] -= 1
            if not self._count[old]:
                del self._count[old]
        attachment = self._view.attachments.get(key.scope, {}).get(key.name)
        if attachment is not None:
            self._by_key[key] = address = str(attachment.address)
            self._count[address] += 1

    def __contains__(self, address: str) -> bool:
        return address in self._count


class Change(NamedTuple):
    """The fragment of a key before and after a change."""

    old: Fragment | None
    new: Fragment | None


FOLLOWED: Final = frozenset({WALK.name, ATTACHMENT.name})
"""The kinds of keys that `Judge.follow` has to be told of."""


class Judge:
    """Tells the effects of changes."""

    def __init__(self, view: ClusterView) -> None:
        self._denying = DenyingSets(view)
        self._attached = AttachedAddresses(view)

    def follow(self, key: Key) -> None:
        """The object of this key changed in the view."""
        if key.kind == WALK.name:
            self._denying.follow(key)
        elif key.kind == ATTACHMENT.name:
            self._attached.follow(key)

    def add_effects(
        self,
        found: Effects,
        node: str,
        key: Key,
        change: Change,
        change_of: Callable[[Key], Change | None],
    ) -> bool:
        """Add the effects of one of the changes on a node to `found`. Returns whether it has any.

        `change_of` gives the other changes by key. The isolation of an attachment that changes
        itself has no effect: it had no connections.
        """
        if key.kind == ISOLATION.name:
            if change_of(Key(node, ATTACHMENT.name, key.name)) is not None:
                return False
            of_shared = None
        elif (of_shared := self._of_shared(key, change, change_of)) is None:
            return False
        directions = _directions(change)
        for direction in directions:
            found.add(node, direction, of_shared or _of_isolation(change, direction))
        return bool(directions)

    def _of_shared(
        self, key: Key, change: Change, change_of: Callable[[Key], Change | None]
    ) -> Effect | None:
        """The effect of a walk or a set, or a part of a set; None: it has none by itself.

        Without effect is what comes with the first flow that refers to it, or goes with the last
        one, and a member whose pod is gone.
        """
        comes_or_goes = change.old is None or change.new is None
        if key.kind == WALK.name and not comes_or_goes:
            return _of_walk(change)
        if key.kind != PEER_MEMBER.name:
            return None if comes_or_goes else Effect.MIXED
        name, _, address = key.name.partition(" ")
        whole = change_of(Key(SOME_SCOPE, PEER_SET.name, name))
        if whole is not None and (whole.old is None or whole.new is None):
            return None
        if change.new is None and address not in self._attached:
            return None
        if not comes_or_goes or int(name, 16) in self._denying:
            return Effect.MIXED
        return Effect.OPENS if change.old is None else Effect.CLOSES


def _of_isolation(change: Change, direction: Direction) -> Effect:
    old, new = (_walks(fragment, direction) for fragment in change)
    # Without an isolation everything may pass.
    if old is None:
        return Effect.CLOSES
    if new is None:
        return Effect.OPENS
    if old._replace(policies=()) != new._replace(policies=()) or old.refused:
        return Effect.MIXED
    # Rules of NetworkPolicies only accept.
    return _of_accepting(frozenset(old.policies), frozenset(new.policies))


def _walks(fragment: Fragment | None, direction: Direction) -> Walks | None:
    found = fragment.subject if fragment is not None else None
    if not isinstance(found, Isolation):
        return None
    return found.from_pod if direction is Direction.FROM_POD else found.to_pod


def _of_walk(change: Change) -> Effect:
    steps: list[frozenset[PolicyStep]] = []
    for fragment in change:
        walk = fragment.subject if fragment is not None else None
        if not isinstance(walk, PolicyWalk):
            return Effect.MIXED
        if any(step.action is not PolicyAction.ACCEPT for step in walk.steps):
            return Effect.MIXED
        # The id of a rule decides nothing.
        steps.append(frozenset(step._replace(rule=1) for step in walk.steps))
    return _of_accepting(*steps)


def _of_accepting(old: AbstractSet[object], new: AbstractSet[object]) -> Effect:
    """The effect of other walks, or other steps, of which all accept."""
    if old <= new:
        return Effect.OPENS
    return Effect.CLOSES if new <= old else Effect.MIXED


def _directions(change: Change) -> list[Direction]:
    """The directions in which the flows differ."""
    before, after = _flows_by_direction(change.old), _flows_by_direction(change.new)
    return [each for each in DIRECTIONS if before.get(each) != after.get(each)]


def _flows_by_direction(fragment: Fragment | None) -> dict[Direction, set[int]]:
    found: dict[Direction, set[int]] = {}
    if fragment is not None:
        for flow in fragment.flows:
            for direction in _directions_of(flow.table, fragment.directions):
                found.setdefault(direction, set()).add(flow.cookie)
    return found


def _directions_of(table: int, declared: AbstractSet[Direction]) -> AbstractSet[Direction]:
    return declared if table in _SUBROUTINES else _ISOLATION_TABLES.get(table, frozenset())


_SUBROUTINES: Final = frozenset(
    LAYOUT.tables[name].number for name in ("PolicyWalk", "PolicyPeers", "PolicyPorts")
)
_ISOLATION_TABLES: Final = {
    LAYOUT.tables["IsolationFromPod"].number: frozenset({Direction.FROM_POD}),
    LAYOUT.tables["IsolationToPod"].number: frozenset({Direction.TO_POD}),
}
"""Flows of other tables count, or concern a pod's packets to itself."""
