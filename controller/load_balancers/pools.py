"""AddressPools: what each one has, after what it must not have and what older pools have.

Addresses are numbers here. The size of a range costs nothing.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import accumulate
from typing import Final, NamedTuple

from controller.outside_addresses import NEVER, WAYS
from controller.policies.selectors import Selector, read_selector
from controller.sources.routed_objects import AddressPoolObject
from settings.plain_yaml import shown

MAX_POOLS: Final = 256
"""The oldest ones are used."""
MAX_ALL_RANGES: Final = 1_024
"""Of all pools together."""
MAX_RANGES: Final = 64
"""Of one pool, as the CRD has it."""
MAX_PROBLEMS: Final = 5
"""Of one pool that are named."""


class Interval(NamedTuple):
    """Addresses from the first to the last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        first, last = IPv4Address(self.first), IPv4Address(self.last)
        return f"{first}-{last}" if first != last else str(first)


@dataclass(frozen=True, slots=True)
class Pool:
    """An AddressPool: as given, or less what it must not have and what older pools have."""

    name: str
    age: tuple[str, str]
    """Sorts the older pool first."""
    intervals: tuple[Interval, ...]
    """Sorted, and apart from each other."""
    namespaces: Selector
    nodes: Selector
    auto_assign: bool
    announce: frozenset[str]
    """Of `controller.outside_addresses.WAYS`."""
    is_open: bool = True
    """False: it gives no further address, since nobody knows which namespaces may have one."""
    problems: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    """Of each interval, how many addresses end with it."""

    @property
    def size(self) -> int:
        """Addresses in it."""
        return self.ends[-1] if self.ends else 0

    def address(self, number: int) -> int:
        """The address of this number, from 0."""
        index = bisect_right(self.ends, number)
        return self.intervals[index].last + 1 - (self.ends[index] - number)


def interval_of(network: IPv4Network) -> Interval:
    """All addresses of a network."""
    return Interval(int(network.network_address), int(network.broadcast_address))


def read_pool(given: AddressPoolObject) -> Pool:
    """A pool as if there were no other. What cannot be read is left out, and is a problem."""
    spec, metadata = given.spec, given.metadata
    problems: list[str] = []
    namespaces, is_open = read_selector(spec.namespace_selector, "spec.namespaceSelector", problems)
    if not is_open:
        problems.append("it gives no further address until spec.namespaceSelector is valid")
    nodes, _ = read_selector(spec.node_selector, "spec.nodeSelector", problems)
    announce = frozenset(WAYS)
    if spec.announce is not None:
        announce = frozenset(spec.announce) & frozenset(WAYS)
        problems += [
            f"spec.announce[{number}]: {shown(way)} is neither {' nor '.join(WAYS)}"
            for number, way in enumerate(spec.announce[:MAX_RANGES])
            if way not in WAYS
        ]
    # One without a time is the youngest, as with Nodes.
    age = metadata.creation_timestamp or "never", metadata.name
    intervals = _read_ranges(spec.ranges or (), problems)
    return Pool(
        metadata.name, age, intervals, namespaces, nodes, spec.auto_assign, announce, is_open,
        tuple(problems),
    )  # fmt: skip


def _read_ranges(texts: Sequence[str], problems: list[str]) -> tuple[Interval, ...]:
    found: list[Interval] = []
    if not texts:
        problems.append("spec.ranges is empty")
    if len(texts) > MAX_RANGES:
        problems.append(
            f"spec.ranges: {len(texts)} are more than {MAX_RANGES}; only the first of them are used"
        )
    for number, text in enumerate(texts[:MAX_RANGES]):
        try:
            read = _read_range(text)
        except ValueError as error:
            problems.append(f"spec.ranges[{number}]: {shown(text)} {error}")
            continue
        if other := next(iter(_common(found, read)), None):
            problems.append(f"spec.ranges[{number}]: {read} overlaps {other} of the same pool")
        for each in list(_less(read, _common(found, read))):
            insort(found, each)
    return tuple(found)


