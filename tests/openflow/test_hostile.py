"""What a switch may say to harm us: it ends its own connection at worst, in bounded memory.

Made from what a real switch said, changed at random, and from nothing at all.
"""

import asyncio
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.diff import GroupChange
from openflow import digest, foreign
from openflow.batch import Batch
from openflow.connection import Closed, Connection, ConnectionState, PortStatus, Reply
from openflow.errors import ConnectionLost
from openflow.messages import HEADER, InstalledFlow, InstalledGroup
from openflow.server import serve
from openflow.switch import Switch
from openflow.watch import connect
from tests.openflow import samples
from tests.openflow.conftest import eventually
from tests.openflow.test_connection import FEATURES, HANDSHAKE, PORT, hello, message, multipart
from tests.openflow.test_server import stranger
from tests.ovs import running


@dataclass
class Recording:
    """What a switch sent: first until its ports were known, then in answer to our requests."""

    handshake: bytes
    answers: bytes


def ask(connection: Connection) -> None:
    connection.request_flows()
    connection.request_meters()
    connection.request_groups()
    connection.monitor_flows(60)


# The largest would be most of what is changed at random.
GROUPS = [group for group in samples.groups() if len(group.buckets) < 100]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Of a bridge with ports, meters, groups, and flows of every kind that we make."""
    flows, meters = samples.compiled()
    heard: list[bytes] = []
    received = Switch.data_received

    def record(switch: Switch, data: bytes) -> None:
        heard.append(data)
        received(switch, data)

    async def talk(mgmt: Path) -> Recording:
        async with connect(mgmt) as switch:
            await switch.apply(
                Batch.of(
                    [*flows, *samples.handmade(), *samples.for_services()],
                    meters_set=meters,
                    groups_set=map(GroupChange, GROUPS),
                )
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Switch, "data_received", record)
            async with connect(mgmt) as switch:
                handshake = b"".join(heard)
                heard.clear()
                assert await switch.dump_flows()
                assert await switch.dump_meters()
                assert await switch.dump_groups()
                await switch.monitor_flows(60)
        return Recording(handshake, b"".join(heard))

    with running(tmp_path_factory.mktemp("ovs")) as ovs:
        for number in range(3):
            ovs.port_up(f"p{number}", 10 + number)
        return asyncio.run(talk(ovs.mgmt))


def test_a_recording_unchanged_is_what_the_switch_meant(recording: Recording) -> None:
    connection = Connection(0.0)
    (ready,) = connection.receive(recording.handshake, 0.0)
    assert {10, 11, 12} <= ready.ports.keys()
    ask(connection)
    replies = [e for e in connection.receive(recording.answers, 0.0) if isinstance(e, Reply)]
    flows, meters, groups, monitored = (reply.value for reply in replies)
    assert len(flows) > 30
    assert len(meters) == len(samples.compiled()[1])
    assert {digest.of_group_entry(group) for group in groups} == set(map(digest.of_group, GROUPS))
    assert monitored is None


_CHANGE = st.tuples(
    st.integers(0, 1 << 16),
    st.integers(0, 8),
    st.binary(max_size=8) | st.sampled_from([b"\0\0", b"\xff\xff", b"\0\x08", b"\0" * 8]),
)
"""Where, how many bytes are taken away, and what comes in their place."""
_CHANGES = st.lists(_CHANGE, min_size=1, max_size=6)


def changed(data: bytes, changes: list[tuple[int, int, bytes]], keep: bool) -> bytes:
    """`keep`: the length of all, so that the framing survives and more is reached behind it."""
    made = bytearray(data)
    for at, removed, put_in in changes:
        place = at % (len(made) + 1)
        made[place : place + (len(put_in) if keep else removed)] = put_in
    return bytes(made)


def hears(connection: Connection, data: bytes, pieces: int) -> list[object]:
    """Give it the bytes in pieces; what it makes of them."""
    events: list[object] = []
    size = max(1, len(data) // pieces)
    for start in range(0, len(data), size):
        found = connection.receive(data[start : start + size], 0.0)
        events += found
        assert connection.closed == any(isinstance(event, Closed) for event in events)
    assert len(connection._received) < 1 << 16
    if connection.closed:
        assert not connection._received
        assert not connection._multiparts
    return events


@given(_CHANGES, st.booleans(), st.integers(1, 9))
def test_a_mutated_handshake(recording: Recording, changes, keep, pieces) -> None:
    connection = Connection(0.0)
    events = hears(connection, changed(recording.handshake, changes, keep), pieces)
    assert connection.state in ConnectionState
    assert (
        all(isinstance(event, Closed) for event in events)
        or connection.state is not ConnectionState.OPENING
    )


@given(_CHANGES, st.booleans(), st.integers(1, 9))
def test_mutated_dumps(recording: Recording, changes, keep, pieces) -> None:
    connection = Connection(0.0)
    connection.receive(recording.handshake, 0.0)
    ask(connection)
    for event in hears(connection, changed(recording.answers, changes, keep), pieces):
        if isinstance(event, Reply) and isinstance(event.value, list):
            # Foreign flows are shown to people only; os-ken decodes them.
            for entry in event.value:
                if isinstance(entry, InstalledGroup):
                    assert 0 <= digest.of_group_entry(entry) < 1 << 64
                else:
                    assert isinstance(entry, InstalledFlow)
                    assert all(isinstance(text, str) for text in foreign.described(entry))


def test_a_length_that_leads_nowhere_does_not_hold_up_who_looks(recording: Recording) -> None:
    """os-ken would take such an action again and again, until memory ends."""
    connection = Connection(0.0)
    connection.receive(recording.handshake, 0.0)
    ask(connection)
    flows = connection.receive(recording.answers, 0.0)[0].value  # type: ignore[union-attr]
    readable, broken = 0, 0
    for flow in flows:
        readable += "cannot be read" not in foreign.described(flow)[1]
        for at in range(24, len(flow.raw) - 1, 2):
            raw = flow.raw[:at] + b"\0\0" + flow.raw[at + 2 :]
            broken += "cannot be read" in foreign.described(replace(flow, raw=raw))[1]
    assert readable > len(flows) * 0.9
    assert broken > 100


STAGES = {
    ConnectionState.OPENING: b"",
    ConnectionState.IDENTIFYING: hello(6),
    ConnectionState.LISTING: hello(6) + FEATURES,
    ConnectionState.READY: HANDSHAKE,
}

_BODY = st.binary(max_size=80)
_MESSAGE = (
    st.builds(message, st.integers(0, 40), _BODY, st.integers(0, 9), st.sampled_from([1, 4, 6, 7]))
    | st.builds(multipart, st.integers(0, 20), _BODY, st.integers(0, 9), st.booleans())
    | st.builds(
        lambda length, body: HEADER.pack(6, 19, length, 5) + body, st.integers(0, 99), _BODY
    )
    | _BODY
)


@pytest.mark.parametrize("state", STAGES)
@given(st.lists(_MESSAGE, max_size=8), st.integers(1, 4))
def test_anything_in_any_state(state: ConnectionState, said, pieces) -> None:
    connection = Connection(0.0)
    connection.receive(STAGES[state], 0.0)
    assert connection.state is state
    if state is ConnectionState.READY:
        ask(connection)
    hears(connection, b"".join(said), pieces)
    for now in (1.0, 1e3, 1e6):
        connection.tick(now)
    assert connection.closed


def test_a_list_of_ports_without_end() -> None:
    connection = Connection(0.0)
    connection.receive(hello(6) + FEATURES, 0.0)
    part = multipart(13, PORT * 900, 4, more=True)
    events: list[object] = []
    while not events:
        events += connection.receive(part, 0.0)
    assert events == [Closed("protocol error: a list of ports of more than 16 MiB")]


def test_echoes_are_cheap_and_right() -> None:
    """A flood of them costs no more than what it brings in."""
    connection = Connection(0.0)
    connection.receive(HANDSHAKE, 0.0)
    connection.data_to_send()
    flood = b"".join(message(2, b"x" * (n % 9), xid=n) for n in range(1000))
    assert connection.receive(flood, 0.0) == []
    answer = b"".join(message(3, b"x" * (n % 9), xid=n) for n in range(1000))
    assert connection.data_to_send() == answer


def port_status(number: int, reason: int = 0) -> bytes:
    port = struct.pack("!I", number) + PORT[4:16] + f"port{number}".encode().ljust(16, b"\0")
    return message(12, struct.pack("!B7x", reason) + port + PORT[32:])


def statuses(numbers: range) -> Iterator[bytes]:
    for start in range(0, len(numbers), 500):
        yield b"".join(map(port_status, numbers[start : start + 500]))


def test_a_switch_with_ever_more_ports_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are read, so nothing but their sum is too much."""
    monkeypatch.setattr("openflow.switch.MAX_PORTS", 2000)

    async def main() -> None:
        switches: list[Switch] = []

        async def on_switch(switch: Switch) -> None:
            switches.append(switch)
            async for _ in switch.port_events():
                pass

        async with (
            serve("127.0.0.1", 0, on_switch) as server,
            stranger(server.port, HANDSHAKE) as (_, writer),
        ):
            await eventually(lambda: switches)
            for data in statuses(range(100, 4000)):
                writer.write(data)
                await writer.drain()
                if switches[0]._connection.closed:
                    break
                await eventually(lambda: not switches[0]._port_events)
            async with asyncio.timeout(60):
                assert await switches[0].wait_closed() == "it has too many ports"

    asyncio.run(main())


