"""When changes of policy are taken into programs, with sessions that acknowledge as the test says.

A switch that has not acknowledged may have any program since the one that it acknowledged last. In
every such mixture, no packet may pass that no state allows.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import permutations
from random import Random
from typing import Any

import pytest

from controller import compilation, policy_publication, work_budget
from controller.inventory import Inventory
from controller.policy_effects import Effects
from flows import names
from flows.compile import Compiler
from flows.pipeline import PipelineError
from flows.policy import Direction
from flows.view import Attachment, Key
from tests.controller.policy_world import WAYS, Pairs, PolicyWorld, State, allowed

FROM, TO = Direction.FROM_POD, Direction.TO_POD
A, B, C, D, E = "default/a", "default/b", "default/c", "default/d", "default/e"
"""Pods: two of node1, two of node2, and one of node3."""


@dataclass
class FakeSession:
    """A switch that acknowledges when the test says so."""

    world: PolicyWorld
    node: str
    settle_time: float = 0.0
    held_version: int = -1
    possible: list[tuple[Pairs, Pairs]] = field(default_factory=list)
    """What the switch may judge by: connections that it lets out, and those that it lets in."""

    def changed(self) -> None:
        self.possible.append(self.world.judgements(self.node))

    def acknowledge(self) -> None:
        self.held_version = self.world.desired.program(self.node).version
        del self.possible[:-1]
        self.world.compilation.policy.acknowledged(self.node)


class Story:
    """A world whose switches are all connected, and have everything."""

    def __init__(self, *away: str) -> None:
        self.world = PolicyWorld()
        self.away = away

    @property
    def policy(self) -> Any:
        return self.world.compilation.policy

    async def begin(self) -> None:
        for node in self.world.view.nodes:
            if node not in self.away:
                await self.connect(node)

    async def connect(self, node: str) -> FakeSession:
        await self.world.compilation.compiled(node)
        self.world.sessions[node] = session = FakeSession(self.world, node)
        session.changed()
        session.acknowledge()
        return session

    def put(self, changes: dict[tuple[str, Direction], str | None], **how: str) -> None:
        """Pods are named by single letters: `{(A, TO): "ab"}`."""
        state = dict(self.world.state)
        for key, peers in changes.items():
            given = None if peers is None else frozenset(f"default/{pod}" for pod in peers)
            state[key] = given
        self.world.put(state, **how)

    def in_transition(self, node: str) -> bool:
        fragments = self.world.desired.program(node).fragments
        return any(key.kind == "policy-transition" for key in fragments)

    def transitions(self) -> set[str]:
        return {node for node in self.world.view.nodes if self.in_transition(node)}

    def acknowledge(self, *nodes: str) -> None:
        for node in nodes or self.world.sessions:
            self.world.sessions[node].acknowledge()

    @property
    def is_idle(self) -> bool:
        return self.world.compilation.is_idle and not self.policy._flight

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Every switch acknowledges everything."""
        async with asyncio.timeout(30):
            while not self.is_idle:
                self.acknowledge()
                await asyncio.sleep(0)

    def passes(self, source: str, destination: str) -> set[bool]:
        """Whether a connection may be opened now, in all mixtures."""
        node, peer = self.world.pods[source][0], self.world.pods[destination][0]
        found: set[bool] = set()
        pair = source, destination
        if node == peer:
            return {pair in out and pair in into for out, into in self.possible(node)}
        for out, _ in self.possible(node):
            for _, into in self.possible(peer):
                found.add(pair in out and pair in into)
        return found

    def possible(self, node: str) -> list[tuple[Pairs, Pairs]]:
        found: list[tuple[Pairs, Pairs]] = self.world.sessions[node].possible
        return found


