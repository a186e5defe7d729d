"""The API server as the source: whatever it does, the feed ends equal to what it holds.

The server here is a scripted one; the same reflectors meet a real one in
tests/lab/test_kubernetes.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from controller.problems import Subject
from controller.sources import kubernetes as source
from controller.sources.kubernetes import CLUSTER_POLICY_PATHS
from controller.sources.objects import Object, PodObject
from settings import SettingsError
from tests.controller.api_server import (
    ApiServer,
    Fault,
    Resource,
    bookmark,
    change,
    hang_up,
    line,
    refusing,
    saying,
    status,
)
from tests.controller.test_directory import Recorder


class Feed(Recorder):
    """Also remembers what was said, and what was taken away although the server had it."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []
        self.wrongly_gone: list[tuple[str, str, str]] = []
        self._server = server

    def update(self, changed: Iterable[Object], gone: Iterable[tuple[str, str, str]]) -> None:
        gone = list(gone)
        self.wrongly_gone += set(gone) & self._server.identities()
        super().update(changed, gone)

    def report(self, subject: Subject, problem: str) -> None:
        if problem:
            self.said.append((str(subject), problem))
        super().report(subject, problem)


Story = Callable[[ApiServer, Feed], Awaitable[None]]
Play = Callable[..., Feed]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No backoff is slept through; how long each would have been, without jitter."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds == source.ABSENT_SECONDS:
            await sleep(0.02)  # no backoff, and without any pause it would ask all the time
            return
        if seconds:
            asked.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    monkeypatch.setattr(source, "_jitter", lambda _, most: most)
    return asked


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Play:  # noqa: ARG001 - asked for its effect
    """Run the source against a server while a story goes on; the feed at its end."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(source, "SHORTEST_WATCH", 0.0)

    async def main(story: Story, prepare: Callable[[ApiServer], None] | None) -> Feed:
        kubeconfig = tmp_path / "kubeconfig"
        server = ApiServer(kubeconfig)
        feed = Feed(server)
        server.asked = feed.wake
        server.nodes.set("n1")
        for name in "abcde":
            server.pods.set(name, spec={"nodeName": "n1"})
        if prepare:
            prepare(server)
        runner = await server.serve()
        follower = asyncio.create_task(source.ApiServer(kubeconfig, feed).run())
        teller = asyncio.ensure_future(story(server, feed))
        try:
            ended, _ = await asyncio.wait({follower, teller}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            follower.cancel()
            teller.cancel()
            await asyncio.gather(follower, teller, return_exceptions=True)
            await runner.cleanup()
        assert feed.wrongly_gone == []
        return feed

    def run(story: Story, prepare: Callable[[ApiServer], None] | None = None) -> Feed:
        return asyncio.run(main(story, prepare))

    return run


async def equal(server: ApiServer, feed: Feed) -> None:
    """Wait until the feed holds what the server holds, and nothing is wrong."""
    for resource in server.resources.values():
        await resource.tell()
    await feed.until(
        lambda: feed.whole is not None and feed.objects == server.objects() and not feed.problems
    )


def test_wait_for_a_server_that_is_away_ends_when_it_answers_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []
    came = asyncio.Event()

    async def refuse(_: Path | None) -> Any:
        attempts.append("")
        came.set()
        raise ConnectionRefusedError

    monkeypatch.setattr(source, "connect", refuse)
    monkeypatch.setattr(source, "FIRST_BACKOFF", 1000.0)

    async def main() -> None:
        feed = Feed(ApiServer(tmp_path / "kubeconfig"))
        reflector = source.Reflector(None, "/api/v1/pods", PodObject, feed, lambda: None)
        running = asyncio.create_task(reflector.run())
        for _ in range(2):
            async with asyncio.timeout(30):
                await came.wait()
            came.clear()
            await asyncio.sleep(0)  # it begins to wait
            reflector.retry()
        running.cancel()

    asyncio.run(main())
    assert len(attempts) == 2


ANYWHERE = {
    "400": refusing(400),
    "401": refusing(401),
    "403": refusing(403),
    "404": refusing(404),
    "410": refusing(410),
    "429": refusing(429),
    "500": refusing(500),
    "503 of a proxy": refusing(503, b"<html>\xff</html>"),
    "hung up": hang_up,
    "garbage": saying(b"<html>\n", then="end"),
    "not UTF-8": saying(b'{"type": "\xff"}\n', then="end"),
    "JSON of something else": saying(b"[1, 2]\n", then="end"),
    "too deep": saying(b'{"x": ' + b"[" * 100_000 + b"\n", then="end"),
    "reset in the middle": saying(b'{"type": "ADDED", "obj', then="reset"),
    "silence": saying(b"", then="silence"),
    "silence in the middle": saying(b'{"type": "ADDED", "obj', then="silence"),
}


@pytest.mark.parametrize("verb", ["list", "continue", "watch"])
@pytest.mark.parametrize("fault", ANYWHERE)
def test_source_recovers_from_a_fault_anywhere(
    play: Play, monkeypatch: pytest.MonkeyPatch, verb: str, fault: str
) -> None:
    monkeypatch.setattr(source, "PAGE", 2)
    if "silence" in fault:
        monkeypatch.setattr(source, "SILENCE_SECONDS", 0.2)

    def prepare(server: ApiServer) -> None:
        server.pods.faults[verb].append(ANYWHERE[fault])

    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: not server.pods.faults[verb])
        await equal(server, feed)

    feed = play(story, prepare)
    if fault != "hung up":  # the client itself tries once more
        assert "API server /api/v1/pods" in dict(feed.said)


WATCHES = {
    # Whether all is listed anew; else the watch goes on from where it was.
    "ERROR 410": (saying(line("ERROR", {"code": 410, "message": "expired"}), then="end"), True),
    "ERROR 500": (saying(line("ERROR", {"code": 500, "message": "oh"}), then="end"), False),
    "ERROR of nothing": (saying(line("ERROR", {}), then="end"), True),
    "ERROR that is no Status": (saying(line("ERROR", []), then="end"), True),
    "410": (refusing(410), True),
    "401": (refusing(401), False),
    "500": (refusing(500), False),
    "400": (refusing(400), True),
    "garbage": (ANYWHERE["garbage"], True),
    "reset": (ANYWHERE["reset in the middle"], False),
    "half a line, then the end": (saying(b'{"type": "ADDED", "obj', then="end"), False),
    "a bookmark, then a reset": (saying(bookmark(106), then="reset"), False),
}


@pytest.mark.parametrize("fault", WATCHES)
def test_list_follows_a_watch_only_when_needed(play: Play, fault: str) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: feed.whole is not None)
        await feed.until(lambda: not server.pods.faults["watch"])
        await equal(server, feed)
        lists = [query for query in server.pods.requests if "watch" not in query]
        assert len(lists) == (2 if WATCHES[fault][1] else 1)

    play(story, lambda server: server.pods.faults["watch"].append(WATCHES[fault][0]))


def test_pages_of_a_list_then_changes_are_read(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PAGE", 2)

    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: len(server.pods.requests) == 4)
        first, second, third, watch = server.pods.requests
        assert [first.get("continue"), second["continue"], third["continue"]] == [
            *(None, "106/2", "106/4")
        ]
        assert {first["limit"], second["limit"], third["limit"]} == {"2"}
        assert watch["resourceVersion"] == "106"
        assert watch["allowWatchBookmarks"] == "true"
        assert 300 <= int(watch["timeoutSeconds"]) <= 600
        change(server.pods)
        server.nodes.set("n2", spec={"podCIDR": "10.244.2.0/24"})
        await equal(server, feed)
        assert len(server.pods.requests) == 4, "no other request was needed"

    assert play(story).said == []


@pytest.mark.parametrize("piece", [7, 65_537])
def test_events_in_pieces_and_long_events_are_read(play: Play, piece: int) -> None:
    long = {"annotations": {"long": "x" * (200 if piece == 7 else 2_500_000)}}

    def prepare(server: ApiServer) -> None:
        server.pods.piece = piece

    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        server.pods.set("long", metadata=long)
        change(server.pods)
        await equal(server, feed)
        assert len([query for query in server.pods.requests if "watch" in query]) == 1

    assert play(story, prepare).said == []


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_lines_are_read_in_any_pieces(size: int) -> None:
    lines = [b"", b"a" * 5000, b"{}", "ü".encode() * 3]
    data = b"".join(each + b"\n" for each in lines) + b"half of one"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async def read() -> list[bytes]:
        response: Any = SimpleNamespace(content=SimpleNamespace(iter_any=pieces))
        return [each async for each in source._lines(response)]

    assert asyncio.run(read()) == lines


def test_line_without_end_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_LINE", 1 << 20)

    async def endless(_: Resource, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * (1 << 16))

    feed = play(equal_after("watch"), lambda server: server.pods.faults["watch"].append(endless))
    assert any("an event of more than 1 MiB" in problem for _, problem in feed.said)


def equal_after(verb: str) -> Story:
    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: not server.pods.faults[verb])
        change(server.pods)
        await equal(server, feed)

    return story


def test_expired_list_is_read_again_without_pages(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PAGE", 2)

    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        lists = [query for query in server.pods.requests if "watch" not in query]
        assert [query.get("limit") for query in lists] == ["2", "2", None]

    play(story, lambda server: server.pods.faults["continue"].append(refusing(410)))


def test_services_and_their_slices_are_read(play: Play) -> None:
    to = {"conditions": {"ready": True, "serving": True}, "nodeName": "n1", "zone": "z"}

    def prepare(server: ApiServer) -> None:
        server.services.set("s", spec={"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})

    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        labels = {"kubernetes.io/service-name": "s", "app": "a"}
        server.slices.set(
            "s-1", metadata={"labels": labels}, addressType="IPv4",
            endpoints=[to | {"addresses": ["10.244.1.5"]}], ports=None,
        )  # fmt: skip
        server.services.set("s", spec={"type": "ExternalName", "externalName": "a.example"})
        await equal(server, feed)
        server.slices.set("bad", addressType=7)
        server.slices.delete("s-1")
        await server.slices.tell()
        await feed.until(lambda: "EndpointSlice default/bad" in feed.problems)
        server.slices.delete("bad")
        server.services.delete("s")
        await equal(server, feed)
        assert feed.whole

    play(story, prepare)


@pytest.mark.parametrize("kind", ["nodes", "services", "slices"])
def test_source_is_complete_when_every_kind_is(play: Play, kind: str) -> None:
    path = {"nodes": "/api/v1/nodes", "services": "/api/v1/services",
            "slices": "/apis/discovery.k8s.io/v1/endpointslices"}[kind]  # fmt: skip

    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: "a" in feed.names)
        server.pods.set("late")
        await server.pods.tell()
        await feed.until(lambda: "late" in feed.names)
        assert feed.whole is None
        await feed.until(lambda: not server.resources[path].faults["list"])
        await equal(server, feed)
        assert feed.whole

    def prepare(server: ApiServer) -> None:
        server.resources[path].faults["list"].extend([until_late(server), until_late(server)])

    feed = play(story, prepare)
    assert (f"API server {path}", "403: not yet") in feed.said


def until_late(server: ApiServer) -> Fault:
    async def fault(_: Resource, __: web.Request) -> web.StreamResponse:
        while "late" not in server.pods.objects:
            await asyncio.sleep(0)
        return status(403, "not yet")

    return fault


def test_unreadable_object_affects_no_other(play: Play) -> None:
    def prepare(server: ApiServer) -> None:
        server.pods.set("bad", metadata={"uid": 7})

    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: feed.whole is not None)
        assert feed.problems == {
            "Pod default/bad": "Expected `str`, got `int` - at `$.metadata.uid`"
        }
        assert feed.whole is False, "an unread Pod may be the owner of what is on a switch"
        assert feed.names == ["a", "b", "c", "d", "e", "n1"]

        # One that was read before keeps what it was.
        before = feed.objects["Pod", "default", "a"]
        server.pods.set("a", spec={"nodeName": []})
        server.pods.set("bad")
        server.pods.set("after")
        await server.pods.tell()
        await feed.until(lambda: "after" in feed.names)
        assert feed.problems.keys() == {"Pod default/a"}
        assert feed.objects["Pod", "default", "a"] == before
        assert feed.whole is False

        server.pods.delete("a")
        await equal(server, feed)
        assert feed.whole

    play(story, prepare)


def test_problem_of_an_unreadable_object_ends_with_it(play: Play) -> None:
    def prepare(server: ApiServer) -> None:
        server.pods.set("bad", metadata={"uid": 7})
        server.pods.faults["watch"].append(replace_and_expire)

    async def replace_and_expire(pods: Resource, request: web.Request) -> web.StreamResponse:
        pods.delete("bad")
        return await refusing(410)(pods, request)

    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: "bad" not in server.pods.objects)
        await equal(server, feed)
        assert feed.whole

    play(story, prepare)


def test_server_restored_from_a_backup_is_listed_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch from a version that is yet to come hears nothing, and no error either."""
    monkeypatch.setattr(source, "SILENCE_SECONDS", 0.2)

    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        server.version = 50
        server.pods.objects.pop("a")
        await server.pods.end_watches()
        await equal(server, feed)

    assert ("API server /api/v1/pods", "silent for 0.2 s") in play(story).said


