"""The policies of the view depend on what is there, never on how it came to be there."""

from unittest.mock import patch

from hypothesis import given, settings

from flows import policy
from flows.compile import COMPILER
from tests.controller.policies.histories import Event, OneSlice, Told, few_digests, histories


def same(one: Told, two: Told) -> None:
    assert one.inventory.view == two.inventory.view
    assert one.inventory.problems.texts() == two.inventory.problems.texts()
    for told in (one, two):
        check(told)
    assert one.programs() == two.programs()


def check(told: Told) -> None:
    """What was compiled key by key is what is compiled from nothing."""
    view = told.inventory.view
    for node, cookies in told.programs().items():
        assert cookies == COMPILER.program(view, node).cookies.keys()
    policies = told.inventory.policies
    walks = {number for per in view.isolations.values() for i in per.values() for number in ids(i)}
    for number in walks:
        for step in view.walks[f"{number:016x}"].steps:
            assert step.peers is None or f"{step.peers:016x}" in view.peer_sets
            assert not step.ports or f"{step.ports:016x}" in view.port_sets
    assert walks <= {walk.id for walk in view.walks.values()}
    if not policies.objects:
        registers = (policies.walks, policies.peers, policies.ports, policies.named_ports)
        left = view.walks, view.peer_sets, view.port_sets, view.isolations
        assert not any(map(len, (*registers, *left, policies.groups.selections)))


def ids(isolation: policy.Isolation) -> list[int]:
    both = [walks for walks in (isolation.from_pod, isolation.to_pod) if walks is not None]
    return [n for walks in both for n in (*walks.admin, *walks.policies, *walks.baseline)]


def tell(history: list[Event], told: Told) -> Told:
    for event in history:
        event(told)
    told.finish()
    return told


@given(histories)
@settings(max_examples=30, deadline=None)
def test_what_was_compiled_key_by_key_is_right_after_each_event(history: list[Event]) -> None:
    told = Told()
    for event in history:
        event(told)
        check(told)


@given(histories)
@settings(max_examples=30, deadline=None)
def test_history_leaves_no_trace(history: list[Event]) -> None:
    told = tell(history, Told())
    same(told, told.again())


@given(histories)
@settings(max_examples=30, deadline=None)
def test_work_in_slices_gives_the_same(history: list[Event]) -> None:
    same(tell(history, Told()), tell(history, Told(OneSlice)))


@given(histories)
@settings(max_examples=30, deadline=None)
def test_history_leaves_no_trace_where_ids_collide(history: list[Event]) -> None:
    with patch.object(policy, "policy_digest", few_digests):
        told = tell(history, Told(OneSlice))
        assert told.inventory.view == told.again().inventory.view
