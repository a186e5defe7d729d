"""The newest generation of a controller: seen on a real switch, kept on disk, given back."""

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flows.features import state
from flows.features.state import MOST_GENERATIONS, generation_of
from flows.pipeline import Feature
from node_agent import generation
from node_agent.generation import NewestGeneration
from openflow.batch import Batch, GenerationSet
from openflow.messages import FlowUpdate
from openflow.watch import connect
from tests.openflow import samples
from tests.ovs import Ovs

from .conftest import ScratchNode, controlled, needs_root, until
from .served import eventually, running


def file(tmp_path: Path) -> Path:
    return tmp_path / "generation"


def seen(number: int, table: int = state.TABLE, *, gone: bool = False) -> FlowUpdate:
    return FlowUpdate(table, b"", Feature.GENERATION << 56 | number, gone)


async def write(mgmt: Path, number: int) -> None:
    """As a leader does."""
    async with connect(mgmt) as switch:
        await switch.apply(Batch.of(first=[GenerationSet(number)]))


async def said(mgmt: Path) -> list[int | None]:
    """What the switch says."""
    async with connect(mgmt) as switch:
        held = [generation_of(f.table, f.cookie) for f in await switch.dump_flows(state.TABLE)]
    return [number for number in held if number is not None]


@asynccontextmanager
async def followed(mgmt: Path, newest: NewestGeneration) -> AsyncIterator[None]:
    """The switch is watched, and what is new is saved, as by the agent."""
    async with connect(mgmt, newest.see) as switch, running(newest.save_loop()):
        await newest.put_back(switch)
        await switch.monitor_flows(state.TABLE)
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_SPACING", 0.001)
    monkeypatch.setattr(generation, "_RETRY", 0.01)


def test_newest_generation_is_seen_and_is_on_disk(ovs: Ovs, tmp_path: Path) -> None:
    async def story() -> None:
        await write(ovs.mgmt, 3)
        newest = NewestGeneration(file(tmp_path))
        assert newest.number is None
        async with followed(ovs.mgmt, newest):
            assert newest.number == 3, "what is there at first counts"
            await write(ovs.mgmt, 7)
            await eventually(lambda: file(tmp_path).exists() and NewestGeneration(
                file(tmp_path)
            ).number == 7)  # fmt: skip
            # Other flows of the table say nothing.
            await asyncio.to_thread(ovs.install, [state.seal("n1", 9, 9)])
            await write(ovs.mgmt, 5)
            await write(ovs.mgmt, 8)
            await eventually(lambda: newest.number == 8)

    asyncio.run(story())
    assert file(tmp_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("is_older", [True, False])
def test_switch_that_restarted_gets_the_newest_generation_back(
    ovs: Ovs, tmp_path: Path, is_empty: bool, is_older: bool
) -> None:
    """Whether or not somebody has given it flows meanwhile, or an older generation."""

    async def story() -> None:
        newest = NewestGeneration(file(tmp_path))
        await write(ovs.mgmt, 7)
        async with followed(ovs.mgmt, newest):
            await eventually(file(tmp_path).exists)
        await asyncio.to_thread(ovs.stop_switch)
        await asyncio.to_thread(ovs.start_switch)
        await eventually(ovs.listens)
        assert await said(ovs.mgmt) == []
        if is_older:
            await write(ovs.mgmt, 6)
        if not is_empty:
            await asyncio.to_thread(ovs.install, [samples.flow(1)])
        # The agent, too, was started anew: it has only its file.
        async with followed(ovs.mgmt, NewestGeneration(file(tmp_path))):
            assert await said(ovs.mgmt) == [7]

    asyncio.run(story())


def test_switch_that_says_a_newer_generation_keeps_it(ovs: Ovs, tmp_path: Path) -> None:
    """And where none is known, none is set."""

    async def story() -> None:
        async with followed(ovs.mgmt, NewestGeneration(tmp_path / "nothing")):
            assert await said(ovs.mgmt) == []
        file(tmp_path).write_bytes(b"7\n")
        await write(ovs.mgmt, 9)
        newest = NewestGeneration(file(tmp_path))
        async with followed(ovs.mgmt, newest):
            assert await said(ovs.mgmt) == [9]
            assert newest.number == 9

    asyncio.run(story())


def test_largest_number_that_a_flow_can_say(ovs: Ovs, tmp_path: Path) -> None:
    """By no controller. It is kept, until an operator deletes the flow and the file."""

    async def story() -> None:
        await write(ovs.mgmt, MOST_GENERATIONS)
        newest = NewestGeneration(file(tmp_path))
        async with followed(ovs.mgmt, newest):
            await eventually(file(tmp_path).exists)
            assert NewestGeneration(file(tmp_path)).number == newest.number == MOST_GENERATIONS
        # What docs/operations.md says.
        mask = f"cookie={Feature.GENERATION << 56:#x}/{0xFF << 56:#x}"
        await asyncio.to_thread(ovs.ofctl, "del-flows", str(ovs.mgmt), mask)
        file(tmp_path).unlink()
        async with followed(ovs.mgmt, NewestGeneration(file(tmp_path))):
            assert await said(ovs.mgmt) == []
            await write(ovs.mgmt, 4)
            await eventually(file(tmp_path).exists)
        assert file(tmp_path).read_bytes() == b"4\n"

    asyncio.run(story())


def test_number_never_becomes_less_and_other_tables_say_none(tmp_path: Path) -> None:
    newest = NewestGeneration(file(tmp_path))
    for update, number in (
        (seen(0), 0), (seen(5), 5), (seen(4), 5), (seen(9, table=0), 5), (seen(9, gone=True), 5),
        (seen(9), 9),
    ):  # fmt: skip
        newest.see(update)
        assert newest.number == number


def test_number_that_grows_fast_is_written_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_SPACING", 1e6)
    newest = NewestGeneration(file(tmp_path))

    async def story() -> None:
        async with running(newest.save_loop()):
            newest.see(seen(1))
            await eventually(file(tmp_path).exists)
            for number in range(2, 10_000):
                newest.see(seen(number))
                if number % 1000 == 0:
                    await asyncio.sleep(0)
            assert file(tmp_path).read_bytes() == b"1\n"

    asyncio.run(story())


def test_disk_that_fails_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "generation"
    path.parent.write_bytes(b"a file where the directory should be")
    newest = NewestGeneration(path)

    async def story() -> None:
        with capture_logs() as lines:
            async with running(newest.save_loop()):
                newest.see(seen(3))
                await eventually(lambda: bool(lines))
                path.parent.unlink()
                await eventually(path.exists)
        assert [line["event"] for line in lines] == ["the newest generation is not saved"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"7", b"-7\n", b"7\n8\n", b" 7\n", b"7e3\n", b"\xff" * 18, bytes(18),
        "\N{ARABIC-INDIC DIGIT SEVEN}\n".encode(), b"9" * 17 + b"\n", b"9" * 4000,
    ],
)  # fmt: skip
def test_file_that_is_corrupt_counts_as_none_and_is_told(tmp_path: Path, content: bytes) -> None:
    file(tmp_path).write_bytes(content)
    with capture_logs() as lines:
        newest = NewestGeneration(file(tmp_path))
    assert newest.number is None
    (line,) = lines
    assert "so none is known" in line["event"]

    async def story() -> None:
        async with running(newest.save_loop()):
            newest.see(seen(3))
            await eventually(lambda: file(tmp_path).read_bytes() == b"3\n")

    asyncio.run(story())


