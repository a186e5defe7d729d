"""`ClusterView.needed_by`: what policies need, and where the flows of selected pods go."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from flows.kinds import EGRESS_MEMBER
from flows.view import SOME_SCOPE, Key


class Needs(Mapping[Key, AbstractSet[str]]):
    """Both as one mapping, without a set of nodes for each of very many keys."""

    def __init__(
        self,
        policies: Mapping[Key, AbstractSet[str]],
        members: Iterable[str],
        nodes_of: Callable[[str], AbstractSet[str]],
    ) -> None:
        """`members`: the names of all keys of `EGRESS_MEMBER`; `nodes_of`: who needs one."""
        self._policies = policies
        self._members = members
        self._nodes_of = nodes_of

    def __getitem__(self, key: Key) -> AbstractSet[str]:
        if key.kind != EGRESS_MEMBER.name:
            return self._policies[key]
        if key.scope == SOME_SCOPE and (found := self._nodes_of(key.name)):
            return found
        raise KeyError(key)

    def get(self, key: Key, default: Any = None) -> Any:
        """As `Mapping.get`, but many times a change: without an exception."""
        if key.kind != EGRESS_MEMBER.name:
            return self._policies.get(key, default)
        return (self._nodes_of(key.name) if key.scope == SOME_SCOPE else None) or default

    def __iter__(self) -> Iterator[Key]:
        yield from self._policies
        for name in self._members:
            if self._nodes_of(name):
                yield Key(SOME_SCOPE, EGRESS_MEMBER.name, name)

    def __len__(self) -> int:
        return sum(1 for _ in self)
