"""Manifests, read once: Kubernetes objects in YAML or JSON, with the workloads among them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.offline.workloads import KINDS, Workload, read_workload
from controller.sources.manifest_files import MAX_FILE_SIZE, is_manifest, items
from controller.sources.objects import (
    Object,
    ObjectError,
    PodObject,
    UnknownKindError,
    from_manifest,
    ref,
)
from flows.refs import ObjectRef
from settings.plain_yaml import documents

FINISHED: Final = frozenset({"Succeeded", "Failed"})
"""The phases of pods that have ended."""


class ManifestError(ValueError):
    """A file cannot be read, or an object in it; the text names file, object and field."""


@dataclass
class Manifests:
    """What some files hold."""

    objects: dict[ObjectRef, Object] = field(default_factory=dict)
    workloads: dict[ObjectRef, Workload] = field(default_factory=dict)
    addresses: dict[ObjectRef, IPv4Address] = field(default_factory=dict)
    """What `status.podIP` says of Pods. A controller never believes it; here nothing else is."""
    finished: set[ObjectRef] = field(default_factory=set)
    """Pods that have ended."""
    problems: list[str] = field(default_factory=list)
    """What cannot be read, with file, object and field."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How many objects there are of kinds that policies do not depend on."""

    def read(self, path: Path) -> None:
        """Read a file, or all manifests below a directory. Raises `ManifestError`."""
        if not path.is_dir():
            self.take(_text(path), str(path))
            return
        for file in sorted(path.rglob("*")):
            if is_manifest(file) and file.is_file():
                try:
                    self.take(_text(file), str(file.relative_to(path)))
                except ManifestError as error:
                    self.problems.append(str(error))

    def take(self, text: str, name: str) -> None:
        """Take in the objects of a text. Raises `ManifestError` if it cannot be read at all."""
        try:
            for content in items(_documents(text)):
                try:
                    self._take(content, name)
                except ObjectError as error:
                    self.problems.append(f"{name}: {error}")
        except ValueError as error:
            raise ManifestError(f"{name} cannot be read: {error}") from error

    def _take(self, content: Any, name: str) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if isinstance(kind, str) and kind in KINDS:
            workload = read_workload(content)
            self.workloads[workload.ref] = workload
            return
        try:
            made = from_manifest(content)
        except UnknownKindError:
            if not isinstance(kind, str):
                raise
            self.ignored[kind] += 1
            return
        identity = ref(made)
        if identity in self.objects:
            self.problems.append(f"{name}: {identity} is there twice; the last one counts")
        self.objects[identity] = made
        if isinstance(made, PodObject):
            self._take_status(identity, content.get("status"))

    def _take_status(self, pod: ObjectRef, status: Any) -> None:
        if not isinstance(status, dict):
            return
        phase = status.get("phase")
        if isinstance(phase, str) and phase in FINISHED:
            self.finished.add(pod)
        if isinstance(text := status.get("podIP"), str):
            try:
                self.addresses[pod] = IPv4Address(text)
            except ValueError:
                self.problems.append(f"{pod}: status.podIP: {text[:80]!r} is not an IPv4 address")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
        if len(content) > MAX_FILE_SIZE:
            raise ManifestError(f"{path} has more than {MAX_FILE_SIZE >> 20} MiB")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ManifestError(f"{path} cannot be read: {why}") from error


def _documents(text: str) -> Iterator[Any]:
    if text.lstrip()[:1] == "{":
        try:
            # JSON is YAML as well, but this is a hundred times as fast.
            yield msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass  # The reader of YAML says where it is wrong.
        else:
            return
    yield from documents(text)
