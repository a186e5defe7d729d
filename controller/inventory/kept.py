"""A kind whose objects are kept as given. Others decide about them, and follow their changes."""

from collections.abc import Callable
from typing import Generic, TypeVar

from controller.sources.objects import Object
from flows.view import Key

T = TypeVar("T", bound=Object)


class KeptKind(Generic[T]):
    """All objects of one kind that has no namespace."""

    def __init__(self) -> None:
        self.objects: dict[str, T] = {}
        """By name."""
        self.followers: list[Callable[[str], None]] = []
        """Each is called with the name of an object that was added, changed or removed."""

    def get(self, namespace: str, name: str) -> T | None:
        """As `ObjectKind.get`."""
        return None if namespace else self.objects.get(name)

    def put(self, new: T) -> set[Key]:
        """As `ObjectKind.put`."""
        self.objects[new.metadata.name] = new
        return self._changed(new.metadata.name)

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        if not namespace and self.objects.pop(name, None) is not None:
            self._changed(name)
        return set()

    def _changed(self, name: str) -> set[Key]:
        for follower in self.followers:
            follower(name)
        return set()  # see `Inventory.settle`
