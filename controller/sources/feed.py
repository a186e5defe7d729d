"""The interface between a source and the controller."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Final, Protocol, TypeVar

from controller.problems import Subject
from controller.sources.objects import Object
from flows.refs import ObjectRef

OBJECTS_AT_ONCE: Final = 50
"""Objects that a source feeds before the event loop has its turn."""

T = TypeVar("T")


async def in_slices(items: Iterable[T], size: int = OBJECTS_AT_ONCE) -> AsyncIterator[list[T]]:
    """Up to `size` items at a time; the event loop has its turn before each further slice."""
    remaining = iter(items)
    found = list(islice(remaining, size))
    while found:
        yield found
        found = list(islice(remaining, size))
        if found:
            await asyncio.sleep(0)


class Feed(Protocol):
    """Takes in what a source learns. All calls come from the event loop."""

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        """Objects added or changed, and references to those that are gone."""

    def report(self, subject: Subject, problem: str) -> None:
        """Say what is wrong with a subject of the source; empty: nothing any more."""

    def source_complete(self, whole: bool) -> None:
        """All of the source was read once; `whole`: nothing of it was unreadable.

        Nothing is removed from a switch before the source was read as a whole.
        """
