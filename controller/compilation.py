"""When changed objects are compiled: in several turns of the event loop (`work_budget`).

A change for one node is compiled at once, because a pod may wait for it; nodes without a connected
switch come last, in the background. Changes for all nodes are gathered for a moment and published
as one batch. What does not fit into the budget of one turn goes on in the next. After each turn the
programs are consistent: each seal matches the content of its program. A fragment that cannot be
compiled stops no other one.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from controller import metrics
from controller.desired import Desired
from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind, Subject
from controller.work_budget import WorkBudget
from flows.compile import Fragment
from flows.pipeline import PipelineError
from flows.refs import CLUSTER, ObjectRef
from flows.view import CLUSTER_SCOPE, Key

SHARED_TICK: Final = 0.005
"""Seconds after one batch of shared changes in which further ones are gathered into the next."""
BACKGROUND_PAUSE: Final = 0.05
"""Seconds between slices for nodes without a switch, in which sessions go on."""


class Compilation:
    """Takes the keys that changed, and keeps `Desired` up to date."""

    def __init__(
        self,
        inventory: Inventory,
        desired: Desired,
        *,
        on_node: Callable[[str], None],
        on_shared: Callable[[], None],
        on_published: Callable[[], None],
    ) -> None:
        """`on_node` is called when the program of a node has changed.

        `on_shared` is called when the shared program has changed, `on_published`
        when all gathered changes are in it.
        """
        self._inventory = inventory
        self._desired = desired
        self._on_node = on_node
        self._on_shared = on_shared
        self._on_published = on_published
        self._nodes: dict[str, dict[Key, None]] = {}
        """By node, changed keys of its program; the node that waits longest comes first."""
        self._connected: set[str] = set()
        """Nodes whose switch has asked for their program."""
        self._first: dict[str, None] = {}
        """Those of them in `_nodes`: they come before nodes without a switch."""
        self._shared: dict[Key, None] = {}
        """Changed keys of what all nodes share."""
        self._uncompiled: dict[str, dict[Key, None]] = {}
        """By scope, keys whose fragments could not be compiled."""
        self._publishing = False
        """Whether shared changes are published now, and not gathered any more."""
        self._progress = False
        """Whether the shared program has changed since `_publishing` began."""
        self._open = False
        """Whether shared changes are published by themselves; see `open`."""
        self._timer: asyncio.Handle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._published_at = 0.0
        self._started = time.time()
        self._triggers: dict[str, float] = {}
        self._turn_ended = asyncio.Event()

    async def compiled(self, node: str) -> None:
        """Return when no changed key of this node's program waits to be compiled."""
        self._connected.add(node)
        self._rank(node)
        while node in self._nodes:
            await self._turn_ended.wait()

    def _rank(self, node: str) -> None:
        if node in self._connected and node in self._nodes:
            self._first[node] = None

    def open(self) -> None:
        """The source was read once: publish what there is, and from now on whatever changes."""
        self._open = True
        self._begin()

    def touch(self, keys: Iterable[Key]) -> None:
        """The objects of these keys changed."""
        for key in keys:
            if key.scope == CLUSTER_SCOPE:
                self._shared[key] = None
                continue
            of, nodes = self._desired.touch(key)
            for node in nodes:
                self._nodes.setdefault(node, {})[of] = None
                self._rank(node)
        if self._nodes and self._timer is None:
            self._work()
        if self._shared and self._open and not self._publishing and self._tick is None:
            # At once after a quiet while; what follows closely waits.
            due = self._published_at + SHARED_TICK
            self._tick = asyncio.get_running_loop().call_at(due, self._begin)

    def _begin(self) -> None:
        self._tick = None
        self._publishing = True
        if self._timer is None:
            self._work()

    def _work(self) -> None:
        """Do the work of one turn, and schedule the next one."""
        self._timer = None
        self._compile_nodes(WorkBudget())
        self._turn_ended.set()
        self._turn_ended = asyncio.Event()
        if self._publishing:
            self._publish(WorkBudget())
        if self._first or self._publishing:
            self._timer = asyncio.get_running_loop().call_soon(self._work)
        elif self._nodes:
            self._timer = asyncio.get_running_loop().call_later(BACKGROUND_PAUSE, self._work)

    # --- the programs of nodes ---

    def _compile_nodes(self, budget: WorkBudget) -> None:
        while self._nodes and not budget.over:
            node = next(iter(self._first or self._nodes))
            self._first.pop(node, None)
            keys = self._nodes.pop(node)
            self._compile_node(node, keys, budget)
            if keys:
                # The others come first.
                self._nodes[node] = keys
                self._rank(node)
            elif node not in self._inventory.view.nodes:
                self._connected.discard(node)

    def _compile_node(self, node: str, keys: dict[Key, None], budget: WorkBudget) -> None:
        keys |= self._uncompiled.pop(node, {})
        changes, problem = self._compile(node, keys, budget)
        changed, refused = self._update(changes, lambda c: self._desired.update_node(node, c))
        for key in refused:
            problem[key] = refused[key]
        reporter = Reporter(ReporterKind.COMPILER, node)
        if problem:
            self._uncompiled[node] = dict.fromkeys(problem)
            text = next(iter(problem.values()))
            self._inventory.problems.replace_all(reporter, {ObjectRef.node(node): text})
        elif not keys:
            self._inventory.problems.clear_reporter(reporter)
        if changed:
            self._on_node(node)

    # --- the shared program ---

    def _publish(self, budget: WorkBudget) -> None:
        """Publish one batch of what was gathered."""
        services = self._inventory.services
        self._triggers |= services.take_triggers()
        with metrics.SYNC_SECONDS.time():
            changes, problem = self._compile(CLUSTER_SCOPE, self._shared, budget)
            triggers = [
                at
                for key in changes
                if (name := _service(key))
                # The delay of changes before this process started is unknown.
                and (at := self._triggers.pop(name, 0.0)) >= self._started
            ]
            changed, refused = self._update(
                changes, lambda c: self._desired.update_shared(c, triggers)
            )
        self._published_at = time.monotonic()
        uncompiled = self._uncompiled.setdefault(CLUSTER_SCOPE, {})
        for key in changes:
            if key not in refused and uncompiled.pop(key, self) is None:
                self._inventory.problems.clear(COMPILER, _subject(key))
        for key, text in (problem | refused).items():
            uncompiled[key] = None
            self._inventory.problems.set(COMPILER, _subject(key), text)
        if changed:
            self._progress = True
            self._on_shared()
        if not self._shared:
            self._end()

    def _end(self) -> None:
        """All gathered changes are published, except those that cannot be compiled."""
        uncompiled = self._uncompiled.get(CLUSTER_SCOPE)
        if uncompiled and self._progress:
            # The object that was in conflict may be gone.
            self._progress = False
            self._shared |= uncompiled
            return
        self._publishing = self._progress = False
        services = self._inventory.services
        metrics.SYNCED_AT.set_to_current_time()
        metrics.ENDPOINT_CHANGES.set(services.endpoint_changes)
        metrics.SERVICE_CHANGES.set(services.service_changes)
        self._triggers.clear()
        self._on_published()

    # --- both ---

    def _compile(
        self, scope: str, keys: dict[Key, None], budget: WorkBudget
    ) -> tuple[dict[Key, Fragment | None], dict[Key, str]]:
        """Compile as many of these keys as fit into the budget, and remove them from `keys`.

        Returns the fragments, and by key why one cannot be compiled.
        """
        changes: dict[Key, Fragment | None] = {}
        problems: dict[Key, str] = {}
        while keys and not budget.over:
            key = next(iter(keys))
            del keys[key]
            try:
                changes[key] = fragment = self._desired.fragment(scope, key)
            except PipelineError as error:
                problems[key] = str(error)
                budget.spend(1)
            else:
                budget.spend(1 + _cost(fragment))
        return changes, problems

    @staticmethod
    def _update(
        changes: dict[Key, Fragment | None], update: Callable[[dict[Key, Fragment | None]], bool]
    ) -> tuple[bool, dict[Key, str]]:
        """Add fragments to a program. Returns whether it changed, and why a key was not added."""
        try:
            return update(changes), {}
        except PipelineError:
            pass
        # One bad object must not stop the others: add each by itself, until no further one fits.
        changed = False
        refused: dict[Key, str] = {}
        waiting = dict(changes)
        while waiting:
            refused.clear()
            for key, fragment in waiting.items():
                try:
                    changed |= update({key: fragment})
                except PipelineError as error:
                    refused[key] = str(error)
            if len(refused) == len(waiting):
                break
            waiting = {key: waiting[key] for key in refused}
        return changed, refused


COMPILER: Final = Reporter(ReporterKind.COMPILER)


def _cost(fragment: Fragment | None) -> int:
    if fragment is None:
        return 0
    buckets = sum(len(group.buckets) for group in fragment.groups)
    return len(fragment.flows) + len(fragment.meters) + buckets


def _service(key: Key) -> str:
    """The Service, `NAMESPACE/NAME`, that a key is about; empty: none."""
    return key.name.partition(" ")[0] if key.kind in {"service", "service-port"} else ""


def _subject(key: Key) -> Subject:
    """The object that a key of the shared program stands for."""
    if service := _service(key):
        return ObjectRef.namespaced("Service", service)
    match key.kind:
        case "peer":
            return ObjectRef.node(key.name)
        case "cluster":
            return CLUSTER
    return ObjectRef(key.kind, "", key.name)