def _read_range(text: str) -> Interval:
    """Raises `ValueError`, whose text continues the sentence that names the range."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if ":" in text:
        raise ValueError("is not IPv4; this cluster is IPv4-only")
    try:
        if not dash:
            return interval_of(IPv4Network(first))
        ends = IPv4Address(first), IPv4Address(last)
    except ValueError:
        raise ValueError("is neither a CIDR nor FIRST-LAST") from None
    if int(ends[0]) > int(ends[1]):
        raise ValueError("ends before it begins")
    return Interval(int(ends[0]), int(ends[1]))


def _overlap(one: Interval, other: Interval) -> bool:
    return one.first <= other.last and other.first <= one.last


def _common(taken: Sequence[Interval], interval: Interval) -> Sequence[Interval]:
    """Those that overlap it. `taken` is sorted, and its intervals are apart from each other."""
    begin = max(0, bisect_right(taken, interval) - 1)
    end = bisect_right(taken, Interval(interval.last + 1, -1))
    return [each for each in taken[begin:end] if _overlap(each, interval)]


def _less(interval: Interval, taken: Iterable[Interval]) -> Iterator[Interval]:
    """The interval without these, which are sorted and apart from each other."""
    first = interval.first
    for other in taken:
        if first < other.first:
            yield Interval(first, other.first - 1)
        first = max(first, other.last + 1)
    if first <= interval.last:
        yield Interval(first, interval.last)


class Pools:
    """All pools of the cluster. They do not depend on the order in which they are given.

    An address is of one pool: of several that have it, of the oldest.
    """

    def __init__(
        self, given: Iterable[Pool] = (), reserved: Iterable[tuple[str, Interval]] = ()
    ) -> None:
        """`reserved`: what no pool may have, and what it is called."""
        self.all: tuple[Pool, ...] = ()
        """Oldest first."""
        self.problems: dict[str, list[str]] = {}
        """By pool."""
        self._taken: list[Interval] = []
        """Sorted, and apart from each other."""
        self._holders: dict[Interval, str] = {}
        """By interval, its pool; or what is there, in words."""
        self._by_name: dict[str, Pool] = {}
        never = ((text, interval_of(network)) for text, network in NEVER)
        for text, interval in (*never, *reserved):
            for each in list(_less(interval, _common(self._taken, interval))):
                self._take(each, text)
        ranges = 0
        for number, draft in enumerate(sorted(given, key=lambda pool: pool.age)):
            ranges += len(draft.intervals)
            if number >= MAX_POOLS or ranges > MAX_ALL_RANGES:
                self.problems[draft.name] = [
                    f"it is not used: only the {MAX_POOLS} oldest pools are, with no more than"
                    f" {MAX_ALL_RANGES} ranges together"
                ]
                continue
            self._add(draft)
        self.all = tuple(self._by_name.values())

    def _add(self, draft: Pool) -> None:
        problems = list(draft.problems)
        left: list[Interval] = []
        for interval in draft.intervals:
            common = _common(self._taken, interval)
            left += _less(interval, common)
            problems += [
                f"spec.ranges: {interval} overlaps {self._called(each)}; what both have is left"
                " out here"
                for each in common[:MAX_PROBLEMS]
            ]
        ends = tuple(accumulate(each.last + 1 - each.first for each in left))
        self._by_name[draft.name] = replace(draft, intervals=tuple(left), ends=ends)
        for each in left:
            self._take(each, draft.name)
        if problems:
            self.problems[draft.name] = problems

    def _take(self, interval: Interval, holder: str) -> None:
        insort(self._taken, interval)
        self._holders[interval] = holder

    def _called(self, interval: Interval) -> str:
        holder = self._holders[interval]
        if holder in self._by_name:
            return f"{interval} of AddressPool {holder}, which is older"
        return f"{holder} ({interval})"

    def __bool__(self) -> bool:
        return bool(self.all)

    def named(self, name: str) -> Pool | None:
        """The pool of this name."""
        return self._by_name.get(name)

    def of(self, address: int) -> Pool | None:
        """The pool that has an address."""
        found = _common(self._taken, Interval(address, address))
        return self._by_name.get(self._holders[found[0]]) if found else None


NO_POOLS: Final = Pools()
