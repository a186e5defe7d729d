"""Changes of policy that one bundle cannot hold: the switch is looked at after each bundle.

Bundles are tiny here, so that every change takes several. The switches are simulated at the edge:
they keep what batches put there.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from controller import journal, policy_order, policy_publication
from controller import session as session_module
from controller.session import Session
from flows.flow import Flow
from flows.pipeline import LAYOUT
from flows.view import Key
from openflow.batch import Batch, DeleteByCookie, DeleteStrict
from openflow.messages import ErrorMessage, InstalledFlow, Role
from openflow.switch import Rejected
from tests.controller.policy_world import WAYS, Pairs, PolicyWorld, State, allowed, judgements
from tests.policy.simulator import AmbiguityError

SIZE = 3
"""Messages in a bundle."""
LOCAL = ("default/a", "default/b")
"""Pods of node1: one switch judges both ends."""


@pytest.fixture(autouse=True)
def tiny_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    of: Any = Batch.of
    monkeypatch.setitem(of.__func__.__kwdefaults__, "bundle_size", SIZE)
    monkeypatch.setattr(journal, "BUNDLE_SIZE", SIZE)
    monkeypatch.setattr(policy_publication, "BUNDLE_SIZE", SIZE)
    monkeypatch.setattr(Session, "settle_time", 0.0)


class Switch:
    """Keeps flows; calls `on_bundle` after each bundle."""

    def __init__(self, on_bundle: Callable[[], None]) -> None:
        self.flows: dict[object, Flow] = {}
        self.bundles = 0
        self.rejected: set[int] = set()
        """Cookies of flows that it rejects."""
        self._on_bundle = on_bundle

    async def apply(self, batch: Batch) -> None:
        for part in batch.parts:
            await asyncio.sleep(0)
            if not part.in_bundle:
                continue
            rejections = [
                (message, ErrorMessage(5, 1, b""))
                for message in part.messages
                if isinstance(message, Flow) and message.cookie in self.rejected
            ]
            if rejections:
                raise Rejected(rejections)
            for message in part.messages:
                match message:
                    case Flow():
                        self.flows[message.key] = message
                    case DeleteByCookie(cookie):
                        self.flows = {k: f for k, f in self.flows.items() if f.cookie != cookie}
                    case DeleteStrict(flow):
                        self.flows.pop(flow.key, None)
            self.bundles += 1
            self._on_bundle()

    async def dump_flows(self, table: int | None = None, *_: object) -> list[InstalledFlow]:
        return [
            InstalledFlow(flow.cookie, flow.table, flow.priority, 0, 0, b"")
            for flow in self.flows.values()
            if table in {None, flow.table}
        ]

    async def request_role(self, role: Role, generation: int) -> tuple[Role, int]:
        return role, generation

    async def dump_meters(self) -> dict[int, Any]:
        return {}

    async def dump_groups(self) -> list[Any]:
        return []


class Story:
    """Three switches with sessions, and the states of policy that may be in force."""

    def __init__(self) -> None:
        self.world = PolicyWorld()
        self.switches = {node: Switch(self.check) for node in self.world.view.nodes}
        self.states: list[State] = [self.world.state]
        self.wrong: list[str] = []
        self.may_close = False
        """Whether a switch may deny what all states allow."""

    def connect(self, node: str) -> Session:
        acknowledged = self.world.compilation.policy.acknowledged
        switch: Any = self.switches[node]
        session = Session(node, switch, self.world.desired, acknowledged)
        self.world.sessions[node] = session
        return session

    async def begin(self) -> None:
        for node in self.switches:
            await self.world.compilation.compiled(node)
            await self.connect(node).sync()

    def put(self, state: State, how: str) -> None:
        self.states.append(state)
        self.world.put(state, how)

    async def quiet(self) -> None:
        policy = self.world.compilation.policy
        async with asyncio.timeout(30):
            while True:
                for session in self.world.sessions.values():
                    if session.dirty.is_set():
                        await session.sync()
                if not (policy.is_behind or policy._flight):
                    break
                await asyncio.sleep(0)
        self.states = self.states[-1:]
        self.check()
        for node, session in self.world.sessions.items():
            if session.in_sync:
                held = {flow.cookie for flow in self.switches[node].flows.values()}
                assert held == self.world.desired.of(node).keys()

    def judged(self, node: str) -> tuple[Pairs, Pairs]:
        return judgements(self.switches[node].flows.values(), self.world.pods, node)

    def check(self) -> None:
        filled = [node for node, switch in self.switches.items() if switch.bundles]
        try:
            judged = {node: self.judged(node) for node in filled}
        except AmbiguityError as error:
            self.wrong.append(str(error))
            return
        for source, (node, _) in self.world.pods.items():
            for destination, (peer, _) in self.world.pods.items():
                if source == destination or node not in judged or peer not in judged:
                    continue
                pair = source, destination
                found = pair in judged[node][0] and pair in judged[peer][1]
                right = {allowed(state, source, destination) for state in self.states}
                if found not in right and not (self.may_close and not found):
                    self.wrong.append(f"{source} -> {destination}: {found}, not {right}")


def run(story: Callable[[Story], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Story()
        await made.begin()
        made.wrong.clear()
        await story(made)

    asyncio.run(main())


async def many_changes(story: Story) -> None:
    random = Random(5)  # noqa: S311
    for _ in range(40):
        state = story.world.random_state(random, LOCAL)
        story.put(state, how=random.choice(WAYS))
        await story.quiet()


def test_old_and_new_policy_are_never_mixed_between_bundles() -> None:
    async def story(story: Story) -> None:
        await many_changes(story)
        assert not story.wrong
        assert sum(switch.bundles for switch in story.switches.values()) > 300

    run(story)


def test_bundles_in_the_usual_order_would_mix_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "around", lambda *_, **__: None)

    async def story(story: Story) -> None:
        await many_changes(story)
        assert story.wrong

    run(story)


@pytest.mark.parametrize("surrounded", [True, False])
def test_switch_with_an_unknown_old_policy_is_closed_while_it_is_corrected(
    surrounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not surrounded:
        monkeypatch.setattr(session_module, "around", lambda *_, **__: None)

    async def story(story: Story) -> None:
        random = Random(6)  # noqa: S311
        story.may_close = True
        for _ in range(25):
            del story.world.sessions["node1"]
            # Changes of node1's policy alone: the other switches have the right one.
            state = {
                key: peers if story.world.pods[key[0]][0] == "node1" else None
                for key, peers in story.world.random_state(random, LOCAL).items()
            }
            story.states = [story.states[-1]]
            story.put(state, how=random.choice(WAYS))
            story.connect("node1")
            await story.quiet()
            held = {flow.cookie for flow in story.switches["node1"].flows.values()}
            assert not policy_order.CONTROL & held
        assert bool(story.wrong) != surrounded

    run(story)


@pytest.mark.parametrize("kind", ["policy-walk", "policy-member", "isolation"])
def test_policy_that_a_switch_rejects_leaves_the_pod_closed(kind: str) -> None:
    async def story(story: Story) -> None:
        pods = sorted(story.world.pods)
        some = frozenset(pods[2:4])
        state = dict(story.world.state)
        for key in state:
            if key[0] == pods[0]:
                state[key] = some
        story.world.put(state)
        program = story.world.desired.program("node1")
        story.switches["node1"].rejected = {
            flow.cookie
            for key, fragment in program.fragments.items()
            if key.kind == kind
            for flow in fragment.flows
        }
        session = story.world.sessions["node1"]
        for _ in range(10):
            with contextlib.suppress(Rejected):
                try:
                    await session.sync()
                except Rejected as rejected:
                    session.leave_out(rejected, lambda _: None)
                    raise
                break
        session.end()
        assert session.left_out
        assert not session.dirty.is_set()
        out, into = story.judged("node1")
        holds = {flow.cookie for flow in story.switches["node1"].flows.values()}
        attachment = story.world.pods[pods[0]][1]
        classifier = {
            flow.cookie
            for key, fragment in program.fragments.items()
            if key.kind == "attachment" and key.name == attachment.port
            for flow in fragment.flows
        }
        if kind == "isolation":
            # Without its isolation the pod has no connectivity at all.
            assert not classifier & holds
        else:
            assert classifier <= holds
            assert not [pair for pair in out if pair[0] == pods[0] and pair[1] != pods[0]]
            assert not [pair for pair in into if pair[1] == pods[0] and pair[0] != pods[0]]

    run(story)


def test_pod_is_not_let_in_before_its_isolation_is_there() -> None:
    async def story(story: Story) -> None:
        world = story.world
        state = dict(world.state)
        pod = "default/b"
        for key in state:
            if key[0] == pod:
                state[key] = frozenset({"default/c", "default/e"})
        node, attachment = world.pods[pod]
        view: Any = world.view
        key = Key(node, "attachment", attachment.port)
        del view.attachments[node][attachment.port]
        world.compilation.touch([key])
        await story.quiet()
        story.states = [state]
        bare: list[str] = []

        def look() -> None:
            flows = story.switches[node].flows.values()
            ofport = attachment.ofport
            tables = {
                LAYOUT.by_number[flow.table].name
                for flow in flows
                if {("in_port", ofport, None), ("reg1", ofport, None)} & set(flow.match)
            }
            if "Classifier" in tables and not {"IsolationFromPod", "IsolationToPod"} <= tables:
                bare.append(str(tables))

        story.switches[node]._on_bundle = look
        # The policy and the pod come together, and the policy is new on this node.
        view.attachments[node][attachment.port] = attachment
        touched = world._change(state, "each")
        world.compilation.touch([key, *touched])
        before = story.switches[node].bundles
        await story.quiet()
        assert story.switches[node].bundles > before + 3
        assert not bare
        held = {flow.cookie for flow in story.switches[node].flows.values()}
        assert world.desired.program(node).cookies.keys() <= held

    run(story)
