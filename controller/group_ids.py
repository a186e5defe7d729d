"""The ids of groups. They do not depend on the order in which a controller learns of groups."""

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
    """Whether such a group belongs to the program of a node, not to the shared one."""
    of = variant.partition(" of ")[2] if variant.startswith("part ") else variant
    return of in {"local", "node"}


class GroupIds:
    """Each group has an endless sequence of candidate ids, made of hashes, and gets one.

    Of two groups with one candidate the first by name gets the id, and the other goes on to its
    next. The result is the same as if all groups were taken in the order of their names, so
    groups can be added and removed one at a time. The methods return the groups whose ids changed.
    """

    def __init__(self, ids: range = names.GROUPS) -> None:
        self._range = ids
        self._ids: dict[GroupKey, int] = {}
        self._holders: dict[int, GroupKey] = {}
        self._rejected: dict[GroupKey, list[int]] = {}
        """By group, the candidates that it could not get, because other groups have them."""
        self._waiting: dict[int, set[GroupKey]] = {}
        """The inverse: by id, the groups that could not get it."""

    def __getitem__(self, key: GroupKey) -> int:
        """Raises `KeyError` for one that has none."""
        return self._ids[key]

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, key: GroupKey) -> set[GroupKey]:
        """Give a new group its id; the groups whose ids changed by that."""
        moved: set[GroupKey] = set()
        while True:
            wanted = self._candidate(key, len(self._rejected.get(key, ())))
            holder = self._holders.get(wanted)
            if holder is not None and holder < key:
                self._reject(key, wanted)
                continue
            self._holders[wanted] = key
            self._ids[key] = wanted
            if holder is None:
                return moved
            moved.add(holder)
            self._reject(holder, wanted)
            key = holder

    def give_back(self, key: GroupKey) -> set[GroupKey]:
        """Take the id of a group that is gone; the groups whose ids changed by that."""
        self._forget_rejected(key, 0)
        free = self._ids.pop(key)
        del self._holders[free]
        moved: set[GroupKey] = set()
        while waiting := self._waiting.get(free):
            heir = min(waiting)
            moved.add(heir)
            self._forget_rejected(heir, self._rejected[heir].index(free))
            self._holders[free] = heir
            self._ids[heir], free = free, self._ids[heir]
            del self._holders[free]
        return moved

    def _candidate(self, key: GroupKey, number: int) -> int:
        digest = hashlib.sha256(repr((*key, number)).encode()).digest()
        # Shared groups and a node's own are sent separately. If an id moved from one to the
        # other, one message could delete the group after another message had set it.
        half = len(self._range) // 2
        ids = self._range[half:] if is_of_a_node(key.variant) else self._range[:half]
        return ids[int.from_bytes(digest[:8], "big") % len(ids)]

    def _reject(self, key: GroupKey, wanted: int) -> None:
        self._rejected.setdefault(key, []).append(wanted)
        self._waiting.setdefault(wanted, set()).add(key)

    def _forget_rejected(self, key: GroupKey, start: int) -> None:
        """Forget its rejected candidates from this position on."""
        rejected = self._rejected.pop(key, [])
        if start:
            self._rejected[key] = rejected[:start]
        # A sequence may hold an id twice.
        for number in {*rejected[start:]} - {*rejected[:start]}:
            self._waiting[number].discard(key)
            if not self._waiting[number]:
                del self._waiting[number]