async def end_at_once(_: Resource, __: web.Request) -> web.StreamResponse:
    return web.Response()


async def expire(_: Resource, __: web.Request) -> web.StreamResponse:
    return status(410, "too old")


@pytest.mark.parametrize("fault", [end_at_once, expire])
def test_backoff_grows_without_answers(
    play: Play, monkeypatch: pytest.MonkeyPatch, waits: list[float], fault: Fault
) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await feed.until(lambda: sum("watch" in query for query in server.pods.requests) == 10)
        await equal(server, feed)
        assert waits == [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
        # After an event it begins anew.
        server.pods.set("f")
        await equal(server, feed)
        server.pods.faults["watch"].append(fault)
        await server.pods.end_watches()
        await feed.until(lambda: len(waits) == 10)
        assert waits[-1] == 0.4

    monkeypatch.setattr(source, "SHORTEST_WATCH", 1000.0 if fault is end_at_once else 0.0)
    play(story, lambda server: server.pods.faults["watch"].extend([fault] * 9))


def test_a_watch_that_ends_after_a_while_is_followed_by_another(
    play: Play, waits: list[float]
) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        change(server.pods)
        await equal(server, feed)
        await server.pods.end_watches()
        await feed.until(lambda: len(server.pods.requests) == 3)
        assert server.pods.requests[-1]["resourceVersion"] == str(server.version)
        server.pods.set("g")
        await equal(server, feed)

    assert play(story).said == []
    assert waits == []


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("900", 30.0), ("soon", 0.4)])
def test_retry_after_is_respected(
    play: Play, waits: list[float], asked: str, waited: float
) -> None:
    async def overloaded(_: Resource, __: web.Request) -> web.StreamResponse:
        return status(429, "too many", {"Retry-After": asked})

    play(equal, lambda server: server.pods.faults["list"].append(overloaded))
    assert waits == [waited]


