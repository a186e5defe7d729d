"""Which reports an account may read however it spells their paths, and who waits for whom."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controller import viewers
from tests.controller.token_reviews import GOOD, ApiServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    return ApiServer(monkeypatch)


TRICKS = (
    "//v1{}", "/v1/{}", "/v1{}/", "/v1{}?", "/v1{}?x", "/v1{};x", "/v1/.{}", "/v1/x/..{}",
    "/v1{}/.",    "/v1%2f{}", "/v1{}%2f", "/v1{}%00", "/v1{}%20", "/v1{}%3f", "/V1{}", "http://controller/v1{}",
    "http://a@controller//v1{}", "//controller/v1{}", "/v1{}#x", "/metrics/../v1{}",
    "/metrics/nodes/..%2f..%2fv1{}", "/metrics/nodes%2f..%2f..%2fv1{}", "*",
)  # fmt: skip
"""Spellings of the path of a report, of which `{}` stands for the last part."""


@pytest.mark.parametrize(
    ("user", "forbidden"),
    [
        ("sluice-system:sluice-capturer", "/cluster"),
        ("monitoring:prometheus", "/cluster"),
        ("sluice-system:sluice-viewer", "/capture"),
    ],
)
def test_no_spelling_of_a_path_opens_what_an_account_may_not_read(
    server: ApiServer, user: str, forbidden: str
) -> None:
    server.verdicts["it"] = GOOD | {"user": {"username": f"system:serviceaccount:{user}"}}
    reached: list[str] = []

    async def secret(request: web.Request) -> web.Response:
        reached.append(request.raw_path)
        return web.Response(text="secret")

    async def main() -> None:
        made = viewers.application(
            [web.get(f"/v1{forbidden}", secret)],
            viewers.Viewers("sluice-system", server.connect, [("monitoring", "prometheus")]),
        )
        encoded = "".join(f"%{ord(each):02x}" for each in forbidden[1:])
        async with TestServer(made) as test_server:
            for trick in TRICKS:
                for last in {forbidden, f"/{encoded}", f"/{encoded.replace('%', '%25')}"}:
                    answer = await raw(test_server, trick.format(last))
                    assert b" 200 " not in answer.partition(b"\r\n")[0], (trick, last, answer)
        assert reached == []

    asyncio.run(main())


async def raw(server: TestServer, target: str) -> bytes:
    """The answer to GET of a target that no client would spell so."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        head = f"GET {target} HTTP/1.1\r\nHost: controller\r\nAuthorization: Bearer it\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_silent_agents_do_not_keep_other_reports_waiting(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "LONGEST_TURN", 0.01)
    answer = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await answer.wait()
        return web.Response(text="traced")

    async def main() -> None:
        reports = [web.get("/v1/trace", silent), web.get("/v1/status", at_once)]
        made = viewers.application(reports, viewers.Viewers("sluice-system", server.connect))
        headers = {"Authorization": "Bearer good"}
        async with TestClient(TestServer(made)) as client, asyncio.timeout(30):
            count = viewers.MOST_OF_AGENTS + 1
            asking = [
                asyncio.create_task(client.get("/v1/trace", headers=headers)) for _ in range(count)
            ]
            done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().status for task in done] == [429]
            assert (await client.get("/v1/status", headers=headers)).status == 200
            answer.set()
            assert {(await task).status for task in waiting} == {200}

    asyncio.run(main())


async def at_once(_: web.Request) -> web.Response:
    """A report that is there."""
    return web.Response(text="status")
