"""Work that is done in slices, so that it does not hold the event loop."""

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")

SLICE: Final = 200
"""Groups, Namespaces, members or keys that are looked at before the event loop may have its turn.
"""
NOWHERE: Final[dict[str, None]] = {}
"""No nodes; never changed. There are very many objects of which mostly no node waits."""
Slices: TypeAlias = Generator[None, None, T]
"""A generator that yields where it may wait, and returns its result."""


def complete(work: Slices[T]) -> T:
    """Do all of it now."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
