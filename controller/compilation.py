"""When changed objects are compiled: in several turns of the event loop (`work_budget`).

The program of a node is compiled when its switch first connects, and kept up to date from then on.
A change for one node is compiled at once, because a pod may wait for it. Changes for all nodes are
gathered for a moment and published as one batch. What does not fit into the budget of one turn goes
on in the next. After each turn the programs are consistent: each seal matches the content of its
program. A fragment that cannot be compiled stops no other one.

Changes of policy are compiled until none is left, then published together
(`controller.policy_publication`). The isolation of a new attachment is part of the same update as
its connectivity. While the programs have an older policy than the view, a new attachment waits for
the next change of policy, and so does the CNI ADD: a pod of the new policy beside pods of the old
one would be a mixture.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from controller import metrics
from controller.desired import Desired
from controller.inventory import Inventory
from controller.policy_effects import FOLLOWED, Judge
from controller.policy_publication import Follower, PolicyPublication
from controller.problems import Reporter, ReporterKind, Subject
from controller.work_budget import WorkBudget
from flows.compile import Fragment
from flows.kinds import ATTACHMENT, EGRESS_POD, ISOLATION
from flows.pipeline import PipelineError
from flows.refs import CLUSTER, ObjectRef
from flows.view import CLUSTER_SCOPE, Key

TOUCHED_SLICE: Final = 100
"""Changed keys that are given to nodes before the time is looked at."""
SHARED_TICK: Final = 0.005
"""Seconds after one batch of shared changes in which further ones are gathered into the next."""
LONGEST_TICK: Final = 5.0
"""Seconds after which changes are published even if the last batch still waits to be sent."""


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
        sessions: Mapping[str, Follower],
        is_sending: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_node` is called when the program of a node has changed.

        `on_shared` is called when the shared program has changed, `on_published`
        when all gathered changes are in it. `sessions` are of the connected switches, by node.
        `is_sending`: whether the last batch of shared changes waits to be sent to switches.
        """
        self._inventory = inventory
        # Otherwise policies that change all the time would keep everything from being published.
        inventory.policies.may_begin = lambda: not self._is_compiling
        self._desired = desired
        self._on_node = on_node
        self._on_shared = on_shared
        self._on_published = on_published
        self._is_sending = is_sending
        self._judge = Judge(inventory.view)
        self.policy: Final = PolicyPublication(
            desired, self._judge, sessions, on_node=on_node, on_refused=self._refuse_policy
        )
        self._nodes: dict[str, dict[Key, None]] = {}
        """By node, changed keys of its program; the node that waits longest comes first."""
        self._compiled: set[str] = set()
        """Nodes that have a program: their switch was connected once."""
        self._joining: set[str] = set()
        """Nodes whose program was not complete yet. All of their keys are in `_nodes`."""
        self._policy: dict[str, dict[Key, None]] = {}
        """By node, changed keys of policy."""
        self._policy_changes: dict[str, dict[Key, Fragment | None]] = {}
        """Those that are compiled, but not published yet."""
        self._refused_policy: dict[str, dict[Key, None]] = {}
        """Keys of policy whose fragments could not be compiled, or not be added."""
        self._touched: deque[Key] = deque()
        """Changed keys that were not given to the nodes yet which they concern."""
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
        self._gathering_since = 0.0
        """When the first shared change came that is not published yet."""
        self._started = time.time()
        self._triggers: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        """By node, set when its program is up to date. With one event for all, each turn would wake
        the tasks of thousands of switches."""

    async def compiled(self, node: str) -> None:
        """Return when no changed key of this node's program waits to be compiled."""
        if node not in self._compiled and node in self._inventory.view.nodes:
            self._compiled.add(node)
            self._joining.add(node)
            self._nodes[node] = dict.fromkeys(self._desired.keys(node))
            self._schedule()
        while node in self._nodes or node in self._joining:
            await self._waiting.setdefault(node, asyncio.Event()).wait()

    @property
    def is_idle(self) -> bool:
        """Whether the programs have everything that the view has."""
        waits = self._nodes or self._joining or self._shared or self._publishing
        return not waits and not self._is_behind

    def open(self) -> None:
        """The source was read once: publish what there is, and from now on whatever changes."""
        self._open = True
        self._begin()

    def touch(self, keys: Iterable[Key]) -> None:
        """The objects of these keys changed."""
        self._touched.extend(keys)
        self._share_out(WorkBudget())
        if self._has_work and self._timer is None:
            self._work()
        if self._shared and self._open and not self._publishing and self._tick is None:
            # At once after a quiet while; what follows closely waits.
            due = self._published_at + SHARED_TICK
            self._gathering_since = time.monotonic()
            self._tick = asyncio.get_running_loop().call_at(due, self._begin)

    def _share_out(self, budget: WorkBudget) -> None:
        """Give the changed keys to the nodes that they concern."""
        while self._touched and not budget.over:
            for _ in range(min(len(self._touched), TOUCHED_SLICE)):
                key = self._touched.popleft()
                if key.kind in FOLLOWED:
                    self._judge.follow(key)
                if key.scope == CLUSTER_SCOPE:
                    self._shared[key] = None
                    continue
                of, nodes = self._desired.touch(key)
                for node in nodes:
                    if node in self._compiled:
                        self._touch(node, of)
            budget.spend(1)

    def _touch(self, node: str, key: Key) -> None:
        keys = self._nodes.get(node, {})
        if node in self._joining or not self._desired.is_policy(key):
            self._nodes[node] = keys
            keys[key] = None
            if key.kind == ATTACHMENT.name:
                self._forget_policy(node, _isolation_key(key))
        elif key.kind != ISOLATION.name or Key(node, ATTACHMENT.name, key.name) not in keys:
            self._policy.setdefault(node, {})[key] = None

    def _begin(self) -> None:
        self._tick = None
        if self._is_sending() and time.monotonic() < self._gathering_since + LONGEST_TICK:
            # Each batch costs every switch the same, whatever is in it. So a fleet that is busy
            # with one gets all that comes meanwhile in the next.
            self._tick = asyncio.get_running_loop().call_later(SHARED_TICK, self._begin)
            return
        self._publishing = True
        if self._timer is None:
            self._work()

    @property
    def _has_work(self) -> bool:
        if self._touched or self._nodes or self._policy:
            return True
        # A view that is half-way between two states of the policies is not published.
        waits = self._policy_changes or self._joining
        return bool(waits) and self._inventory.is_consistent

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        """Do the work of one turn, and schedule the next one."""
        self._timer = None
        self._share_out(WorkBudget())
        # Policy first: if all of it is published, a new attachment has its isolation at once.
        self._compile_policy(WorkBudget())
        self._compile_nodes(WorkBudget())
        if self._inventory.is_consistent:
            self._joining &= self._nodes.keys()
        for node in self._waiting.keys() - self._nodes.keys() - self._joining:
            self._waiting.pop(node).set()
        if self._publishing:
            self._publish(WorkBudget())
        if self._has_work or self._publishing:
            self._schedule()

    # --- the programs of nodes ---

    def _compile_nodes(self, budget: WorkBudget) -> None:
        while self._nodes and not budget.over:
            node = next(iter(self._nodes))
            keys = self._nodes.pop(node)
            self._compile_node(node, keys, budget)
            if keys:
                # The others come first.
                self._nodes[node] = keys
                continue
            if node not in self._inventory.view.nodes:
                self._leave(node)

    def _leave(self, node: str) -> None:
        """The Node is gone, and its program is empty."""
        self._compiled.discard(node)
        self._joining.discard(node)
        for changes in (self._policy, self._policy_changes, self._refused_policy):
            changes.pop(node, None)
        self.policy.forget_node(node)
        self._desired.drop_program(node)

    def _compile_node(self, node: str, keys: dict[Key, None], budget: WorkBudget) -> None:
        keys |= self._uncompiled.pop(node, {})
        changes, problem = self._compile(node, keys, budget)
        for key in [key for key in changes if key.kind == ATTACHMENT.name]:
            self._isolate(node, key, changes, problem)
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

    def _isolate(
        self,
        node: str,
        key: Key,
        changes: dict[Key, Fragment | None],
        problems: dict[Key, str],
    ) -> None:
        """Add the isolation of an attachment to the changes that the attachment is part of.

        So is its egress address: without that, the pod would leave from its node's address.
        """
        isolation = _isolation_key(key)
        egress = key._replace(kind=EGRESS_POD.name)
        new, old = changes[key], self._desired.program(node).fragments.get(key)
        is_same = new is not None and old is not None and new.flows == old.flows
        if is_same:
            self._policy.setdefault(node, {})[isolation] = None
            return
        if new is not None and self._is_behind and node not in self._joining:
            del changes[key]
            self._policy.setdefault(node, {}).update({key: None, isolation: None})
            return
        for each in (key, isolation):
            self._forget_policy(node, each)
            self.policy.forget(node, each)
        try:
            changes[egress] = self._desired.fragment(node, egress)
            changes[isolation] = self._desired.fragment(node, isolation)
        except PipelineError as error:
            # Without it, the pod must not be connected.
            changes[key] = None
            problems[key] = str(error)
            # A change of policy may mend it, too.
            self._refused_policy.setdefault(node, {}).update({key: None, isolation: None})

    # --- policy ---

    @property
    def _is_compiling(self) -> bool:
        """Whether a part of a state of the policies is not compiled, or not published yet."""
        return bool(self._touched or self._policy or self._policy_changes)

    @property
    def _is_behind(self) -> bool:
        """Whether the programs have an older policy than the view."""
        is_old = self._is_compiling or self.policy.is_behind
        return is_old or not self._inventory.is_settled

    def _compile_policy(self, budget: WorkBudget) -> None:
        """Compile policy, and publish it if no changed key is left."""
        while self._policy and not budget.over:
            node = next(iter(self._policy))
            keys = self._policy.pop(node)
            reporter = Reporter(ReporterKind.COMPILER, node, POLICY)
            refused = self._refused_policy.pop(node, {})
            keys |= refused
            changes, problems = self._compile(node, keys, budget)
            self._policy_changes.setdefault(node, {}).update(changes)
            if keys:
                # The others come first.
                self._policy[node] = keys
            for key, text in problems.items():
                self._close(node, key)
                self._refuse_policy(node, key, text)
            if refused and node not in self._refused_policy:
                self._inventory.problems.clear_reporter(reporter)
        is_all = not self._touched and not self._policy and self._inventory.is_consistent
        if self._policy_changes and is_all:
            changes_of_all, self._policy_changes = self._policy_changes, {}
            self.policy.offer(changes_of_all)

    def _close(self, node: str, key: Key) -> None:
        """A fragment cannot be compiled: nothing may pass that it could forbid."""
        changes = self._policy_changes[node]
        # A walk that is missing denies. An attachment without isolation must not be connected.
        changes[key] = None
        if key.kind == ISOLATION.name:
            attachment = key._replace(kind=ATTACHMENT.name)
            changes[attachment] = None
            self._refused_policy.setdefault(node, {})[attachment] = None

    def _refuse_policy(self, node: str, key: Key, text: str) -> None:
        """A fragment cannot be part of a program. It is tried again with the node's next change."""
        self._refused_policy.setdefault(node, {})[key] = None
        reporter = Reporter(ReporterKind.COMPILER, node, POLICY)
        self._inventory.problems.set(reporter, ObjectRef.node(node), text)

    def _forget_policy(self, node: str, key: Key) -> None:
        """Drop a key that is compiled with its attachment."""
        waiting: tuple[dict[str, dict[Key, Any]], ...]
        waiting = self._policy, self._policy_changes, self._refused_policy
        for changes in waiting:
            if (keys := changes.get(node)) is not None and key in keys:
                del keys[key]
                if not keys:
                    del changes[node]

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
        for key in keys:
            if budget.over:
                break
            try:
                changes[key] = fragment = self._desired.fragment(scope, key)
            except PipelineError as error:
                problems[key] = str(error)
                budget.spend(1)
            else:
                budget.spend(1 + _cost(fragment))
        # At the end: to find the first key takes longer the more keys were deleted before it.
        for key in (*changes, *problems):
            del keys[key]
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
        # An attachment is never added without its isolation, or its egress address.
        waiting: dict[Key, dict[Key, Fragment | None]] = {}
        for key, fragment in changes.items():
            attachment = key._replace(kind=ATTACHMENT.name)
            together = key.kind in _WITH_ATTACHMENT and attachment in changes
            waiting.setdefault(attachment if together else key, {})[key] = fragment
        changed = False
        refused: dict[Key, str] = {}
        while waiting:
            refused.clear()
            for key, together_with in waiting.items():
                try:
                    changed |= update(together_with)
                except PipelineError as error:
                    refused[key] = str(error)
            if len(refused) == len(waiting):
                break
            waiting = {key: waiting[key] for key in refused}
        return changed, refused


COMPILER: Final = Reporter(ReporterKind.COMPILER)
_WITH_ATTACHMENT: Final = (ISOLATION.name, EGRESS_POD.name)
"""The kinds that are published together with the attachment that they are about."""
POLICY: Final = 1
"""The serial number of reporters of policy that cannot be compiled, besides those of other keys."""


def _isolation_key(attachment: Key) -> Key:
    return Key(attachment.scope, ISOLATION.name, attachment.name)


def _cost(fragment: Fragment | None) -> int:
    if fragment is None:
        return 0
    cost = len(fragment.flows) + len(fragment.meters)
    for group in fragment.groups:
        cost += len(group.buckets)
    return cost


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
        case "egress":
            return ObjectRef("EgressAddress", "", key.name)
        case "egress-gateway":
            return ObjectRef.node(key.name)
    return ObjectRef(key.kind, "", key.name)
