"""What is told to an API server that is away, refuses, or hangs; the server is a scripted one.

A real one is told in tests/lab/test_status_writer.py.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from controller import api_writes, status_writer
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.status_writer import StatusWriter
from tests.controller.api_server import status
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Takes every write, unless the script says otherwise."""

    def __init__(self, kubeconfig: Path) -> None:
        self.script: deque[Answer] = deque()
        self.asked: list[tuple[str, str]] = []
        self.taken: list[dict[str, Any]] = []
        self._kubeconfig = kubeconfig

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[int]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        content = {
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {"token": "one"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self._kubeconfig.write_text(json.dumps(content))
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        if self.script:
            return await self.script.popleft()(request)
        self.taken.append(await request.json())
        return web.json_response({}, status=201)

    @property
    def notes(self) -> list[tuple[str, str]]:
        return [(e["regarding"]["name"], e["note"]) for e in self.taken if "note" in e]


class Play:
    def __init__(self, path: Path) -> None:
        self.reconciler = Reconciler(Inventory(CLUSTER))
        self.now = 0.0
        self.server = Server(path / "kubeconfig")
        self.writer = StatusWriter(self.reconciler, path / "kubeconfig", monotonic=lambda: self.now)

    def refuse(self, *nodes: str) -> None:
        self.reconciler.update([node_object(n, "", "172.30.1.1", uid=n) for n in nodes], [])

    async def until(self, condition: Callable[[], Any]) -> None:
        """Some five looks a second of the story's time for each of ours."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)
                self.now += 0.25


Story = Callable[[Play], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(api_writes, "LOOK", 0.01)
    monkeypatch.setattr(api_writes, "PACE", 0.0)
    monkeypatch.setattr(api_writes, "BACKOFF", (0.01, 0.02))

    def run(story: Story, *, served: bool = True, listed: bool = True) -> None:
        async def main() -> None:
            play = Play(tmp_path)
            if listed:
                play.reconciler.source_complete(True)
            task = asyncio.create_task(play.writer.run())
            try:
                if served:
                    async with play.server.serve():
                        await story(play)
                else:
                    await story(play)
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())

    return run


NOTE = "spec.podCIDR is missing"


def test_events_and_conditions_are_written(run: Any) -> None:
    async def story(play: Play) -> None:
        play.refuse("node1", "node2")
        await play.until(lambda: len(play.server.taken) >= 4)
        assert sorted(play.server.notes) == [("node1", NOTE), ("node2", NOTE)]
        assert {path for verb, path in play.server.asked if verb == "PATCH"} == {
            "/api/v1/nodes/node1/status", "/api/v1/nodes/node2/status"
        }  # fmt: skip

    run(story)


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


def refusing(code: int) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return status(code, "because")

    return answer


async def nonsense(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=b"\xff{[")


@pytest.mark.parametrize(
    "fault",
    [hang_up, refusing(401), refusing(403), refusing(429), refusing(500), nonsense],
)
def test_short_failure_of_the_api_server_is_waited_for(run: Any, fault: Answer) -> None:
    async def story(play: Play) -> None:
        play.server.script += [fault] * 3
        play.refuse("node1")
        await play.until(lambda: play.server.notes)
        assert play.server.notes == [("node1", NOTE)]

    run(story)


async def terminating(_: web.Request) -> web.StreamResponse:
    """As kube-apiserver 1.36 says it."""
    causes = [{"reason": "NamespaceTerminating", "message": "...", "field": "metadata.namespace"}]
    return web.json_response({"code": 403, "details": {"causes": causes}}, status=403)


@pytest.mark.parametrize("fault", [*map(refusing, (400, 404, 409, 422)), terminating])
def test_refused_write_delays_no_other(run: Any, fault: Answer) -> None:
    async def story(play: Play) -> None:
        play.server.script.append(fault)
        play.refuse("node1", "node2")
        await play.until(lambda: play.server.notes)
        assert play.server.notes == [("node2", NOTE)]
        posts = [path for verb, path in play.server.asked if verb == "POST"]
        assert len(posts) == 2

    run(story)


def test_writes_continue_after_the_api_server_returns(run: Any) -> None:
    async def story(play: Play) -> None:
        async with play.server.serve() as port:
            pass
        play.refuse("node1")
        await play.until(lambda: play.writer._account.untold and play.now > 20)
        play.refuse("node2")
        await play.until(lambda: play.writer._account.untold == 2)
        assert play.server.notes == []
        async with play.server.serve(port):
            await play.until(lambda: len(play.server.notes) == 2)

    run(story, served=False)


def test_many_writes_are_sent_in_portions(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_writer, "AT_ONCE", 10)

    async def story(play: Play) -> None:
        names = {f"node{number}" for number in range(100)}
        looks = 0
        look = play.writer._account.look

        def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return look(*arguments)

        monkeypatch.setattr(play.writer._account, "look", counted)
        play.refuse(*names)
        await play.until(lambda: len(play.server.notes) == 100)
        assert {name for name, _ in play.server.notes} == names
        assert looks >= 10

    run(story)


def test_nothing_is_written_before_the_source_was_read(run: Any) -> None:
    async def story(play: Play) -> None:
        play.refuse("node1")
        for _ in range(20):
            await asyncio.sleep(0.01)
            play.now += 5
        assert play.server.asked == []
        play.reconciler.source_complete(True)
        await play.until(lambda: play.server.notes)

    run(story, listed=False)
