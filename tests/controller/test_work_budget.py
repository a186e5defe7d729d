"""Work in slices: whatever comes, the event loop has its turn between few steps.

How long anything takes says nothing here; how much is done at a stretch does.
"""

import asyncio
import gc
from typing import Any

import pytest

from controller import desired as desired_module
from controller import work_budget
from controller.drift import MAX_DIGESTED, Digests
from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind
from controller.reconciler import Reconciler
from flows.compile import Compiler, compile_scope
from flows.flow import Group
from flows.pipeline import PipelineError
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.events import node_object
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import NODE, PEER
from tests.flows.worlds import CLUSTER

SERVICES = [
    each
    for n in range(1, 301)
    for each in (
        service(f"s{n}", clusterIP=f"10.96.{n >> 8}.{n & 255}"),
        endpoint_slice(f"s{n}-1", f"s{n}", [f"10.244.1.{n % 250 + 2}"]),
    )
]


class Heart:
    """A task that has its turn whenever the loop goes round; what was done between two of these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.objects, self.fragments, self.cost = [0], [0], [0]
        put, make = Inventory.set_object, Compiler.fragment

        def counted_put(inventory: Any, item: Any) -> Any:
            self.objects[-1] += 1
            return put(inventory, item)

        def counted_make(compiler: Any, view: Any, key: Key) -> Any:
            made = make(compiler, view, key)
            self.fragments[-1] += 1
            self.cost[-1] += _cost(made)
            return made

        monkeypatch.setattr(Inventory, "set_object", counted_put)
        monkeypatch.setattr(Compiler, "fragment", counted_make)
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0)
            for counts in (self.objects, self.fragments, self.cost):
                counts.append(0)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _cost(fragment: Any) -> int:
    if fragment is None:
        return 0
    return len(fragment.flows) + sum(len(group.buckets) for group in fragment.groups)


async def published(reconciler: Reconciler) -> None:
    """All that came is compiled."""
    compilation = reconciler.compilation

    def busy() -> bool:
        return bool(
            reconciler._intake
            or compilation._nodes
            or compilation._shared
            or compilation._publishing
            or not reconciler.listed.is_set()
        )

    async with asyncio.timeout(60):
        while busy():
            await asyncio.sleep(0.001)


def same_as_from_nothing(reconciler: Reconciler) -> bool:
    now = reconciler.desired.shared
    oracle = compile_scope(reconciler.inventory.view, CLUSTER_SCOPE)
    return (now.cookies.keys(), now.seal) == (oracle.cookies.keys(), oracle.seal)


def test_many_objects_are_taken_in_and_compiled_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, PEER], [])
        reconciler.source_complete(True)
        await published(reconciler)
        heart = Heart(monkeypatch)
        await asyncio.sleep(0)
        reconciler.update(SERVICES, [])
        await published(reconciler)
        await heart.stop()
        assert sum(heart.objects) == len(SERVICES)
        assert max(heart.objects) <= work_budget.MAX_COST // 10
        # One step more than a slice holds may be begun.
        largest = max(
            _cost(reconciler.desired.fragment(CLUSTER_SCOPE, Key(CLUSTER_SCOPE, "service", name)))
            for name in reconciler.inventory.view.services
        )
        assert max(heart.cost) <= 2 * (work_budget.MAX_COST + largest)
        assert sum(1 for cost in heart.cost if cost) > 2
        assert same_as_from_nothing(reconciler)
        # And the same way back.
        gone = [ObjectRef(each.kind, "default", each.metadata.name) for each in SERVICES]
        reconciler.update([], gone)
        await published(reconciler)
        assert same_as_from_nothing(reconciler)
        assert not reconciler.inventory.view.services

    asyncio.run(story())


def test_work_budget_ends_with_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object may cost as much as many others."""
    monkeypatch.setattr(work_budget, "MAX_SECONDS", 0.0)

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        heart = Heart(monkeypatch)
        await asyncio.sleep(0)
        reconciler.update(SERVICES[:40], [])
        reconciler.source_complete(True)
        await published(reconciler)
        await heart.stop()
        # No slice has more than the one step that uses it up, for nodes and for all.
        assert max(heart.objects) <= 1
        assert max(heart.fragments) <= 2
        assert same_as_from_nothing(reconciler)

    asyncio.run(story())


def test_source_is_known_when_all_of_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_budget, "MAX_COST", 20)

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, PEER, *SERVICES[:100]], [])
        reconciler.source_complete(True)
        assert not reconciler.listed.is_set()
        async with asyncio.timeout(30):
            await reconciler.listed.wait()
        assert len(reconciler.inventory.view.services) == 50
        assert same_as_from_nothing(reconciler)
        assert reconciler.desired.source_complete

    asyncio.run(story())


