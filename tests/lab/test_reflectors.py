"""The reflectors against a real kube-apiserver and etcd, by way of a proxy that fails on demand.

What the server forgets, what a network drops or holds back, and what happens while nobody can ask:
in the end the feed holds what the server holds, and whoever went meanwhile is told gone.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.problems import Subject
from controller.sources import kubernetes as source
from controller.sources.routed_objects import ROUTED_KINDS
from tests.controller.test_directory import Recorder
from tests.lab.real_kubernetes import Proxy, RealKubernetes, running

KINDS = 7 + len(ROUTED_KINDS)
"""Each has a reflector of its own, and a complaint of its own where nobody answers."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKubernetes]:
    with running(tmp_path_factory.mktemp("kube")) as made:
        yield made


class Feed(Recorder):
    """Also remembers who was told gone, and each complaint."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[str] = []
        self.said: list[str] = []

    def update(self, changed: Any, gone: Any) -> None:
        gone = list(gone)
        self.gone += [name for _, _, name in gone]
        super().update(changed, gone)

    def report(self, subject: Subject, problem: str) -> None:
        if problem:
            self.said.append(problem)
        super().report(subject, problem)

    @property
    def pods(self) -> dict[str, str]:
        return {
            name: made.metadata.uid for (kind, _, name), made in self.objects.items()
            if kind == "Pod"
        }  # fmt: skip


Story = Callable[[Proxy, Feed], Awaitable[None]]


@asynccontextmanager
async def followed(cluster: RealKubernetes, kubeconfig: Path) -> AsyncIterator[tuple[Proxy, Feed]]:
    """The source, as the controller runs it, connected by way of a proxy."""
    proxy, feed = Proxy(), Feed()
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    await aside(cluster.write_kubeconfig, kubeconfig, server.sockets[0].getsockname()[1])
    follower = asyncio.create_task(source.ApiServer(kubeconfig, feed).run())
    try:
        await until(lambda: feed.whole is True)
        yield proxy, feed
        assert not follower.done()
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        server.close()
        await proxy.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)


async def aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """Blocking work, while the source goes on."""
    return await asyncio.to_thread(work, *arguments)


@pytest.fixture
def play(
    cluster: RealKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Story], None]:
    """Tell a story in a cluster of the pods a, b and c; at its end the feed is what there is."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(source, "LONGEST_BACKOFF", 2.0)

    async def main(story: Story) -> None:
        if left := await aside(cluster.pods):
            await aside(cluster.remove, *left)
        await aside(cluster.add, "a", "b", "c")
        async with followed(cluster, tmp_path / "kubeconfig") as (proxy, feed):
            assert feed.pods.keys() == {"a", "b", "c"}
            await story(proxy, feed)
            wanted = await aside(cluster.pods)
            await until(lambda: feed.pods == wanted and not feed.problems)
            assert feed.whole is True

    def run(story: Story) -> None:
        asyncio.run(main(story))

    return run


def replaced(cluster: RealKubernetes) -> None:
    """a goes, b is made anew under its name, d comes."""
    cluster.remove("a", "b")
    cluster.add("b", "d")


async def told(feed: Feed, before: dict[str, str]) -> None:
    """Wait until the feed knows what `replaced` did."""
    await until(lambda: feed.pods.keys() == {"b", "c", "d"} and feed.pods["b"] != before["b"])
    assert "a" in feed.gone
    assert "c" not in feed.gone


def test_dropped_watch_continues_from_its_version(cluster: RealKubernetes, play: Any) -> None:
    async def story(proxy: Proxy, feed: Feed) -> None:
        before = feed.pods
        proxy.cut()
        await until(lambda: len(feed.problems) == KINDS)
        await aside(replaced, cluster)
        assert feed.pods == before, "what cannot be asked for stays as it was"
        proxy.accepts = True
        await told(feed, before)
        # Watched, not listed: b's end is an event of its own.
        assert feed.gone == ["a", "b"]

    play(story)


def test_repeatedly_dropped_watches_lose_nothing(cluster: RealKubernetes, play: Any) -> None:
    async def story(proxy: Proxy, feed: Feed) -> None:
        names = [f"p{number}" for number in range(12)]
        for name in names:
            await aside(cluster.add, name)
            proxy.reset()
        await until(lambda: feed.pods.keys() >= set(names))
        await aside(cluster.remove, *names)
        await until(lambda: feed.pods.keys() == {"a", "b", "c"})

    play(story)


def test_stalled_watch_is_replaced(
    cluster: RealKubernetes, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands, and nothing comes: as when a firewall forgets it."""
    monkeypatch.setattr(source, "SILENCE_SECONDS", 5.0)

    async def story(proxy: Proxy, feed: Feed) -> None:
        before = feed.pods
        proxy.carries.clear()
        await aside(replaced, cluster)
        await until(lambda: "silent for 5.0 s" in feed.said)
        assert feed.pods == before
        proxy.reset()
        proxy.carries.set()
        await told(feed, before)

    play(story)


def test_slow_path_to_the_server_only_delays(cluster: RealKubernetes, play: Any) -> None:
    async def story(proxy: Proxy, feed: Feed) -> None:
        before, connections = feed.pods, proxy.connections
        proxy.delay = 0.5
        await aside(replaced, cluster)
        await told(feed, before)
        assert proxy.connections == connections
        assert feed.said == []

    play(story)


@pytest.mark.parametrize("killed", [("kube-apiserver",), ("etcd", "kube-apiserver")])
def test_compacted_history_is_listed_again(
    cluster: RealKubernetes, play: Any, killed: tuple[str, ...]
) -> None:
    """410: what went meanwhile is found missing in a new list, and told gone."""

    async def story(proxy: Proxy, feed: Feed) -> None:
        before = feed.pods
        proxy.cut()
        await until(lambda: len(feed.problems) == KINDS)
        await aside(replaced, cluster)
        await aside(cluster.compact)
        cluster.kill(*killed)
        await aside(cluster.start)
        proxy.accepts = True
        await told(feed, before)
        assert any(problem.startswith("410: ") for problem in feed.said), feed.said
        # b is there under its name, so it was never gone: it is another one now.
        assert feed.gone == ["a"]
        # From here on it is watched as before.
        await aside(cluster.add, "e")
        await until(lambda: "e" in feed.pods)

    play(story)


def test_first_list_waits_for_the_server(
    cluster: RealKubernetes, play: Any, tmp_path: Path
) -> None:
    """Nothing may be removed anywhere until the server has been asked: nothing is complete."""

    async def story(_: Proxy, __: Feed) -> None:
        cluster.kill("kube-apiserver")
        late = Feed()
        follower = asyncio.create_task(source.ApiServer(tmp_path / "kubeconfig", late).run())
        try:
            await until(lambda: len(late.problems) == KINDS)
            assert (late.whole, late.objects) == (None, {})
            await aside(cluster.start)
            await until(lambda: late.whole is True)
            assert late.pods.keys() == {"a", "b", "c"}
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    play(story)
