"""The file of a support bundle: tar.zst with members of known names.

A bundle may come from anybody. Members are read into memory by an allow list of names, each one and
all together with a bound. Nothing is ever extracted to disk.
"""

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from wire.sentences import HIDDEN

VERSION: Final = 1
"""Of the form. A program refuses a bundle of another version."""
FOLDER: Final = "sluice-bundle"
"""All members are in it."""
HEADER: Final = "bundle.json"
CLUSTER: Final = "cluster.jsonl"
STATUS: Final = "status.json"
SETTINGS: Final = "settings.json"
METRICS: Final = "metrics.txt"
CHECK: Final = "check.json"
MOST_FLOW_NODES: Final = 64
"""Nodes of which a bundle has the flows."""
LARGEST_FILE: Final = 1 << 30
"""Bytes, compressed."""
LARGEST_MEMBER: Final = 256 << 20
"""Bytes. The objects of 5,000 nodes and 150,000 pods have some 60 MB."""
LARGEST_TOTAL: Final = 1 << 30
"""Bytes of all members."""
MOST_MEMBERS: Final = 1_000
_ALLOWED: Final = re.compile(
    r"(bundle|status|settings|check)\.json|cluster\.jsonl|metrics\.txt|flows/[0-9]{1,4}\.json"
)
_HARMLESS: Final = re.compile(rf"{FOLDER}(/[a-z0-9][a-z0-9.-]{{0,63}}){{1,3}}")
"""Names of members of later versions, which are not read."""
_BLOCK: Final = tarfile.BLOCKSIZE
_WINDOW: Final = 1 << 27
"""Bytes that decompression may hold: what `zstd` itself takes without being told more."""
_ESCAPED: Final = re.compile(rb"(?<!\\)(?:\\\\)*+\\[ubrf]")
"""A control character as JSON has it. Texts of Sluice have none but line breaks and tabs.

What is repeated is not given up again (`*+`): that would take much memory for many backslashes."""
_HIDDEN: Final = re.compile(f"[{HIDDEN}]".replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f"))
_PLAIN: Final = bytes([*b"\n\t", *range(0x20, 0x7F)])
"""What most texts consist of. To find that out is much faster than the regular expression."""
_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class BundleError(ValueError):
    """The bundle cannot be read; the text says why, in one sentence."""


class Header(msgspec.Struct, frozen=True, rename="camel"):
    """What is in a bundle, and what is not."""

    version: int
    made: datetime
    program: str
    """Version of Sluice that made it."""
    flows: dict[str, str] = {}
    """By node, the member with its flows."""
    missing: dict[str, str] = {}
    """What could not be read, and why."""


# --- write ---


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a bundle, whole or not at all; the file is its owner's alone.

    Raises `OSError`, also where the file exists.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, members)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # Unlike a rename, it replaces nothing.
    finally:
        with suppress(OSError):
            Path(temporary).unlink()


