"""Events about denied connections: from an agent's report by HTTP to a scripted API server.

A real one is told in tests/lab/test_status_writer.py.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controller import api_writes
from controller.api import Api
from controller.denial_writer import DenialWriter
from controller.denials import FORGET, PERIOD
from controller.reconciler import Reconciler
from controller.status_writer import StatusWriter
from tests.controller.events import node_object
from tests.controller.test_denials import Story
from tests.controller.test_status_writer import NOTE, Server, refusing
from tests.controller.world import SETTINGS
from wire.documents import NodeDenials, encode


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(api_writes, "LOOK", 0.01)
    monkeypatch.setattr(api_writes, "PACE", 0.0)
    monkeypatch.setattr(api_writes, "BACKOFF", (0.01, 0.02))

    def run(play: Callable[[Story, Server], Awaitable[None]]) -> None:
        async def main() -> None:
            story, server = Story(), Server(tmp_path / "kubeconfig")
            async with server.serve():
                writer = DenialWriter(story.denials, tmp_path / "kubeconfig")
                task = asyncio.create_task(writer.run())
                try:
                    await play(story, server)
                    assert not task.done()
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())

    return run


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_event_is_written_and_repeated(run: Any) -> None:
    async def play(story: Story, server: Server) -> None:
        story.report(story.pair())
        await until(lambda: server.taken)
        story.now += PERIOD
        story.report(story.pair())
        await until(lambda: len(server.taken) == 2)
        events = "/apis/events.k8s.io/v1/namespaces/shop/events"
        name = server.taken[0]["metadata"]["name"]
        assert server.asked == [("POST", events), ("PATCH", f"{events}/{name}")]
        assert server.taken[1]["series"]["count"] == 2

    run(play)


def test_event_that_is_gone_is_written_anew(run: Any) -> None:
    async def play(story: Story, server: Server) -> None:
        story.report(story.pair())
        await until(lambda: server.taken)
        server.script.append(refusing(404))
        story.now += PERIOD
        story.report(story.pair())
        await until(lambda: len(server.taken) == 2)
        assert [method for method, _ in server.asked] == ["POST", "PATCH", "POST"]
        assert len({each["metadata"]["name"] for each in server.taken}) == 2

    run(play)


@pytest.mark.parametrize("code", [403, 429, 500])
def test_short_failure_of_the_api_server_is_waited_for(run: Any, code: int) -> None:
    async def play(story: Story, server: Server) -> None:
        server.script += [refusing(code)] * 2
        story.report(story.pair())
        await until(lambda: server.taken)
        assert len(server.asked) == 3

    run(play)


def test_refused_event_is_not_tried_again_within_a_minute(run: Any) -> None:
    async def play(story: Story, server: Server) -> None:
        server.script.append(refusing(422))
        story.report(story.pair())
        await until(lambda: server.asked)
        story.report(story.pair(), story.pair(end="192.0.2.7"))
        await until(lambda: server.taken)
        assert [each["note"].count("192.0.2.7") for each in server.taken] == [1]
        story.now += FORGET
        story.report(story.pair())
        await until(lambda: len(server.taken) == 2)

    run(play)


def test_events_of_problems_do_not_wait_for_these(run: Any, tmp_path: Path) -> None:
    """While the API server does not answer about a denial."""

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async def play(story: Story, server: Server) -> None:
        server.script.append(hang)
        story.report(story.pair())
        await until(lambda: server.asked)
        reconciler = Reconciler(story.cluster.inventory)
        reconciler.listed.set()
        reconciler.update([node_object("node7", "", "172.30.1.7", uid="n7")], [])
        reconciler.source_complete(True)
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += 1
            return now

        writer = StatusWriter(reconciler, tmp_path / "kubeconfig", monotonic=clock)
        task = asyncio.create_task(writer.run())
        await until(lambda: server.notes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert server.notes == [("node7", NOTE)]

    run(play)


def test_denials_of_an_agent_by_http() -> None:
    async def main() -> None:
        story = Story()
        reconciler = Reconciler(story.cluster.inventory)
        reconciler.listed.set()
        api = Api(reconciler, SETTINGS, denials=story.denials)
        async with TestClient(TestServer(api.application(local=True))) as client:

            async def tell(node: str, data: Any) -> tuple[int, str]:
                async with client.post(f"/v1/nodes/{node}/denials", data=data) as response:
                    return response.status, await response.text()

            whole = encode(NodeDenials((story.pair(),)))
            assert await tell("node2", whole) == (204, ""), "but it is another node's pod"
            assert story.write() == []
            assert await tell("node1", whole) == (204, "")
            assert len(story.write()) == 1
            assert await tell("node9", whole) == (404, '{"error":"Node node9 is unknown"}')
            for bad in (b"{", b"[]", b'{"pairs": [{}]}', whole.replace(b"to-pod", b"up")):
                code, text = await tell("node1", bad)
                assert (code, text.startswith('{"error":"not a node\'s denials: ')) == (400, True)
            assert (await tell("node1", io.BytesIO(b" " * (2 << 20))))[0] == 413
            async with client.get("/v1/status") as response:
                assert (await response.json())["problems"] == {}
        assert not story.denials._waiting

    asyncio.run(main())


def test_denials_are_taken_and_dropped_without_an_api_server() -> None:
    async def main() -> None:
        story = Story()
        reconciler = Reconciler(story.cluster.inventory)
        reconciler.listed.set()
        application = Api(reconciler, SETTINGS).application(local=False)
        async with TestClient(TestServer(application)) as client:
            data = encode(NodeDenials((story.pair(),)))
            assert (await client.post("/v1/nodes/node1/denials", data=data)).status == 204

    asyncio.run(main())
