"""Named ports of rules from the pod: which numbers they have on which peers.

A name stands for pairs of a pod and a number. Each number is a step of its own, with those of the
peers on which the port has this number.
"""

from collections.abc import Callable, Iterable
from typing import Final

from controller.policies.drafts import Peers
from controller.policies.pod_groups import PodGroup, PodGroups
from controller.policies.port_sets import NamedPort
from controller.policies.selectors import EVERYTHING, Selection
from controller.policies.slices import Slices
from flows.policy import PortRange
from flows.refs import ObjectRef

MOST_NUMBERS: Final = 64
"""Numbers of one named port among the peers of one rule; each is a step."""
_ALL_PODS: Final = (Selection(EVERYTHING, EVERYTHING),)

_Key = tuple[tuple[Selection, ...], NamedPort]


class PortNumbers:
    """The numbers of a named port among the pods of some selections."""

    __slots__ = ("_counts", "_groups", "changed", "port", "selections", "users")

    def __init__(self, selections: tuple[Selection, ...], port: NamedPort) -> None:
        self.selections = selections
        self.port = port
        self.users: dict[ObjectRef, int] = {}
        self.changed: Callable[[Iterable[ObjectRef]], None] = lambda _: None
        self._groups: dict[PodGroup, int] = {}
        """How many of the selections match each group."""
        self._counts: dict[PortRange, int] = {}
        """How many groups have each number."""

    @property
    def ranges(self) -> list[PortRange]:
        """Each number with its protocol, sorted."""
        return sorted(self._counts)

    @property
    def has_pods(self) -> bool:
        """Whether the selections match any pod."""
        return bool(self._groups)

    def joined(self, group: PodGroup) -> None:
        """One more of the selections matches a group."""
        self._groups[group] = self._groups.get(group, 0) + 1
        if self._groups[group] == 1:
            self._count(group, 1)

    def left(self, group: PodGroup) -> None:
        """One of the selections does not match a group any more."""
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
            self._count(group, -1)

    def _count(self, group: PodGroup, by: int) -> None:
        before = self._counts.keys() | ()
        for each in group.numbers(self.port) if group.key.is_peer else ():
            self._counts[each] = self._counts.get(each, 0) + by
            if not self._counts[each]:
                del self._counts[each]
        if self._counts.keys() != before or len(self._groups) <= 1:
            self.changed(self.users)


class NamedPorts:
    """All named ports of rules from the pod."""

    def __init__(self, groups: PodGroups, changed: Callable[[Iterable[ObjectRef]], None]) -> None:
        """`changed` is called with the policies whose steps depend on numbers that changed."""
        self._groups = groups
        self._changed = changed
        self._known: dict[_Key, PortNumbers] = {}

    def __len__(self) -> int:
        return len(self._known)

    def use(self, peers: Peers | None, port: NamedPort, user: ObjectRef) -> Slices[PortNumbers]:
        """The numbers of a port among the peers of a rule (None: all pods), for one more rule."""
        selections = _ALL_PODS if peers is None else peers.selections
        found = self._known.get((selections, port))
        if found is None:
            found = self._known[selections, port] = PortNumbers(selections, port)
            for selection in selections:
                state = yield from self._groups.use(selection, found)
                state.watchers[found] = None
                for group in state.groups:
                    found.joined(group)
            found.changed = self._changed
        found.users[user] = found.users.get(user, 0) + 1
        return found

    def release(self, used: PortNumbers, user: ObjectRef) -> None:
        """A rule does not use it any more."""
        used.users[user] -= 1
        if used.users[user]:
            return
        del used.users[user]
        if used.users:
            return
        del self._known[used.selections, used.port]
        for selection in used.selections:
            self._groups.selections[selection].watchers.pop(used, None)
            self._groups.release(selection, used)
