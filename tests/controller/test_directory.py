"""A directory of manifests as the source: what is good counts, what is bad is named."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.inventory import Inventory
from controller.problems import Subject
from controller.sources import objects
from controller.sources.directory import Directory, _objects
from controller.sources.feed import OBJECTS_AT_ONCE
from controller.sources.objects import Object, from_manifest, ref
from flows.refs import ObjectRef
from tests.flows.worlds import CLUSTER

NODE = """
apiVersion: v1
kind: Node
metadata: {name: node1, uid: u1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 172.30.1.1}]}
"""


POD_A = ObjectRef("Pod", "default", "a")

LAUGHS = "one: &one [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in pairwise(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    )
)
"""A billion of them, if one walks through."""


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
        self.objects: dict[ObjectRef, Object] = {}
        self.problems: dict[str, str] = {}
        self.whole: bool | None = None
        self._news = asyncio.Event()

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        for identity in gone:
            del self.objects[identity]
        for item in changed:
            key = ref(item)
            self.objects[key] = item
        self._news.set()

    def report(self, subject: Subject, problem: str) -> None:
        if problem:
            self.problems[str(subject)] = problem
        else:
            self.problems.pop(str(subject), None)
        self._news.set()

    def source_complete(self, whole: bool) -> None:
        self.whole = whole
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    @property
    def names(self) -> list[str]:
        return sorted(name for _, _, name in self.objects)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
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


def test_all_files_below_are_read(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "one.yaml").write_text(NODE)
    (tmp_path / "two.yml").write_text(pod("a") + "---" + pod("b"))
    (tmp_path / ".hidden.yaml").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    feed = follow(tmp_path, nothing)
    assert feed.names == ["a", "b", "node1"]
    assert feed.whole
    assert not feed.problems


def test_list_of_kubectl_is_read(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Pod, metadata: {name: x, uid: u}, spec: {nodeName: node1}}\n"
    )
    feed = follow(tmp_path, nothing)
    assert list(feed.objects) == [("Pod", "default", "x")]


def test_changes_are_followed(tmp_path: Path) -> None:
    async def story(feed: Recorder) -> None:
        (tmp_path / "a.yaml").write_text(pod("a"))
        await feed.until(lambda: feed.names == ["a"])
        (tmp_path / "new.tmp").write_text(pod("a", uid="other"))
        (tmp_path / "new.tmp").rename(tmp_path / "a.yaml")
        await feed.until(lambda: feed.objects[POD_A].metadata.uid == "other")
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
def test_malformed_yaml_removes_nothing(tmp_path: Path, rubbish: str) -> None:
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


def test_source_is_incomplete_while_a_file_is_unreadable(tmp_path: Path) -> None:
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
        ("kind: [1]", "object ?: kind a list is unknown"),
        (LAUGHS + "kind: *nine", "object ?: kind a list is unknown"),
        (LAUGHS + "kind: Pod\napiVersion: *nine", "Pod ?: apiVersion: a list is not 'v1'"),
        (LAUGHS + "metadata: {name: *nine}", "object ?: kind None is unknown"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}", "Pod a/b: metadata.name: 'a/b' does"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: g, namespace: a/b}",
            "Pod g: metadata.namespace: 'a/b' does not match",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: g, uid: a/b}",
            "Pod g: metadata.uid: 'a/b' does not match",
        ),
        ("apiVersion: v1\nkind: Node\nmetadata: {name: ''}", "Node : metadata.name: '' does not"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: g}", "Pod g: apiVersion: 'v2' is not 'v1'"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {uid: g}", "Pod ?: Object missing required field"),
        (
            "apiVersion: v1\nkind: EndpointSlice\nmetadata: {name: g}\naddressType: IPv4",
            "EndpointSlice g: apiVersion: 'v1' is not 'discovery.k8s.io/v1'",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: g, namespace: a/b}",
            "Service g: metadata.namespace: 'a/b' does not match",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: g}\nspec: {ports: [{port: x}]}",
            "Service g: Expected `int`, got `str` - at `$.spec.ports[0].port`",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: g}\nspec: {nodeName: [1]}",
            "Pod g: Expected `str`, got `array` - at `$.spec.nodeName`",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: g}\nspec: {podCIDR: 7}",
            "Node g: Expected `str`, got `int` - at `$.spec.podCIDR`",
        ),
        ("just text", "not an object but 'just text'"),
        ("- 1", "not an object but a list"),
    ],
)
def test_unreadable_object_is_named(tmp_path: Path, document: str, problem: str) -> None:
    """The error names object and field; the others of the same file count."""
    (tmp_path / "x.yaml").write_text(pod("a") + "---\n" + document + "\n---" + pod("b"))
    feed = follow(tmp_path, nothing)
    assert feed.names == ["a", "b"]
    assert feed.problems["file x.yaml"].startswith(problem)


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: s, uid: u}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.5], conditions: {ready: null}}]
ports: [{name: "", port: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-2, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: null
ports: null
"""


