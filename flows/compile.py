"""view -> fragments -> programs: the only source of flows.

A fragment has the flows, groups and meters of one object in one scope; it is a pure function of the
view. A `Program` has all fragments of one scope. The cost of an update of one fragment does not
depend on the others. Full compilation (`Compiler.program`) is the reference: an updated program
equals it.

A fragment of `SOME_SCOPE` is part of the program of each node that needs it. All these programs
hold the same `Fragment` and `Flow` objects: they are compiled once and encoded once.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from flows.diff import Delta, GroupChange
from flows.features import (
    arp,
    classify,
    conntrack,
    direct,
    egress,
    endpoints,
    forwarding,
    misses,
    output,
    policy,
    services,
    state,
)
from flows.flow import Flow, FormError, Group, Meter
from flows.kinds import Kind, ScopeType, Writer, scope_type
from flows.pipeline import LAYOUT, PipelineError
from flows.policy import Direction
from flows.refs import Owners
from flows.view import Cluster, ClusterView, Key

FEATURES: Final[tuple[Iterable[Writer], ...]] = (
    misses.WRITES,
    classify.WRITES,
    arp.WRITES,
    conntrack.WRITES,
    services.WRITES,
    endpoints.WRITES,
    direct.WRITES,
    forwarding.WRITES,
    egress.WRITES,
    policy.WRITES,
    output.WRITES,
)


_NO_DIRECTIONS: Final = frozenset[Direction]()


@dataclass(slots=True)
class Fragment:
    """The flows, meters and groups of one object in one scope, and their owners.

    Nobody changes it. It is not `frozen`, because that takes three times as long to make.
    """

    owners: Owners
    flows: tuple[Flow, ...]
    meters: tuple[Meter, ...] = ()
    groups: tuple[Group, ...] = ()
    """Each has a companion flow among `flows` (`flows.features.state.companion`)."""
    directions: frozenset[Direction] = frozenset()
    """The directions of policy that its flows belong to; empty: they are not policy."""
    subject: object = field(default=None, compare=False, repr=False)
    """The object of the view that it was made of."""

    entries: tuple[tuple[Flow, Owners], ...] = field(init=False, compare=False, repr=False)
    """Each flow with the owners, as programs hold them. All programs share these tuples."""

    def __post_init__(self) -> None:
        # Not with the fragment itself: a cycle of references would keep it, because the garbage
        # collector very rarely looks at what has been there for long (`controller.garbage`).
        owners = self.owners
        self.entries = tuple([(flow, owners) for flow in self.flows])


class _Writing(NamedTuple):
    """A kind of object, and the functions of features that write for it."""

    kind: Kind[Any]
    writers: list[Callable[[Cluster, Any], Iterable[Any]]]


class Compiler:
    """The functions of all features, by kind of object."""

    def __init__(self, features: Iterable[Iterable[Writer]] = FEATURES) -> None:
        """Raises `ValueError` for two kinds with one name and scope."""
        self._kinds: dict[tuple[ScopeType, str], _Writing] = {}
        self._policy: set[str] = set()
        """The names of kinds of policy; kinds of all scopes with such a name are policy."""
        for feature in features:
            for kind, write in feature:
                known = self._kinds.setdefault((kind.scope, kind.name), _Writing(kind, []))
                if known.kind is not kind:
                    raise ValueError(f"there are two kinds {kind.name} of scope {kind.scope}")
                known.writers.append(write)
                if kind.directions is not None:
                    self._policy.add(kind.name)

    def has_kind(self, scope: ScopeType, name: str) -> bool:
        """Whether objects of this kind have flows in scopes of this type."""
        return (scope, name) in self._kinds

    def fragment(self, view: ClusterView, key: Key) -> Fragment | None:
        """The fragment of this key; None if there is no such object.

        Raises `PipelineError` for a flow that breaks the layout, `KeyError` for an unknown kind.
        """
        found = self._writing(key).kind.find(view, key.scope, key.name)
        return None if found is None else self.fragment_of(view, key, found)

    def is_policy(self, key: Key) -> bool:
        """Whether the fragment of this key is part of network policy."""
        return key.kind in self._policy

    def fragment_of(self, view: ClusterView, key: Key, found: Any) -> Fragment:
        """The fragment that this key has if the view has this object. Raises `PipelineError`."""
        kind, writers = self._writing(key)
        made = [entry for write in writers for entry in write(view.cluster, found)]
        flows = [entry for entry in made if isinstance(entry, Flow)]
        groups: list[Group] = []
        meters: list[Meter] = []
        if len(flows) < len(made):
            groups += [entry for entry in made if isinstance(entry, Group)]
            meters += [entry for entry in made if isinstance(entry, Meter)]
        owners = tuple(kind.owners(view, found))
        if meters and kind.scope != "node":
            # What many nodes share is sent to a switch without meters.
            raise PipelineError(f"{owners[0]}: meter {meters[0].id}: only one node's own")
        try:
            flows += map(state.companion, groups)
            is_shared = kind.scope == "some"
            for flow in flows:
                if is_shared:
                    flow.share(is_shared=True)
                flow.cookie  # noqa: B018 - computed here, so that an error names the owner
        except FormError as error:
            raise PipelineError(f"{owners[0]}: {error}") from None
        directions = _NO_DIRECTIONS if kind.directions is None else kind.directions(found)
        return Fragment(owners, tuple(flows), tuple(meters), tuple(groups), directions, found)

    def _writing(self, key: Key) -> _Writing:
        scope, kind, _ = key
        return self._kinds[scope_type(scope), kind]

    def fragments(self, view: ClusterView, keys: Iterable[Key]) -> dict[Key, Fragment | None]:
        """The fragments of these keys in this view."""
        return {key: self.fragment(view, key) for key in keys}

    def own_keys(self, view: ClusterView, scope: str) -> set[Key]:
        """The keys of this scope alone."""
        wanted = scope_type(scope)
        return {
            Key(scope, kind.name, name)
            for kind, _ in self._kinds.values()
            if kind.scope == wanted
            for name in kind.names(view, scope)
        }

    def keys(self, view: ClusterView, scope: str) -> set[Key]:
        """The keys of all fragments of the program of `CLUSTER_SCOPE`, or of a node."""
        found = self.own_keys(view, scope)
        if scope in view.nodes:
            found |= {key for key, nodes in view.needed_by.items() if scope in nodes}
        return found

    def program(self, view: ClusterView, scope: str) -> "Program":
        """The whole program of a node, or of `CLUSTER_SCOPE`."""
        program = Program(scope)
        program.update(self.fragments(view, sorted(self.keys(view, scope))))
        return program


Content: TypeAlias = tuple[int, int]
"""Number and sum of the flows of a program, as `flows.features.state.seal` has them."""


class Program:
    """All flows, meters and groups of one scope, and the owners of each flow.

    `version` counts the updates that changed something, from 0.
    """

    def __init__(self, scope: str) -> None:
        self.version = 0
        self.scope = scope
        self.meters: dict[int, Meter] = {}
        self.groups: dict[int, Group] = {}
        """By id."""
        self.companions: dict[int, int] = {}
        """By a group's id, the cookie of its companion flow."""
        self._fragments: dict[Key, Fragment] = {}
        self._flows: dict[int, tuple[Flow, Owners]] = {}
        self._taken: dict[bytes, int] = {}
        """By the key of each flow, its cookie."""
        self._total = 0
        self._seal: Flow | None = None

    @property
    def fragments(self) -> Mapping[Key, Fragment]:
        """The fragments by key."""
        return self._fragments

    @property
    def cookies(self) -> Mapping[int, tuple[Flow, Owners]]:
        """Every flow by its cookie, with its owners."""
        return self._flows

    def groups_with_owners(self) -> dict[int, tuple[Group, Owners]]:
        """Every group by its id, with its owners."""
        return {
            group.id: (group, fragment.owners)
            for fragment in self._fragments.values()
            for group in fragment.groups
        }

    def groups_held(self, ids: Collection[int], cookies: Collection[int]) -> dict[int, Group]:
        """The groups that a switch with these group ids and cookies holds unchanged, by id."""
        return {
            number: group
            for number, group in self.groups.items()
            if number in ids and self.companions[number] in cookies
        }

    def flows(self) -> Iterator[Flow]:
        """Every flow."""
        return (flow for flow, _ in self._flows.values())

    @property
    def content(self) -> Content:
        """What the seal is made of: programs with the same content have the same seal."""
        return len(self._flows), self._total

    @property
    def seal(self) -> Flow:
        """The flow that proves that a switch holds the whole program (`flows.features.state`)."""
        if self._seal is None:
            self._seal = state.seal(self.scope, len(self._flows), self._total)
        return self._seal

    def update(self, changes: Mapping[Key, Fragment | None]) -> Delta:
        """Replace the fragments of these keys (None: remove), and return the difference.

        Raises `PipelineError` if two flows would have the same table, priority and match. The
        program is then unchanged.
        """
        old = [f for key in changes if (f := self._fragments.get(key)) is not None]
        new = [f for f in changes.values() if f is not None]
        removed = {flow.cookie for fragment in old for flow in fragment.flows}
        wanted: dict[bytes, tuple[Flow, Owners]] = {}
        taken = self._taken
        for made in new:
            for entry in made.entries:
                flow = entry[0]
                key = flow.key
                holder = taken.get(key)
                if (holder is not None and holder not in removed) or key in wanted:
                    table = LAYOUT.by_number[flow.table].name
                    raise PipelineError(
                        f"{made.owners[0]}: {table} has a flow of priority {flow.priority}"
                        f" with the match {flow.match} already"
                    )
                wanted[key] = entry
        added = {entry[0].cookie: entry for entry in wanted.values()}
        groups = {group.id: group for f in new for group in f.groups}
        old_groups = {group.id for f in old for group in f.groups}
        delta = Delta(
            adds=tuple(flow for cookie, (flow, _) in added.items() if cookie not in removed),
            # A flow goes before the flows that it leads to.
            deletes=tuple(
                sorted(
                    (cookie for cookie in removed if cookie not in added),
                    key=lambda cookie: (self._flows[cookie][0].table, cookie),
                )
            ),
            meters_set=tuple(
                meter for f in new for meter in f.meters if self.meters.get(meter.id) != meter
            ),
            meters_delete=tuple(
                sorted(
                    {m.id for f in old for m in f.meters} - {m.id for f in new for m in f.meters}
                )
            ),
            groups_set=tuple(
                GroupChange(group, self.groups.get(number))
                for number, group in groups.items()
                if self.groups.get(number) != group
            ),
            groups_delete=tuple(sorted(old_groups - groups.keys())),
        )
        for cookie in removed:
            del taken[self._flows.pop(cookie)[0].key]
        self._flows.update(added)
        taken.update((key, flow.cookie) for key, (flow, _) in wanted.items())
        for name, change in changes.items():
            if change is None:
                self._fragments.pop(name, None)
            else:
                self._fragments[name] = change
        gone = [self.meters.pop(number) for number in delta.meters_delete]
        gone += [self.meters[m.id] for m in delta.meters_set if m.id in self.meters]
        self.meters.update((meter.id, meter) for meter in delta.meters_set)
        for number in delta.groups_delete:
            del self.groups[number], self.companions[number]
        self.groups.update(groups)
        self.companions.update(
            (change.new.id, state.companion(change.new).cookie) for change in delta.groups_set
        )
        # Incremental: the cost must depend only on the change.
        self._total += sum(added) + sum(meter.digest for meter in delta.meters_set)
        self._total -= sum(removed) + sum(meter.digest for meter in gone)
        self._total &= 0xFFFF_FFFF_FFFF_FFFF
        if delta:
            self.version += 1
            self._seal = None
        return delta


COMPILER: Final = Compiler()
"""The compiler with all features."""


def fragment(view: ClusterView, key: Key) -> Fragment | None:
    """`Compiler.fragment` with all features."""
    return COMPILER.fragment(view, key)


def fragments(view: ClusterView, keys: Iterable[Key]) -> dict[Key, Fragment | None]:
    """`Compiler.fragments` with all features."""
    return COMPILER.fragments(view, keys)


def compile_scope(view: ClusterView, scope: str) -> Program:
    """`Compiler.program` with all features."""
    return COMPILER.program(view, scope)
