"""The embedded default: Kubernetes objects as YAML files in a directory, watched.

One or more objects a file (documents, or a `List`). A file that cannot be read keeps what it
last held; write files elsewhere and rename them into place.
"""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import structlog
import watchfiles
import yaml

from controller.sources.feed import Feed
from controller.sources.objects import Object, ObjectError, UnknownKindError, from_manifest

log = structlog.get_logger()

Identity = tuple[str, str, str]
"""Kind, namespace and name."""


MOST_PROBLEMS = 5
"""So many are told of one file."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Times stay the strings that they are in JSON."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Directory:
    """Reads `root` whole, then follows it."""

    def __init__(self, root: Path, feed: Feed) -> None:
        self._root = root.resolve()
        self._feed = feed
        self._files: dict[Path, dict[Identity, Object]] = {}
        self._holders: dict[Identity, dict[Path, Object]] = {}
        self._unread: set[Path] = set()
        self._problems: dict[Path, str] = {}

    async def run(self) -> None:
        """Until cancelled. Raises `NotADirectoryError` where there is no such directory."""
        if not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is not a directory")
        watch = watchfiles.awatch(self._root, debounce=10, step=2, rust_timeout=500)
        # The watch begins with the first step of its task, before the first file is read.
        changes = asyncio.ensure_future(anext(watch))
        try:
            await asyncio.sleep(0)
            self._read(self._manifests(self._root))
            log.info("directory read", path=str(self._root), files=len(self._files))
            while True:
                changed = {Path(path) for _, path in await changes}
                changes = asyncio.ensure_future(anext(watch))
                self._read({file for path in changed for file in self._concerned(path)})
        finally:
            changes.cancel()

    def _manifests(self, directory: Path) -> set[Path]:
        return {path for path in directory.rglob("*") if _is_manifest(path) and path.is_file()}

    def _concerned(self, path: Path) -> set[Path]:
        """The files that a change of `path` is about; all below it if it is, or was, a folder."""
        below = {file for file in self._files.keys() | self._unread if path in file.parents}
        if path.is_dir():
            return below | self._manifests(path)
        return below | ({path} if _is_manifest(path) else set())

    def _read(self, paths: set[Path]) -> None:
        touched: set[Identity] = set()
        for path in sorted(paths):
            touched |= self._read_file(path)
        changed, gone = [], []
        for identity in touched:
            holders = self._holders.get(identity)
            if not holders:
                self._holders.pop(identity, None)
                gone.append(identity)
                continue
            changed.append(holders[min(holders)])
            paths |= holders.keys()
        self._feed.update(changed, gone)
        for path in paths:
            self._feed.report(f"file {self._name(path)}", self._problem(path))
        self._feed.complete(not self._unread)

    def _read_file(self, path: Path) -> set[Identity]:
        """Take one file in; the identities of what it holds or held."""
        try:
            objects, problem, unread = _objects(path.read_text())
        except FileNotFoundError:
            objects, problem, unread = {}, "", False
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            # What the file last held stays: half a file must not take pods away.
            self._unread.add(path)
            self._problems[path] = f"cannot be read: {' '.join(str(error).split())}"
            return set()
        self._problems[path] = problem
        old = self._files.pop(path, {})
        if unread:
            # An object that cannot be read may be one that this file held.
            self._unread.add(path)
            objects = {**old, **objects}
        else:
            self._unread.discard(path)
        if objects:
            self._files[path] = objects
        for identity in old.keys() - objects.keys():
            self._holders[identity].pop(path, None)
        for identity, made in objects.items():
            self._holders.setdefault(identity, {})[path] = made
        return {
            identity
            for identity in old.keys() | objects.keys()
            if old.get(identity) != objects.get(identity)
        }

    def _problem(self, path: Path) -> str:
        """What is wrong with a file: what it holds, or that another holds the same."""
        if problem := self._problems.get(path):
            return problem
        for identity in self._files.get(path, ()):
            if (first := min(self._holders[identity])) != path:
                return f"{' '.join(identity)} is in {self._name(first)} already"
        return ""

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))


def _is_manifest(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml", ".json"} and not path.name.startswith(".")


def _objects(text: str) -> tuple[dict[Identity, Object], str, bool]:
    """The objects that can be read, what is wrong, and whether one of ours is unread."""
    objects: dict[Identity, Object] = {}
    unread: list[str] = []
    harmless: list[str] = []
    for document in _documents(text):
        try:
            made = from_manifest(document)
        except UnknownKindError as error:
            harmless.append(str(error))
            continue
        except ObjectError as error:
            unread.append(str(error))
            continue
        identity = type(made).__name__, made.metadata.namespace, made.metadata.name
        if identity in objects:
            harmless.append(f"{' '.join(identity)} is there twice")
        objects[identity] = made
    problems = unread + harmless
    more = len(problems) - MOST_PROBLEMS
    shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return objects, "; ".join(shown), bool(unread)


def _documents(text: str) -> list[Any]:
    found: list[Any] = []
    for document in yaml.load_all(text, Loader=_Loader):
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            found += items if isinstance(items, list) else [items]
        elif document is not None:
            found.append(document)
    return found
