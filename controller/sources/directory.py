"""The embedded default: Kubernetes objects as YAML files in a directory, watched.

One or more objects a file (documents, or a `List`). A file that cannot be read, or that somebody is
writing, keeps what it last held; it is best written elsewhere and renamed into place.
"""

import asyncio
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import watchfiles
from watchfiles._rust_notify import WatchfilesRustInternalError

from controller.problems import FileRef
from controller.sources.feed import OBJECTS_AT_ONCE, Feed, in_slices
from controller.sources.objects import Object, ObjectError, UnknownKindError, from_manifest, ref
from flows.refs import ObjectRef
from settings.plain_yaml import documents

log = structlog.get_logger()

MOST_PROBLEMS = 5
"""So many are told of one file."""
LARGEST_FILE: Final = 64 << 20
"""Bytes. Read, it takes some ten times as much memory."""
MAX_STEPS: Final = 1000
"""Objects that are looked at, without feeding them, before the event loop has its turn."""
STILL: Final = 10.0
"""Seconds without a write after which a file counts, though somebody could go on writing it."""
LOOK_AGAIN: Final = 0.1
"""Seconds between two looks at a file that is being written. Nobody tells us of its end."""

WATCH_AGAIN: Final = 0.5
"""Seconds until a watch that has ended is begun anew."""


class BeingWrittenError(Exception):
    """Somebody has the file open for writing."""


class Directory:
    """Reads `root` whole, then follows it."""

    def __init__(self, root: Path, feed: Feed) -> None:
        self._root = root.resolve()
        self._feed = feed
        self._files: dict[Path, dict[ObjectRef, Object]] = {}
        self._holders: dict[ObjectRef, dict[Path, Object]] = {}
        self._held_twice: set[ObjectRef] = set()
        """Objects that are in more than one file."""
        self._unread: set[Path] = set()
        self._problems: dict[Path, str] = {}
        self._being_written: set[Path] = set()

    async def run(self) -> None:
        """Until cancelled. Raises `NotADirectoryError` where there is no such directory."""
        if not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is not a directory")
        while True:
            try:
                await self._follow()
            except* WatchfilesRustInternalError as errors:
                # It ends, for one, over a file whose name is not UTF-8. What came meanwhile shows
                # when all is read again.
                log.warning("watching anew", path=str(self._root), error=str(errors.exceptions))
            await asyncio.sleep(WATCH_AGAIN)

    async def _follow(self) -> None:
        watch = watchfiles.awatch(self._root, debounce=10, step=2, rust_timeout=500)
        # The watch begins with the first step of its task, before the first file is read.
        changes = asyncio.ensure_future(anext(watch))
        try:
            await asyncio.sleep(0)
            manifests = await asyncio.to_thread(self._manifests, self._root)
            await self._read(manifests | self._files.keys() | self._unread)
            log.info("directory read", path=str(self._root), files=len(self._files))
            while True:
                await asyncio.wait({changes}, timeout=LOOK_AGAIN if self._being_written else None)
                paths = set(self._being_written)
                if changes.done():
                    changed = {Path(path) for _, path in changes.result()}
                    changes = asyncio.ensure_future(anext(watch))
                    # In a thread: there may be very many files.
                    paths |= await asyncio.to_thread(self._concerned, changed)
                await self._read(paths)
        finally:
            changes.cancel()

    def _manifests(self, directory: Path) -> set[Path]:
        return {path for path in directory.rglob("*") if _is_manifest(path) and path.is_file()}

    def _concerned(self, changed: set[Path]) -> set[Path]:
        """The files that changes of these are about; all below what is, or was, a folder.

        Looked for once: thousands of files are often written together.
        """
        known = self._files.keys() | self._unread
        files = {file for file in known if not changed.isdisjoint(file.parents)}
        for path in changed:
            if path.is_dir():
                files |= self._manifests(path)
            elif _is_manifest(path):
                files.add(path)
        return files

    async def _read(self, paths: set[Path]) -> None:
        touched: set[ObjectRef] = set()
        for path in sorted(paths):
            touched |= await self._read_file(path)
        changed: list[Object] = []
        gone: list[ObjectRef] = []
        async for identities in in_slices(touched, MAX_STEPS):
            for identity in identities:
                holders = self._holders.get(identity)
                if not holders:
                    self._holders.pop(identity, None)
                    gone.append(identity)
                else:
                    changed.append(holders[min(holders)])
                    paths |= holders.keys()
        await self._tell(changed, gone)
        async for some in in_slices(paths):
            for path in some:
                self._feed.report(FileRef(self._name(path)), self._problem(path))
        self._feed.complete(not self._unread)

    async def _tell(self, changed: list[Object], gone: list[ObjectRef]) -> None:
        """Feed what changed: at once if it is little, as it belongs together."""
        if len(changed) + len(gone) <= OBJECTS_AT_ONCE:
            self._feed.update(changed, gone)
            return
        async for identities in in_slices(gone):
            self._feed.update([], identities)
        async for objects in in_slices(changed):
            self._feed.update(objects, [])

    async def _read_file(self, path: Path) -> set[ObjectRef]:
        """Take one file in; the identities of what it holds or held, where that changed."""
        self._being_written.discard(path)
        old = self._files.get(path, {})
        try:
            # In a thread: large ones take seconds, and switches want their echoes answered.
            objects, problem, unread, touched = await asyncio.to_thread(_changes, path, old)
        except FileNotFoundError:
            objects, problem, unread, touched = {}, "", False, set(old)
        except (BeingWrittenError, OSError, ValueError) as error:
            # What the file last held stays: half a file must not take pods away.
            self._unread.add(path)
            self._problems[path] = f"cannot be read: {error}"
            if isinstance(error, BeingWrittenError):
                self._being_written.add(path)
            return set()
        self._problems[path] = problem
        if unread:
            # An object that cannot be read may be one that this file held.
            self._unread.add(path)
        else:
            self._unread.discard(path)
        self._files.pop(path, None)
        if objects:
            self._files[path] = objects
        async for identities in in_slices(touched, MAX_STEPS):
            for identity in identities:
                self._hold(path, identity, objects.get(identity))
        return touched

    def _hold(self, path: Path, identity: ObjectRef, content: Object | None) -> None:
        """A file holds this object, or holds it no more."""
        holders = self._holders.setdefault(identity, {})
        if content is None:
            holders.pop(path, None)
        else:
            holders[path] = content
        if len(holders) > 1:
            self._held_twice.add(identity)
        else:
            self._held_twice.discard(identity)

    def _problem(self, path: Path) -> str:
        """What is wrong with a file: what it holds, or that another holds the same."""
        if problem := self._problems.get(path):
            return problem
        held = self._files.get(path, {})
        for identity in sorted(self._held_twice & held.keys()):
            if (first := min(self._holders[identity])) != path:
                return f"{identity} is in {self._name(first)} already"
        return ""

    def _name(self, path: Path) -> str:
        # A name need not be text.
        return os.fsencode(path.relative_to(self._root)).decode(errors="backslashreplace")


