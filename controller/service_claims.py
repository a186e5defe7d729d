"""Which Service gets which port of an address: of several that claim it, the oldest."""

from bisect import insort
from collections import Counter

from controller.service_drafts import ClaimKey, Draft


class Claims:
    """The claims of all Services. Addresses are numbers."""

    def __init__(self) -> None:
        self._claims: dict[ClaimKey, list[tuple[str, str]]] = {}
        """The ages of the Services that claim it. The first one, the oldest, gets it."""
        self._claimants: dict[int, Counter[str]] = {}
        """By address, how many of its ports each Service claims."""

    def __bool__(self) -> bool:
        return bool(self._claims or self._claimants)

    def holder(self, key: ClaimKey) -> str:
        """The Service, `NAMESPACE/NAME`, that gets it. Raises `KeyError` if none claims it."""
        return self._claims[key][0][1]

    def is_shared(self, address: int) -> bool:
        """Whether more than one Service claims ports of this address."""
        return len(self._claimants.get(address, ())) > 1

    def change(self, new: Draft, old: Draft) -> set[str]:
        """The claims of a Service changed. Returns the Services that gain or lose something."""
        before = {offer.key for offer in old.offers()}
        after = {offer.key for offer in new.offers()}
        left, added = before - after, after - before
        if new.age != old.age:
            left, added = before, after
        holders = {key: self._claims.get(key, [])[:1] for key in left | added}
        shared = {key[0]: self.is_shared(key[0]) for key in holders if key[0] >= 0}
        for key in left:
            self._remove(old.age, key)
        for key in added:
            insort(self._claims.setdefault(key, []), new.age)
            if key[0] >= 0:
                self._claimants.setdefault(key[0], Counter())[new.age[1]] += 1
        concerned: set[str] = set()
        for key, holder in holders.items():
            claimants = self._claims.get(key, [])
            if claimants[:1] != holder:
                concerned |= {name for _, name in claimants}
        for address, was_shared in shared.items():
            if was_shared != self.is_shared(address):
                concerned |= self._claimants.get(address, Counter()).keys()
        return concerned

    def _remove(self, age: tuple[str, str], key: ClaimKey) -> None:
        self._claims[key].remove(age)
        if not self._claims[key]:
            del self._claims[key]
        if key[0] < 0:
            return
        claimants = self._claimants[key[0]]
        claimants[age[1]] -= 1
        if not claimants[age[1]]:
            del claimants[age[1]]
        if not claimants:
            del self._claimants[key[0]]
