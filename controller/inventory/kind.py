"""The shape of every kind of object that the inventory knows.

A kind is one file with one class: it holds the objects as given, decides which of them are used,
keeps its part of the view up to date and reports what it refuses. To add one, write that class and
register it in `Inventory`. A kind that depends on another kind is added to `followers` of that one.
"""

from typing import Any, Protocol

from controller.sources.objects import Object
from flows.view import Key


class ObjectKind(Protocol):
    """All objects of one kind. `put` and `remove` return the keys of the view that they changed."""

    def get(self, namespace: str, name: str) -> Object | None:
        """An object of the source, accepted or refused."""

    def put(self, new: Any) -> set[Key]:
        """An object was added or changed."""

    def remove(self, namespace: str, name: str) -> set[Key]:
        """An object was removed."""
