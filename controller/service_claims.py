"""Which Service has which port of which address: of several that want one, the oldest."""

from bisect import insort
from collections import Counter

from controller.service_drafts import Claim, Draft
from flows.family import IPAddress


class Claims:
    """Drafts in; who has what, and whose share changed, out."""

    def __init__(self) -> None:
        self._claims: dict[Claim, list[tuple[str, str]]] = {}
        """Ages of the Services that want it, the oldest, who has it, first."""
        self._claimants: dict[IPAddress, Counter[str]] = {}
        """By address, which Services want how many of its ports."""

    def __bool__(self) -> bool:
        return bool(self._claims or self._claimants)

    def holder(self, claim: Claim) -> str:
        """The Service, `NAMESPACE/NAME`, that has it. Raises `KeyError` where none wants it."""
        return self._claims[claim][0][1]

    def is_shared(self, address: IPAddress) -> bool:
        """Whether more than one Service wants ports of this address."""
        return len(self._claimants.get(address, ())) > 1

    def change(self, new: Draft, old: Draft) -> set[str]:
        """A Service wants other things now; the Services whose share changes by it."""
        before = {(old.age, offer.claim) for offer in old.offers()}
        after = {(new.age, offer.claim) for offer in new.offers()}
        changed = before ^ after
        holders = {claim: self._claims.get(claim, [])[:1] for _, claim in changed}
        shared = {c.address: self.is_shared(c.address) for _, c in changed if c.address}
        for was, claim in before - after:
            self._remove(was, claim)
        for now, claim in after - before:
            insort(self._claims.setdefault(claim, []), now)
            if claim.address:
                self._claimants.setdefault(claim.address, Counter())[now[1]] += 1
        concerned: set[str] = set()
        for claim, holder in holders.items():
            claimants = self._claims.get(claim, [])
            if claimants[:1] != holder:
                concerned |= {name for _, name in claimants}
        for address, was_shared in shared.items():
            if was_shared != self.is_shared(address):
                concerned |= self._claimants.get(address, Counter()).keys()
        return concerned

    def _remove(self, age: tuple[str, str], claim: Claim) -> None:
        self._claims[claim].remove(age)
        if not self._claims[claim]:
            del self._claims[claim]
        if claim.address is None:
            return
        claimants = self._claimants[claim.address]
        claimants[age[1]] -= 1
        if not claimants[age[1]]:
            del claimants[age[1]]
        if not claimants:
            del self._claimants[claim.address]
