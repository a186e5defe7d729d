"""Who has an address, and until when. Pure: no I/O, and the clock is an argument.

One node at a time has an address. It has it by a *grant* that its agent renews; a grant that is not
renewed ends, and another node gets the address. That no two nodes have it at one moment, each by
its own clock, follows from these rules (`tests/model/grants.py` shows it, and what happens without
each one):

1. The agent counts the lifetime of a grant from before it sent the request, the controller from
   when it answers, and a little longer than clocks can differ in that time (`KEPT`).
2. Another node gets an address only when the controller's time is over, or after the owner has said
   that it has released this very grant.
3. A controller that begins to lead grants nothing for `KEPT`, nor while the controller before it
   may still lead. Meanwhile it takes for granted what the owners say that they have.
4. An agent renews only what it has at the moment when the answer comes. An answer that comes too
   late is ignored.
5. If no controller leads, an agent keeps what it has while *all* controllers tell it so again and
   again. Each of them would have to wait for `KEPT`, by rule 3, before it gives the address to
   somebody else. Where nobody accepts connections there is no controller; but one has to answer.

A controller that does not lead follows what owners say, so that it knows them when it leads.

Who gets an address: the first in `ownership_order` of the candidates with the best standing whose
agents are there. An owner keeps an address as long as it is a candidate and no other one has a
better standing: every move cuts connections.

Times are seconds of one monotonic clock.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from controller.address_owners.claims import Claim, considered, ownership_order
from controller.address_owners.standing import Standing
from wire.address_grants import LIFETIME, Grant

KEPT: Final = 1.05 * LIFETIME
"""Seconds from the answer until somebody else may get the address."""
PATIENCE: Final = 0.3
"""Seconds in which an agent takes what it is offered; after these, the next node is offered it."""
CHOICES: Final = 32
"""Owners that one `review` chooses, each from up to `MAX_CANDIDATES`: some 10 ms."""
PRESENT: Final = 2.0
"""Seconds after its last request in which an agent is there."""
_LATEST: Final = float("inf")


@dataclass(slots=True)
class Ownership:
    """One claimed address."""

    claim: Claim
    owner: str = ""
    """The node that has it, or may have it still; empty: nobody."""
    number: int = 0
    """Of the owner's grant."""
    until: float = 0.0
    """Before that, nobody else gets it."""
    is_revoked: bool = False
    """The owner has to release it, and its grant is not renewed."""
    offered: set[str] = field(default_factory=set)
    """Nodes that may take it now: the first one that does gets it."""
    offered_until: float = 0.0
    """Then it is offered to one more node."""
    without_owner: float | None = None
    """Since when nobody has it; None: somebody does."""


class Answer(NamedTuple):
    """To an agent's request."""

    leads: bool
    granted: list[Grant]
    strange: list[IPv4Address]
    """Addresses that the node claims without being a candidate."""