def test_credentials_are_read_again(play: Play) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        server.token = "another"  # noqa: S105 - nobody else's
        await server.pods.end_watches()
        await feed.until(lambda: "API server /api/v1/pods" in feed.problems)
        assert feed.problems["API server /api/v1/pods"] == "401: Unauthorized"
        server.kubeconfig.unlink()
        await feed.until(lambda: "no credentials" in feed.said[-1][1])
        change(server.pods)
        server.write_kubeconfig()
        await equal(server, feed)

    play(story)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("", ""),
        ("[]", ""),
        ("a: [", "while parsing"),
        ("{}", "current-context"),
        ("{current-context: x, contexts: [{name: x, context: {cluster: c}}]}", "name c"),
        (
            "{current-context: x, contexts: [{name: x, context: {cluster: c}}], clusters: "
            "[{name: c, cluster: {server: 'https://x', certificate-authority: /no/ca.crt}}]}",
            "/no/ca.crt",
        ),
    ],
)
def test_unusable_kubeconfig_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"^{path}: no credentials.*{says}"):
        asyncio.run(source.ApiServer(path, Recorder()).run())


def test_missing_kubeconfig_outside_of_a_pod_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match=r"the pod's ServiceAccount: .*not set"):
        asyncio.run(source.ApiServer(None, Recorder()).run())