def run(story: Callable[[Story], Awaitable[None]], *away: str) -> None:
    async def main() -> None:
        made = Story(*away)
        await made.begin()
        await story(made)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "then"),
    [
        ({(A, TO): "c", (C, TO): "a"}, {(A, TO): "de", (C, TO): "e"}),
        ({(A, FROM): "c", (C, FROM): "a"}, {(A, FROM): "d", (C, FROM): "b"}),
        ({(A, FROM): "c", (A, TO): "c"}, {(A, FROM): "d", (A, TO): "d"}),
        ({}, {(A, FROM): "c", (C, TO): "e"}),
        ({(A, FROM): "c", (C, TO): "e"}, {(A, FROM): None, (C, TO): None}),
        ({(A, FROM): "c", (C, TO): "e"}, {(A, FROM): "cde", (C, TO): "eab"}),
        ({(A, FROM): "cde", (C, TO): "abe"}, {(A, FROM): "c", (C, TO): "e"}),
    ],
    ids=[
        "to pods alone", "from pods alone", "one node", "isolated anew", "isolated no more",
        "more members", "fewer members",
    ],
)  # fmt: skip
def test_change_that_is_safe_in_any_mixture_has_one_phase(
    changes: dict[Any, Any], then: dict[Any, Any]
) -> None:
    async def story(story: Story) -> None:
        story.put(changes)
        await story.settle()
        story.put(then)
        assert not story.policy.is_behind
        assert not story.transitions()

    run(story)


def test_change_of_both_directions_closes_everywhere_before_it_opens_anywhere() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        assert story.passes(A, C) == {False}
        story.put({(A, FROM): "c", (C, TO): ""})
        assert story.transitions() == {"node1", "node2"}
        story.acknowledge("node1")
        await asyncio.sleep(0.01)
        assert story.transitions() == {"node1", "node2"}, "node2 may still have the old policy"
        assert story.passes(A, C) == {False}
        story.acknowledge("node2")
        await story.until(lambda: not story.transitions())
        assert story.passes(A, C) == {False}

    run(story)


def test_second_phase_waits_for_the_datapath() -> None:
    async def story(story: Story) -> None:
        loop = asyncio.get_running_loop()
        story.world.sessions["node2"].settle_time = 0.2
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        at = loop.time()
        story.acknowledge()
        await story.until(lambda: not story.transitions())
        assert loop.time() - at >= 0.19

    run(story)


def test_what_both_states_allow_passes_in_every_mixture() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "ce", (C, TO): "ab"})
        await story.settle()
        # The same pair is allowed by another set, while others change.
        story.put({(A, FROM): "cd", (C, TO): "ad"}, how="list")
        assert story.transitions() == {"node1", "node2"}
        assert story.passes(A, C) == {True}
        await story.settle()
        assert story.passes(A, C) == {True}

    run(story)


def test_slow_switch_is_waited_for_once_and_not_longer_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_publication, "LONGEST_WAIT", 0.05)

    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        late = policy_publication.metrics.POLICY_WAITS.labels("late")
        before = late._value.get()
        story.put({(A, FROM): "c", (C, TO): ""})
        story.acknowledge("node1", "node3")
        await story.until(lambda: not story.transitions())
        assert late._value.get() == before + 1
        # It is not waited for again ...
        monkeypatch.setattr(policy_publication, "LONGEST_WAIT", 30.0)
        story.acknowledge("node1", "node3")
        await story.until(lambda: not story.policy._flight)
        story.put({(A, FROM): "", (C, TO): "a"})
        story.acknowledge("node1", "node3")
        await story.until(lambda: not story.transitions())
        # ... until it has caught up.
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        story.acknowledge("node1", "node3")
        await asyncio.sleep(0.02)
        assert story.transitions() == {"node1", "node2"}
        await story.settle()

    run(story)


def test_changes_that_come_meanwhile_are_the_next_change() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        version = story.world.desired.program("node3").version
        story.put({(E, FROM): "a"})
        story.put({(E, FROM): "b"})
        await asyncio.sleep(0.01)
        assert story.world.desired.program("node3").version == version
        await story.settle()
        assert story.passes(E, B) == {True}
        assert story.passes(E, A) == {False}
        assert story.world.desired.program("node3").version == version + 1

    run(story)


def test_switch_that_goes_is_waited_for_until_it_is_back() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        story.acknowledge("node1")
        # Perhaps it restarts, and its agent restores an older state.
        del story.world.sessions["node2"]
        story.policy.acknowledged("node2")
        await asyncio.sleep(0.01)
        assert story.transitions() == {"node1", "node2"}
        await story.connect("node2")
        await story.until(lambda: not story.transitions())

    run(story)


def test_switch_that_stays_away_is_waited_for_until_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_publication, "LONGEST_WAIT", 0.05)

    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        story.acknowledge("node1")
        del story.world.sessions["node2"]
        story.policy.acknowledged("node2")
        await story.until(lambda: not story.transitions())
        story.acknowledge("node1")
        await story.until(lambda: not story.policy._flight)
        # From now on it is away: nothing waits for it.
        monkeypatch.setattr(policy_publication, "LONGEST_WAIT", 30.0)
        story.put({(A, FROM): "", (C, TO): "a"})
        story.acknowledge("node1")
        await story.until(lambda: not story.policy.is_behind)

    run(story)


