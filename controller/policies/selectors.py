"""Label selectors in a canonical form, and an index by what labels a selector requires."""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from controller.sources.policy_objects import LabelSelector, SelectorRequirement
from settings.plain_yaml import shown

OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")
NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
"""The label that the API server gives each Namespace: its name."""
MOST_SELECTORS: Final = 1_000
"""Peers with selectors that one policy may have. Each may match all pods of the cluster."""
MOST_REQUIREMENTS: Final = 100
"""Of one selector. It may be compared with every pod of the cluster, and with each new one."""
MOST_VALUES: Final = 1_000
"""Of one requirement."""
MOST_INDEXED_VALUES: Final = 16
"""A requirement `In` with more values is indexed by its key alone."""

# apimachinery, util/validation: IsQualifiedName and IsValidLabelValue.
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Labels: TypeAlias = Mapping[str, str]


class Requirement(NamedTuple):
    """What a selector requires of one label."""

    key: str
    operator: str
    """One of `OPERATORS`."""
    values: frozenset[str] = frozenset()
    """For `In` and `NotIn`."""

    def matches(self, labels: Labels) -> bool:
        """Whether these labels meet it. `NotIn` is met where the label is absent."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
        return value is None

    def __str__(self) -> str:
        """`app in (a, b)`, `app`, `!app`: as kubectl writes it."""
        match self.operator:
            case "In":
                return f"{self.key} in ({', '.join(sorted(self.values))})"
            case "NotIn":
                return f"{self.key} notin ({', '.join(sorted(self.values))})"
            case "Exists":
                return self.key
        return f"!{self.key}"


Selector: TypeAlias = tuple[Requirement, ...]
"""Requirements that all have to be met, sorted by their text; empty: it matches everything."""
EVERYTHING: Final[Selector] = ()


class Selection(NamedTuple):
    """The pods whose Namespace matches one selector and whose labels match another."""

    namespaces: Selector
    pods: Selector

    @property
    def is_everything(self) -> bool:
        """Whether it selects all pods."""
        return not self.namespaces and not self.pods

    def __str__(self) -> str:
        return f"{text_of(self.namespaces)} / {text_of(self.pods)}"


def matches(selector: Selector, labels: Labels) -> bool:
    """Whether these labels meet all requirements."""
    return all(requirement.matches(labels) for requirement in selector)


def text_of(selector: Selector) -> str:
    """`app in (a, b), !old`; `*` for the selector that matches everything."""
    return ", ".join(map(str, selector)) or "*"


@lru_cache(1_024)  # its policies come one after the other
def in_namespace(namespace: str) -> Selector:
    """The selector of one Namespace."""
    return (Requirement(NAMESPACE_NAME, "In", frozenset((namespace,))),)


def read_selector(
    given: LabelSelector | None, field: str, problems: list[str]
) -> tuple[Selector, bool]:
    """The canonical form of a selector, and whether all of it is valid; None matches everything.

    What is not valid is left out and added to `problems`, so the rest may match too much.
    """
    if given is None:
        return EVERYTHING, True
    found: set[Requirement] = set()
    before = len(problems)
    if len(given.match_labels or ()) + len(given.match_expressions or ()) > MOST_REQUIREMENTS:
        problems.append(f"{field}: {MOST_REQUIREMENTS} requirements are the most of a selector")
        return EVERYTHING, False
    for key, value in (given.match_labels or {}).items():
        if _is_valid(key, (value,), f"{field}.matchLabels", problems):
            found.add(_label(key, value))
    for number, each in enumerate(given.match_expressions or ()):
        if (
            made := _requirement(each, f"{field}.matchExpressions[{number}]", problems)
        ) is not None:
            found.add(made)
    return _canonical(found), len(problems) == before


def _canonical(found: Collection[Requirement]) -> Selector:
    return tuple(found) if len(found) < 2 else tuple(sorted(found, key=str))


@lru_cache(16_384)  # the policies of many Namespaces use the same labels
def _label(key: str, value: str) -> Requirement:
    return Requirement(key, "In", frozenset((value,)))


def _requirement(given: SelectorRequirement, field: str, problems: list[str]) -> Requirement | None:
    values = given.values or ()
    if given.operator not in OPERATORS:
        problems.append(
            f"{field}.operator: {shown(given.operator)} is none of {', '.join(OPERATORS)}"
        )
        return None
    if len(values) > MOST_VALUES:
        problems.append(f"{field}.values: {MOST_VALUES} are the most")
        return None
    if given.operator in {"In", "NotIn"}:
        if not values:
            problems.append(f"{field}.values: {given.operator} needs at least one value")
            return None
    elif values:
        problems.append(f"{field}.values: {given.operator} takes no values")
        return None
    if not _is_valid(given.key, values, field, problems):
        return None
    return Requirement(given.key, given.operator, frozenset(values))


def _is_valid(key: str, values: tuple[str, ...], field: str, problems: list[str]) -> bool:
    """Whether labels may have this key and these values."""
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)) or len(prefix) > 253:
        problems.append(f"{field}: {shown(key)} is not the key of a label")
        return False
    for value in values:
        if value and not _NAME.fullmatch(value):
            problems.append(f"{field}: {shown(value)} is not the value of a label")
            return False
    return True


T = TypeVar("T")
_Bucket: TypeAlias = dict[T, None]


class SelectorIndex(Generic[T]):
    """Things with a selector each. The cost of a look-up does not grow with those of other labels.

    Each is kept under one label that its selector requires. Only those whose selectors require none
    (`NotIn`, `DoesNotExist`) are looked at for all labels.
    """

    __slots__ = ("_by_key", "_by_pair", "_others", "_places")

    def __init__(self) -> None:
        self._by_pair: dict[tuple[str, str], _Bucket[T]] = {}
        self._by_key: dict[str, _Bucket[T]] = {}
        self._others: _Bucket[T] = {}
        self._places: dict[T, Requirement | None] = {}

    def __bool__(self) -> bool:
        return bool(self._places)

    def __iter__(self) -> Iterator[T]:
        return iter(self._places)

    def add(self, item: T, selector: Selector) -> None:
        """Add a thing with its selector."""
        required = [each for each in selector if each.operator in {"In", "Exists"}]
        best = required[0] if len(required) == 1 else min(required, key=self._crowd, default=None)
        self._places[item] = best
        for bucket, _, _ in self._buckets(best):
            bucket[item] = None

    def remove(self, item: T) -> None:
        """Remove it. Raises `KeyError` if it is not there."""
        for bucket, index, key in self._buckets(self._places.pop(item)):
            del bucket[item]
            if not bucket and index is not None:
                del index[key]

    def candidates(self, labels: Labels) -> Iterator[T]:
        """The things whose selectors may match these labels; each has to be checked."""
        yield from self._others
        for pair in labels.items():
            if (found := self._by_pair.get(pair)) is not None:
                yield from found
            if (found := self._by_key.get(pair[0])) is not None:
                yield from found

    def _crowd(self, requirement: Requirement) -> tuple[int, int]:
        if not _by_pairs(requirement):
            return 1, len(self._by_key.get(requirement.key, ()))
        pairs = [(requirement.key, value) for value in requirement.values]
        return 0, max(len(self._by_pair.get(pair, ())) for pair in pairs)

    def _buckets(
        self, requirement: Requirement | None
    ) -> Iterator[tuple[_Bucket[T], dict[object, _Bucket[T]] | None, object]]:
        index: dict[object, _Bucket[T]]
        if requirement is None:
            yield self._others, None, None
        elif _by_pairs(requirement):
            index = self._by_pair  # type: ignore[assignment]
            for value in requirement.values:
                pair = requirement.key, value
                yield index.setdefault(pair, {}), index, pair
        else:
            index = self._by_key  # type: ignore[assignment]
            yield index.setdefault(requirement.key, {}), index, requirement.key


def _by_pairs(requirement: Requirement) -> bool:
    return requirement.operator == "In" and len(requirement.values) <= MOST_INDEXED_VALUES
