"""What every node's switch should hold: one program that all share, and one of each node's own.

Each change of the shared program becomes one batch, encoded once, whose bytes go to every switch; a
switch that is behind takes the batches it lacks.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from controller.audit import Digests
from flows.compile import COMPILER, Compiler, Fragment, Program
from flows.diff import Delta, GroupChange
from flows.flow import Flow, Group, Meter
from flows.refs import CLUSTER, ObjectRef
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, ClusterView, Key
from openflow.batch import Batch, FlowDelete, FlowRemove

LOG_LENGTH = 256
"""Batches kept for switches that are behind; one further behind is compared whole."""


class SharedChange(NamedTuple):
    """What brought the shared program to a version."""

    version: int
    batch: Batch
    triggers: tuple[float, ...]
    """When what led to it was done (Unix time)."""


class Desired:
    """The programs of all nodes, and the batches of what they share."""

    def __init__(self, view: ClusterView, compiler: Compiler | None = None) -> None:
        """`compiler`: of all features by default."""
        self.whole = False
        """Whether all of the source could be read; until then nothing is removed or sealed."""
        self.shared = Program(CLUSTER_SCOPE)
        self._view = view
        self._compiler = COMPILER if compiler is None else compiler
        self._programs: dict[str, Program] = {}
        self._some: dict[Key, Fragment | None] = {}
        """Fragments that some nodes need, each compiled once for all of them."""
        self._holders: dict[Key, AbstractSet[str]] = {}
        """By key of `SOME_SCOPE`, the nodes that needed it when it was last touched."""
        self._log: deque[SharedChange] = deque(maxlen=LOG_LENGTH)
        self._everything: tuple[tuple[int, bool], Batch] | None = None
        self._digests: WeakKeyDictionary[Program, Digests] = WeakKeyDictionary()

    def program(self, node: str) -> Program:
        """A node's own; empty for one that has none."""
        return self._programs.setdefault(node, Program(node))

    def touch_some(self, key: Key) -> set[str]:
        """A fragment of `SOME_SCOPE`, or who needs it, has changed; the nodes to update for it."""
        self._some.pop(key, None)
        before = self._holders.pop(key, frozenset())
        if now := self._view.needed_by.get(key):
            # A copy: the view changes in place.
            self._holders[key] = now = frozenset(now)
        return {*before, *(now or ())}

    def update_node(self, node: str, keys: Iterable[Key]) -> bool:
        """Compile these fragments of a node anew; whether anything changed.

        A key of `SOME_SCOPE` is compiled for the first node that needs it, see `touch_some`.
        Raises `flows.pipeline.PipelineError`, and changes nothing then.
        """
        program = self.program(node)
        changes = {key: self._fragment(node, key) for key in sorted(keys)}
        changed = bool(program.update(changes))
        if not program.cookies and node not in self._view.nodes:
            del self._programs[node]
        return changed

    def _fragment(self, node: str, key: Key) -> Fragment | None:
        if key.scope != SOME_SCOPE:
            return self._compiler.fragment(self._view, key)
        if node not in self._view.nodes or node not in self._view.needed_by.get(key, ()):
            return None
        if key not in self._some:
            self._some[key] = self._compiler.fragment(self._view, key)
        return self._some[key]

    def update_shared(self, keys: Collection[Key], triggers: Iterable[float] = ()) -> bool:
        """Compile these shared fragments anew, as one batch; whether anything changed."""
        delta = self.shared.update(self._compiler.fragments(self._view, sorted(keys)))
        if not delta:
            return False
        if not self.whole:
            delta = Delta(adds=delta.adds, groups_set=delta.groups_set)
        batch = batch_of(delta, self.shared.seal, sealed=self.whole)
        self._log.append(SharedChange(self.shared.version, batch, tuple(triggers)))
        return True

    def changes_since(self, version: int) -> list[SharedChange] | None:
        """The shared program's changes after a version; None where they are not kept any more."""
        lacking = [change for change in self._log if change.version > version]
        return lacking if lacking and lacking[0].version == version + 1 else None

    def everything_shared(self) -> Batch:
        """All shared flows, encoded once for all switches that hold none."""
        key = self.shared.version, self.whole
        if self._everything is None or self._everything[0] != key:
            delta = Delta(
                adds=tuple(self.shared.flows()),
                groups_set=tuple(map(GroupChange, self.shared.groups.values())),
            )
            # The same message takes any node's own seal away.
            first = [FlowRemove(Program("any node's").seal)]
            batch = batch_of(delta, self.shared.seal, sealed=self.whole, first=first)
            self._everything = key, batch
        return self._everything[1]

    def digests(self, node: str) -> tuple[Digests, Digests]:
        """Of the shared flows and the node's own, brought up to date."""
        shared, own = (
            self._digests.setdefault(each, Digests()) for each in (self.shared, self.program(node))
        )
        shared.follow(self.shared)
        own.follow(self.program(node))
        return shared, own

    def of(self, node: str) -> dict[int, tuple[Flow, tuple[ObjectRef, ...]]]:
        """Every flow that a node should hold, by cookie, with the objects it exists for."""
        programs = {CLUSTER: self.shared, ObjectRef.node(node): self.program(node)}
        wanted = {
            cookie: (flow, fragment.owners)
            for program in programs.values()
            for cookie, (flow, fragment) in program.cookies.items()
        }
        if self.whole:
            for owner, program in programs.items():
                wanted[program.seal.cookie] = program.seal, (owner,)
        return wanted

    def groups_of(self, node: str) -> dict[int, tuple[Group, tuple[ObjectRef, ...]]]:
        """Every group that a node should hold, by id, with the objects it exists for."""
        return self.shared.groups_with_owners() | self.program(node).groups_with_owners()


def batch_of(
    delta: Delta,
    seal: Flow,
    *,
    sealed: bool,
    meters: Mapping[int, Meter] | None = None,
    first: Iterable[FlowDelete | FlowRemove] = (),
) -> Batch:
    """Encode a delta for a switch that has these meters.

    It ends with the seal if what it makes is to be `sealed`. Where that takes more than one
    bundle, the old seal, which would lie in between, goes first.
    """
    known = meters or {}
    make = partial(
        Batch.of,
        adds=delta.adds,
        deletes=delta.deletes,
        meters_set=[meter for meter in delta.meters_set if meter.id not in known],
        meters_change=[meter for meter in delta.meters_set if meter.id in known],
        meters_delete=delta.meters_delete,
        groups_set=delta.groups_set,
        groups_delete=delta.groups_delete,
        last=[seal] if sealed else [],
    )
    first = [*first]
    if sealed:
        batch = make(first=first)
        if batch.bundles < 2:
            return batch
    return make(first=[*first, FlowRemove(seal)])
