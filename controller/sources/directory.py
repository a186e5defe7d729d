"""A directory of manifests as the source: Kubernetes objects in YAML files, watched.

A file holds one or more objects (documents, or a `List`). A file that cannot be read, or that
somebody is writing, keeps its last content. Write a file elsewhere and rename it into place.
"""

import asyncio
import fcntl
import os
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
import watchfiles
from watchfiles._rust_notify import WatchfilesRustInternalError

from controller.faults import ControllerFault
from controller.problems import FileRef
from controller.sources.feed import OBJECTS_AT_ONCE, Feed, in_slices
from controller.sources.manifest_files import MAX_FILE_SIZE, is_manifest, items
from controller.sources.objects import Object, ObjectError, UnknownKindError, from_manifest, ref
from flows.refs import ObjectRef
from settings.plain_yaml import documents

log = structlog.get_logger()

MAX_PROBLEMS = 5
"""Problems of one file that are named."""
MAX_STEPS: Final = 1000
"""Objects that are looked at, without feeding them, before the event loop has its turn."""
WRITING_TIMEOUT: Final = 10.0
"""Seconds without a write after which a file is read, though somebody has it open for writing."""
WRITING_POLL: Final = 0.1
"""Seconds between two tries to read a file that is being written. No event tells when it ends."""
WATCH_RESTART_DELAY: Final = 0.5
"""Seconds until a watch that ended starts again."""


class BeingWrittenError(ControllerFault):
    """Somebody has the file open for writing."""


class Directory:
    """Reads all files below `root`, then follows their changes."""

    silence: Final = 0.0
    """As of `ApiServer`: no watch of files can be silent without notice."""

    def __init__(self, root: Path, feed: Feed) -> None:
        self._root = root.resolve()
        self._feed = feed
        self._files: dict[Path, dict[ObjectRef, Object]] = {}
        self._holders: dict[ObjectRef, dict[Path, Object]] = {}
        self._held_twice: set[ObjectRef] = set()
        """Objects that are in more than one file."""
        self._unreadable: set[Path] = set()
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
                # A file whose name is not UTF-8 ends the watch. All files are read again, so no
                # change is missed.
                log.warning("watch restarted", path=str(self._root), error=str(errors.exceptions))
            await asyncio.sleep(WATCH_RESTART_DELAY)

    async def _follow(self) -> None:
        watch = watchfiles.awatch(self._root, debounce=10, step=2, rust_timeout=500)
        # The watch begins with the first step of its task, before the first file is read.
        changes = asyncio.ensure_future(anext(watch))
        try:
            await asyncio.sleep(0)
            manifests = await asyncio.to_thread(self._manifests, self._root)
            await self._read(manifests | self._files.keys() | self._unreadable)
            log.info("directory read", path=str(self._root), files=len(self._files))
            while True:
                await asyncio.wait({changes}, timeout=WRITING_POLL if self._being_written else None)
                paths = set(self._being_written)
                if changes.done():
                    changed = {Path(path) for _, path in changes.result()}
                    changes = asyncio.ensure_future(anext(watch))
                    # In a thread: there may be very many files.
                    paths |= await asyncio.to_thread(self._affected_files, changed)
                await self._read(paths)
        finally:
            changes.cancel()

    def _manifests(self, directory: Path) -> set[Path]:
        return {path for path in directory.rglob("*") if is_manifest(path) and path.is_file()}

    def _affected_files(self, changed: set[Path]) -> set[Path]:
        """The files that these changes affect: also all files below a changed folder.

        One pass for all changes, because thousands of files are often written together.
        """
        known = self._files.keys() | self._unreadable
        files = {file for file in known if not changed.isdisjoint(file.parents)}
        for path in changed:
            if path.is_dir():
                files |= self._manifests(path)
            elif is_manifest(path):
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
        self._feed.source_complete(not self._unreadable)

    async def _tell(self, changed: list[Object], gone: list[ObjectRef]) -> None:
        """Feed what changed. A few changes are fed together, because they may belong together."""
        if len(changed) + len(gone) <= OBJECTS_AT_ONCE:
            self._feed.update(changed, gone)
            return
        async for identities in in_slices(gone):
            self._feed.update([], identities)
        async for objects in in_slices(changed):
            self._feed.update(objects, [])

    async def _read_file(self, path: Path) -> set[ObjectRef]:
        """Read one file; the objects that it added, changed or no longer holds."""
        self._being_written.discard(path)
        old = self._files.get(path, {})
        try:
            # In a thread: a large file takes seconds, and switches need answers meanwhile.
            objects, problem, unreadable, touched = await asyncio.to_thread(_changes, path, old)
        except FileNotFoundError:
            objects, problem, unreadable, touched = {}, "", False, set(old)
        except (BeingWrittenError, OSError, ValueError) as error:
            # The last content stays: half a file must not remove pods.
            self._unreadable.add(path)
            self._problems[path] = f"cannot be read: {error}"
            if isinstance(error, BeingWrittenError):
                self._being_written.add(path)
            return set()
        self._problems[path] = problem
        if unreadable:
            # The unreadable object may be one that this file held before.
            self._unreadable.add(path)
        else:
            self._unreadable.discard(path)
        self._files.pop(path, None)
        if objects:
            self._files[path] = objects
        async for identities in in_slices(touched, MAX_STEPS):
            for identity in identities:
                self._hold(path, identity, objects.get(identity))
        return touched

    def _hold(self, path: Path, identity: ObjectRef, content: Object | None) -> None:
        """Note that a file holds this object, or no longer holds it."""
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
        """What is wrong with a file: its content, or an object that another file holds too."""
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