def test_services_and_their_slices_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SERVICE)
    inventory = Inventory(CLUSTER)

    async def story(feed: Recorder) -> None:
        assert feed.names == ["s", "s-1", "s-2"]
        assert {namespace for _, namespace, _ in feed.objects} == {"default"}
        for item in feed.objects.values():
            inventory.set_object(item)
        inventory.settle()
        (port,) = inventory.view.services["default/s"].ports
        assert [(str(e.address), e.port) for e in port.endpoints] == [("10.244.1.5", 8080)]
        (tmp_path / "s.yaml").unlink()
        await feed.until(lambda: not feed.names)

    follow(tmp_path, story)


def test_unreadable_objects_are_named_before_unknown_kinds(tmp_path: Path) -> None:
    """As `kubectl get -A -o yaml` has it: many kinds, and one bad Node among them."""
    unknown = "---\nkind: Gadget\nmetadata: {name: s}\n" * 7
    bad = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: 7\n"
    (tmp_path / "all.yaml").write_text(unknown + bad + "---" + pod("a"))
    feed = follow(tmp_path, nothing)
    problem = feed.problems["file all.yaml"]
    assert problem.startswith("Node n: Expected `object`, got `int` - at `$.spec`; object s: kind")
    assert problem.endswith("; and 3 more")
    assert feed.names == ["a"]
    assert feed.whole is False


def test_object_in_two_files_is_reported(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text(pod("a", uid="first"))
    (tmp_path / "2.yaml").write_text(pod("a", uid="second"))

    async def story(feed: Recorder) -> None:
        assert feed.objects[POD_A].metadata.uid == "first"
        assert feed.problems == {"file 2.yaml": "Pod default/a is in 1.yaml already"}
        (tmp_path / "1.yaml").unlink()
        await feed.until(lambda: feed.objects[POD_A].metadata.uid == "second")
        assert not feed.problems

    follow(tmp_path, story)


def test_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """Half of it is good YAML, and lacks a pod."""
    file = tmp_path / "all.yaml"
    file.write_text(pod("a") + "---" + pod("b"))
    new = pod("a", uid="other") + "---" + pod("b", uid="other")

    async def story(feed: Recorder) -> None:
        with file.open("w") as writer:
            await feed.until(lambda: feed.problems == {"file all.yaml": WRITTEN})
            assert feed.names == ["a", "b"]
            writer.write(new[: new.index("---")])
            writer.flush()
            # Whatever else is read meanwhile: this file stays as it was.
            (tmp_path / "c.yaml").write_text(pod("c"))
            await feed.until(lambda: feed.names == ["a", "b", "c"])
            assert feed.objects[POD_A].metadata.uid == "u"
            assert feed.whole is False
            writer.write(new[new.index("---") :])
        await feed.until(lambda: not feed.problems)
        assert {item.metadata.uid for item in feed.objects.values()} == {"u", "other"}
        assert feed.names == ["a", "b", "c"]
        assert feed.whole is True

    follow(tmp_path, story)


WRITTEN = "cannot be read: somebody is writing it"


def test_file_that_is_written_at_the_start_is_read_later(tmp_path: Path) -> None:
    async def story(feed: Recorder) -> None:
        assert (feed.whole, feed.names) == (False, ["b"])
        writer.write("---" + pod("c"))
        writer.close()
        await feed.until(lambda: feed.whole is True)
        assert feed.names == ["a", "b", "c"]

    (tmp_path / "b.yaml").write_text(pod("b"))
    with (tmp_path / "a.yaml").open("w") as writer:
        writer.write(pod("a"))
        writer.flush()
        follow(tmp_path, story)


def test_file_that_is_only_held_open_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.sources.directory.WRITING_TIMEOUT", 0.3)
    file = tmp_path / "a.yaml"
    file.write_text(pod("a"))

    async def story(feed: Recorder) -> None:
        with file.open("a") as writer:
            writer.write("---" + pod("b"))
            writer.flush()
            await feed.until(lambda: feed.names == ["a", "b"] and not feed.problems)

    follow(tmp_path, story)


def test_emptied_file_keeps_its_objects(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))

    async def story(feed: Recorder) -> None:
        (tmp_path / "a.yaml").write_text("")
        await feed.until(lambda: "it is empty" in feed.problems.get("file a.yaml", ""))
        assert feed.names == ["a"]
        (tmp_path / "a.yaml").unlink()
        await feed.until(lambda: not feed.names and not feed.problems)

    follow(tmp_path, story)


