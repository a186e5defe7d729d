"""Which group has which id: the same in every replica, whatever it was told in which order."""

import hashlib
from typing import NamedTuple

from flows import names


class GroupKey(NamedTuple):
    """What a group is for; `variant` as `flows.view.ServicePort.groups` has it."""

    service: str
    port: str
    protocol: int
    variant: str


def is_of_a_node(variant: str) -> bool:
    """Whether a node that has such a group has it in a fragment of its own."""
    of = variant.partition(" of ")[2] if variant.startswith("part ") else variant
    return of in {"local", "node"}


class GroupIds:
    """Each group tries the ids of its own endless row of hashes and keeps the first it may.

    Of two that want one id the first by name has it, and the other goes on to its next. As all ids
    prefer the same names, only one way of sharing them out leaves nobody with a better claim
    than the holder's to an id that it would rather have: the one that names taken in their order
    would find. So coming and going may be done one at a time, and what moves is told.
    """

    def __init__(self, ids: range = names.GROUPS) -> None:
        self._range = ids
        self._ids: dict[GroupKey, int] = {}
        self._holders: dict[int, GroupKey] = {}
        self._refused: dict[GroupKey, list[int]] = {}
        """The ids that it would rather have, in their order."""
        self._waiting: dict[int, set[GroupKey]] = {}
        """The inverse: who would rather have this id."""

    def __getitem__(self, key: GroupKey) -> int:
        """Raises `KeyError` for one that has none."""
        return self._ids[key]

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, key: GroupKey) -> set[GroupKey]:
        """Give a new group its id; whose ids changed by that."""
        moved: set[GroupKey] = set()
        while True:
            wanted = self._wish(key, len(self._refused.get(key, ())))
            holder = self._holders.get(wanted)
            if holder is not None and holder < key:
                self._refuse(key, wanted)
                continue
            self._holders[wanted] = key
            self._ids[key] = wanted
            if holder is None:
                return moved
            moved.add(holder)
            self._refuse(holder, wanted)
            key = holder

    def give_back(self, key: GroupKey) -> set[GroupKey]:
        """Take the id of a group that is gone; whose ids changed by that."""
        self._forgive(key, 0)
        free = self._ids.pop(key)
        del self._holders[free]
        moved: set[GroupKey] = set()
        while waiting := self._waiting.get(free):
            heir = min(waiting)
            moved.add(heir)
            self._forgive(heir, self._refused[heir].index(free))
            self._holders[free] = heir
            self._ids[heir], free = free, self._ids[heir]
            del self._holders[free]
        return moved

    def _wish(self, key: GroupKey, number: int) -> int:
        digest = hashlib.sha256(repr((*key, number)).encode()).digest()
        # What all nodes share and what a node has of its own are sent apart. An id that went from
        # the one to the other would be deleted by the one after the other had set it.
        half = len(self._range) // 2
        ids = self._range[half:] if is_of_a_node(key.variant) else self._range[:half]
        return ids[int.from_bytes(digest[:8], "big") % len(ids)]

    def _refuse(self, key: GroupKey, wanted: int) -> None:
        self._refused.setdefault(key, []).append(wanted)
        self._waiting.setdefault(wanted, set()).add(key)

    def _forgive(self, key: GroupKey, start: int) -> None:
        """Forget what it was refused, from the one of this number on."""
        refused = self._refused.pop(key, [])
        if start:
            self._refused[key] = refused[:start]
        # A row may hold an id twice.
        for number in {*refused[start:]} - {*refused[:start]}:
            self._waiting[number].discard(key)
            if not self._waiting[number]:
                del self._waiting[number]