def test_switch_that_connects_in_between_gets_the_new_state() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a", (E, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): "", (E, TO): "b"})
        assert story.transitions() == {"node1", "node2"}
        await story.connect("node3")
        assert not story.in_transition("node3")
        assert story.passes(B, E) == {True}
        assert story.passes(C, E) == {False}
        await story.settle()

    run(story, "node3")


def unplug(story: Story, pod: str) -> Key:
    node, attachment = story.world.pods[pod]
    view: Any = story.world.view
    del view.attachments[node][attachment.port]
    view.isolations.get(node, {}).pop(attachment.port, None)
    return Key(node, "attachment", attachment.port)


def test_attachment_that_goes_in_a_transition_goes_at_once_and_stays_away() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        key = unplug(story, A)
        story.world.compilation.touch({key, key._replace(kind="isolation")})
        fragments = story.world.desired.program("node1").fragments
        assert not {key, key._replace(kind="isolation")} & fragments.keys()
        await story.settle()
        assert not {key, key._replace(kind="isolation")} & fragments.keys()

    run(story)


def test_new_attachment_comes_with_its_isolation_in_one_update() -> None:
    async def story(story: Story) -> None:
        story.put({(A, TO): "b"})
        view: Any = story.world.view
        node, attachment = story.world.pods[A]
        isolation = view.isolations[node][attachment.port]
        key = unplug(story, A)
        story.world.compilation.touch({key, key._replace(kind="isolation")})
        await story.settle()
        program = story.world.desired.program(node)
        version = program.version
        view.attachments[node][attachment.port] = attachment
        view.isolations[node][attachment.port] = isolation
        story.world.compilation.touch([key._replace(kind="isolation"), key])
        assert program.version == version + 1
        assert {key, key._replace(kind="isolation")} <= program.fragments.keys()
        assert not story.policy.is_behind

    run(story)


def test_new_attachment_waits_while_programs_are_behind() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        view: Any = story.world.view
        new = Attachment(
            names.container_port_name("x", "eth0"), 250, IPv4Address("10.244.3.99"), "default/x"
        )
        view.attachments["node3"][new.port] = new
        key = Key("node3", "attachment", new.port)
        story.world.compilation.touch([key])
        assert key not in story.world.desired.program("node3").fragments
        await story.settle()
        assert key in story.world.desired.program("node3").fragments

    run(story)


def test_opening_waits_until_what_closed_before_is_in_force() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "cd", (C, TO): "ab"})
        await story.settle()
        story.put({(A, FROM): "d", (C, TO): "b"})  # closes, in one phase
        story.put({(A, FROM): "de", (D, TO): None, (E, FROM): None})
        story.put({(A, FROM): "dce", (C, TO): "b"})
        assert story.policy.is_behind
        assert story.passes(A, C) == {False, True}, "the old state allows it"
        await story.settle()
        story.put({(A, FROM): "dceb", (C, TO): "bad"})
        assert not story.policy.is_behind

    run(story)


def test_programs_end_as_compiled_from_nothing() -> None:
    async def story(story: Story) -> None:
        random = Random(7)  # noqa: S311
        for _ in range(60):
            story.world.put(story.world.random_state(random), how=random.choice(WAYS))
            await story.settle()
            for node in story.world.view.nodes:
                oracle = story.world.desired._compiler.program(story.world.view, node)
                assert story.world.desired.program(node).cookies.keys() == oracle.cookies.keys()

    run(story)


def mixtures(seed: int, steps: int) -> list[str]:
    """Random changes and acknowledgements, in any order: what is wrong in any mixture."""
    wrong: list[str] = []

    async def story(story: Story) -> None:
        random = Random(seed)  # noqa: S311
        states: list[State] = [story.world.state]
        for _ in range(steps):
            if random.random() < 0.4:
                states.append(story.world.random_state(random))
                story.world.put(states[-1], how=random.choice(WAYS))
            else:
                story.acknowledge(random.choice(sorted(story.world.sessions)))
            for _ in range(random.randint(0, 3)):
                await asyncio.sleep(0)
            if story.is_idle:
                states = states[-1:]
            for source in story.world.pods:
                for destination in story.world.pods.keys() - {source}:
                    right = {allowed(state, source, destination) for state in states}
                    if not (found := story.passes(source, destination)) <= right:
                        wrong.append(f"{source} -> {destination}: {found}, not {right}")
        await story.settle()

    run(story)
    return wrong