def test_object_that_cannot_be_compiled_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_budget, "MAX_COST", 20)
    make = Compiler.fragment
    broken = {"default/s7", "default/s20"}

    def partly(compiler: Any, view: Any, key: Key) -> Any:
        if key.name in broken:
            raise PipelineError(f"{key.name}: no such thing")
        return make(compiler, view, key)

    monkeypatch.setattr(Compiler, "fragment", partly)

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, *SERVICES[:100]], [])
        reconciler.source_complete(True)
        await published(reconciler)
        compiler = Reporter(ReporterKind.COMPILER)
        told = {str(p.subject) for p in reconciler.problems.of_reporter(compiler)}
        assert told == {"Service default/s7", "Service default/s20"}
        held = {key.name for key in reconciler.desired.shared._fragments if key.kind == "service"}
        assert held == {f"default/s{n}" for n in range(1, 51)} - broken
        broken.clear()
        reconciler.update([service("other", clusterIP="10.96.9.9")], [])
        await asyncio.sleep(0.05)
        await published(reconciler)
        assert not reconciler.problems.of_reporter(compiler)
        monkeypatch.undo()
        assert same_as_from_nothing(reconciler)

    asyncio.run(story())


def test_programs_of_nodes_are_compiled_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        nodes = [node_object(f"n{n}", f"10.244.{n}.0/24", f"172.30.1.{n}") for n in range(1, 201)]
        heart = Heart(monkeypatch)
        await asyncio.sleep(0)
        reconciler.update(nodes, [])
        reconciler.source_complete(True)
        await published(reconciler)
        names = [node.metadata.name for node in nodes]
        await asyncio.gather(*map(reconciler.compilation.compiled, names))
        await heart.stop()
        assert max(heart.cost) <= 3 * work_budget.MAX_COST
        for name in ("n1", "n200"):
            oracle = compile_scope(reconciler.inventory.view, name)
            assert reconciler.desired.program(name).seal == oracle.seal

    asyncio.run(story())


def test_log_of_shared_batches_is_bounded_by_what_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desired_module, "LOG_COST", 300)

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.source_complete(True)
        for turn in range(20):
            endpoints = [f"10.244.{turn}.{n}" for n in range(2, 102)]
            reconciler.update([service("big"), endpoint_slice("big-1", "big", endpoints)], [])
            await asyncio.sleep(0.01)
            await published(reconciler)
            log = reconciler.desired._log
            assert sum(change.cost for change in log) == reconciler.desired._log_cost <= 300
        # A switch further behind is compared.
        assert reconciler.desired.changes_since(1) is None

    asyncio.run(story())


def test_memory_of_shared_batches_returns_when_every_switch_has_them() -> None:
    def groups() -> int:
        gc.collect()
        return sum(isinstance(each, Group) for each in gc.get_objects())

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.source_complete(True)
        before = groups()
        reconciler.update(SERVICES, [])
        await asyncio.sleep(0.01)
        await published(reconciler)
        assert groups() >= before + 300
        gone = [ObjectRef(each.kind, "default", each.metadata.name) for each in SERVICES]
        reconciler.update([], gone)
        await asyncio.sleep(0.01)
        await published(reconciler)
        assert reconciler.desired._log
        reconciler.switches._prune()
        assert not reconciler.desired._log
        assert reconciler.desired._log_cost == 0
        assert groups() <= before

    asyncio.run(story())


def test_digests_are_computed_in_parts() -> None:
    class Program:
        version = 1
        groups: dict[int, Group] = {}  # noqa: RUF012

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, PEER, *SERVICES], [])
        reconciler.source_complete(True)
        await published(reconciler)
        whole = Digests()
        while not whole.follow(reconciler.desired.shared):
            pass
        program: Any = Program()
        program.cookies = dict(reconciler.desired.shared.cookies)
        digests = Digests()
        rounds = 0
        while not digests.follow(program):
            rounds += 1
            assert len(digests.by_cookie) == rounds * MAX_DIGESTED
        assert rounds == (len(program.cookies) - 1) // MAX_DIGESTED
        assert digests.sums == whole.sums
        # And what is gone is taken off again, while it is computed too.
        for cookie in list(program.cookies)[: len(program.cookies) // 2]:
            del program.cookies[cookie]
        program.version = 2
        digests.follow(program)
        again = Digests()
        while not again.follow(program):
            pass
        assert digests.sums == again.sums

    asyncio.run(story())
