"""Files with Kubernetes objects."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

MAX_FILE_SIZE: Final = 64 << 20
"""Bytes. Reading a file takes about ten times as much memory."""


def is_manifest(path: Path) -> bool:
    """Whether a file of this name holds objects."""
    return path.suffix in {".yaml", ".yml", ".json"} and not path.name.startswith(".")


def items(contents: Iterable[Any]) -> Iterator[Any]:
    """The objects of some documents: those of a `List` one by one."""
    for document in contents:
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            yield from items if isinstance(items, list) else [items]
        elif document is not None:
            yield document