class Grants:
    """The grants of all addresses, as one controller knows them."""

    def __init__(
        self,
        standing: Callable[[str], Standing],
        new_number: Callable[[], int],
        kept: float = KEPT,
    ) -> None:
        """`new_number` gives numbers that no controller has given."""
        self.addresses: Final[dict[IPv4Address, Ownership]] = {}
        self.leads = False
        self.opens = 0.0
        """Before that, a leader grants nothing new."""
        self.changed: set[IPv4Address] = set()
        """Addresses whose owner has changed; whoever reads it empties it."""
        self.woken: set[str] = set()
        """Nodes whose duties may have changed; whoever reads it empties it."""
        self._standing = standing
        self._new_number = new_number
        self._kept = kept
        self._present: dict[str, float] = {}
        """By node, until when its agent is there."""
        self._silent: set[str] = set()
        """Nodes whose agents did not renew or take something, and have not asked since then."""
        self._by_node: dict[str, set[IPv4Address]] = {}
        """The addresses that a node has or is offered."""

    # --- what the cluster wants ---

    def want(self, claims: Mapping[IPv4Address, Claim]) -> None:
        """Set all claims; `review` acts on it."""
        for address in self.addresses.keys() - claims.keys():
            gone = self.addresses[address]
            self._free(address, gone)
            self._withdraw_offers(address, gone)
            del self.addresses[address]
        for address, claim in claims.items():
            found = self.addresses.get(address)
            if found is None:
                self.addresses[address] = Ownership(claim)
            elif found.claim is not claim:
                if (found.claim.announce, found.claim.gated) != (claim.announce, claim.gated):
                    self.woken.update(claim.candidates, found.claim.candidates)
                found.claim = claim

    # --- who leads ---

    def lead(self, now: float, others_until: float = 0.0) -> None:
        """Begin to decide. `others_until`: before that, another controller may decide, too."""
        self.leads, self.opens = True, max(now, others_until) + self._kept
        for found in self.addresses.values():
            found.is_revoked, found.without_owner = False, None

    def follow(self) -> None:
        """Decide nothing any more."""
        if not self.leads:
            return
        self.leads = False
        for address, found in self.addresses.items():
            self._withdraw_offers(address, found)
            found.is_revoked = False
        self.woken.update(self._by_node)

    def decides(self, now: float) -> bool:
        """Whether this controller leads, and may grant what nobody has."""
        return self.leads and now >= self.opens

    # --- what agents say ---

    def seen(self, node: str, until: float) -> None:
        """The node's agent is there until then."""
        self._silent.discard(node)
        self._present[node] = max(until, self._present.get(node, 0.0))

    def gone(self, node: str, now: float) -> None:
        """The node's agent waits no longer; if it is there, it asks again at once."""
        self._present[node] = now + PRESENT

    def remove_node(self, node: str) -> None:
        """There is no such Node any more."""
        self._present.pop(node, None)
        self._silent.discard(node)

    def leaves(self, node: str) -> None:
        """The node's agent stops."""
        self._silent.add(node)

    def is_present(self, node: str, now: float) -> bool:
        """Whether the node's agent is there to take an address."""
        return node not in self._silent and self._present.get(node, 0.0) > now

    def request(
        self,
        node: str,
        now: float,
        held: Iterable[Grant] = (),
        wanted: Iterable[IPv4Address] = (),
        released: Iterable[Grant] = (),
    ) -> Answer:
        """Take an agent's request, and answer it."""
        self.seen(node, now + PRESENT)
        for address, number in released:
            found = self.addresses.get(address)
            if found is not None and (found.owner, found.number) == (node, number):
                self._free(address, found)
        held = tuple(held)
        self._follow_owner(node, held)
        strange: list[IPv4Address] = []
        granted = self._renew(node, held, now, strange)
        if self.decides(now):
            granted += self._grant(node, wanted, now, strange)
        return Answer(self.leads, granted if self.leads else [], strange)

    def _renew(
        self, node: str, held: Iterable[Grant], now: float, strange: list[IPv4Address]
    ) -> list[Grant]:
        granted = []
        for address, number in held:
            found = self.addresses.get(address)
            if found is None:
                continue
            if node not in found.claim.candidates:
                if found.owner != node:
                    strange.append(address)
            elif self._renews(found, node, number, now):
                self._give(address, found, node, number, now)
                granted.append((address, number))
        return granted

    def _grant(
        self, node: str, wanted: Iterable[IPv4Address], now: float, strange: list[IPv4Address]
    ) -> list[Grant]:
        granted = []
        for address in wanted:
            found = self.addresses.get(address)
            if found is None:
                continue
            if node not in found.claim.candidates:
                strange.append(address)
            elif self._grants(found, node, now):
                number = self._new_number()
                self._give(address, found, node, number, now)
                granted.append((address, number))
        return granted

    def _renews(self, found: Ownership, node: str, number: int, now: float) -> bool:
        if (found.owner, found.number) == (node, number):
            return not found.is_revoked
        if self.decides(now):
            return False
        # It says that it has it already, by another controller's grant.
        return found.owner in {"", node} or found.until <= now

    def _grants(self, found: Ownership, node: str, now: float) -> bool:
        if found.is_revoked:
            return False
        if found.owner and found.until > now:
            return found.owner == node  # Its agent has lost it, by a restart or a pause.
        return node in found.offered

    def _give(
        self, address: IPv4Address, found: Ownership, node: str, number: int, now: float
    ) -> None:
        found.until = now + self._kept
        if (found.owner, found.number) == (node, number):
            return
        if found.owner != node:
            self._free(address, found)
            self._withdraw_offers(address, found)
            found.owner = node
            self._by_node.setdefault(node, set()).add(address)
            self.changed.add(address)
        found.number, found.is_revoked, found.without_owner = number, False, None

    def _follow_owner(self, node: str, held: Iterable[Grant]) -> None:
        """Nobody but the owner itself says who has an address while another controller leads."""
        if self.leads:
            return
        has = {address for address, _ in held}
        for address in self._by_node.get(node, set()) - has:
            self._free(address, self.addresses[address])

    def _free(self, address: IPv4Address, found: Ownership) -> None:
        if not found.owner:
            return
        self._forget(found.owner, address)
        self.woken.add(found.owner)
        self.changed.add(address)
        found.owner, found.number, found.until, found.is_revoked = "", 0, 0.0, False

    def _withdraw_offers(self, address: IPv4Address, found: Ownership) -> None:
        for node in found.offered:
            self._forget(node, address)
            self.woken.add(node)
        found.offered, found.offered_until = set(), 0.0

    def _forget(self, node: str, address: IPv4Address) -> None:
        has = self._by_node.get(node, set())
        has.discard(address)
        if not has:
            self._by_node.pop(node, None)

    # --- what follows with time ---

    def review(self, now: float) -> float:
        """Do what time and changes ask for; when to be called again at the latest."""
        due = _LATEST if not self.leads or now >= self.opens else self.opens
        decides, choices = self.decides(now), 0
        best: dict[frozenset[str], Standing] = {}
        for address, found in self.addresses.items():
            if found.owner and found.until <= now:
                self._silent.add(found.owner)
                self._free(address, found)
            if decides and found.owner:
                self._revoke_if_due(found, now, best)
            elif decides and found.offered_until <= now:
                if choices >= CHOICES:
                    due = now
                    continue
                choices += 1
                self._offer(address, found, now)
            due = min(due, found.until if found.owner else found.offered_until or _LATEST)
        return due

    def _revoke_if_due(
        self, found: Ownership, now: float, best: dict[frozenset[str], Standing]
    ) -> None:
        if not found.is_revoked and self._has_to_release(found, now, best):
            found.is_revoked = True
            self.woken.add(found.owner)

    def _offer(self, address: IPv4Address, found: Ownership, now: float) -> None:
        if found.without_owner is None:
            found.without_owner = now
        # Those that did not take it are late; they still may, until another one does.
        self._silent |= found.offered
        node = self._best(address, found.claim, now)
        found.offered_until = 0.0
        if not node:
            return
        found.offered.add(node)
        found.offered_until = now + PATIENCE
        self._by_node.setdefault(node, set()).add(address)
        self.woken.add(node)

    def _has_to_release(
        self, found: Ownership, now: float, best: dict[frozenset[str], Standing]
    ) -> bool:
        """`best` keeps the best standing of candidates: many addresses have one and the same."""
        candidates = found.claim.candidates
        if found.owner not in candidates:
            return True
        standing = self._standing(found.owner)
        if standing in {Standing.READY, Standing.NEVER}:
            return standing is Standing.NEVER
        if candidates not in best:
            present = (node for node in considered(candidates) if self.is_present(node, now))
            best[candidates] = min(map(self._standing, present), default=Standing.NEVER)
        return best[candidates] < standing

    def _best(self, address: IPv4Address, claim: Claim, now: float) -> str:
        by_standing: dict[Standing, list[str]] = {}
        for node in considered(claim.candidates):
            if self.is_present(node, now):
                by_standing.setdefault(self._standing(node), []).append(node)
        by_standing.pop(Standing.NEVER, None)
        if not by_standing:
            return ""
        return ownership_order(address, by_standing[min(by_standing)])[0]

    # --- what others ask ---

    def duties(self, node: str, now: float) -> list[IPv4Address]:
        """The addresses that the node should have, if this controller decides; sorted."""
        if not self.decides(now):
            return []
        has = ((address, self.addresses[address]) for address in self._by_node.get(node, ()))
        return sorted(
            address
            for address, found in has
            if (not found.is_revoked if found.owner == node else not found.owner)
        )
