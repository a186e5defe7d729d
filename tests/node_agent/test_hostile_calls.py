"""The CNI socket: whatever comes in, the agent answers with an error or hangs up, and goes on."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent import cni_server
from node_agent.attach import Attachments, _result_differences
from node_agent.cni_call import CniCall, CniError, conf_version, error_json
from node_agent.leases import Lease
from tests.node_agent.conftest import NOTHING_LEFT, ScratchNode, controlled, needs_root, until
from tests.node_agent.test_cni_call import CONF, GOOD, request

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_VALUES = st.text(max_size=30) | st.sampled_from(list(GOOD.values()))
_CONF = st.fixed_dictionaries(
    {"name": st.just("sluice") | _JSON, "cniVersion": st.sampled_from(["1.1.0", "0.3.1"]) | _JSON},
    optional={
        "prevResult": _JSON
        | st.fixed_dictionaries({"ips": st.lists(_JSON), "interfaces": st.lists(_JSON)})
        | st.fixed_dictionaries(
            {"ips": st.lists(st.fixed_dictionaries({"address": _JSON})), "interfaces": _JSON}
        ),
        "cni.dev/valid-attachments": _JSON
        | st.lists(st.dictionaries(st.sampled_from(["containerID", "ifname"]), _JSON)),
    },
)
_ENV = st.fixed_dictionaries(
    {
        "CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"]) | _VALUES,
        **{key: st.just(value) | _VALUES for key, value in GOOD.items() if key != "CNI_COMMAND"},
    }
)
_LEASE = Lease("c", "eth0", "port", cast("Any", "10.0.0.1"), 16)


@given(_ENV, _CONF | st.binary(max_size=60) | _JSON)
def test_a_call_is_read_or_refused(env: dict[str, str], conf: Any) -> None:
    data = request(
        conf, **{key: value.encode("utf-8", "replace").decode() for key, value in env.items()}
    )
    try:
        call = CniCall.parse(data)
        _result_differences(call.conf.get("prevResult", {}), _LEASE)
        call.valid_attachments()
    except CniError as error:
        said = json.loads(error_json(error, conf_version(data)))
        assert said["code"]
        assert len(said["msg"]) < 1000


@given(st.binary(max_size=300))
def test_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CniError):
        CniCall.parse(data)
    assert conf_version(data)


class Answering:
    """Attachments that are always well."""

    async def answer(self, call: CniCall) -> bytes:
        return call.command.encode()


STATUS = request(CONF, CNI_COMMAND="STATUS")


async def said(path: Path, data: bytes, *, end: bool = True) -> bytes:
    """The answer to one connection's bytes; empty where the agent hung up."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        with suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            if end:
                writer.write_eof()
            async with asyncio.timeout(60):
                return await reader.read()
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("kind", ["silent", "half a request"])
def test_many_who_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """They are hung up on after a while; who asks meanwhile, or after, is answered."""
    monkeypatch.setattr(cni_server, "_REQUEST_TIMEOUT", 1.0)
    data = STATUS[:50] if kind == "half a request" else b""
    path = tmp_path / "s"

    async def main() -> None:
        async with cni_server.serve(path, cast("Attachments", Answering())):
            strangers = [asyncio.create_task(said(path, data, end=False)) for _ in range(300)]
            await asyncio.sleep(0)
            assert await said(path, STATUS) == b"0STATUS"
            assert set(await asyncio.gather(*strangers)) == {b""}
            assert await said(path, STATUS) == b"0STATUS"
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_requests_that_are_too_large_or_no_requests(tmp_path: Path) -> None:
    path = tmp_path / "s"
    huge = request({**CONF, "x": "y" * (5 << 20)}, CNI_COMMAND="STATUS")
    large = request({**CONF, "x": "y" * (3 << 20)}, CNI_COMMAND="STATUS")

    async def main() -> None:
        async with cni_server.serve(path, cast("Attachments", Answering())):
            assert await said(path, huge) == b""
            assert await said(path, large) == b"0STATUS"
            for data in (b"", b"\0", b"\0" * 100_000, STATUS[:-5], b"x" * 100_000):
                answer = await said(path, data)
                assert answer[:1] == b"1"
                assert json.loads(answer[1:])["code"] in {4, 6}
            # Hangs up before the answer comes.
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(STATUS)
            writer.close()
            assert await said(path, STATUS) == b"0STATUS"

    asyncio.run(main())


@needs_root
def test_an_agent_among_rude_callers(scratch: ScratchNode) -> None:
    """The whole agent: pods come and go meanwhile, and nothing is kept of who was rude."""

    def files() -> int:
        assert scratch.agent
        return len(list(Path(f"/proc/{scratch.agent.pid}/fd").iterdir()))

    async def add_and_delete(name: str) -> None:
        netns = scratch.netns()
        code, result = await scratch.add(name, netns)
        assert code == 0, result
        assert await scratch.cni("DEL", **scratch.attachment(name, netns)) == (0, {})
        assert scratch.left_over() == NOTHING_LEFT

    async def main() -> None:
        async with controlled(scratch, addTimeout=60):
            await add_and_delete("first")  # it opens what the agent keeps open
            before = files()
            rude = [b"", STATUS[:40], b"\xff" * 100, request(b"[" * 100_000)]
            connected = [
                await asyncio.open_unix_connection(scratch.socket) for _ in range(len(rude) * 30)
            ]
            for (_, writer), data in zip(connected, rude * 30, strict=True):
                writer.write(data)
            await add_and_delete("a")
            for reader, writer in connected:
                with suppress(ConnectionError):
                    writer.write_eof()
                    answer = await reader.read()
                    assert answer[:1] in {b"", b"1"}
                writer.close()
            # What the agent opens late for itself is a few; a leak would be one for each caller.
            await until(lambda: files() < before + len(connected) // 10, seconds=60)
            assert "Traceback" not in scratch.log()

    asyncio.run(main())
