"""Which connections two states of the policies allow, compared.

Pods with the same walks are one class: they accept the same peers. Ports in the same port sets are
treated alike. So the connections between two classes at one port are a rectangle: the sources that
the one accepts, times the destinations that the other accepts. No pair of pods is looked at by
itself, and only classes that the change concerns are compared.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from controller.what_if.classes import Class, Decided, Group, Side, Signatures
from controller.what_if.ports import Piece, Signature, pieces
from controller.what_if.rows import Rows
from controller.what_if.state import Decider, Evaluator, accepted
from flows.policy import EVERY_PORT, Direction, Walks

MOST_CHANGES: Final = 20_000
"""Changes that are kept with their details. All are counted."""


class _Found(NamedTuple):
    """A rectangle that is lost or gained, because of what one class decides."""

    direction: Direction
    decided: Decided
    lost: bool
    peers: int
    members: int
    """Of the class."""
    places: list[int]
    """At which ports."""


class Change(NamedTuple):
    """Connections that are lost or gained: from each source to each destination."""

    lost: bool
    before: Decider
    after: Decider
    sources: int
    destinations: int
    pieces: frozenset[Piece]


@dataclass(frozen=True)
class Comparison:
    """The outcome: what changes, and how much of it."""

    changes: tuple[Change, ...]
    more: int
    """Changes that are only counted in the rows."""
    lost: Rows
    gained: Rows
    kept: Rows
    """Pairs that the change concerns and that reach each other as before, at all ports."""
    pieces: Mapping[Piece, Any]
    """All pieces of ports."""


def compare(before: Evaluator, after: Evaluator) -> Comparison:
    """Compare two states of one cluster, with the same ends."""
    return _Comparing(before, after).run()


class _Comparing:
    def __init__(self, before: Evaluator, after: Evaluator) -> None:
        self._before, self._after = before, after
        self._ends = before.ends
        self._peers_differ: dict[int | None, bool] = {}
        self._to_pod = self._side(Direction.TO_POD)
        self._from_pod = self._side(Direction.FROM_POD)
        self._concerned = [
            (side, each)
            for side in (self._to_pod, self._from_pod)
            for each in side.classes
            if each.concerned
        ]
        self._usually_accept = self._accept_at(frozenset(), frozenset())
        self._lost, self._gained, self._kept = Rows(self._ends), Rows(self._ends), Rows(self._ends)
        self._found: dict[tuple[Class, int, bool, int, int], _Found] = {}

    def run(self) -> Comparison:
        classes = (*self._to_pod.classes, *self._from_pod.classes)
        used = frozenset[int]().union(*(sets for each in classes for sets in each.port_sets))
        old, new = self._before.state.port_sets, self._after.state.port_sets
        # A set that is not the same before and after is cut at the boundaries of both.
        both = {number: found for number, found in old.items() if number in used}
        both |= {~number: found for number, found in new.items() if number in used}
        cut = pieces(both)
        alike: dict[Signature, list[Piece]] = {}
        for piece, signature in cut.items():
            alike.setdefault(signature, []).append(piece)
        for place, signature in enumerate(alike):
            self._at(
                place,
                frozenset(number for number in signature if number >= 0),
                frozenset(~number for number in signature if number < 0),
            )
        self._kept.subtract(self._lost)
        self._kept.subtract(self._gained)
        by_place = [frozenset(same) for same in alike.values()]
        changes, more = _explained(self._found.values(), by_place)
        return Comparison(tuple(changes), more, self._lost, self._gained, self._kept, cut)

    # --- classes ---

    def _side(self, direction: Direction) -> Side:
        place = 0 if direction is Direction.FROM_POD else 1
        old, new = self._before.state, self._after.state
        # First by identity: most pods share the walks of others, and to hash them takes long.
        alike: dict[tuple[int, int], tuple[Walks | None, Walks | None, list[int]]] = {}
        nobody = None, None
        for pod in old.isolations.keys() | new.isolations.keys():
            if (number := self._ends.by_pod.get(pod)) is not None:
                one = old.isolations.get(pod, nobody)[place]
                two = new.isolations.get(pod, nobody)[place]
                alike.setdefault((id(one), id(two)), (one, two, []))[2].append(number)
        found: dict[tuple[Walks | None, Walks | None], int] = {}
        for one, two, numbers in alike.values():
            found[one, two] = found.get((one, two), 0) | self._ends.bits(numbers)
        rest = self._ends.all
        for bits in found.values():
            rest &= ~bits
        found[None, None] = found.get((None, None), 0) | rest
        taking_part = self._ends.opening if place == 0 else self._ends.accepting
        classes = [
            Class(
                pair,
                bits & taking_part,
                self._is_concerned(pair),
                (port_sets(self._before, pair[0]), port_sets(self._after, pair[1])),
            )
            for pair, bits in found.items()
            if bits & taking_part
        ]
        return Side(direction, classes, self._decided)

    def _is_concerned(self, pair: tuple[Walks | None, Walks | None]) -> bool:
        if pair[0] != pair[1]:
            return True
        old, new = self._before.state, self._after.state
        for walk in new.known_walks(pair[1]):
            if old.walks.get(walk.id) != walk:
                return True
            for step in walk.steps:
                if old.ranges(step.ports) != new.ranges(step.ports):
                    return True
                if self._after.is_untouched(step.peers):
                    continue
                if step.peers not in self._peers_differ:
                    self._peers_differ[step.peers] = self._before.peers(
                        step.peers
                    ) != self._after.peers(step.peers)
                if self._peers_differ[step.peers]:
                    return True
        return False

    def _decided(self, of: Class, direction: Direction, signatures: Signatures) -> Decided:
        key = signatures[0] & of.port_sets[0], signatures[1] & of.port_sets[1]
        found = of.decided.get(key)
        if found is None:
            old = self._before.decisions(of.walks[0], direction, key[0])
            new = self._after.decisions(of.walks[1], direction, key[1])
            found = of.decided[key] = Decided((old, new), accepted(old), accepted(new))
        return found

    def _accept_at(self, before: Signature, after: Signature) -> bool:
        """Whether any class that the change concerns accepts anybody at these ports."""
        for side, each in self._concerned:
            decided = self._decided(each, side.direction, (before, after))
            if decided.before | decided.after:
                return True
        return False

    # --- rectangles ---

    def _at(self, place: int, before: Signature, after: Signature) -> None:
        """Compare at all ports with these signatures."""
        if not (self._usually_accept or self._accept_at(before, after)):
            return
        self._from_pod.look(before, after)
        self._to_pod.look(before, after)
        for source, target in self._pairs():
            old = source.members & target.before, target.members & source.before
            new = source.members & target.after, target.members & source.after
            if old == new:
                self._kept.add(*old)
                continue
            self._kept.add(old[0] & new[0], old[1] & new[1])
            for lost, these, others in ((True, old, new), (False, new, old)):
                # The pairs of one rectangle that are not in the other are two rectangles.
                rows = self._lost if lost else self._gained
                for group, side, part in (
                    (target, self._to_pod, (these[0] & ~others[0], these[1])),
                    (source, self._from_pod, (these[0] & others[0], these[1] & ~others[1])),
                ):
                    if all(part):
                        rows.add(*part)
                        self._explain(place, lost, group, side, (before, after), part)

    def _pairs(self) -> Iterator[tuple[Group, Group]]:
        """The groups of sources and destinations that may accept each other, if concerned."""
        dense: list[Group] = []
        touching: dict[Group, list[Group]] = {}
        for source in self._from_pod.groups:
            if not source.is_sparse:
                dense.append(source)
                continue
            for target in self._to_pod.at(source.possible):
                touching.setdefault(target, []).append(source)
        for target in self._to_pod.groups:
            sources = (
                self._from_pod.at(target.possible)
                if target.is_sparse
                else [*dense, *touching.get(target, ())]
            )
            for source in sources:
                if target.concerned or source.concerned:
                    yield source, target

    def _explain(
        self,
        place: int,
        lost: bool,
        group: Group,
        side: Side,
        signatures: Signatures,
        part: tuple[int, int],
    ) -> None:
        """Note a rectangle, divided by the classes of the group that decides."""
        is_target = side.direction is Direction.TO_POD
        theirs, mine = part if is_target else part[::-1]
        for each in group.classes:
            own = each.members & mine
            if not own:
                continue
            decided = self._decided(each, side.direction, signatures)
            key = each, id(decided), lost, theirs, own
            if key in self._found:
                self._found[key].places.append(place)
            else:
                self._found[key] = _Found(side.direction, decided, lost, theirs, own, [place])


def _explained(
    found: Iterable[_Found], by_place: list[frozenset[Piece]]
) -> tuple[list[Change], int]:
    """The rectangles, divided by what decided before and after; and how many more there are."""
    more = 0
    changes: dict[tuple[bool, Decider, Decider, int, int], set[int]] = {}
    for direction, decided, lost, theirs, own, places in found:
        is_target = direction is Direction.TO_POD
        old, new = decided.decisions
        for before, peers_before in old:
            if before.accepts is not lost or not (some := theirs & peers_before):
                continue
            for after, peers_after in new:
                if after.accepts is lost or not (peers := some & peers_after):
                    continue
                pair = (peers, own) if is_target else (own, peers)
                key = (lost, before, after, *pair)
                if key in changes:
                    changes[key].update(places)
                elif len(changes) < MOST_CHANGES:
                    changes[key] = set(places)
                else:
                    more += 1
    return list(_merged(changes, by_place)), more


def port_sets(evaluator: Evaluator, walks: Walks | None) -> Signature:
    """The port sets that these walks use."""
    return frozenset(
        step.ports
        for walk in evaluator.state.known_walks(walks)
        for step in walk.steps
        if step.ports != EVERY_PORT
    )


def _merged(
    changes: Mapping[tuple[bool, Decider, Decider, int, int], set[int]],
    by_place: list[frozenset[Piece]],
) -> Iterator[Change]:
    """As few changes as possible: with one set of sources or destinations, and the same ports."""
    by_sources: dict[tuple[Any, ...], int] = {}
    for (lost, before, after, sources, destinations), places in changes.items():
        key = (lost, before, after, sources, frozenset(places))
        by_sources[key] = by_sources.get(key, 0) | destinations
    by_destinations: dict[tuple[Any, ...], int] = {}
    for (lost, before, after, sources, places), destinations in by_sources.items():
        key = (lost, before, after, destinations, places)
        by_destinations[key] = by_destinations.get(key, 0) | sources
    for (lost, before, after, destinations, places), sources in by_destinations.items():
        ports = frozenset[Piece]().union(*(by_place[place] for place in places))
        yield Change(lost, before, after, sources, destinations, ports)
