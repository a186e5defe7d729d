"""Pairs of ends, gathered as rectangles and counted once each."""

from functools import cached_property

from controller.what_if.bits import numbers_of
from controller.what_if.ends import Ends
from flows.refs import ObjectRef


def pairs_of(ends: Ends, sources: int, destinations: int) -> int:
    """How many pairs of ends that exist a rectangle has.

    Without those that policies never decide about: a pod and itself, a node and its own pods.
    """
    sources &= ends.existing
    destinations &= ends.existing
    found = sources.bit_count() * destinations.bit_count()
    found -= (sources & destinations).bit_count()
    for node in numbers_of(sources & ends.all_node_clients):
        found -= (ends.node_clients[node] & destinations).bit_count()
    return found


class Rows:
    """Pairs of ends: for each source the set of its destinations."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._by_sources: dict[int, int] = {}
        """Rectangles that are not in `_rows` yet."""

    def add(self, sources: int, destinations: int) -> None:
        """Add all pairs of a rectangle."""
        if sources and destinations:
            self._by_sources[sources] = self._by_sources.get(sources, 0) | destinations

    @cached_property
    def rows(self) -> list[int]:
        """The destinations by the number of the source. Nothing may be added any more."""
        by_destinations: dict[int, int] = {}
        for sources, destinations in self._by_sources.items():
            by_destinations[destinations] = by_destinations.get(destinations, 0) | sources
        rows = [0] * len(self._ends)
        for destinations, sources in by_destinations.items():
            for number in numbers_of(sources):
                rows[number] |= destinations
        # What policies never decide about: a pod and itself, a node and its own pods.
        for number, row in enumerate(rows):
            rows[number] = row & ~(1 << number) & ~self._ends.node_clients.get(number, 0)
        return rows

    def subtract(self, other: "Rows") -> None:
        """Remove all pairs that the other has."""
        for number, row in enumerate(other.rows):
            self.rows[number] &= ~row

    @property
    def pairs(self) -> int:
        """How many pairs of ends that exist."""
        existing = self._ends.existing
        return sum(
            (row & existing).bit_count() for row in map(self.rows.__getitem__, numbers_of(existing))
        )

    def by_workload(self) -> dict[ObjectRef, int]:
        """By the workload of the source, the destinations."""
        found: dict[ObjectRef, int] = {}
        for number, row in enumerate(self.rows):
            if row:
                workload = self._ends.ends[number].workload
                found[workload] = found.get(workload, 0) | row
        return found

    @property
    def workload_pairs(self) -> int:
        """How many pairs of workloads."""
        members = self._ends.members.values()
        known: dict[int, int] = {}
        for destinations in (found := self.by_workload()).values():
            if destinations not in known:
                known[destinations] = sum(bool(destinations & each) for each in members)
        return sum(known[destinations] for destinations in found.values())