def test_special_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.sources.directory.MAX_FILE_SIZE", 1 << 20)

    async def story(feed: Recorder) -> None:
        os.mkfifo(tmp_path / "fifo.yaml")
        (tmp_path / "zero.yaml").symlink_to("/dev/zero")
        (tmp_path / "big.yaml").write_text("# " + "x" * (2 << 20))
        (tmp_path / "latin1.yaml").write_bytes(pod("ä").encode("latin1"))
        await feed.until(lambda: len(feed.problems) == 5)
        for name, problem in (
            ("fifo.yaml", "cannot be read: it is not a file"),
            ("zero.yaml", "cannot be read: it is not a file"),
            ("big.yaml", "cannot be read: it has 2 MiB, and 1 is the most"),
            ("latin1.yaml", "cannot be read: 'utf-8' codec can't decode"),
            ("\\xff.yaml", "cannot be read: its name is not UTF-8"),
        ):
            assert feed.problems[f"file {name}"].startswith(problem)
        assert feed.names == ["a"]

    (tmp_path / "a.yaml").write_text(pod("a"))
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.yaml")).write_text("{")
    follow(tmp_path, story)


def test_source_survives_the_end_of_a_watch(tmp_path: Path) -> None:
    nameless = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.yaml"))

    async def story(feed: Recorder) -> None:
        nameless.write_text(pod("x"))  # noqa: ASYNC240
        await feed.until(lambda: len(feed.problems) == 1)
        (tmp_path / "b.yaml").write_text(pod("b"))
        await feed.until(lambda: feed.names == ["a", "b"])

    (tmp_path / "a.yaml").write_text(pod("a"))
    follow(tmp_path, story)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
    | st.sampled_from(["Pod", "Node", "List", "v1", "10.244.1.0/24", "node1", "InternalIP"])
)
_KEYS = st.sampled_from(
    ["apiVersion", "kind", "metadata", "name", "namespace", "uid", "annotations", "spec", "status",
     "nodeName", "hostNetwork", "podCIDR", "podCIDRs", "addresses", "type", "address", "items"]
)  # fmt: skip
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=20,
)
_NEARLY = st.fixed_dictionaries(
    {"apiVersion": st.just("v1") | _SCALARS, "kind": st.sampled_from(["Pod", "Node", "List"])},
    optional=dict.fromkeys(("metadata", "spec", "status", "items"), _ANYTHING),
)


@given(_NEARLY | _ANYTHING)
def test_wrong_types_anywhere_are_problems_and_no_exception(content) -> None:
    objects, problem, unread = _objects(json.dumps(content, ensure_ascii=False))
    assert not unread or problem
    inventory = Inventory(CLUSTER)
    for item in objects.values():
        inventory.set_object(item)
    inventory.settle()
    assert len(inventory.problems) <= len(objects)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="nowhere is not a directory"):
        follow(tmp_path / "nowhere", nothing)


class Slices(Recorder):
    """A feed that counts what it gets between two turns of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self._now = 0

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        objects, refs = list(changed), list(gone)
        super().update(objects, refs)
        self._now += len(objects) + len(refs)
        self.largest = max(self.largest, self._now)

    async def watch_turns(self) -> None:
        while True:
            self._now = 0
            await asyncio.sleep(0)


def test_many_objects_are_fed_in_slices(tmp_path: Path) -> None:
    """Nothing else would be done meanwhile, echoes of switches included."""
    feed = Slices()
    many = 1_000

    async def main() -> None:
        turns = asyncio.create_task(feed.watch_turns())
        source = asyncio.create_task(Directory(tmp_path, feed).run())
        try:
            await feed.until(lambda: len(feed.objects) == many)
            (tmp_path / "one.json").unlink()
            await feed.until(lambda: len(feed.objects) == many // 2)
        finally:
            source.cancel()
            turns.cancel()
            await asyncio.gather(source, turns, return_exceptions=True)

    for file, part in (("one.json", range(many // 2)), ("two.json", range(many // 2, many))):
        items = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}}
            for number in part
        ]
        (tmp_path / file).write_text(json.dumps({"kind": "List", "items": items}))
    asyncio.run(main())
    assert 0 < feed.largest <= OBJECTS_AT_ONCE


def test_object_that_became_unreadable_keeps_its_last_state(tmp_path: Path) -> None:
    """It may be one that pods need; another object that the file no longer holds is gone."""
    (tmp_path / "a.yaml").write_text(pod("a") + "---" + pod("b") + "---" + pod("c"))

    async def story(feed: Recorder) -> None:
        unreadable = pod("a").replace("nodeName: node1", "nodeName: [1]")
        (tmp_path / "new").write_text(unreadable + "---" + pod("b", uid="other"))
        (tmp_path / "new").rename(tmp_path / "a.yaml")
        await feed.until(lambda: "file a.yaml" in feed.problems)
        # Which object is unreadable cannot always be told, so nothing of this file is removed.
        assert feed.names == ["a", "b", "c"]
        assert feed.objects[ObjectRef("Pod", "default", "b")].metadata.uid == "other"
        assert feed.whole is False
        (tmp_path / "new").write_text(pod("b"))
        (tmp_path / "new").rename(tmp_path / "a.yaml")
        await feed.until(lambda: feed.names == ["b"])
        assert feed.whole is True

    follow(tmp_path, story)


@pytest.mark.parametrize(("scoped", "namespace"), [(set(), "default"), ({"Pod"}, "")])
def test_only_namespaced_kinds_get_the_default_namespace(
    scoped: set[str], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "CLUSTER_SCOPED", scoped)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    assert from_manifest(pod).metadata.namespace == namespace
