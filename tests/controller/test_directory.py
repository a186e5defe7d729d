"""A directory of manifests as the source: what is good counts, what is bad is named."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from controller.sources.directory import Directory
from controller.sources.objects import Object

NODE = """
apiVersion: v1
kind: Node
metadata: {name: node1, uid: u1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 172.30.1.1}]}
"""


def pod(name: str, uid: str = "u") -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: {uid}, creationTimestamp: 2026-01-02T03:04:05Z}}
spec: {{nodeName: node1, containers: [{{name: c, image: i}}]}}
"""


class Recorder:
    """A feed that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.problems: dict[str, str] = {}
        self.whole: bool | None = None
        self._news = asyncio.Event()

    def update(self, changed: Iterable[Object], gone: Iterable[tuple[str, str, str]]) -> None:
        for identity in gone:
            del self.objects[identity]
        for item in changed:
            key = type(item).__name__, item.metadata.namespace, item.metadata.name
            self.objects[key] = item
        self._news.set()

    def report(self, subject: str, problem: str) -> None:
        if problem:
            self.problems[subject] = problem
        else:
            self.problems.pop(subject, None)
        self._news.set()

    def complete(self, whole: bool) -> None:
        self.whole = whole
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    @property
    def names(self) -> list[str]:
        return sorted(name for _, _, name in self.objects)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


def follow(root: Path, story: Callable[[Recorder], Awaitable[None]]) -> Recorder:
    """Run the source over `root` while `story` changes it."""

    async def main() -> Recorder:
        feed = Recorder()
        source = asyncio.create_task(Directory(root, feed).run())
        source.add_done_callback(lambda _: feed.wake())
        try:
            await feed.until(lambda: feed.whole is not None or source.done())
            if source.done():
                await source
            await story(feed)
        finally:
            source.cancel()
            await asyncio.gather(source, return_exceptions=True)
        return feed

    return asyncio.run(main())


async def nothing(_: Recorder) -> None:
    """Only what is there at the start."""


def test_reads_everything_below(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "one.yaml").write_text(NODE)
    (tmp_path / "two.yml").write_text(pod("a") + "---" + pod("b"))
    (tmp_path / ".hidden.yaml").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    feed = follow(tmp_path, nothing)
    assert feed.names == ["a", "b", "node1"]
    assert feed.whole
    assert not feed.problems


def test_a_list_as_kubectl_prints_it(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Pod, metadata: {name: x, uid: u}, spec: {nodeName: node1}}\n"
    )
    feed = follow(tmp_path, nothing)
    assert list(feed.objects) == [("Pod", "default", "x")]


def test_follows_changes(tmp_path: Path) -> None:
    async def story(feed: Recorder) -> None:
        (tmp_path / "a.yaml").write_text(pod("a"))
        await feed.until(lambda: feed.names == ["a"])
        (tmp_path / "new.tmp").write_text(pod("a", uid="other"))
        (tmp_path / "new.tmp").rename(tmp_path / "a.yaml")
        await feed.until(lambda: feed.objects["Pod", "default", "a"].metadata.uid == "other")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.yaml").write_text(pod("b"))
        await feed.until(lambda: feed.names == ["a", "b"])
        (tmp_path / "sub").rename(tmp_path / "moved")
        (tmp_path / "a.yaml").unlink()
        await feed.until(lambda: feed.names == ["b"])
        (tmp_path / "moved" / "b.yaml").unlink()
        await feed.until(lambda: not feed.names)

    follow(tmp_path, story)


@pytest.mark.parametrize("rubbish", ["{", "a: [1\nb: 2", "\t- x", "\x00\x01"])
def test_malformed_yaml_loses_nothing(tmp_path: Path, rubbish: str) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))

    async def story(feed: Recorder) -> None:
        (tmp_path / "a.yaml").write_text(rubbish)
        await feed.until(lambda: "file a.yaml" in feed.problems)
        assert feed.names == ["a"]
        (tmp_path / "b.yaml").write_text(pod("b"))
        await feed.until(lambda: feed.names == ["a", "b"])
        (tmp_path / "a.yaml").write_text(pod("a"))
        await feed.until(lambda: not feed.problems)

    follow(tmp_path, story)


def test_a_file_that_is_bad_at_the_start_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{")
    (tmp_path / "b.yaml").write_text(pod("b"))

    async def story(feed: Recorder) -> None:
        assert feed.whole is False
        assert feed.names == ["b"]
        (tmp_path / "a.yaml").write_text(pod("a"))
        await feed.until(lambda: feed.whole is True)
        assert feed.names == ["a", "b"]

    follow(tmp_path, story)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("kind: Gadget\nmetadata: {name: g}", "object g: kind 'Gadget' is unknown here"),
        ("metadata: {name: g}", "object g: kind None is unknown"),
        ("kind: [1]", "object ?: kind [1] is unknown"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: g}", "Pod g: apiVersion: 'v2' is not 'v1'"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {uid: g}", "Pod ?: Object missing required field"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: g}\nspec: {nodeName: [1]}",
            "Pod g: Expected `str`, got `array` - at `$.spec.nodeName`",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: g}\nspec: {podCIDR: 7}",
            "Node g: Expected `str`, got `int` - at `$.spec.podCIDR`",
        ),
        ("just text", "not an object but str"),
        ("- 1", "not an object but list"),
    ],
)
def test_an_object_that_cannot_be_read(tmp_path: Path, document: str, problem: str) -> None:
    """The error names object and field; the others of the same file count."""
    (tmp_path / "x.yaml").write_text(pod("a") + "---\n" + document + "\n---" + pod("b"))
    feed = follow(tmp_path, nothing)
    assert feed.names == ["a", "b"]
    assert feed.problems["file x.yaml"].startswith(problem)


def test_what_is_unread_is_said_before_what_is_unknown(tmp_path: Path) -> None:
    """As `kubectl get -A -o yaml` has it: many kinds, and one bad Node among them."""
    unknown = "---\nkind: Service\nmetadata: {name: s}\n" * 7
    bad = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: 7\n"
    (tmp_path / "all.yaml").write_text(unknown + bad + "---" + pod("a"))
    feed = follow(tmp_path, nothing)
    problem = feed.problems["file all.yaml"]
    assert problem.startswith("Node n: Expected `object`, got `int` - at `$.spec`; object s: kind")
    assert problem.endswith("; and 3 more")
    assert feed.names == ["a"]
    assert feed.whole is False


def test_one_object_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text(pod("a", uid="first"))
    (tmp_path / "2.yaml").write_text(pod("a", uid="second"))

    async def story(feed: Recorder) -> None:
        assert feed.objects["Pod", "default", "a"].metadata.uid == "first"
        assert feed.problems == {"file 2.yaml": "Pod default a is in 1.yaml already"}
        (tmp_path / "1.yaml").unlink()
        await feed.until(lambda: feed.objects["Pod", "default", "a"].metadata.uid == "second")
        assert not feed.problems

    follow(tmp_path, story)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="nowhere is not a directory"):
        follow(tmp_path / "nowhere", nothing)
