"""Ids of walks and sets: digests of names, and what happens where two names have one digest."""

from bisect import insort
from typing import Generic, Protocol, TypeVar

from flows import policy


class Named(Protocol):
    """Something with a name and an id."""

    name: str
    number: int
    is_refused: bool


N = TypeVar("N", bound=Named)


class Ids(Generic[N]):
    """Who has which id. Of several names with one digest the first one by name has the id.

    64 bits: among 100,000 names that has a probability of 3 in 10 billion. The others are refused,
    because sets that share an id would be one set.
    """

    def __init__(self) -> None:
        self._holders: dict[int, N] = {}
        self._rivals: dict[int, list[tuple[str, N]]] = {}
        """Of ids that several claim, all of them by name."""

    def __len__(self) -> int:
        return len(self._holders)

    def number(self, name: str) -> int:
        """The id of this name."""
        return policy.policy_digest(name)

    def claim(self, new: N) -> set[N]:
        """Claim an id for something new. Returns the others whose `is_refused` changed."""
        holder = self._holders.get(new.number)
        if holder is None:
            self._holders[new.number] = new
            return set()
        rivals = self._rivals.setdefault(new.number, [(holder.name, holder)])
        insort(rivals, (new.name, new), key=lambda pair: pair[0])
        return self._judge(new.number, rivals) - {new}

    def release(self, gone: N) -> set[N]:
        """Give up an id. Returns the others whose `is_refused` changed."""
        rivals = self._rivals.get(gone.number)
        if rivals is None:
            del self._holders[gone.number]
            return set()
        rivals.remove((gone.name, gone))
        changed = self._judge(gone.number, rivals)
        if len(rivals) == 1:
            del self._rivals[gone.number]
        return changed

    def holder(self, of: N) -> str:
        """The name that has the id of something refused."""
        return self._holders[of.number].name

    def _judge(self, number: int, rivals: list[tuple[str, N]]) -> set[N]:
        self._holders[number] = rivals[0][1]
        changed = set()
        for place, (_, each) in enumerate(rivals):
            if each.is_refused != (place > 0):
                each.is_refused = place > 0
                changed.add(each)
        return changed
