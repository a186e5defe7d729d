"""What every node's switch should hold: one program that all share, and one of each node's own.

Each change of the shared program becomes one batch. It is encoded once, and its bytes go to every
switch. A switch that is behind gets the batches that it does not have yet.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from controller.drift import Digests
from controller.journal import Journal
from controller.policy_order import Around
from flows.compile import COMPILER, Compiler, Content, Fragment, Program
from flows.diff import Delta, GroupChange
from flows.features import state
from flows.flow import Flow, Group, Meter
from flows.refs import CLUSTER, ObjectRef, Owners
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, ClusterView, Key
from openflow.batch import Batch, DeleteByCookie, DeleteStrict

LOG_LENGTH: Final = 256
"""Batches kept for switches that are behind; a switch further behind is compared."""
LOG_COST: Final = 20_000
"""Messages and buckets in all of these batches: some 30 MB with what they refer to."""


class SharedChange(NamedTuple):
    """The change that led to a version of the shared program."""

    version: int
    batch: Batch
    triggers: tuple[float, ...]
    """The times of the changes of objects that led to it, in seconds since 1970."""
    cost: int
    """Messages and buckets of the batch."""
    content: Content
    """Of the shared program after the change."""


class Desired:
    """The programs of all nodes, and the batches of what they share."""

    def __init__(self, view: ClusterView, compiler: Compiler | None = None) -> None:
        """`compiler`: of all features by default."""
        self.source_complete = False
        """Whether all of the source was read; until then nothing is removed or sealed."""
        self.members_known = False
        """Whether the pods of all nodes are known, or were waited for long enough. Until then no
        switch loses members of peer sets: they may be pods of a node that has not connected yet."""
        self.shared = Program(CLUSTER_SCOPE)
        self._view = view
        self._compiler = COMPILER if compiler is None else compiler
        self._programs: dict[str, Program] = {}
        self._some: dict[Key, Fragment] = {}
        """Fragments that some nodes need, each compiled once for all of them."""
        self._needs: dict[str, set[Key]] = {}
        """By node, the keys of `SOME_SCOPE` that it needs."""
        self._journals: WeakValueDictionary[str, Journal] = WeakValueDictionary()
        self._held: dict[str, int] = {}
        """By node, the version of its program before the change that is made now."""
        self._log: deque[SharedChange] = deque()
        self._log_cost = 0
        self._changed_at: dict[Key, int] = {}
        """By key of the shared program, the version in which its fragment changed last."""
        self.shared_removed_at = 0
        """The version of the shared program in which a fragment was removed last."""
        self._everything: tuple[tuple[int, bool], Batch] | None = None
        self._digests: WeakKeyDictionary[Program, Digests] = WeakKeyDictionary()

    def program(self, node: str) -> Program:
        """A node's own; empty for one that has none."""
        return self._programs.setdefault(node, Program(node))

    def nodes_with_programs(self) -> list[str]:
        """The nodes that have a program of their own."""
        return list(self._programs)

    def has_program(self, node: str) -> bool:
        """Whether it is known what the node's switch should hold: it is an accepted Node's."""
        return node in self._view.nodes

    def touch(self, key: Key) -> tuple[Key, Iterable[str]]:
        """A key that is not of `CLUSTER_SCOPE` changed.

        Returns the key of the fragment, and the nodes whose programs have to be updated for it.
        """
        if key.scope == SOME_SCOPE:
            self._some.pop(key, None)
            # A copy: the view changes in place.
            nodes = tuple(self._view.needed_by.get(key, ()))
            # Also nodes that have no program yet: it begins with what they need then.
            for node in nodes:
                self._needs.setdefault(node, set()).add(key)
            return key, nodes
        if not self._compiler.has_kind("some", key.kind):
            return key, (key.scope,)
        shared = Key(SOME_SCOPE, key.kind, key.name)
        holders = self._view.needed_by.get(shared, ())
        if key.scope in holders:
            self._needs.setdefault(key.scope, set()).add(shared)
        else:
            self._forget_need(key.scope, shared)
        if not holders:
            self._some.pop(shared, None)
        return shared, (key.scope,)

    def _forget_need(self, node: str, key: Key) -> None:
        if keys := self._needs.get(node):
            keys.discard(key)
            if not keys:
                del self._needs[node]

    def keys(self, node: str) -> set[Key]:
        """The keys of all fragments that the node's program should have."""
        return self._compiler.own_keys(self._view, node) | self._needs.get(node, set())

    def is_policy(self, key: Key) -> bool:
        """Whether the fragment of this key is part of network policy."""
        return self._compiler.is_policy(key)

    def follow(self, node: str) -> Journal:
        """A journal of the node's program, for a switch; it lasts as long as somebody holds it."""
        self._journals[node] = journal = Journal()
        return journal

    def update_node(self, node: str, changes: Mapping[Key, Fragment | None]) -> bool:
        """Take compiled fragments into a node's program; whether anything changed.

        Raises `flows.pipeline.PipelineError`, and changes nothing then.
        """
        program = self.program(node)
        before = program.content
        if (delta := program.update(changes)) and (journal := self._journals.get(node)):
            journal.add(delta, before)
        if not program.cookies and node not in self._view.nodes:
            self.drop_program(node)
        return bool(delta)

    def hold(self, node: str) -> None:
        """The changes of a node's program until `release` are parts of one: send none of them."""
        program = self.program(node)
        self._held[node] = program.version
        if journal := self._journals.get(node):
            journal.hold(program.content)

    def release(self, node: str) -> bool:
        """The change that `hold` began is complete; whether it changed anything."""
        before = self._held.pop(node, None)
        if journal := self._journals.get(node):
            journal.release()
        return before is not None and self.program(node).version != before

    def is_held(self, node: str) -> bool:
        """Whether only a part of a change is in the node's program."""
        return node in self._held

    def drop_program(self, node: str) -> None:
        """The node's program is not kept up to date any more."""
        self._programs.pop(node, None)
        self._held.pop(node, None)
        if journal := self._journals.get(node):
            journal.lose()

    def fragment(self, scope: str, key: Key) -> Fragment | None:
        """What the program of a node, or of `CLUSTER_SCOPE`, holds of this key now.

        A key of `SOME_SCOPE` is compiled for the first node that needs it, see `touch`.
        Raises `flows.pipeline.PipelineError`.
        """
        if key.scope != SOME_SCOPE:
            return self._compiler.fragment(self._view, key)
        if scope not in self._view.nodes or scope not in self._view.needed_by.get(key, ()):
            return None
        if (found := self._some.get(key)) is None:
            found = self._compiler.fragment(self._view, key)
            # Nobody is told when what does not exist comes to be while no node needs it.
            if found is None:
                self._forget_need(scope, key)
            else:
                self._some[key] = found
        return found

    def update_shared(
        self, changes: Mapping[Key, Fragment | None], triggers: Iterable[float] = ()
    ) -> bool:
        """Take compiled fragments into the shared program, as one batch; whether anything changed.

        Raises `flows.pipeline.PipelineError`, and changes nothing then.
        """
        delta = self.shared.update(changes)
        if not delta:
            return False
        for key, fragment in changes.items():
            if fragment is None:
                if self._changed_at.pop(key, None) is not None:
                    self.shared_removed_at = self.shared.version
            else:
                self._changed_at[key] = self.shared.version
        # It belongs to an older version now.
        self._everything = None
        if not self.source_complete:
            delta = Delta(adds=delta.adds, groups_set=delta.groups_set)
        batch = batch_of(delta, self.shared.seal, sealed=self.source_complete)
        change = SharedChange(
            self.shared.version, batch, tuple(triggers), batch.cost, self.shared.content
        )
        self._log.append(change)
        self._log_cost += change.cost
        while self._log and (len(self._log) > LOG_LENGTH or self._log_cost > LOG_COST):
            self._log_cost -= self._log.popleft().cost
        return True

    def shared_version_of(self, keys: Iterable[Key]) -> int:
        """The first version of the shared program that has these fragments as they are now."""
        return max((self._changed_at.get(key, 0) for key in keys), default=0)

    def forget_changes(self, version: int) -> None:
        """Drop the changes up to this version, because every switch holds it."""
        while self._log and self._log[0].version <= version:
            self._log_cost -= self._log.popleft().cost

    def changes_since(self, version: int) -> list[SharedChange] | None:
        """The changes of the shared program after a version; None: they are not kept any more."""
        lacking = [change for change in self._log if change.version > version]
        return lacking if lacking and lacking[0].version == version + 1 else None

    def sealed_version(self, cookies: Collection[int]) -> int | None:
        """The version of the shared program whose seal is among these; None: of none that is kept.

        A switch that holds the seal lacks `changes_since` this version.
        """
        if self.shared.seal.cookie in cookies:
            return self.shared.version
        for change in reversed(self._log):
            if state.seal(CLUSTER_SCOPE, *change.content).cookie in cookies:
                return change.version
        return None

    def everything_shared(self) -> Batch:
        """All shared flows, encoded once for all switches that hold none."""
        key = self.shared.version, self.source_complete
        if self._everything is None or self._everything[0] != key:
            delta = Delta(
                adds=tuple(self.shared.flows()),
                groups_set=tuple(map(GroupChange, self.shared.groups.values())),
            )
            # The seal of every node has the same match, so one message deletes any of them.
            first = [DeleteStrict(Program("any node's").seal)]
            batch = batch_of(delta, self.shared.seal, sealed=self.source_complete, first=first)
            self._everything = key, batch
        return self._everything[1]

    def digests(self, node: str) -> tuple[Digests, Digests] | None:
        """The digests of the shared program and the node's own; None: not complete, call again.

        Each call computes a part of them, so that it does not hold the event loop.
        """
        shared, own = (
            self._digests.setdefault(each, Digests()) for each in (self.shared, self.program(node))
        )
        done = shared.follow(self.shared) and own.follow(self.program(node))
        return (shared, own) if done else None

    def of(self, node: str) -> dict[int, tuple[Flow, tuple[ObjectRef, ...]]]:
        """Every flow that a node should hold, by cookie, with the objects it exists for."""
        programs = {CLUSTER: self.shared, ObjectRef.node(node): self.program(node)}
        wanted = {
            cookie: entry
            for program in programs.values()
            for cookie, entry in program.cookies.items()
        }
        if self.source_complete:
            for owner, program in programs.items():
                wanted[program.seal.cookie] = program.seal, (owner,)
        return wanted

    def flow(self, node: str, cookie: int) -> tuple[Flow, Owners] | None:
        """The flow with this cookie that a node should hold, with the objects it exists for."""
        for program in (self.shared, self.program(node)):
            if (found := program.cookies.get(cookie)) is not None:
                return found
        return None

    def groups_of(self, node: str) -> dict[int, tuple[Group, tuple[ObjectRef, ...]]]:
        """Every group that a node should hold, by id, with the objects it exists for."""
        return self.shared.groups_with_owners() | self.program(node).groups_with_owners()