def test_fault_in_sluice_is_not_reported_as_the_servers(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)

        def broken(*_: object) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(feed, "update", broken)
        server.pods.set("f")
        await equal(server, feed)

    with pytest.raises(ExceptionGroup) as raised:
        play(story)
    assert [str(error) for error in raised.value.exceptions] == ["a bug"]


# A kind that a CRD defines


def test_without_the_crd_there_are_no_cluster_policies(play: Play) -> None:
    feed = play(equal)
    assert feed.said == []


@pytest.mark.parametrize("served", [{*CLUSTER_POLICY_PATHS}, *({p} for p in CLUSTER_POLICY_PATHS)])
def test_cluster_policies_are_read_once_their_crd_is_there(play: Play, served: set[str]) -> None:
    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        server.cluster_policies.set("one")
        server.cluster_policies.absent_paths -= served
        await equal(server, feed)
        server.cluster_policies.set("two")
        await equal(server, feed)

    feed = play(story)
    assert {name for kind, _, name in feed.objects if kind == "ClusterNetworkPolicy"} == {
        "one",
        "two",
    }
    assert feed.said == []


def test_cluster_policies_go_with_their_crd(play: Play) -> None:
    def prepare(server: ApiServer) -> None:
        server.cluster_policies.absent_paths.clear()
        server.cluster_policies.set("one")

    async def story(server: ApiServer, feed: Feed) -> None:
        await equal(server, feed)
        del server.cluster_policies.objects["one"]
        server.cluster_policies.absent_paths |= {*CLUSTER_POLICY_PATHS}
        await server.cluster_policies.end_watches()
        await equal(server, feed)

    assert play(story, prepare).said == []