def _changes(
    path: Path, old: Mapping[ObjectRef, Object]
) -> tuple[dict[ObjectRef, Object], str, bool, set[ObjectRef]]:
    """A file's objects, its problem, whether an object is unreadable, and which objects changed."""
    text = _text_unless_written(path)
    if not text:
        # Somebody is about to write it, or the disk is full.
        raise ValueError("it is empty; its objects stay until the file is removed")
    objects, problem, unreadable = _objects(text)
    if unreadable:
        objects = {**old, **objects}
    identities = old.keys() | objects.keys()
    touched = {each for each in identities if old.get(each) != objects.get(each)}
    return objects, problem, unreadable, touched


def _text_unless_written(path: Path) -> str:
    """The text of a file that nobody is writing.

    Raises `BeingWrittenError`, `OSError` and `ValueError`.
    """
    if not path.name.isprintable():
        # Opening it would be an event that ends the watch.
        raise ValueError("its name is not UTF-8")
    # Opening a FIFO without a writer would block.
    with open(path, "rb", opener=_open_nonblocking) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        if found.st_size > MAX_FILE_SIZE:
            raise ValueError(
                f"it has {found.st_size >> 20} MiB, and {MAX_FILE_SIZE >> 20} is the most"
            )
        try:
            # fcntl(2): somebody who opens the file for writing waits until we close it. The kernel
            # tells us by a signal; SIGURG is one that a process ignores by default.
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            # Some file systems, for example NFS, refuse a lease on every file.
            if abs(time.time() - found.st_mtime) < WRITING_TIMEOUT:
                raise BeingWrittenError("somebody is writing it") from None
        except OSError:
            pass  # Another user's file, or a file system without leases.
        return file.read(MAX_FILE_SIZE + 1).decode()


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _objects(text: str) -> tuple[dict[ObjectRef, Object], str, bool]:
    """The objects that can be read, what is wrong, and whether an object is unreadable."""
    objects: dict[ObjectRef, Object] = {}
    unreadable: list[str] = []
    ignored: list[str] = []
    for content in items(documents(text)):
        try:
            made = from_manifest(content)
        except UnknownKindError as error:
            ignored.append(str(error))
            continue
        except ObjectError as error:
            unreadable.append(str(error))
            continue
        identity = ref(made)
        if identity in objects:
            ignored.append(f"{identity} is there twice")
        objects[identity] = made
    problems = unreadable + ignored
    more = len(problems) - MAX_PROBLEMS
    shown = problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return objects, "; ".join(shown), bool(unreadable)
