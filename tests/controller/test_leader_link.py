"""What one that follows concludes from the leader's answers, and what the leader tells."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controller import leader_link as module
from controller.election import Election, Lease
from controller.leader_link import HOLD, MAX_WAITING, PATH, LeaderApi, LeaderLink
from controller.leadership import Leadership
from tests.controller.lease_server import Clock

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def leader(identity: str, *, leads: bool) -> bytes:
    return http(json.dumps({"identity": identity, "leads": leads}).encode())


def saying(data: bytes) -> Reply:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)

    return reply


async def hanging_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    pass


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        writer.write(f"X-{number}: {'y' * 1_000}\r\n".encode())
        await writer.drain()


class Following:
    """A replica that follows, and a leader that the test plays."""

    def __init__(self, port: int, context: Callable[[], ssl.SSLContext] | None) -> None:
        self.clock = Clock()
        self.leadership = Leadership(elected=True, clock=self.clock)
        self.election = Election("own")
        self.dead: list[str] = []
        self.election.dead = self.dead.append  # type: ignore[method-assign]
        self.election.seen(Lease("other", 7, "100", address=f"127.0.0.1:{port}"), 0.0)
        self.link = LeaderLink(self.election, self.leadership, context)
        self.asked = 0
        self.paused = 0
        self.doubts = 0

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await real_sleep(0.005)


real_sleep = asyncio.sleep


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(
        reply: Reply,
        story: Callable[[Following], Awaitable[None]],
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        async def main() -> None:
            async with following(reply, context, monkeypatch) as ours:
                await story(ours)

        asyncio.run(main())

    return run


@asynccontextmanager
async def following(
    reply: Reply,
    context: Callable[[], ssl.SSLContext] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Following]:
    ours: Following

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours.asked += 1
        try:
            await reply(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def paused(seconds: float) -> None:
        ours.paused += seconds >= module._PAUSE
        await real_sleep(min(seconds, 0.005))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    ours = Following(server.sockets[0].getsockname()[1], context)
    monkeypatch.setattr(ours.leadership, "doubt", lambda: setattr(ours, "doubts", ours.doubts + 1))
    with monkeypatch.context() as patch:
        patch.setattr(module.asyncio, "sleep", paused)
        # A request that took long on a busy machine is repeated at once.
        patch.setattr(module, "time", SimpleNamespace(monotonic=ours.clock))
        task = asyncio.create_task(ours.link.run())
        try:
            yield ours
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()


DEEP = b"[" * 4_000
NO_EVIDENCE: dict[str, Reply] = {
    "closed": hanging_up,
    "garbage": saying(b"\x00\xff" * 1_000),
    "no JSON": saying(http(b"ok")),
    "no object": saying(http(b"[]")),
    "deep": saying(http(DEEP)),
    "another type": saying(http(b'{"identity": 7, "leads": true}')),
    "empty": saying(http(b"")),
    "too long": saying(http(b" " * 10_000_000)),
    "endless headers": endless,
    "compressed": saying(http(b"\x1f\x8b" * 100, "200 OK", "Content-Encoding: gzip")),
    "missing": saying(http(b"{}", "404 Not Found")),
    "failing": saying(http(b"{}", "500 Internal Server Error")),
    "redirect": saying(http(b"", "302 Found", f"Location: {PATH}")),
    "cut": saying(leader("other", leads=True)[:-5]),
    "it does not lead": saying(leader("other", leads=False)),
    "it leads": saying(leader("other", leads=True)),
    "itself": saying(leader("own", leads=True)),
}


@pytest.mark.parametrize("reply", NO_EVIDENCE.values(), ids=NO_EVIDENCE)
def test_answer_is_no_evidence_and_each_request_is_followed_by_a_pause(
    play: Any, reply: Reply
) -> None:
    async def story(ours: Following) -> None:
        await ours.until(lambda: ours.paused >= 4)
        # The client repeats a request whose connection was closed without an answer.
        assert ours.asked <= 2 * (ours.paused + 1)
        assert ours.dead == []
        # The Lease is read at once, and not again as long as it is the same.
        assert ours.doubts <= 1

    play(reply, story)


def test_peer_without_tls_is_no_evidence_and_is_asked_after_a_pause(play: Any) -> None:
    async def story(ours: Following) -> None:
        await ours.until(lambda: ours.asked >= 4)
        assert ours.asked <= ours.paused + 1
        assert ours.dead == []

    play(saying(b"hello"), story, ssl.create_default_context)


def test_silence_is_no_evidence(play: Any) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def story(ours: Following) -> None:
        await ours.until(lambda: ours.asked)
        for _ in range(20):
            await real_sleep(0.005)
        assert (ours.asked, ours.dead, ours.doubts) == (1, [], 0)

    play(silent, story)


def test_end_of_a_connection_that_was_open_for_a_while_is_no_evidence_alone(play: Any) -> None:
    """Whether the process has ended, the next connection says, which is made at once."""
    made: list[Following] = []

    async def cut(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while not made:
            await real_sleep(0.005)
        made[0].clock.now += 1.0

    async def story(ours: Following) -> None:
        made.append(ours)
        await ours.until(lambda: ours.asked >= 4)
        assert ours.dead == []
        assert ours.paused == 0

    play(cut, story)


def test_another_identity_at_its_address_says_that_the_leader_is_dead(play: Any) -> None:
    async def story(ours: Following) -> None:
        await ours.until(lambda: len(ours.dead) >= 3)
        assert {*ours.dead} == {"other"}
        assert ours.doubts == 1
        assert ours.asked <= ours.paused + 1
        # Also of its next Lease.
        ours.election.seen(Lease("third", 8, "101", address=ours.election.lease.address), 1.0)  # type: ignore[union-attr]
        await ours.until(lambda: "third" in ours.dead)
        assert ours.doubts == 2

    play(saying(leader("new", leads=False)), story)


def test_refused_connection_says_that_the_leader_is_dead(
    play: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(ours: Following) -> None:
        # Bound, and not listened at.
        ours.election.seen(Lease("other", 7, "101", address="127.0.0.1:1"), 1.0)
        await ours.until(lambda: len(ours.dead) >= 5)
        assert {*ours.dead} == {"other"}
        assert len(ours.dead) <= ours.paused + 1

    play(hanging_up, story)
    # It is logged once, however long nobody takes the Lease.
    assert capsys.readouterr().out.count("the leader is dead") == 1


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:1/", "a b:1", "[::1:1", "x@127.0.0.1:1",
     "127.0.0.1:1/../x", "\x1b[2J:1", "ü:1", "x" * 1_000_000, "127.0.0.1:1\r\nX: y"],
    ids=range(12),
)  # fmt: skip
def test_address_that_is_none_asks_nobody(play: Any, address: str) -> None:
    async def story(ours: Following) -> None:
        asked = ours.asked
        ours.election.seen(Lease("other", 7, "101", address=address), 1.0)
        paused = ours.paused
        await ours.until(lambda: ours.paused > paused + 3)
        assert ours.asked <= asked + 1
        assert ours.dead == []

    play(saying(leader("other", leads=True)), story)


def test_leader_of_no_lease_is_not_asked(play: Any) -> None:
    async def story(ours: Following) -> None:
        address = ours.election.lease.address  # type: ignore[union-attr]
        for lease in (
            None,
            Lease("", 7, "101", address=address),
            Lease("own", 8, "102", address=address),
        ):
            ours.election.seen(lease, 1.0)
            paused = ours.paused
            await ours.until(lambda p=paused: ours.paused > p + 3)
            asked = ours.asked
            await ours.until(lambda p=paused: ours.paused > p + 6)
            assert ours.asked == asked

    play(saying(leader("other", leads=True)), story)


@pytest.mark.parametrize(
    ("holder", "is_dead"), [("host_1", True), ("another_1", False), ("host", False)]
)
def test_leader_that_ran_at_the_place_of_this_process_is_dead(
    play: Any, holder: str, is_dead: bool
) -> None:
    """A single controller that is started again does not wait for its own Lease."""

    async def story(ours: Following) -> None:
        assert ours.election.lease is not None
        ours.election.identity = "host_2"
        ours.election.address = ours.election.lease.address
        ours.election.seen(replace(ours.election.lease, holder=holder, version="101"), 1.0)
        paused = ours.paused
        await ours.until(lambda: ours.paused > paused + 3)
        assert (holder in ours.dead) == is_dead

    play(saying(leader("host_2", leads=False)), story)


# --- the leader ---


@asynccontextmanager
async def asked() -> AsyncIterator[tuple[Leadership, LeaderApi, Any]]:
    leadership = Leadership(elected=True, clock=Clock())
    api = LeaderApi("own", leadership)
    application = web.Application()
    application.add_routes(api.routes())
    async with TestClient(TestServer(application, handler_cancellation=True)) as client:
        yield leadership, api, client
    leadership.withdraw()


async def answer(client: Any, **query: str) -> Any:
    async with client.get(PATH, params=query) as response:
        assert response.status == 200
        return await response.json()


def test_leader_holds_a_request_until_it_ceases_to_lead() -> None:
    async def main() -> None:
        async with asked() as (leadership, api, client):
            assert await answer(client, wait="20") == {"identity": "own", "leads": False}
            leadership.grant(5, 1e6, 0.0)
            assert await answer(client) == {"identity": "own", "leads": True}
            query = {"wait": str(HOLD), "name": "node2", "version": "1.0", "since": "1700000000"}
            waits = asyncio.create_task(answer(client, **query))
            async with asyncio.timeout(60):
                while not api.followers():
                    await asyncio.sleep(0.005)
            (follower,) = api.followers()
            assert (follower.name, follower.version, follower.leader) == ("node2", "1.0", False)
            assert not waits.done()
            leadership.withdraw()
            assert await waits == {"identity": "own", "leads": False}
            assert api.followers() == ()

    asyncio.run(main())


def test_flood_of_requests_is_answered_and_does_not_wait() -> None:
    async def main() -> None:
        async with asked() as (leadership, api, client):
            leadership.grant(5, 1e6, 0.0)
            flood = [
                asyncio.create_task(answer(client, wait="20", name=f"n{n}", version="1", since="1"))
                for n in range(MAX_WAITING + 50)
            ]
            async with asyncio.timeout(60):
                while sum(each.done() for each in flood) < 50:
                    await asyncio.sleep(0.005)
            assert len(api.followers()) == MAX_WAITING
            leadership.withdraw()
            assert {each["leads"] for each in await asyncio.gather(*flood)} == {True, False}
            assert api._waiting == {}

    asyncio.run(main())


@pytest.mark.parametrize(
    "query",
    [{"wait": "nan"}, {"wait": "-1"}, {"wait": "1e9"}, {"wait": "9" * 4}, {"wait": "²"}],
    ids=str,
)
def test_wait_that_is_no_number_of_seconds_is_no_wait(query: dict[str, str]) -> None:
    async def main() -> None:
        async with asked() as (leadership, _, client):
            leadership.grant(5, 1e6, 0.0)
            assert (await answer(client, **query))["leads"] is True

    asyncio.run(main())


@pytest.mark.parametrize(
    "query",
    [{"name": "\x1b[2J"}, {"name": "x" * 254}, {"name": "a b"}, {"version": "<b>"}, {}],
    ids=range(5),
)
def test_follower_that_says_nothing_readable_of_itself_is_not_shown(query: dict[str, str]) -> None:
    async def main() -> None:
        async with asked() as (leadership, api, client):
            leadership.grant(5, 1e6, 0.0)
            full = {"name": "n", "version": "1", "since": "1"} | query if query else {}
            waits = asyncio.create_task(answer(client, wait="20", **full))
            async with asyncio.timeout(60):
                while not api._waiting:
                    await asyncio.sleep(0.005)
            assert api.followers() == ()
            leadership.withdraw()
            await waits

    asyncio.run(main())
