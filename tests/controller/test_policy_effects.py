"""What a change of policy does to connections, for each kind of change."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from controller.policy_effects import Change, Effect, Effects, Judge
from flows.compile import COMPILER
from flows.policy import (
    Direction,
    Isolation,
    PeerMember,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    Walks,
)
from flows.refs import ObjectRef
from flows.view import SOME_SCOPE, Key
from tests.flows import worlds

FROM, TO = Direction.FROM_POD, Direction.TO_POD
OPENS, CLOSES, MIXED = Effect.OPENS, Effect.CLOSES, Effect.MIXED
ACCEPT, DENY = PolicyAction.ACCEPT, PolicyAction.DENY
VIEW = worlds.view({1: ["default/a"], 2: ["default/b"]})
(A,) = VIEW.attachments["node1"].values()
POLICY = ObjectRef("NetworkPolicy", "default", "p")
WALK = Key(SOME_SCOPE, "policy-walk", f"{1:016x}")
MEMBER = Key(SOME_SCOPE, "policy-member", f"{7:016x} {A.address}")
ISOLATION = Key("node1", "isolation", A.port)


def walk(*steps: tuple[PolicyAction, int, int]) -> PolicyWalk:
    """Steps are (action, peer set, port set)."""
    made = [PolicyStep(n, action, *sets) for n, (action, *sets) in enumerate(steps, 1)]
    return PolicyWalk(1, TO, POLICY, tuple(made))


def isolated(*ids: int, **more: Any) -> Isolation:
    return Isolation(A, None, Walks(isolated=True, policies=ids, **more))


def member() -> PeerMember:
    return PeerMember(7, TO, A.address, A.ref)


def effects(key: Key, old: Any, new: Any, *, walks: Iterable[PolicyWalk] = ()) -> set[Effect]:
    view: Any = replace(VIEW, walks={f"{each.id:016x}": each for each in walks})
    judge = Judge(view)
    judge.follow(WALK)
    judge.follow(Key("node1", "attachment", A.port))
    made = (None if each is None else COMPILER.fragment_of(view, key, each) for each in (old, new))
    found = Effects()
    is_found = judge.add_effects(found, "node1", key, Change(*made), lambda _: None)
    assert is_found == bool(found)
    return found.effects


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        (None, isolated(1), CLOSES),
        (isolated(1), None, OPENS),
        (isolated(1), isolated(1, 2), OPENS),
        (isolated(1, 2), isolated(2), CLOSES),
        (isolated(1), isolated(2), MIXED),
        (isolated(1), isolated(1, 2, admin=(3,)), MIXED),
        (Isolation(A, None, Walks(baseline=(1,))), isolated(1), MIXED),
        (Isolation(A, None, Walks(refused=True)), isolated(1), MIXED),
    ],
)
def test_isolation(old: Any, new: Any, effect: Effect) -> None:
    assert effects(ISOLATION, old, new) == {effect}


def test_isolation_concerns_only_the_direction_that_changes() -> None:
    old = Isolation(A, Walks(isolated=True, policies=(1,)), Walks(isolated=True, policies=(2,)))
    new = old._replace(to_pod=Walks(isolated=True, policies=(2, 3)))
    made = [COMPILER.fragment_of(VIEW, ISOLATION, each) for each in (old, new)]
    found = Effects()
    Judge(VIEW).add_effects(found, "node1", ISOLATION, Change(*made), lambda _: None)
    assert found.directions == {TO}


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        (walk((ACCEPT, 7, 0)), walk((ACCEPT, 7, 0), (ACCEPT, 8, 0)), {OPENS}),
        (walk((ACCEPT, 8, 0), (ACCEPT, 7, 0)), walk((ACCEPT, 7, 0)), {CLOSES}),
        (walk((ACCEPT, 7, 1)), walk((ACCEPT, 7, 2)), {MIXED}),
        (walk((ACCEPT, 7, 0)), walk((DENY, 8, 0), (ACCEPT, 7, 0)), {MIXED}),
        (None, walk((ACCEPT, 7, 0)), set()),
        (walk((ACCEPT, 7, 0)), None, set()),
    ],
)
def test_walk(old: Any, new: Any, effect: set[Effect]) -> None:
    assert effects(WALK, old, new) == effect


@pytest.mark.parametrize(
    ("old", "new", "walks", "effect"),
    [
        (None, member(), [walk((ACCEPT, 7, 0))], {OPENS}),
        (member(), None, [walk((ACCEPT, 7, 0))], {CLOSES}),
        (None, member(), [walk((DENY, 7, 0))], {MIXED}),
        (None, member(), [walk((DENY, 8, 0), (ACCEPT, 7, 0))], {OPENS}),
    ],
)
def test_member(old: Any, new: Any, walks: list[PolicyWalk], effect: set[Effect]) -> None:
    assert effects(MEMBER, old, new, walks=walks) == effect


def test_member_whose_pod_is_gone_makes_no_difference() -> None:
    gone = PeerMember(7, TO, IPv4Address("10.244.1.99"), A.ref)
    key = MEMBER._replace(name=f"{7:016x} {gone.address}")
    assert effects(key, gone, None) == set()


def of(*effects: Effect, nodes: str = "ab", directions: Iterable[Direction] = Direction) -> Effects:
    return Effects(set(nodes), set(directions), set(effects))


@pytest.mark.parametrize(
    ("earlier", "then", "is_safe"),
    [
        (of(), of(MIXED), False),
        (of(), of(OPENS, CLOSES), False),
        (of(), of(OPENS), True),
        (of(), of(CLOSES), True),
        (of(), of(MIXED, directions=[TO]), True),
        (of(), of(MIXED, nodes="a"), True),
        (of(OPENS), of(OPENS), True),
        (of(OPENS), of(CLOSES), True),
        (of(OPENS), of(MIXED, directions=[TO]), True),
        (of(CLOSES), of(OPENS), False),
        (of(CLOSES), of(CLOSES), True),
        (of(CLOSES), of(MIXED, directions=[TO]), False),
        (of(MIXED, directions=[TO]), of(MIXED, directions=[TO]), True),
        (of(MIXED, directions=[TO]), of(OPENS, directions=[FROM]), False),
        (of(MIXED, directions=[TO]), of(CLOSES), True),
        (of(MIXED, nodes="a"), of(OPENS, nodes="b"), False),
    ],
)
def test_which_changes_may_be_mixed(earlier: Effects, then: Effects, is_safe: bool) -> None:
    if not earlier.effects:
        earlier = Effects()
    assert then.may_follow(earlier) is is_safe
