"""The flows depend on what is there, never on how it came to be there."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from flows.compile import Program, compile_scope, fragments
from flows.diff import diff
from flows.view import CLUSTER_SCOPE
from tests.controller.events import (
    Event,
    Facts,
    Incremental,
    events,
    node_objects,
    pod_objects,
    ports,
    set_object,
    set_port,
)


@given(st.lists(events, max_size=40))
@settings(max_examples=300, deadline=None)
def test_incremental_equals_full(history: list[Event]) -> None:
    world = Incremental()
    for event in history:
        world.take(event)
        assert world.state() == world.oracle()


@given(st.lists(events, max_size=40))
@settings(max_examples=300, deadline=None)
def test_history_leaves_no_trace(history: list[Event]) -> None:
    """An inventory that has seen much equals one that was told only what is there now."""
    old, new, facts = Incremental(), Incremental(), Facts()
    for event in history:
        old.take(event)
        event(facts)  # type: ignore[arg-type]
    for item in facts.objects.values():
        new.take(set_object(item))
    for (node, _), port in facts.ports.items():
        new.take(set_port(node, port))
    assert old.state() == new.state()
    assert old.inventory.problems == new.inventory.problems
    assert old.inventory.view == new.inventory.view


things = st.tuples(
    st.lists(node_objects, unique_by=lambda n: n.metadata.name),
    st.lists(pod_objects, unique_by=lambda p: p.metadata.name),
    st.lists(st.tuples(st.sampled_from(("node1", "node2")), ports), unique_by=lambda p: p[1].name),
).map(
    lambda all_: [
        *map(set_object, all_[0]),
        *map(set_object, all_[1]),
        *(set_port(node, port) for node, port in all_[2]),
    ]
)


@given(things, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_any_order_gives_the_same_flows(history: list[Event], chance: random.Random) -> None:
    one, two = Incremental(), Incremental()
    for event in history:
        one.take(event)
    chance.shuffle(history)
    for event in history:
        two.take(event)
    assert one.state() == two.state()
    assert one.inventory.problems == two.inventory.problems


@given(st.lists(events, max_size=25), node_objects, pod_objects)
@settings(max_examples=200, deadline=None)
def test_apply_then_revert_is_the_identity(history, node, pod) -> None:  # type: ignore[no-untyped-def]
    world = Incremental()
    for event in history:
        world.take(event)
    before = world.state()
    for item, kind in ((node, "Node"), (pod, "Pod")):
        old = {
            "Node": world.inventory._node_objects.get(item.metadata.name),
            "Pod": world.inventory._pod_objects.get(("default", item.metadata.name)),
        }[kind]
        world.take(set_object(item))
        if old is not None:
            world.take(set_object(old))
        else:
            world.take(
                lambda i, item=item, kind=kind: (
                    i.remove_object(kind, item.metadata.namespace, item.metadata.name) | i.settle()
                )
            )
    assert world.state() == before


@given(st.lists(events, max_size=25))
@settings(max_examples=100, deadline=None)
def test_a_restart_that_changed_nothing_sends_nothing(history: list[Event]) -> None:
    world = Incremental()
    for event in history:
        world.take(event)
    view = world.inventory.view
    for node in view.nodes:
        shared, own = compile_scope(view, CLUSTER_SCOPE), compile_scope(view, node)
        installed = {*world.programs[CLUSTER_SCOPE].cookies, *world.programs[node].cookies}
        desired = {f.cookie: f for f in (*shared.flows(), *own.flows())}
        assert not diff(installed, world.programs[node].meters, desired, own.meters)


@given(st.lists(events, max_size=25))
@settings(max_examples=100, deadline=None)
def test_deltas_add_up(history: list[Event]) -> None:
    """What a switch holds after all deltas is what the program says."""
    world = Incremental()
    held: dict[str, set[int]] = {}
    programs: dict[str, Program] = {}
    for event in history:
        touched = event(world.inventory)
        for scope in {key.scope for key in touched}:
            keys = [key for key in touched if key.scope == scope]
            program = programs.setdefault(scope, Program(scope))
            delta = program.update(fragments(world.inventory.view, keys))
            cookies = held.setdefault(scope, set())
            assert not cookies & {flow.cookie for flow in delta.adds}
            cookies |= {flow.cookie for flow in delta.adds}
            assert cookies >= set(delta.deletes)
            cookies -= set(delta.deletes)
            assert cookies == program.cookies.keys()
