"""Reports for viewers: whose token opens them, and what bounds whoever has one or none."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controller import listening, tls, viewers
from controller.api import Api
from controller.authority import Authority
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from settings.tls import Identity
from tests.controller.token_reviews import GOOD, ApiServer
from tests.controller.world import NODE, SETTINGS
from tests.flows.worlds import CLUSTER
from tests.ports import free_port


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    return ApiServer(monkeypatch)


def application(server: ApiServer, *more: web.RouteDef) -> web.Application:
    reconciler = Reconciler(Inventory(CLUSTER))
    reconciler.update([NODE], [])
    reconciler.source_complete(True)
    routes = [*Api(reconciler, SETTINGS).report_routes(), *more]
    scrapers = [("monitoring", "prometheus")]
    return viewers.application(routes, viewers.Viewers("sluice-system", server.connect, scrapers))


Get = Callable[..., Awaitable[tuple[int, str]]]


def served(server: ApiServer, story: Callable[[Get], Awaitable[None]], *more: web.RouteDef) -> None:
    async def main() -> None:
        async with TestClient(TestServer(application(server, *more))) as client:

            async def get(
                token: str = "good",  # noqa: S107  nobody's
                path: str = "/v1/status",
                method: str = "GET",
                **options: Any,
            ) -> tuple[int, str]:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                headers |= options.pop("headers", {})
                async with client.request(method, path, headers=headers, **options) as answer:
                    return answer.status, await answer.text()

            await story(get)

    asyncio.run(main())


def test_reports_are_those_of_the_unix_socket(server: ApiServer) -> None:
    async def story(get: Get) -> None:
        status, text = await get()
        assert status == 200
        assert msgspec.json.decode(text)["nodes"].keys() == {"node1"}
        for path in ("/v1/services", "/v1/cluster"):
            assert (await get(path=path))[0] == 200
        assert (await get(path="/v1/policy"))[0] == 400
        assert (await get(path="/v1/nodes/node1/flows"))[0] == 503

    served(server, story)


def test_scraper_reads_the_metrics_of_nodes_and_nothing_else(server: ApiServer) -> None:
    scraper = {"username": "system:serviceaccount:monitoring:prometheus"}
    server.verdicts["scraper"] = GOOD | {"user": scraper}

    async def story(get: Get) -> None:
        for token in ("scraper", "good"):
            status, text = await get(token, path="/metrics/nodes")
            assert status == 200
            assert 'sluice_node_proven_age_seconds{node="node1"} ' in text
        for path in ("/v1/status", "/v1/services", "/v1/nodes/node1/flows"):
            status, text = await get("scraper", path=path)
            assert status == 403
            assert "prometheus may read /metrics/nodes and nothing else" in text
        # Both answers come from one review.
        assert server.reviewed == ["scraper", "good"]

    served(server, story)


def test_captures_need_a_permission_of_their_own(server: ApiServer) -> None:
    capturer = {"username": "system:serviceaccount:sluice-system:sluice-capturer"}
    server.verdicts["capturer"] = GOOD | {"user": capturer}

    async def story(get: Get) -> None:
        capture = "/v1/capture?pod=default/nobody"
        status, text = await get("capturer", path=capture)
        assert (status, msgspec.json.decode(text)["error"]) == (
            404, "there is no Pod default/nobody",
        )  # fmt: skip
        status, text = await get("good", path=capture)
        assert status == 403
        assert "captures are for system:serviceaccount:sluice-system:sluice-capturer" in text
        for path in ("/v1/status", "/v1/trace", "/metrics/nodes", "/v1/capture/"):
            status, text = await get("capturer", path=path)
            assert status == 403
            assert "sluice-capturer may capture packets (/v1/capture) and nothing else" in text

    served(server, story)


def test_nothing_else_is_served(server: ApiServer) -> None:
    async def story(get: Get) -> None:
        for path in ("/metrics", "/healthz", "/v1/nodes/node1/config", "/v1/nodes/node1/services"):
            assert (await get(path=path))[0] == 404

    served(server, story)


@pytest.mark.parametrize(
    ("verdict", "status", "why"),
    [
        ({}, 401, "not good"),
        (GOOD | {"authenticated": False, "error": "it has expired"}, 401, "it has expired"),
        (GOOD | {"audiences": []}, 401, "it is for another audience"),
        (GOOD | {"audiences": ["sluice"]}, 401, "it is for another audience"),
        (GOOD | {"user": {}}, 403, "the token is 's"),
        (
            GOOD | {"user": {"username": "system:serviceaccount:sluice-system:sluice-agent"}},
            403,
            "sluice-agent's, not",
        ),
        (
            GOOD | {"user": {"username": "system:serviceaccount:other:sluice-viewer"}},
            403,
            "other:sluice-viewer's, not",
        ),
        ({"authenticated": "yes"}, 503, "the API server cannot review the token"),
    ],
)
def test_token_of_nobody_who_may_look_is_refused_each_time(
    server: ApiServer, verdict: Any, status: int, why: str
) -> None:
    server.verdicts["bad"] = verdict

    async def story(get: Get) -> None:
        for _ in range(2):
            found, text = await get("bad")
            assert found == status
            assert why in msgspec.json.decode(text)["error"]
        # It may become good: a refusal is not remembered.
        assert server.reviewed == ["bad"] * 2
        del server.verdicts["bad"]
        assert (await get("bad"))[0] == 200

    served(server, story)


@pytest.mark.parametrize("header", ["", "Basic good", "Bearer", "Bearer ", "Bearer g\u00f6od"])
def test_request_without_a_token_asks_nobody(server: ApiServer, header: str) -> None:
    async def story(get: Get) -> None:
        status, text = await get("", headers={"Authorization": header} if header else {})
        assert status == 401
        assert "a ServiceAccount token is needed" in text
        assert server.reviewed == []

    served(server, story)


def test_good_token_is_reviewed_once_a_minute(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(get: Get) -> None:
        for _ in range(3):
            assert (await get())[0] == 200
        assert server.reviewed == ["good"]

    served(server, story)
    monkeypatch.setattr(viewers, "REMEMBERED", 0.0)
    server.reviewed.clear()

    async def later(get: Get) -> None:
        assert (await get())[0] == 200
        server.verdicts["good"] = {}
        assert (await get())[0] == 401
        assert server.reviewed == ["good"] * 2

    served(server, later)


def test_few_tokens_are_remembered(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "MOST_REMEMBERED", 2)

    async def story(get: Get) -> None:
        for token in "abcbca":
            assert (await get(token))[0] == 200
        assert server.reviewed == ["a", "b", "c", "a"]

    served(server, story)


def test_strangers_do_not_make_the_controller_flood_the_api_server(server: ApiServer) -> None:
    count = viewers.REVIEWS_BURST * 5

    async def story(get: Get) -> None:
        server.verdicts = {str(number): {} for number in range(count)}
        assert (await get())[0] == 200
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answers = [await get(str(number)) for number in range(count)]
        refilled = (loop.time() - begun) * viewers.REVIEWS_PER_SECOND
        assert len(server.reviewed) <= viewers.REVIEWS_BURST + refilled + 1
        assert {status for status, _ in answers} == {401, 429}
        # Who has been reviewed is none the worse.
        assert (await get())[0] == 200

    served(server, story)


def test_api_server_that_does_not_answer_is_asked_few_questions(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "REVIEWS_AT_ONCE", 2)

    async def story(get: Get) -> None:
        assert (await get())[0] == 200
        server.answers = asyncio.Event()
        waiting = [asyncio.create_task(get(token)) for token in "ab"]
        while len(server.reviewed) < 3:
            await asyncio.sleep(0)
        status, text = await get("c")
        assert (status, sorted(server.reviewed)) == (429, ["a", "b", "good"])
        assert "too many tokens are shown" in text
        assert (await get())[0] == 200
        server.answers.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 2
        assert (await get("c"))[0] == 200

    served(server, story)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_served(server: ApiServer, method: str) -> None:
    async def story(get: Get) -> None:
        assert (await get(method=method))[0] == 405
        assert server.reviewed == []

    served(server, story)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://sluice.example"},
        {"Origin": "null"},
        {"Host": "sluice.example"},
        {"Host": "sluice.example:6655"},
        {"Host": "controller.sluice.example"},
        {"Host": "localhost.sluice.example"},
        {"Host": "127.0.0.1.sluice.example"},
        {"Host": "127.0.0.1:6655:6655"},
        {"Host": ""},
    ],
)
def test_web_page_is_refused(server: ApiServer, headers: dict[str, str]) -> None:
    async def story(get: Get) -> None:
        assert (await get(headers=headers))[0] == 403
        assert server.reviewed == []

    served(server, story)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:6655", "[::1]:6655", "[::1]", "localhost:1", "controller"],
)
def test_address_is_a_host(server: ApiServer, host: str) -> None:
    async def story(get: Get) -> None:
        assert (await get(headers={"Host": host}))[0] == 200

    served(server, story)


def test_request_with_a_body_is_refused(server: ApiServer) -> None:
    async def story(get: Get) -> None:
        status, text = await get(data=b"x")
        assert (status, server.reviewed) == (400, [])
        assert "a request for a report has no body" in text

    served(server, story)


def test_long_headers_are_refused(server: ApiServer) -> None:
    async def story(get: Get) -> None:
        assert (await get("x" * 100_000))[0] == 400
        assert (await get(headers={f"X-{number}": "y" for number in range(200)}))[0] == 400
        assert server.reviewed == []

    served(server, story)


def test_flood_with_a_good_token_is_bounded(server: ApiServer) -> None:
    async def story(get: Get) -> None:
        answers = [await get() for _ in range(viewers.REQUESTS_BURST * 3)]
        assert {status for status, _ in answers} == {200, 429}
        assert server.reviewed == ["good"]
        # Another viewer is none the worse.
        assert (await get("other"))[0] == 200

    served(server, story)


def test_few_reports_are_made_at_once(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "LONGEST_TURN", 0.05)
    begun, go_on = 0, asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        nonlocal begun
        begun += 1
        await go_on.wait()
        return web.Response()

    async def story(get: Get) -> None:
        tasks = [asyncio.create_task(get(path="/slow")) for _ in range(viewers.MOST_AT_ONCE)]
        while begun < viewers.MOST_AT_ONCE:
            await asyncio.sleep(0)
        status, text = await get()
        assert (status, begun) == (429, viewers.MOST_AT_ONCE)
        assert "too many reports are being made" in text
        go_on.set()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * len(tasks)
        assert (await get())[0] == 200

    served(server, story, web.get("/slow", slow))


def test_viewer_that_does_not_read_loses_its_connection(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(viewers, "LONGEST_REPORT", 0.2)
    monkeypatch.setattr(viewers, "MOST_AT_ONCE", 1)

    async def huge(_: web.Request) -> web.Response:
        return web.Response(body=bytes(64 << 20))

    async def main() -> None:
        async with TestServer(application(server, web.get("/huge", huge))) as test_server:
            reader, writer = await asyncio.open_connection(
                test_server.host, test_server.port, limit=1
            )
            request = "GET /huge HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer good\r\n\r\n"
            writer.write(request.encode())
            # The one turn is free again as soon as the controller has given up.
            async with aiohttp.ClientSession() as session:
                headers = {"Authorization": "Bearer good"}
                async with session.get(test_server.make_url("/v1/status"), headers=headers) as got:
                    assert got.status == 200
            size = 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 20):
                    size += len(data)
            assert 0 < size < 32 << 20
            writer.close()

    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_many_connections_do_not_keep_a_viewer_out(server: ApiServer) -> None:
    ca = Authority.new()
    key, certificate = ca.for_controller(["127.0.0.1"], timedelta(hours=1))
    identity = Identity(key, certificate, ca.certificate_pem, "", "")
    client = ssl.create_default_context(cadata=ca.certificate_pem.decode())
    port = free_port()

    async def main() -> None:
        serving = asyncio.create_task(
            listening.serve_reports(
                application(server), f"127.0.0.1:{port}", tls.for_viewers(lambda: identity)
            )
        )
        await asyncio.sleep(0)
        idle = []
        for number in range(listening.MAX_VIEWERS * 2):
            idle.append(await asyncio.open_connection("127.0.0.1", port))
            # All have one address, and have room together.
            if number < listening.MAX_VIEWERS:
                assert not any(reader.at_eof() for reader, _ in idle)
        async with aiohttp.ClientSession() as session:
            url = f"https://127.0.0.1:{port}/v1/status"
            headers = {"Authorization": "Bearer good"}
            async with session.get(url, headers=headers, ssl=client) as answer:
                assert answer.status == 200
        ended = 0
        for reader, writer in idle:
            ended += reader.at_eof()
            writer.close()
        assert ended >= listening.MAX_VIEWERS
        serving.cancel()
        await asyncio.wait([serving])

    asyncio.run(main())
