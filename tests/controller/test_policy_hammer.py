"""Policy from the pod and policy to the pod change together, on three real switches.

Between all messages to all switches, packets are traced at both ends of random pairs of pods. They
must not pass if neither the old nor the new state allows it, and pass if both do.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from controller.policy_effects import Effects
from controller.session import Session
from flows import names
from openflow.batch import Batch
from openflow.watch import connect
from tests.controller.policy_world import WAYS, PolicyWorld, State, allowed, judged
from tests.flows.tracing import fixed_ports, from_pod, outputs
from tests.ovs import Ovs, running

NEW = ("--ct-next", "trk,new")
SLOW = "node3"
"""The switch that acknowledges late."""
PAIRS = 3
"""Pairs of pods that are traced after each message."""


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ovs]]:
    with ExitStack() as stack:
        made = {
            f"node{number}": stack.enter_context(running(tmp_path_factory.mktemp(f"n{number}")))
            for number in (1, 2, 3)
        }
        world = PolicyWorld()
        for node, ovs in made.items():
            ports = {p.port: p.ofport for p in world.view.attachments[node].values()}
            arguments: list[str] = []
            for name, ofport in {**fixed_ports(), **ports}.items():
                arguments += [
                    "--", "add-port", "br0", name, "--", "set", "Interface", name, "type=dummy",
                    f"ofport_request={ofport}",
                ]  # fmt: skip
            ovs.vsctl(*arguments[1:])
        yield made


class Tracer:
    """`ofproto/trace` of one switch, by one connection to its control socket."""

    def __init__(self, directory: Path) -> None:
        pid = (directory / "ovs-vswitchd.pid").read_text().strip()
        self._path = directory / f"ovs-vswitchd.{pid}.ctl"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def outputs(self, packet: str) -> list[int]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path)
        reader, writer = self._streams
        parameters = ["br0", packet, *NEW, *NEW]
        request = {"id": 0, "method": "ofproto/trace", "params": parameters}
        writer.write(json.dumps(request).encode())
        text = ""
        async with asyncio.timeout(30):
            while True:
                text += (await reader.read(1 << 18)).decode()
                try:
                    answer = json.loads(text)
                except ValueError:
                    continue
                assert answer["error"] is None, answer
                return outputs(answer["result"])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Hammer:
    """Three switches whose messages are all followed by a check."""

    def __init__(self, world: PolicyWorld, switches: dict[str, Ovs], seed: int) -> None:
        self.world = world
        self.random = Random(seed)  # noqa: S311
        self.states: list[State] = [world.state]
        """Those that may be in force."""
        self.wrong: list[str] = []
        self.checks = 0
        self._tracers = {node: Tracer(ovs.directory) for node, ovs in switches.items()}
        self._lock = asyncio.Lock()

    def own(self, node: str, switch: Any) -> Session:
        """A session whose switch is watched, and may be slow."""
        apply = switch.apply

        async def watched(batch: Batch) -> None:
            async with self._lock:
                await apply(batch)
                await self.check()
            if node == SLOW:
                await asyncio.sleep(self.random.choice([0, 0, 0.002, 0.01]))

        switch.apply = watched
        policy = self.world.compilation.policy
        session = Session(node, switch, self.world.desired, policy.acknowledged)
        self.world.sessions[node] = session
        return session

    def pairs(self) -> list[tuple[str, str]]:
        """Random pairs; those first whose ends change, but not what both ends decide together."""
        pairs = list(permutations(sorted(self.world.pods), 2))
        self.random.shuffle(pairs)

        def is_telling(pair: tuple[str, str]) -> bool:
            ends = {judged(state, *pair) for state in self.states}
            return len(ends) > 1 and len({all(each) for each in ends}) == 1

        return sorted(pairs, key=is_telling, reverse=True)[:PAIRS]

    async def check(self) -> None:
        for source, destination in self.pairs():
            passes = await self.passes(source, destination)
            verdicts = {allowed(state, source, destination) for state in self.states}
            self.checks += 1
            if passes not in verdicts:
                self.wrong.append(f"{source} -> {destination}: {passes}, not {verdicts}")

    async def passes(self, source: str, destination: str) -> bool:
        (node, client), (peer, server) = self.world.pods[source], self.world.pods[destination]
        out = await self._tracers[node].outputs(
            from_pod(client, nw_dst=server.address, tp_dst=80, nw_frag="no")
        )
        if node == peer:
            return out == [server.ofport]
        if out != [names.TUNNEL_OFPORT]:
            return False
        address = self.world.view.nodes[node].address
        packet = (
            f"tcp,in_port={names.TUNNEL_OFPORT},tun_src={address},tun_id=1,"
            f"dl_src={names.ROUTER_MAC},dl_dst={names.ROUTER_MAC},nw_src={client.address},"
            f"nw_dst={server.address},nw_ttl=63,tp_dst=80"
        )
        return await self._tracers[peer].outputs(packet) == [server.ofport]

    async def quiet(self) -> None:
        """Return when every switch has the state of the view, and nothing else."""
        policy = self.world.compilation.policy
        async with asyncio.timeout(60):
            while True:
                busy = (
                    self.world.compilation._policy
                    or policy.is_behind
                    or policy._flight
                    or not all(session.in_sync for session in self.world.sessions.values())
                )
                if not busy:
                    break
                await asyncio.sleep(0.001)
        self.states = [self.world.state]

    async def change(self) -> None:
        """One change, or a second one before the first one is in force."""
        for _ in range(self.random.choice([1, 1, 1, 2])):
            state = self.world.random_state(self.random)
            self.states.append(state)
            self.world.put(state, how=self.random.choice(WAYS))
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.choice([0, 0.001, 0.005]))
        await self.quiet()

    def close(self) -> None:
        for tracer in self._tracers.values():
            tracer.close()


async def hammered(switches: dict[str, Ovs], changes: int, seed: int) -> Hammer:
    world = PolicyWorld()
    hammer = Hammer(world, switches, seed)

    async def keep_in_sync(session: Session) -> None:
        while True:
            await session.dirty.wait()
            await session.sync()

    try:
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = []
            for node, ovs in switches.items():
                switch = await stack.enter_async_context(connect(ovs.mgmt))
                await world.compilation.compiled(node)
                tasks.append(group.create_task(keep_in_sync(hammer.own(node, switch))))
            await hammer.quiet()
            hammer.wrong.clear()
            for _ in range(changes):
                await hammer.change()
            # Nothing is left of any transition.
            for node in switches:
                held = {key.kind for key in world.desired.program(node).fragments}
                assert "policy-transition" not in held
            for task in tasks:
                task.cancel()
    finally:
        hammer.close()
    return hammer


def test_no_packet_passes_that_no_state_allows_and_none_is_dropped_that_all_allow(
    switches: dict[str, Ovs], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traces see the flow tables themselves, so there is no datapath that follows.
    monkeypatch.setattr(Session, "settle_time", 0.001)
    hammer = asyncio.run(hammered(switches, 1_000, seed=13))
    assert not hammer.wrong
    assert hammer.checks > 5_000


def test_hammer_finds_a_change_in_one_phase(
    switches: dict[str, Ovs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "settle_time", 0.001)
    monkeypatch.setattr(Effects, "may_follow", lambda *_: True)
    hammer = asyncio.run(hammered(switches, 150, seed=13))
    assert any(" True, not {False}" in each for each in hammer.wrong)