def batch_of(
    delta: Delta,
    seal: Flow,
    *,
    sealed: bool,
    meters: Mapping[int, Meter] | None = None,
    first: Iterable[DeleteByCookie | DeleteStrict] = (),
    surrounded: Around | None = None,
) -> Batch:
    """Encode a delta for a switch that has these meters.

    It ends with the seal if what it makes is to be `sealed`. Where that takes more than one
    bundle, the old seal, which would lie in between, goes first, and the flows in between are
    `surrounded` by others.
    """
    known = meters or {}
    make = partial(
        Batch.of,
        meters_set=[meter for meter in delta.meters_set if meter.id not in known],
        meters_change=[meter for meter in delta.meters_set if meter.id in known],
        meters_delete=delta.meters_delete,
        groups_set=delta.groups_set,
        groups_delete=delta.groups_delete,
    )
    first = [*first]
    end = [seal] if sealed else []
    if sealed or surrounded is not None:
        batch = make(delta.adds, delta.deletes, first=first, last=end)
        if batch.bundles < 2:
            return batch
    before, after = surrounded or ((), ())
    later = {message.cookie for message in after}
    return make(
        [flow for flow in delta.adds if flow.cookie not in later],
        delta.deletes,
        first=[*first, DeleteStrict(seal), *before],
        last=[*after, *end],
    )
