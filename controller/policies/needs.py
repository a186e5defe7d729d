"""Which nodes need which walk and which set: `ClusterView.needed_by`, and the keys that changed."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, Final, TypeAlias

from controller.policies.slices import SLICE, Slices
from flows.kinds import MOST_OWNERS, PEER_MEMBER, PEER_SET, PORT_SET, WALK
from flows.refs import ObjectRef
from flows.view import SOME_SCOPE, Key

KINDS: Final = (WALK.name, PEER_SET.name, PEER_MEMBER.name, PORT_SET.name)


Needs: TypeAlias = Mapping[tuple[str, str], frozenset[str]]
"""By kind of key and id, the nodes that need a walk or a set."""


class Noted:
    """What has changed and was not handed over yet."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()
        self.whole: dict[tuple[Needed, str], None] = {}
        """Walks and sets of which each fragment has changed, with the scope of its key."""

    def __bool__(self) -> bool:
        return bool(self.keys or self.whole)


class Changes:
    """The keys of the view that changed."""

    def __init__(self) -> None:
        self.noted = Noted()
        """Where changes are noted now."""
        self.ceased: set[Needed] = set()
        """What no node needed for a moment since all was compiled: whoever compiles may still have
        its fragments, so each change of them counts."""
        self.removed: dict[Needed, dict[tuple[str, str], None]] = {}
        """Fragments that were removed since then: a node that needs the rest no more holds them."""

    def take(self) -> set[Key]:
        """The keys, once."""
        taken, self.noted.keys = self.noted.keys, set()
        return taken

    def compiled(self) -> None:
        """Everything that was handed over so far is compiled."""
        self.ceased.clear()
        self.removed.clear()

    def content(self, kind: str, name: str) -> None:
        """A fragment that some nodes need changed."""
        self.noted.keys.add(Key(SOME_SCOPE, kind, name))

    def need(self, node: str, kind: str, name: str) -> None:
        """A node needs a fragment now, or does not need it any more."""
        self.noted.keys.add(Key(node, kind, name))

    def whole(self, changed: "Needed", scope: str) -> None:
        """All fragments of a walk or a set changed, or a node begins or ceases to need them."""
        self.noted.whole[changed, scope] = None

    def spread(self) -> Slices[None]:
        """Note the keys of all fragments of what changed as a whole."""
        done = 0
        while self.noted.whole:
            changed, scope = self.noted.whole.popitem()[0]
            removed = list(self.removed.get(changed, ()))
            for kind, name in chain(changed.fragments(), removed):
                self.noted.keys.add(Key(scope, kind, name))
                done += 1
                if done % SLICE == 0:
                    yield


class Needed:
    """A walk or a set: something that nodes need as long as something there refers to it."""

    __slots__ = ("is_empty", "is_refused", "key", "name", "nodes", "number")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        """What the id is a digest of."""
        self.number = number
        """Its id."""
        self.key = f"{number:016x}"
        self.is_refused = False
        """Whether another name has its id."""
        self.is_empty = False
        """Whether it has no fragments at all: very many policies have no rules in a direction."""
        self.nodes: dict[str, int] = {}
        """By node, how many refer to it there."""

    def fragments(self) -> Iterator[tuple[str, str]]:
        """The kinds and names of the keys that a node needs with it; it may change meanwhile."""
        raise NotImplementedError

    def begin(self, node: str, changes: Changes) -> bool:
        """One more refers to it on a node. Returns whether it is the first."""
        count = self.nodes.get(node, 0)
        self.nodes[node] = count + 1
        if not count and not self.is_refused:
            changes.whole(self, node)
        return not count

    def cease(self, node: str, changes: Changes) -> bool:
        """One fewer refers to it on a node. Returns whether it was the last."""
        count = self.nodes[node] - 1
        if count:
            self.nodes[node] = count
            return False
        del self.nodes[node]
        if not self.nodes:
            changes.ceased.add(self)
        if not self.is_refused:
            changes.whole(self, node)
        return True

    def touch(self, changes: Changes, fragments: Iterable[tuple[str, str]]) -> None:
        """Some of its fragments changed."""
        if self.nodes or self in changes.ceased:
            for kind, name in fragments:
                changes.content(kind, name)


class NeededBy(Mapping[Key, AbstractSet[str]]):
    """`ClusterView.needed_by`, without a set of nodes for each of very many keys."""

    def __init__(self, by_kind: Mapping[str, Mapping[str, Needed]]) -> None:
        """`by_kind`: of each kind of key, what has these ids; refused ones are not in there."""
        self._by_kind = by_kind

    def __getitem__(self, key: Key) -> AbstractSet[str]:
        scope, kind, name = key
        if scope == SOME_SCOPE and kind in self._by_kind:
            found = self._by_kind[kind].get(name[:16])
            if found is not None and found.nodes and not found.is_empty:
                return found.nodes.keys()
        raise KeyError(key)

    def get(self, key: Key, default: Any = None) -> Any:
        """As `Mapping.get`, but many times a change: without an exception."""
        scope, kind, name = key
        if scope != SOME_SCOPE or (by_id := self._by_kind.get(kind)) is None:
            return default
        found = by_id.get(name[:16])
        if found is None or not found.nodes or found.is_empty:
            return default
        return found.nodes.keys()

    def __iter__(self) -> Iterator[Key]:
        for found in {each for by_id in self._by_kind.values() for each in by_id.values()}:
            if found.nodes:
                for kind, name in found.fragments():
                    yield Key(SOME_SCOPE, kind, name)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def nodes(self) -> Needs:
        """The nodes that need each walk and each set now."""
        return {
            (kind, name): frozenset(found.nodes)
            for kind, by_id in self._by_kind.items()
            for name, found in by_id.items()
        }


class Users:
    """The policies that use a set, sorted, and how often the others than once."""

    __slots__ = ("_more", "refs")

    def __init__(self) -> None:
        self.refs: list[ObjectRef] = []
        self._more: dict[ObjectRef, int] = {}

    def add(self, user: ObjectRef) -> bool:
        """A policy uses it once more. Returns whether those that are named changed."""
        place = bisect_left(self.refs, user)
        if place < len(self.refs) and self.refs[place] == user:
            self._more[user] = self._more.get(user, 0) + 1
            return False
        self.refs.insert(place, user)
        return place < MOST_OWNERS

    def remove(self, user: ObjectRef) -> bool:
        """A policy uses it once less. Returns whether those that are named changed."""
        more = self._more.pop(user, 0)
        if more:
            if more > 1:
                self._more[user] = more - 1
            return False
        place = bisect_left(self.refs, user)
        del self.refs[place]
        return place < MOST_OWNERS

    @property
    def named(self) -> tuple[ObjectRef, ...]:
        return tuple(self.refs[:MOST_OWNERS])