def _is_manifest(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml", ".json"} and not path.name.startswith(".")


def _changes(
    path: Path, old: Mapping[ObjectRef, Object]
) -> tuple[dict[ObjectRef, Object], str, bool, set[ObjectRef]]:
    """What a file holds, what is wrong, whether an object could not be read, and what changed."""
    text = _settled_text(path)
    if not text:
        # Emptied to be written anew, or by a full disk.
        raise ValueError("it is empty; what it held goes when the file is removed")
    objects, problem, unread = _objects(text)
    if unread:
        objects = {**old, **objects}
    identities = old.keys() | objects.keys()
    touched = {each for each in identities if old.get(each) != objects.get(each)}
    return objects, problem, unread, touched


def _settled_text(path: Path) -> str:
    """What a file holds, while nobody writes it.

    Raises `BeingWrittenError`, `OSError` and `ValueError`.
    """
    if not path.name.isprintable():
        # To open it would be an event over which the watch ends.
        raise ValueError("its name is not UTF-8")
    # Not blocking: without a writer a FIFO would hang us.
    with open(path, "rb", opener=_open_now) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        if found.st_size > LARGEST_FILE:
            raise ValueError(f"it has {found.st_size >> 20} MiB, and {LARGEST_FILE >> 20} is most")
        try:
            # fcntl(2): who wants to write it meanwhile waits until we close it. The kernel asks us
            # to, by a signal that would end us if it were not one of those that nobody minds.
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            # Some file systems, NFS for one, say so of every file.
            if abs(time.time() - found.st_mtime) < STILL:
                raise BeingWrittenError("somebody is writing it") from None
        except OSError:
            pass  # Not ours, or a file system without leases.
        return file.read(LARGEST_FILE + 1).decode()


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _objects(text: str) -> tuple[dict[ObjectRef, Object], str, bool]:
    """The objects that can be read, what is wrong, and whether one of ours is unread."""
    objects: dict[ObjectRef, Object] = {}
    unread: list[str] = []
    harmless: list[str] = []
    for content in _contents(text):
        try:
            made = from_manifest(content)
        except UnknownKindError as error:
            harmless.append(str(error))
            continue
        except ObjectError as error:
            unread.append(str(error))
            continue
        identity = ref(made)
        if identity in objects:
            harmless.append(f"{identity} is there twice")
        objects[identity] = made
    problems = unread + harmless
    more = len(problems) - MOST_PROBLEMS
    shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return objects, "; ".join(shown), bool(unread)


def _contents(text: str) -> Iterator[Any]:
    for document in documents(text):
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            yield from items if isinstance(items, list) else [items]
        elif document is not None:
            yield document