@pytest.mark.parametrize("seed", range(10))
def test_no_mixture_allows_what_no_state_allows_or_drops_what_all_allow(seed: int) -> None:
    assert not mixtures(seed, 150)


def test_mixtures_of_changes_in_one_phase_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effects, "may_follow", lambda *_: True)
    assert any("True" in each.partition(", not")[0] for each in mixtures(0, 150))


def test_view_that_is_half_way_between_two_states_is_not_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(story: Story) -> None:
        monkeypatch.setattr(Inventory, "is_consistent", False)
        program = story.world.desired.program("node1")
        version = program.version
        story.put({(A, TO): "b"})
        connecting = asyncio.create_task(story.connect("node3"))
        await asyncio.sleep(0.01)
        assert program.version == version
        assert not connecting.done()
        monkeypatch.setattr(Inventory, "is_consistent", True)
        story.world.compilation.touch([])
        assert program.version == version + 1
        async with asyncio.timeout(30):
            await connecting

    run(story, "node3")


def test_controller_that_starts_in_the_middle_compiles_the_new_state() -> None:
    async def story(story: Story) -> None:
        random = Random(3)  # noqa: S311
        for _ in range(20):
            old = story.world.state
            story.world.put(story.world.random_state(random), how=random.choice(WAYS))
            for session in story.world.sessions.values():
                # Each switch has the first phase, if there are two, or a new controller's program.
                del session.possible[:-1]
            anew = PolicyWorld(view=story.world.view)
            for node, session in story.world.sessions.items():
                await anew.compilation.compiled(node)
                session.possible.append(anew.judgements(node))
            for source, destination in permutations(story.world.pods, 2):
                states = (old, story.world.state)
                right = {allowed(state, source, destination) for state in states}
                assert story.passes(source, destination) <= right
            await story.settle()

    run(story)


def test_node_that_goes_in_a_transition_ends_its_part_of_it() -> None:
    async def story(story: Story) -> None:
        story.put({(A, FROM): "", (C, TO): "a"})
        await story.settle()
        story.put({(A, FROM): "c", (C, TO): ""})
        view: Any = story.world.view
        node = view.nodes.pop("node2")
        keys = set(story.world.desired.program("node2").fragments)
        story.world.compilation.touch(
            key for key in keys if key.scope == "node2" and key.kind != "policy-transition"
        )
        await story.until(lambda: not story.world.desired.program("node2").fragments)
        story.acknowledge("node1")
        await story.until(lambda: not story.transitions())
        view.nodes["node2"] = node
        await story.connect("node2")
        assert not story.in_transition("node2")

    run(story)


@pytest.mark.parametrize("is_new", [True, False])
def test_attachment_whose_isolation_cannot_be_compiled_is_not_connected(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Compiler.fragment
    broken = True

    def partly(compiler: Any, view: Any, key: Key) -> Any:
        if broken and key.kind == "isolation":
            raise PipelineError("no such thing")
        return make(compiler, view, key)

    async def story(story: Story) -> None:
        nonlocal broken
        view: Any = story.world.view
        node, attachment = story.world.pods[A]
        key = Key(node, "attachment", attachment.port)
        if is_new:
            unplug(story, A)
            story.world.compilation.touch([key])
            view.attachments[node][attachment.port] = attachment
        monkeypatch.setattr(Compiler, "fragment", partly)
        story.put({(A, TO): "b"})
        story.world.compilation.touch([key])
        await story.settle()
        assert key not in story.world.desired.program(node).fragments
        # It is tried again with the next change.
        broken = False
        story.put({(A, TO): "c", (B, TO): "a"})
        if is_new:
            story.world.compilation.touch([key])
        await story.settle()
        isolation = key._replace(kind="isolation")
        assert {key, isolation} <= story.world.desired.program(node).fragments.keys()

    run(story)


@pytest.mark.parametrize("seed", range(3))
def test_change_that_is_taken_in_slice_by_slice_is_published_as_a_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "TOUCHED_SLICE", 1)
    monkeypatch.setattr(policy_publication, "SLICE", 1)
    monkeypatch.setattr(work_budget, "MAX_COST", 1)
    assert not mixtures(seed, 150)
