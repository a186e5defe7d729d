"""Many switches at once, and slow ones among them: nobody waits for anybody else.

How long anything takes says nothing here; what is under way at a time does.
"""

import asyncio
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from typing import Any

import pytest

from controller import switches as module
from controller.desired import LOG_LENGTH
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from flows import names
from flows.view import Cluster
from openflow.messages import Type
from openflow.server import serve
from openflow.switch import Switch
from tests.controller.events import node_object, pod_object
from tests.openflow.peers import Peer, message, node_name, pod_cidr
from tests.ovs import Ovs, running

MOST = module.MAX_CONCURRENT_COMPARISONS
CLUSTER = Cluster(IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/16"), 6081, 100)


def node(number: int) -> Any:
    address = f"192.168.{number >> 8}.{number & 255}"
    return node_object(node_name(number), pod_cidr(number), address, "2026", uid=f"n{number}")


class Fleet:
    """A controller, and peers that dial it."""

    def __init__(self, reconciler: Reconciler, port: int) -> None:
        self.reconciler = reconciler
        self.port = port

    async def dial(self, peers: Iterable[Peer]) -> None:
        connect = asyncio.get_running_loop().create_connection
        dialled = [connect(lambda p=peer: p, "127.0.0.1", self.port) for peer in peers]
        await asyncio.gather(*dialled)

    def in_sync(self, number: int) -> bool:
        session = self.reconciler.sessions.get(node_name(number))
        return session is not None and session.in_sync and not session.dirty.is_set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                await asyncio.sleep(0.01)

    async def all_in_sync(self, numbers: Iterable[int]) -> None:
        await asyncio.sleep(0.02)  # longer than the tick in which shared changes are gathered
        await self.until(lambda: all(map(self.in_sync, numbers)))

    def desired(self, number: int) -> set[int]:
        return set(self.reconciler.desired.of(node_name(number)))


@asynccontextmanager
async def fleet(nodes: int, pods: int) -> AsyncIterator[Fleet]:
    reconciler = Reconciler(Inventory(CLUSTER))
    numbers = range(1, nodes + 1)
    bound = [
        pod_object(f"p{number}-{pod}", node_name(number), uid=f"u{number}-{pod}")
        for number in numbers
        for pod in range(pods)
    ]
    reconciler.update([*map(node, numbers), *bound], [])
    reconciler.source_complete(True)
    async with serve("127.0.0.1", 0, reconciler.on_switch) as server:
        yield Fleet(reconciler, server.port)


def test_reconnecting_fleet_is_compared_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All dumps at once would hold up the loop past the switches' patience, and fill memory."""
    monkeypatch.setattr(module, "LONGEST_TURN", 1000.0)
    under_way, most = 0, 0
    dump = Switch.dump_flows

    async def counted(switch: Switch, *of: int) -> Any:
        nonlocal under_way, most
        if of:
            return await dump(switch, *of)  # a table, not all
        under_way += 1
        most = max(most, under_way)
        try:
            return await dump(switch, *of)
        finally:
            under_way -= 1

    monkeypatch.setattr(Switch, "dump_flows", counted)

    async def story() -> None:
        numbers = range(1, 201)
        peers = [Peer(number, pods=3) for number in numbers]
        async with fleet(nodes=200, pods=3) as ours:
            await ours.dial(peers)
            await ours.all_in_sync(numbers)
            for peer in peers:
                assert peer.transport
                peer.transport.abort()
            await ours.until(lambda: not ours.reconciler.sessions)
            await ours.dial(peers)
            await ours.all_in_sync(numbers)
            for number, peer in zip(numbers, peers, strict=True):
                assert peer.flows.keys() == ours.desired(number)
            # All that were asked have given their turn back.
            await ours.until(lambda: ours.reconciler.switches._comparisons._value == MOST)

    asyncio.run(story())
    assert 1 < most <= MOST


class RefusingEchoes(Peer):
    """Answers each echo with an error, as no honest switch does."""

    def answer(self, kind: int, xid: int, body: bytes) -> bytes:
        if kind == Type.ECHO_REQUEST:
            return message(Type.ERROR, struct.pack("!HH", 1, 1) + bytes(64), xid)
        return super().answer(kind, xid, body)


def test_switch_that_refuses_an_echo_has_answered() -> None:
    """Many switches are asked at once, and one that is stolen must not end that for all."""

    async def story() -> None:
        async with fleet(nodes=1, pods=1) as ours:
            await ours.dial([RefusingEchoes(1, pods=1)])
            await ours.all_in_sync([1])
            assert await ours.reconciler.sessions[node_name(1)].switch.alive(60)

    asyncio.run(story())


class Hanging(Peer):
    """Answers echoes, and nothing else of what it hangs over; until told to go on."""

    def __init__(self, number: int, hangs_over: Callable[[int, bytes], bool]) -> None:
        super().__init__(number, pods=1)
        self.hangs_over = hangs_over
        self.held: list[tuple[int, int, bytes]] = []

    def answer(self, kind: int, xid: int, body: bytes) -> bytes:
        if kind != Type.ECHO_REQUEST and (self.held or self.hangs_over(kind, body)):
            self.held.append((kind, xid, body))
            return b""
        return super().answer(kind, xid, body)

    def go_on(self) -> None:
        self.hangs_over = lambda *_: False
        held, self.held = self.held, []
        for each in held:
            if answer := super().answer(*each):
                assert self.transport
                self.transport.write(answer)


def over_dumps(kind: int, body: bytes) -> bool:
    return kind == Type.MULTIPART_REQUEST and body[:2] == b"\0\1"


def over_commits(kind: int, body: bytes) -> bool:
    return kind == Type.BUNDLE_CONTROL and body[4:6] == b"\0\4"


@pytest.mark.parametrize("over", [over_dumps, over_commits])
def test_hanging_switches_do_not_block_comparisons(
    monkeypatch: pytest.MonkeyPatch, over: Callable[[int, bytes], bool]
) -> None:
    """There are more of them than turns."""
    monkeypatch.setattr(module, "LONGEST_TURN", 0.05)

    async def story() -> None:
        hanging = [Hanging(number, over) for number in range(1, 2 * MOST)]
        good = [Peer(number, pods=1) for number in range(100, 110)]
        async with fleet(nodes=110, pods=1) as ours:
            await ours.dial(hanging)
            await ours.until(lambda: sum(bool(peer.held) for peer in hanging) >= MOST)
            await ours.dial(good)
            await ours.all_in_sync(range(100, 110))
            await ours.until(lambda: all(peer.held for peer in hanging))
            assert not any(map(ours.in_sync, range(1, 2 * MOST)))
            for peer in hanging:
                peer.go_on()
            await ours.all_in_sync(range(1, 2 * MOST))
            await ours.until(lambda: ours.reconciler.switches._comparisons._value == MOST)
            for peer in (*hanging, *good):
                number = next(
                    n for n in range(1, 111) if names.datapath_id(node_name(n)) == peer.dpid
                )
                assert peer.flows.keys() == ours.desired(number)

    asyncio.run(story())


def test_slow_switch_delays_no_other_and_waits_for_one_part_only() -> None:
    """One reads nothing, one acknowledges nothing; the third has every change at once."""

    async def story() -> None:
        deaf, mute, good = Peer(1, pods=1), Hanging(2, lambda *_: False), Peer(3, pods=1)
        async with fleet(nodes=3, pods=1) as ours:
            await ours.dial([deaf, mute, good])
            await ours.all_in_sync([1, 2, 3])
            assert deaf.transport
            deaf.transport.pause_reading()
            mute.hangs_over = over_commits
            # One more change at a time than the log keeps for those who are behind.
            for number in range(4, LOG_LENGTH + 6):
                ours.reconciler.update([node(number)], [])
                await ours.all_in_sync([3])
            assert good.flows.keys() == ours.desired(3)
            assert not ours.in_sync(1)
            assert not ours.in_sync(2)
            assert len(ours.reconciler.desired._log) == LOG_LENGTH
            for number in (1, 2):
                switch = ours.reconciler.sessions[node_name(number)].switch
                assert switch._transport
                assert switch._part is not None
                assert switch._transport.get_write_buffer_size() <= len(switch._part.data)
            # Then they go on, and are compared whole: the log does not reach back so far.
            deaf.transport.resume_reading()
            mute.go_on()
            await ours.all_in_sync([1, 2, 3])
            assert deaf.flows.keys() == ours.desired(1)
            assert mute.flows.keys() == ours.desired(2)

    asyncio.run(story())


def test_hanging_open_vswitch_delays_no_other(
    ovs: Ovs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def story(second: Ovs) -> None:
        async with fleet(nodes=2, pods=0) as ours:
            for number, switch in enumerate((ovs, second), 1):
                dpid = f"other_config:datapath-id={names.datapath_id(node_name(number)):016x}"
                switch.vsctl("set", "Bridge", "br0", dpid)
                switch.dial(f"tcp:127.0.0.1:{ours.port}")
            await ours.all_in_sync([1, 2])
            ovs.freeze_switch()
            for number in range(3, 30):
                ours.reconciler.update([node(number)], [])
                await ours.all_in_sync([2])
            assert not ours.in_sync(1)
            ovs.processes[-1].send_signal(signal.SIGCONT)
            await ours.all_in_sync([1, 2])
            assert len(ovs.dump()) == len(ours.desired(1))
            assert len(second.dump()) == len(ours.desired(2))

    with running(tmp_path_factory.mktemp("second")) as second:
        asyncio.run(story(second))
