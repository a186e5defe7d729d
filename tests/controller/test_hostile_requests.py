"""The controller's HTTP API: nothing that is asked ends it, holds it up, or makes it grow."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from controller.api import MOST_WAITING, Api
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from tests.controller.test_api import replace_cidr
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER
from wire.paths import MAX_WAIT


class Served:
    """The API on a port, without switches, on an event loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.reconciler = Reconciler(Inventory(CLUSTER))
        self.reconciler.update([NODE, PEER], [])
        self.reconciler.source_complete(True)
        self.api = Api(self.reconciler, SETTINGS)
        self.runner = web.AppRunner(
            self.api.application(local=True),
            access_log=None,
            handler_cancellation=True,
            # As long as a busy machine may take to read what was sent at once.
            keepalive_timeout=2.0,
            shutdown_timeout=0.1,
        )
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]

    async def said(self, data: bytes, *, end: bool = True) -> bytes:
        """The answer to a connection's bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await self.said(request.encode(), end=False)
        return int(answer.split(b" ", 2)[1]), answer

    def run(self, story: Any) -> Any:
        return self.loop.run_until_complete(story)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.run(made.runner.cleanup())
    made.loop.close()


_WORD = st.text(max_size=12) | st.sampled_from(
    ["node1", "node9", "config", "flows", "..", "%00", "%ff", "%2e%2e", "v1", "nodes", "status"]
)
_LINE = st.builds(
    lambda verb, path, query, version: f"{verb} /{path}?{query} {version}",
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "get", ""]),
    st.lists(_WORD, max_size=5).map("/".join),
    st.lists(st.tuples(st.sampled_from(["after", "wait", "table"]), _WORD)).map(
        lambda pairs: "&".join("=".join(pair) for pair in pairs)
    ),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/9", ""]),
)
_HEADERS = st.lists(
    st.sampled_from(
        [
            "Host: x", "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked",
            "Connection: close", "Expect: 100-continue", "Upgrade: websocket", "X" * 9000 + ": y",
        ]
    )
)  # fmt: skip


@given(
    st.builds(
        lambda line, headers, body: (
            "\r\n".join([line, *headers, "", ""]).encode("utf-8", "surrogatepass") + body
        ),
        _LINE,
        _HEADERS,
        st.binary(max_size=40),
    )
    | st.binary(max_size=200)
)
def test_any_request_gets_an_answer(served: Served, data: bytes) -> None:
    answer = served.run(served.said(data))
    assert not answer or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    # 501: a way to send a body that aiohttp does not know.
    assert answer[9:12] not in {b"500", b"502"}
    assert served.run(served.get("/healthz"))[0] == 200
    assert served.faults == []


@pytest.mark.parametrize("wait", ["x", "nan", "NaN", "-nan", "", "1_"])
def test_wait_that_is_no_number_is_refused(served: Served, wait: str) -> None:
    """NaN in particular: a timer at NaN would put all others out of order."""
    status, answer = served.run(served.get(f"/v1/nodes/node1/config?wait={wait}"))
    assert status == 400
    assert b"wait: not a number of seconds" in answer


@pytest.mark.parametrize("wait", ["-1", "-inf", "0", "1e-9"])
def test_wait_that_is_not_positive_ends_at_once(served: Served, wait: str) -> None:
    _, answer = served.run(served.get("/v1/nodes/node1/config"))
    revision = answer.partition(b'"revision":"')[2][:16].decode()
    path = f"/v1/nodes/node1/config?after={revision}&wait={wait}"
    assert served.run(served.get(path))[0] == 304


def test_long_polls_are_few_and_end_with_their_connection(served: Served) -> None:
    async def story() -> None:
        _, answer = await served.get("/v1/nodes/node1/config")
        revision = answer.partition(b'"revision":"')[2][:16].decode()
        # Longer than anybody may wait: it would end after a minute.
        path = f"/v1/nodes/node1/config?after={revision}&wait={MAX_WAIT * 1e9}"
        polls = [asyncio.create_task(served.get(path)) for _ in range(MOST_WAITING)]
        await until(lambda: served.api._waiting["node1"] == MOST_WAITING)
        status, answer = await served.get(path)
        assert status == 429
        assert f"Node node1: {MOST_WAITING} requests wait already".encode() in answer
        # Another node's agent is none the worse.
        assert (await served.get("/v1/nodes/node2/config?wait=60"))[0] == 200

        for poll in polls[2:]:
            poll.cancel()
        await until(lambda: served.api._waiting["node1"] == 2)
        served.reconciler.update([replace_cidr("10.244.7.0/24")], [])
        for status, answer in await asyncio.gather(*polls[:2]):
            assert status == 200
            assert b"10.244.7.0/24" in answer
        assert not served.api._waiting
        served.reconciler.update([NODE], [])

    served.run(story())


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_silent_connections_are_closed(served: Served) -> None:
    async def story() -> None:
        half = b"GET /v1/nodes/node1/config HTTP/1.1\r\nHost"
        silent = [served.said(data, end=False) for data in (b"", half) for _ in range(100)]
        waiting = asyncio.gather(*silent)
        assert (await served.get("/readyz"))[0] == 200
        assert all(not answer or b"408" in answer[:20] for answer in await waiting)

    served.run(story())
