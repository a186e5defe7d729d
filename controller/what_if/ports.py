"""Ports, cut into pieces so small that policies treat all ports of a piece alike."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from controller.service_fields import PROTOCOL_NAMES
from flows.policy import PortRange, PortSet

FIRST_PORT: Final = 1
LAST_PORT: Final = 65_535
OTHER: Final = 0
"""Stands for all protocols without ports, for example ICMP."""


class Piece(NamedTuple):
    """Ports of one protocol that all policies treat alike."""

    protocol: int
    """IANA's number, or `OTHER`."""
    first: int
    last: int
    """Inclusive."""


Signature = frozenset[int]
"""The ids of the port sets that hold a piece. Pieces with one signature are treated alike."""


def pieces(sets: Mapping[int, PortSet]) -> dict[Piece, Signature]:
    """All pieces of all protocols, cut at the boundaries of these sets."""
    found: dict[Piece, Signature] = {Piece(OTHER, 0, 0): frozenset()}
    for protocol in PROTOCOL_NAMES:
        begins: dict[int, list[int]] = {FIRST_PORT: []}
        ends: dict[int, list[int]] = {}
        for number, ports in sets.items():
            for first, last in _merged(ports.ranges, protocol):
                begins.setdefault(first, []).append(number)
                ends.setdefault(last + 1, []).append(number)
        holding: set[int] = set()
        places = sorted({*begins, *ends} - {LAST_PORT + 1})
        for place, following in zip(places, [*places[1:], LAST_PORT + 1], strict=True):
            holding -= {*ends.get(place, ())}
            holding |= {*begins.get(place, ())}
            found[Piece(protocol, place, following - 1)] = frozenset(holding)
    return found


def _merged(ranges: Iterable[PortRange], protocol: int) -> Iterator[tuple[int, int]]:
    """The ports of one protocol as ranges that neither overlap nor touch."""
    spans = sorted(
        (FIRST_PORT, LAST_PORT) if first is None or last is None else (max(first, FIRST_PORT), last)
        for of, first, last in ranges
        if of == protocol
    )
    current: tuple[int, int] | None = None
    for first, last in spans:
        if current is not None and first <= current[1] + 1:
            current = current[0], max(current[1], last)
            continue
        if current is not None:
            yield current
        current = first, last
    if current is not None:
        yield current


def in_words(given: Iterable[Piece], everything: Iterable[Piece]) -> list[str]:
    """`80/TCP`, `1000-2000/UDP`, `TCP but 80`, ...: as short as it can be.

    `everything` are all pieces that `given` was taken from.
    """
    chosen, missing = set(given), set(everything) - set(given)
    if not missing:
        return ["every port and protocol"]
    words: list[str] = []
    for protocol in sorted({piece.protocol for piece in chosen}, key=lambda p: (p == OTHER, p)):
        mine = _joined(piece for piece in chosen if piece.protocol == protocol)
        others = _joined(piece for piece in missing if piece.protocol == protocol)
        name = PROTOCOL_NAMES.get(protocol, "ICMP and other protocols")
        if not others:
            words.append(name if protocol == OTHER else f"all {name}")
        elif len(mine) > len(others):
            words.append(f"{name} but {', '.join(map(_range, others))}")
        else:
            words += [f"{_range(each)}/{name}" for each in mine]
    return words


def _joined(given: Iterable[Piece]) -> list[Piece]:
    """Adjacent pieces of one protocol as one."""
    found: list[Piece] = []
    for piece in sorted(given):
        if found and found[-1].last + 1 == piece.first:
            found[-1] = found[-1]._replace(last=piece.last)
        else:
            found.append(piece)
    return found


def _range(piece: Piece) -> str:
    return str(piece.first) if piece.first == piece.last else f"{piece.first}-{piece.last}"