@pytest.mark.parametrize("what", ["a gigabyte", "a directory", "a FIFO", "a device"])
def test_file_of_another_kind_or_size_is_not_read(tmp_path: Path, what: str) -> None:
    path = file(tmp_path)
    match what:
        case "a gigabyte":
            path.touch()
            os.truncate(path, 1 << 30)
        case "a directory":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
    tracemalloc.start()
    with capture_logs() as lines:
        newest = NewestGeneration(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert newest.number is None
    assert len(lines) == 1
    assert peak < 1 << 20
    if what == "a directory":
        return  # An operator has to remove it; the log says so again and again.

    async def story() -> None:
        async with running(newest.save_loop()):
            newest.see(seen(3))
            await eventually(lambda: path.stat().st_size == 2)
        assert path.read_bytes() == b"3\n"

    asyncio.run(story())


@needs_root
def test_no_controller_connects_before_the_generation_is_back(scratch: ScratchNode) -> None:
    """ovs-vswitchd is killed and started again, and its bridge was never saved."""
    at_connection: list[list[int | None]] = []
    mgmt = scratch.home / "br-int.mgmt"

    async def main() -> None:
        controller = scratch.controller
        serve = controller._switch

        async def looks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            at_connection.append(await said(mgmt) if mgmt.exists() else [])
            await serve(reader, writer)

        controller._switch = looks_first  # type: ignore[method-assign]
        async with controlled(scratch):
            await write(mgmt, 7)
            path = scratch.home / "state" / "generation"
            await until(path.exists, scratch.log)
            assert path.read_bytes() == b"7\n"
            at_connection.clear()
            assert scratch.vswitchd is not None
            scratch.vswitchd.kill()
            scratch.vswitchd.wait(timeout=60)
            scratch.start_vswitchd()
            await until(lambda: bool(at_connection), scratch.log)

    asyncio.run(main())
    assert set(map(tuple, at_connection)) == {(7,)}