def test_who_tells_a_lot_does_not_keep_others_waiting() -> None:
    """Between any two of its events the rest of the process has its turn."""

    async def main() -> None:
        switches: list[Switch] = []
        turns = 0

        async def on_switch(switch: Switch) -> None:
            switches.append(switch)
            await switch.wait_closed()

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with (
            serve("127.0.0.1", 0, on_switch) as server,
            stranger(server.port, HANDSHAKE),
        ):
            await eventually(lambda: switches)
            connection = Connection(0.0)
            connection.receive(HANDSHAKE, 0.0)
            told = connection.receive(b"".join(statuses(range(100, 1100))), 0.0)
            assert all(isinstance(event, PortStatus) for event in told)
            task = asyncio.create_task(others())
            switches[0]._dispatch(told)
            seen = 0
            async for _ in switches[0].port_events():
                seen += 1
                if seen == len(told):
                    break
            task.cancel()
            assert turns >= 900

    asyncio.run(main())


def test_a_request_that_is_never_answered_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer lives and answers echoes; only the dump does not come."""
    monkeypatch.setattr("openflow.switch.LONGEST_ANSWER", 0.2)

    async def main() -> None:
        failed = asyncio.Event()

        async def on_switch(switch: Switch) -> None:
            with pytest.raises(ConnectionLost, match=r"not answered in 0\.2 s"):
                await switch.dump_flows()
            failed.set()
            with pytest.raises(ConnectionLost, match="not answered"):
                await switch.dump_meters()

        async with (
            serve("127.0.0.1", 0, on_switch) as server,
            stranger(server.port, HANDSHAKE) as (reader, writer),
            asyncio.timeout(60),
        ):
            with suppress(ConnectionError):
                while await reader.read(1 << 16):
                    writer.write(message(2))
            await failed.wait()

    asyncio.run(main())
