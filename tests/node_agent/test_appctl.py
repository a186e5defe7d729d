"""Answers of ovs-vswitchd's control socket: of a dump of any length, only some lines are held."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from node_agent import appctl, switch_trace
from wire.questions import Packet, TraceSwitch
from wire.tracing import TraceError

MANY = 100_000
HAVING = "sport=777,"
DUMP = "".join(
    f"tcp,orig=(src=10.0.0.1,dst=10.0.0.2,sport={number},dport=80),reply=(...),mark=0\n"
    for number in range(MANY)
)
WANTED = DUMP.splitlines()[777]


def asked(tmp_path: Path, pieces: Iterable[bytes], story: Callable[[], Awaitable[str]]) -> str:
    """What the story gets of an ovs-vswitchd that answers with these pieces."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(100)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            await reader.read()
        finally:
            writer.close()

    async def main() -> str:
        async with (
            asyncio.timeout(60),
            await asyncio.start_unix_server(answer, tmp_path / "ovs-vswitchd.1.ctl"),
        ):
            return await story()

    (tmp_path / "ovs-vswitchd.pid").write_text("1\n")
    return asyncio.run(main())


def reply(text: str, size: int) -> Iterator[bytes]:
    content = json.dumps({"id": 0, "result": text, "error": None}).encode()
    return (content[at : at + size] for at in range(0, len(content), size))


def test_of_a_long_dump_only_the_wanted_lines_are_held(tmp_path: Path) -> None:
    pieces = [*reply(DUMP, 1 << 16)]
    tracemalloc.start()
    try:
        found = asked(
            tmp_path, pieces, lambda: appctl.call(tmp_path, "dpctl/dump-conntrack", having=HAVING)
        )
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert WANTED in found.splitlines()
    assert len(found.splitlines()) <= 2
    assert most < len(DUMP) / 3


@pytest.mark.parametrize("size", [1, 2, 7, 1_000_000])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_wanted_lines_are_found_however_the_answer_comes(
    tmp_path: Path, size: int, count: int
) -> None:
    lines = [f"other{number},a=(b=1)" for number in range(count)]
    for at in range(count + 1):
        text = "".join(f"{line}\n" for line in [*lines[:at], WANTED, *lines[at:]])
        found = asked(
            tmp_path, reply(text, size), lambda: appctl.call(tmp_path, "dump", having=HAVING)
        )
        assert WANTED in found.splitlines()


def test_switch_that_hangs_is_not_waited_for_longer_than_the_controller_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_trace, "LONGEST", 0.2)
    packet = Packet(6, IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2"), 40_000, 80)
    question = TraceSwitch(packet, 5, "0a:58:0a:f4:01:02", "0a:58:a9:fe:01:01")

    async def story() -> str:
        await switch_trace.trace_switch(tmp_path, "netdev", question)
        return "traced"

    with pytest.raises(TraceError, match=r"ovs-vswitchd has not traced the packet in 0\.2 s"):
        asked(tmp_path, [], story)