def _write(file: IO[bytes], members: Mapping[str, bytes]) -> None:
    import zstandard  # noqa: PLC0415  see `read`

    compressor = zstandard.ZstdCompressor(level=6)
    with (
        compressor.stream_writer(file, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode = len(content), 0o600
            entry.mtime = int(datetime.now(UTC).timestamp())
            archive.addfile(entry, io.BytesIO(content))


# --- read ---


def is_bundle(path: Path) -> bool:
    """Whether this is a bundle, or a directory with the members of one."""
    if path.is_dir():
        return (path / HEADER).is_file()
    if not path.is_file():
        return False  # What is read of a pipe here would be missing later.
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
    return False


def read(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The members that are wanted, by name, and the header. Raises `BundleError`."""
    import zstandard  # noqa: PLC0415  most commands read no bundle

    try:
        found = _of_folder(path, wanted) if path.is_dir() else _of_archive(path, wanted)
    except (OSError, zstandard.ZstdError, tarfile.HeaderError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BundleError(f"{path}: it is no bundle, or damaged: {why}") from error
    if HEADER not in found:
        raise BundleError(f"{path}: it is no bundle of Sluice: it has no {HEADER}")
    for name, content in found.items():
        _check_text(path, name, content)
    return found


def header(path: Path, content: bytes) -> Header:
    """Of the member `HEADER`. Raises `BundleError`."""
    try:
        made = msgspec.json.decode(content, type=Header)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {HEADER} cannot be read: {error}") from error
    if made.version != VERSION:
        raise BundleError(
            f"{path}: the bundle has version {made.version}, and this program knows {VERSION}"
        )
    return made


def _of_folder(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    total = 0
    names = [HEADER, CLUSTER, STATUS, SETTINGS, METRICS, CHECK]
    names += [f"flows/{number}.json" for number in range(MOST_FLOW_NODES)]
    for name in names:
        if name != HEADER and not wanted(name):
            continue
        try:
            descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "rb") as file:
            found[name] = file.read(LARGEST_MEMBER + 1)
        total += len(found[name])
        if len(found[name]) > LARGEST_MEMBER or total > LARGEST_TOTAL:
            raise BundleError(f"{path}: {name} is larger than {_mib(LARGEST_MEMBER)}")
    return found


def _of_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    import zstandard  # noqa: PLC0415  see `read`

    found: dict[str, bytes] = {}
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST_FILE:
            raise BundleError(f"{path}: it is larger than {_mib(LARGEST_FILE)}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        with decompressor.stream_reader(file) as plain:
            reader = _Reader(path, plain)
            for _ in range(MOST_MEMBERS):
                entry = reader.entry()
                if entry is None:
                    return found
                name = _checked_name(path, entry)
                is_wanted = name is not None and (name == HEADER or wanted(name))
                content = reader.content(entry, keep=is_wanted)
                if name is not None and is_wanted:
                    if name in found:
                        raise BundleError(f"{path}: {name} is in it twice")
                    found[name] = content
    raise BundleError(f"{path}: it has more than {MOST_MEMBERS} members")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none: it has ended."""


class _Reader:
    """Reads a tar stream: plain entries only, so nothing in a header can ask for memory."""

    def __init__(self, path: Path, stream: Readable) -> None:
        self._path = path
        self._stream = stream
        self._total = 0

    def entry(self) -> tarfile.TarInfo | None:
        """The next entry; None: there is no further one."""
        block = self._read(_BLOCK)
        if not block.strip(b"\0"):
            return None
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")

    def content(self, entry: tarfile.TarInfo, *, keep: bool) -> bytes:
        """What belongs to the entry; empty if it is not kept."""
        if not 0 <= entry.size <= LARGEST_MEMBER:
            raise BundleError(
                f"{self._path}: {entry.name[:100]!r} is larger than {_mib(LARGEST_MEMBER)}"
            )
        parts: list[bytes] = []
        padded = -(-entry.size // _BLOCK) * _BLOCK
        while padded > 0:
            some = self._read(min(padded, 1 << 20))
            padded -= len(some)
            if keep:
                parts.append(some)
        return b"".join(parts)[: entry.size]

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            some = self._stream.read(left)
            if not some:
                raise BundleError(f"{self._path}: it is cut off")
            left -= len(some)
            parts.append(some)
        self._total += size
        if self._total > LARGEST_TOTAL:
            raise BundleError(
                f"{self._path}: it is larger than {_mib(LARGEST_TOTAL)} when it is decompressed"
            )
        return b"".join(parts)


def _checked_name(path: Path, entry: tarfile.TarInfo) -> str | None:
    """Without the folder; None: a later version's, or a folder. Raises `BundleError`."""
    shown = entry.name[:100]
    if entry.type not in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
        raise BundleError(f"{path}: {shown!r} is not a plain file, so this is no bundle of Sluice")
    name = entry.name.rstrip("/")
    if name != FOLDER and not _HARMLESS.fullmatch(name):
        raise BundleError(f"{path}: {shown!r} does not belong into a bundle of Sluice")
    if entry.isdir():
        return None
    name = name.removeprefix(f"{FOLDER}/")
    return name if _ALLOWED.fullmatch(name) else None


def _check_text(path: Path, name: str, content: bytes) -> None:
    """What is shown must not control a terminal. Raises `BundleError`."""
    try:
        is_plain = not content.translate(None, _PLAIN)
        hidden = None if is_plain else _HIDDEN.search(content.decode())
    except UnicodeDecodeError:
        raise BundleError(f"{path}: {name} is not UTF-8") from None
    if hidden or (b"\\" in content and _ESCAPED.search(content)):
        raise BundleError(f"{path}: {name} has characters that control a terminal")


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
