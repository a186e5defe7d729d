"""Which selections match which attachments.

Attachments of one Namespace whose pods have equal labels and equal named ports are one group: a
selection matches all of a group or none of it. So a pod that starts with the labels of others costs
no look at any selector.

A selection is looked for by what it requires: first of the Namespace, then of the pod.
"""

from typing import Final, NamedTuple, Protocol

from controller.policies.port_sets import NamedPort
from controller.policies.selectors import (
    NAMESPACE_NAME,
    Labels,
    Selection,
    Selector,
    SelectorIndex,
    matches,
)
from controller.policies.slices import NOWHERE, SLICE, Slices
from flows.policy import PortRange
from flows.view import Attachment


class Place(NamedTuple):
    """Where an attachment is."""

    node: str
    port: str


class GroupKey(NamedTuple):
    """What the attachments of a group have in common."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    """Sorted."""
    named_ports: tuple[tuple[NamedPort, int], ...]
    """Sorted."""
    is_peer: bool
    """Whether selectors of peers match it."""


class Watcher(Protocol):
    """Is told which groups a selection matches."""

    def joined(self, group: "PodGroup") -> None:
        """It matches a group now."""

    def left(self, group: "PodGroup") -> None:
        """It does not match a group any more."""


class PodGroup:
    """Attachments that every selection matches, or does not match, together."""

    __slots__ = ("attachments", "entering", "key", "labels", "nodes", "selected", "state")

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        self.labels: Labels = dict(key.labels)
        self.attachments: dict[Place, Attachment] = {}
        self.nodes: dict[str, int] = {}
        """How many of them each node has."""
        self.selected: set[SelectionState] = set()
        """The selections that match it."""
        self.state: object = None
        """See `walks.GroupWalks`."""
        self.entering = NOWHERE
        """The nodes that do not need these walks for this group yet."""

    def numbers(self, port: NamedPort) -> tuple[PortRange, ...]:
        """The numbers of its ports with this name; a container of the pod may have each."""
        return tuple(
            PortRange(protocol, number, number)
            for (name, protocol), number in self.key.named_ports
            if name == port.name and port.protocol in {None, protocol} and protocol is not None
        )


class SelectionState:
    """A selection that something uses, with the groups that it matches."""

    __slots__ = ("groups", "selection", "users", "watchers")

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.groups: dict[PodGroup, None] = {}
        self.users: dict[object, None] = {}
        """The peer sets and the policies that use it."""
        self.watchers: dict[Watcher, None] = {}
        """Users that are told which groups it matches."""


class _NamespaceSelection:
    """All selections with one selector of Namespaces."""

    __slots__ = ("namespaces", "selections", "selector")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.namespaces: dict[str, None] = {}
        """Those that it matches."""
        self.selections: SelectorIndex[SelectionState] = SelectorIndex()


class _Namespace:
    __slots__ = ("groups", "is_known", "labels", "matching", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_known = False
        """Whether there is such an object."""
        self.labels: Labels = {NAMESPACE_NAME: name}
        self.matching: dict[_NamespaceSelection, None] = {}
        self.groups: dict[GroupKey, PodGroup] = {}


class PodGroups:
    """All groups and all selections.

    A Namespace without an object has the label `kubernetes.io/metadata.name` alone.
    """

    def __init__(self) -> None:
        self.selections: Final[dict[Selection, SelectionState]] = {}
        self._namespaces: dict[str, _Namespace] = {}
        self._by_label: dict[tuple[str, str], dict[_Namespace, None]] = {}
        self._by_selector: dict[Selector, _NamespaceSelection] = {}
        self._selectors: SelectorIndex[_NamespaceSelection] = SelectorIndex()

    # --- groups ---

    def add(self, key: GroupKey, place: Place, attachment: Attachment) -> PodGroup:
        """Add an attachment to its group."""
        namespace = self._namespace(key.namespace)
        group = namespace.groups.get(key)
        if group is None:
            group = namespace.groups[key] = PodGroup(key)
            for matching in namespace.matching:
                for found in matching.selections.candidates(group.labels):
                    if matches(found.selection.pods, group.labels):
                        _join(group, found)
        group.attachments[place] = attachment
        group.nodes[place.node] = group.nodes.get(place.node, 0) + 1
        return group

    def remove(self, group: PodGroup, place: Place) -> None:
        """Remove an attachment from its group; `drop_if_empty` has to follow."""
        del group.attachments[place]
        if group.nodes[place.node] == 1:
            del group.nodes[place.node]
        else:
            group.nodes[place.node] -= 1

    def drop_if_empty(self, group: PodGroup) -> None:
        """Forget a group that has no attachment."""
        namespace = self._namespaces.get(group.key.namespace)
        if group.attachments or namespace is None or namespace.groups.get(group.key) is not group:
            return
        for found in list(group.selected):
            _leave(group, found)
        del namespace.groups[group.key]
        self._drop_namespace(namespace)

    # --- Namespaces ---

    def set_namespace(self, name: str, labels: Labels | None) -> Slices[list[PodGroup]]:
        """Set the labels of a Namespace, None if it is gone. Returns its groups that are concerned.

        What selections match them changes with `relabel`.
        """
        yield
        namespace = self._namespace(name)
        for pair in namespace.labels.items() if namespace.is_known else ():
            self._unindex(pair, namespace)
        namespace.is_known = labels is not None
        namespace.labels = {**(labels or {}), NAMESPACE_NAME: name}
        for pair in namespace.labels.items() if namespace.is_known else ():
            self._by_label.setdefault(pair, {})[namespace] = None
        now = {
            each: None
            for each in self._selectors.candidates(namespace.labels)
            if matches(each.selector, namespace.labels)
        }
        if now.keys() == namespace.matching.keys():
            self._drop_namespace(namespace)
            return []
        for gone in namespace.matching.keys() - now.keys():
            del gone.namespaces[name]
        for new in now.keys() - namespace.matching.keys():
            new.namespaces[name] = None
        namespace.matching = now
        self._drop_namespace(namespace)
        return list(namespace.groups.values())

    def select_again(self, group: PodGroup) -> tuple[set[SelectionState], set[SelectionState]]:
        """Find again which selections match a group. Returns those that are new, and the others."""
        namespace = self._namespaces[group.key.namespace]
        now = {
            found
            for matching in namespace.matching
            for found in matching.selections.candidates(group.labels)
            if matches(found.selection.pods, group.labels)
        }
        joined, left = now - group.selected, group.selected - now
        for state in joined:
            _join(group, state)
        for state in left:
            _leave(group, state)
        return joined, left

    # --- selections ---

    def use(self, selection: Selection, user: object) -> Slices[SelectionState]:
        """Note that something uses a selection; it then has all groups that it matches."""
        state = self.selections.get(selection)
        if state is None:
            state = self.selections[selection] = SelectionState(selection)
            state.users[user] = None
            yield from self._fill(state)
        state.users[user] = None
        return state

    def release(self, selection: Selection, user: object) -> None:
        """Note that something does not use a selection any more."""
        state = self.selections.get(selection)
        if state is None:
            return
        state.users.pop(user, None)
        if state.users:
            return
        del self.selections[selection]
        for group in state.groups:
            group.selected.discard(state)
        matching = self._by_selector[selection.namespaces]
        matching.selections.remove(state)
        if not matching.selections:
            del self._by_selector[selection.namespaces]
            self._selectors.remove(matching)
            for name in matching.namespaces:
                namespace = self._namespaces[name]
                del namespace.matching[matching]
                self._drop_namespace(namespace)

    def _fill(self, state: SelectionState) -> Slices[None]:
        selector, pods = state.selection
        matching = self._by_selector.get(selector)
        if matching is None:
            matching = self._by_selector[selector] = _NamespaceSelection(selector)
            self._selectors.add(matching, selector)
            for namespace in self._candidates(selector):
                if matches(selector, namespace.labels):
                    namespace.matching[matching] = None
                    matching.namespaces[namespace.name] = None
        matching.selections.add(state, pods)
        done = 0
        for name in list(matching.namespaces):
            namespace_now = self._namespaces.get(name)
            for group in list(namespace_now.groups.values()) if namespace_now else ():
                done += 1
                if done % SLICE == 0:
                    yield
                if group.attachments and matches(pods, group.labels):
                    _join(group, state)

    # --- internals ---

    def _candidates(self, selector: Selector) -> list[_Namespace]:
        """The Namespaces that a selector may match."""
        for key, operator, values in selector:
            if operator == "In" and key == NAMESPACE_NAME:
                return [self._namespace(name) for name in values if name in self._namespaces]
        best: list[_Namespace] | None = None
        for key, operator, values in selector:
            if operator == "In":
                found = {n: None for v in values for n in self._by_label.get((key, v), ())}
                if best is None or len(found) < len(best):
                    best = list(found)
        return list(self._namespaces.values()) if best is None else best

    def _namespace(self, name: str) -> _Namespace:
        found = self._namespaces.get(name)
        if found is None:
            found = self._namespaces[name] = _Namespace(name)
            for each in self._selectors.candidates(found.labels):
                if matches(each.selector, found.labels):
                    found.matching[each] = None
                    each.namespaces[name] = None
        return found

    def _drop_namespace(self, namespace: _Namespace) -> None:
        if namespace.is_known or namespace.groups:
            return
        for matching in namespace.matching:
            matching.namespaces.pop(namespace.name, None)
        self._namespaces.pop(namespace.name, None)

    def _unindex(self, pair: tuple[str, str], namespace: _Namespace) -> None:
        with_label = self._by_label[pair]
        del with_label[namespace]
        if not with_label:
            del self._by_label[pair]


def _join(group: PodGroup, found: SelectionState) -> None:
    if group not in found.groups:
        group.selected.add(found)
        found.groups[group] = None
        for watcher in found.watchers:
            watcher.joined(group)


def _leave(group: PodGroup, found: SelectionState) -> None:
    group.selected.discard(found)
    del found.groups[group]
    for watcher in found.watchers:
        watcher.left(group)
