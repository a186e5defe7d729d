"""Blocks of addresses: `ipBlock` with `except`, and the union of several of them."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from controller.policies.slices import Slices
from flows.policy import PeerBlock
from settings.plain_yaml import shown

_IPV4: Final = re.compile(
    r"(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})"
    r"/(0|[1-9][0-9]?)"
)
SLICE: Final = 500
"""Blocks that are read, or sorted in, before the event loop may have its turn."""


class Range(NamedTuple):
    """An IPv4 range: its first address as a number, and the length of its prefix."""

    first: int
    length: int

    @property
    def last(self) -> int:
        """The last address."""
        return self.first | (0xFFFF_FFFF >> self.length)

    def contains(self, other: "Range") -> bool:
        """Whether all addresses of another range are in this one."""
        return self.length <= other.length and self.first <= other.first <= self.last

    def __str__(self) -> str:
        return str(IPv4Network(self))


class Block(NamedTuple):
    """A range without some parts of it."""

    range: Range
    excepts: tuple[Range, ...] = ()


def read_block(
    cidr: str, excepts: Iterable[str], field: str, problems: list[str]
) -> Slices[Block | None]:
    """Read a block; None if it has no addresses.

    An `except` that cannot be read could be any part of the block: then it has no addresses.
    """
    whole = read_range(cidr, f"{field}.cidr", problems)
    found: list[Range] = []
    unreadable = False
    for number, text in enumerate(excepts):
        if number % SLICE == SLICE - 1:
            yield
        at = f"{field}.except[{number}]"
        if (made := read_range(text, at, problems)) is None:
            unreadable = True
        elif whole is not None:
            if made == whole:
                problems.append(f"{at}: {text} is the whole block")
            elif not whole.contains(made):
                problems.append(f"{at}: {text} is not a part of {cidr}")
                continue
            found.append(made)
    if whole is None or unreadable:
        return None
    return Block(whole, tuple(found))


def read_range(text: str, field: str, problems: list[str]) -> Range | None:
    """Read an IPv4 range. Bits of the host are a problem, and count as 0."""
    parts = _IPV4.fullmatch(text)
    numbers = [int(part) for part in parts.groups()] if parts else []
    if not numbers or max(numbers[:4]) > 255 or numbers[4] > 32:
        problems.append(f"{field}: {shown(text)} is {_why_not(text)}")
        return None
    a, b, c, d, length = numbers
    address = a << 24 | b << 16 | c << 8 | d
    first = address & (0xFFFF_FFFF << (32 - length))
    if first != address:
        problems.append(
            f"{field}: {text} has bits of the host; it counts as {Range(first, length)}"
        )
    return Range(first, length)


def is_ipv6(text: str) -> bool:
    """Whether it is a range of IPv6 addresses."""
    try:
        IPv6Network(text, strict=False)
    except ValueError:
        return False
    return True


def _why_not(text: str) -> str:
    if is_ipv6(text):
        return "not IPv4: no address of this cluster is in it"
    return "not a range of addresses"


def union(blocks: Iterable[Block]) -> Slices[tuple[PeerBlock, ...]]:
    """The union of blocks as prefixes of which the longest decides.

    A prefix is a member if it is in a block and in none of that block's `except`. Prefixes that
    change nothing are left out.
    """
    marks: dict[Range, list[tuple[int, bool]]] = {}
    for number, block in enumerate(blocks):
        if number % SLICE == SLICE - 1:
            yield
        marks.setdefault(block.range, []).append((number, True))
        for part in block.excepts:
            marks.setdefault(part, []).append((number, False))
    result: list[PeerBlock] = []
    open_: list[tuple[Range, bool]] = []
    # How many ranges of a block and of its excepts contain the place where we are.
    inside: dict[int, int] = {}
    outside: dict[int, int] = {}
    effective = 0
    for done, each in enumerate(sorted(marks)):
        if done % SLICE == SLICE - 1:
            yield
        while open_ and not open_[-1][0].contains(each):
            left, _ = open_.pop()
            effective -= _enter(marks[left], inside, outside, -1)
        effective += _enter(marks[each], inside, outside, 1)
        is_member = effective > 0
        if is_member != (open_[-1][1] if open_ else False):
            result.append(PeerBlock(IPv4Network(each), is_member))
        open_.append((each, is_member))
    return tuple(result)


def _enter(
    marks: list[tuple[int, bool]], inside: dict[int, int], outside: dict[int, int], by: int
) -> int:
    """Enter a range (by 1) or leave it (by -1), and count the blocks that are open at that place.

    Returns how many more of them there are after entering, or how many fewer after leaving.
    """
    concerned = {number for number, _ in marks}
    before = sum(_is_open(number, inside, outside) for number in concerned)
    for number, of_block in marks:
        counts = inside if of_block else outside
        counts[number] = counts.get(number, 0) + by
    after = sum(_is_open(number, inside, outside) for number in concerned)
    return (after - before) * by


def _is_open(number: int, inside: dict[int, int], outside: dict[int, int]) -> bool:
    return inside.get(number, 0) > 0 and outside.get(number, 0) == 0


class Lookup:
    """Answers which addresses are in a union of blocks."""

    __slots__ = ("_by_length",)

    def __init__(self) -> None:
        self._by_length: list[tuple[int, dict[int, bool]]] = []

    @classmethod
    def of(cls, blocks: Iterable[PeerBlock]) -> Slices["Lookup"]:
        """Make one."""
        made = cls()
        lengths: dict[int, dict[int, bool]] = {}
        for done, block in enumerate(blocks):
            if done % SLICE == SLICE - 1:
                yield
            network = block.network
            prefixes = lengths.setdefault(network.prefixlen, {})
            prefixes[int(network.network_address)] = block.is_member
        made._by_length = sorted(lengths.items(), key=lambda pair: -pair[0])
        return made

    def __contains__(self, address: int) -> bool:
        for length, prefixes in self._by_length:
            found = prefixes.get(address & (0xFFFF_FFFF << (32 - length)) & 0xFFFF_FFFF)
            if found is not None:
                return found
        return False
