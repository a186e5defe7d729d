"""Pods with the same walks are a class; classes that accept the same ends are a group."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, NamedTuple, TypeAlias

from controller.what_if.bits import numbers_of
from controller.what_if.ports import Signature
from controller.what_if.state import Decisions
from flows.policy import Direction, Walks

SPARSE: Final = 64
"""Ends that a group accepts, up to which its pairs are found by looking at each of them."""

Signatures: TypeAlias = tuple[Signature, Signature]
"""Of the port sets before and after."""
_Accepted: TypeAlias = tuple[int, int, bool]
"""The ends that a class accepts before and after, and whether it is concerned."""
_Decide: TypeAlias = Callable[["Class", Direction, Signatures], "Decided"]


@dataclass(eq=False)
class Class:
    """Ends with the same walks in one direction, before and after."""

    walks: tuple[Walks | None, Walks | None]
    members: int
    concerned: bool
    """Whether the change may make its members behave differently."""
    port_sets: tuple[Signature, Signature]
    """Those that its walks use, before and after."""
    decided: dict[Signatures, "Decided"] = field(default_factory=dict)


class Decided(NamedTuple):
    """What a class decides at some ports, and which ends it accepts."""

    decisions: tuple[Decisions, Decisions]
    before: int
    after: int


@dataclass(eq=False)
class Group:
    """Members of classes that accept the same ends, at some ports."""

    before: int
    after: int
    concerned: bool
    members: int = 0
    classes: list[Class] = field(default_factory=list)
    """Some of them may have no member here."""

    def copy(self) -> "Group":
        """A group with the same members, which may get others."""
        return replace(self, classes=[*self.classes])

    @cached_property
    def possible(self) -> int:
        """The ends that it accepts, before or after."""
        return self.before | self.after

    @cached_property
    def is_sparse(self) -> bool:
        """Whether it is cheaper to look at each end that it accepts than at all groups."""
        return self.possible.bit_count() <= SPARSE


class Side:
    """The classes of one direction, and which of them belong together at which ports."""

    def __init__(self, direction: Direction, classes: list[Class], decide: _Decide) -> None:
        self.direction = direction
        self.classes = classes
        self.groups: list[Group] = []
        """The groups at the ports of the last `look`."""
        self._decide = decide
        self._class_of = {n: each for each in classes for n in numbers_of(each.members)}
        self._by_port_set: dict[int, list[Class]] = {}
        for each in classes:
            for key in {*each.port_sets[0], *(~number for number in each.port_sets[1])}:
                self._by_port_set.setdefault(key, []).append(each)
        self._usual: dict[_Accepted, Group] = {}
        """The groups at ports that no port set holds."""
        self._usual_of: dict[Class, Group | None] = {}
        for each in classes:
            self._usual_of[each] = self._join(each, (frozenset(), frozenset()), self._usual)
        self._moved: dict[Group, Group] = {}
        """Usual groups that have other members at the ports of the last `look`."""
        self._special_of: dict[Class, Group | None] = {}
        """The group of each class that accepts others than usual there."""

    def look(self, before: Signature, after: Signature) -> None:
        """Group the classes at the ports with these signatures."""
        keys = [*before, *(~number for number in after)]
        special = dict.fromkeys(e for key in keys for e in self._by_port_set.get(key, ()))
        self._moved = {}
        for each in special:
            usual = self._usual_of[each]
            if usual is not None:
                moved = self._moved.get(usual)
                if moved is None:
                    moved = self._moved[usual] = usual.copy()
                moved.members &= ~each.members
        found: dict[_Accepted, Group] = {}
        self._special_of = {each: self._join(each, (before, after), found) for each in special}
        self.groups = [self._moved.get(group, group) for group in self._usual.values()]
        self.groups += found.values()
        self.groups = [group for group in self.groups if group.members]

    def _join(
        self, new: Class, signatures: Signatures, groups: dict[_Accepted, Group]
    ) -> Group | None:
        """Add a class to its group; None: it accepts nobody."""
        decided = self._decide(new, self.direction, signatures)
        if not decided.before | decided.after:
            return None
        key = decided.before, decided.after, new.concerned
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(*key)
        group.members |= new.members
        group.classes.append(new)
        return group

    def at(self, ends: int) -> set[Group]:
        """The groups that these ends are in."""
        found: set[Group] = set()
        for number in numbers_of(ends):
            of = self._class_of.get(number)
            if of is None:
                continue
            if of in self._special_of:
                group = self._special_of[of]
            elif (group := self._usual_of[of]) is not None:
                group = self._moved.get(group, group)
            if group is not None:
                found.add(group)
        return found
