"""Which of several Nodes gets a range or an address that more than one of them claims.

The outcome depends on the claims alone, not on their order. The cost of a change depends on the
Nodes that share a range or an address with the changed Node, directly or through other Nodes.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import NamedTuple

from controller.inventory.node_drafts import Age, NodeDraft
from flows.family import IPAddress, IPNetwork


class _Networks:
    """Networks with the Nodes that claim them, by overlap."""

    def __init__(self) -> None:
        self._names: dict[IPNetwork, set[str]] = {}
        self._sorted: list[tuple[int, int]] = []
        """Number and prefix length of each network."""
        self._lengths: Counter[int] = Counter()

    def add(self, network: IPNetwork, name: str) -> None:
        if network not in self._names:
            self._names[network] = set()
            self._lengths[network.prefixlen] += 1
            insort(self._sorted, (int(network.network_address), network.prefixlen))
        self._names[network].add(name)

    def remove(self, network: IPNetwork, name: str) -> None:
        names = self._names[network]
        names.discard(name)
        if not names:
            del self._names[network]
            place = bisect_left(self._sorted, (int(network.network_address), network.prefixlen))
            del self._sorted[place]
            self._lengths[network.prefixlen] -= 1

    def overlapping(self, network: IPNetwork) -> Iterator[str]:
        """The Nodes of all networks that overlap this one."""
        for length, count in self._lengths.items():
            if count and length < network.prefixlen:
                yield from self._names.get(network.supernet(new_prefix=length), ())
        first = int(network.network_address)
        place = bisect_left(self._sorted, (first, network.prefixlen))
        while place < len(self._sorted) and self._sorted[place][0] < first + network.num_addresses:
            yield from self._names[IPv4Network(self._sorted[place])]
            place += 1


class RangeConflict(NamedTuple):
    """Why a Node does not get its podCIDR."""

    cidr: IPNetwork
    holder: str

    def __str__(self) -> str:
        return f"{self.cidr} of Node {self.holder}"


class RangeClaims:
    """podCIDRs: of two Nodes whose ranges overlap, the older one gets it."""

    def __init__(self) -> None:
        self.conflicts: dict[str, RangeConflict] = {}
        self._claims: dict[str, tuple[Age, IPNetwork]] = {}
        self._all = _Networks()
        self._held = _Networks()
        self._holders: set[str] = set()
        self._dirty: set[str] = set()

    def holds(self, name: str) -> bool:
        """Whether a Node has the range that it claims."""
        return name in self._holders

    def put(self, name: str, age: Age, cidr: IPNetwork) -> None:
        """A Node claims a range; `resolve_conflicts` has to follow."""
        if self._claims.get(name) == (age, cidr):
            return
        self.remove(name)
        self._claims[name] = age, cidr
        self._all.add(cidr, name)
        self._dirty.add(name)

    def remove(self, name: str) -> None:
        """A Node claims nothing any more; `resolve_conflicts` has to follow."""
        self._dirty.discard(name)
        claim = self._claims.pop(name, None)
        if claim is None:
            return
        cidr = claim[1]
        self._all.remove(cidr, name)
        self.conflicts.pop(name, None)
        if name in self._holders:
            self._holders.discard(name)
            self._held.remove(cidr, name)
            self._dirty.update(self._all.overlapping(cidr))

    def resolve_conflicts(self) -> set[str]:
        """Decide the claims that changed.

        Returns the Nodes whose range or conflict may have changed.
        """
        changed: set[str] = set()
        queue = [(self._claims[name][0], name) for name in self._dirty]
        self._dirty.clear()
        heapq.heapify(queue)
        # The oldest first, because what a Node gets depends on older Nodes only.
        while queue:
            age, name = heapq.heappop(queue)
            cidr = self._claims[name][1]
            rivals = [
                (self._claims[rival][0], rival)
                for rival in self._held.overlapping(cidr)
                if rival != name
            ]
            older = min((rival for rival in rivals if rival[0] < age), default=None)
            held, conflict = name in self._holders, self.conflicts.get(name)
            if older is None:
                self.conflicts.pop(name, None)
                if not held:
                    self._holders.add(name)
                    self._held.add(cidr, name)
                    for rival in rivals:
                        heapq.heappush(queue, rival)
            else:
                new = RangeConflict(self._claims[older[1]][1], older[1])
                self.conflicts[name] = new
                if held:
                    self._holders.discard(name)
                    self._held.remove(cidr, name)
                    for other in self._all.overlapping(cidr):
                        if self._claims[other][0] > age:
                            heapq.heappush(queue, (self._claims[other][0], other))
            if held != (name in self._holders) or conflict != self.conflicts.get(name):
                changed.add(name)
        return changed


AddressRank = tuple[int, Age]
"""The lowest rank gets the address: see `AddressClaims.rank`."""


class AddressClaims:
    """Addresses: each Node gets one as its tunnel address, and its further ones.

    A kubelet writes the addresses of its own Node, so a stolen node may claim those of others.
    Where several Nodes claim one address, the one whose switch connects from it gets it. A Node
    that does not get its first InternalIP gets its next one (deferred acceptance, Gale and Shapley
    1962: each Node has the best one that it can have, whatever the order of the claims).
    """

    def __init__(self) -> None:
        self.tunnel_addresses: dict[str, IPAddress] = {}
        """By Node, its tunnel address."""
        self.holders: dict[IPAddress, str] = {}
        """The Node that each of these belongs to."""
        self._drafts: dict[str, NodeDraft] = {}
        self._session_addresses: dict[str, IPAddress] = {}
        self._candidates: dict[IPAddress, set[str]] = {}
        self._named: dict[IPAddress, list[tuple[AddressRank, str]]] = {}
        """By address of any type, the Nodes that name it, sorted."""
        self._dirty: set[IPAddress] = set()
        self._displaced: set[str] = set()
        """Nodes that were the first ones to name an address."""

    def put(self, draft: NodeDraft, session: IPAddress | None) -> None:
        """A Node claims its addresses. `session` is where its switch last connected from."""
        name = draft.name
        if self._drafts.get(name) == draft and self._session_addresses.get(name) == session:
            return
        self.remove(name)
        self._drafts[name] = draft
        if session is not None:
            self._session_addresses[name] = session
        for address in draft.candidates:
            self._candidates.setdefault(address, set()).add(name)
        for address in draft.addresses:
            named = self._named.setdefault(address, [])
            self._displaced.update(first for _, first in named[:1])
            insort(named, (self.rank(name, address), name))
        self._dirty.update(draft.candidates, draft.addresses)

    def remove(self, name: str) -> None:
        """A Node claims no address."""
        draft = self._drafts.get(name)
        if draft is None:
            return
        for address in draft.candidates:
            self._candidates[address].discard(name)
            if not self._candidates[address]:
                del self._candidates[address]
        for address in draft.addresses:
            named = self._named[address]
            del named[bisect_left(named, (self.rank(name, address), name))]
            if not named:
                del self._named[address]
        self._dirty.update(draft.candidates, draft.addresses)
        if (current := self.tunnel_addresses.pop(name, None)) is not None:
            del self.holders[current]
        del self._drafts[name]
        self._session_addresses.pop(name, None)

    def rank(self, name: str, address: IPAddress) -> AddressRank:
        """How strong a claim is, the strongest first.

        0: the switch connects from this address. 1: there is no session, so nothing confirms or
        contradicts the claim. 2: the switch connects from another address. 3: the claim is from an
        outdated draft.
        """
        draft, session = self._drafts[name], self._session_addresses.get(name)
        if session == address:
            return 0, draft.age
        if draft.outdated:
            return 3, draft.age
        return 1 if session is None else 2, draft.age

    def further(self, name: str) -> tuple[IPAddress, ...]:
        """A Node's other addresses: those that no other Node has a better claim to."""
        draft = self._drafts.get(name)
        if draft is None:
            return ()
        return tuple(
            address
            for address in draft.addresses
            if address not in self.holders and self._named[address][0][1] == name
        )

    def lost(self, name: str) -> list[tuple[IPAddress, str]]:
        """The addresses that a Node prefers to the one it has, each with the Node that has it."""
        found: list[tuple[IPAddress, str]] = []
        draft, current = self._drafts.get(name), self.tunnel_addresses.get(name)
        for address in draft.candidates if draft else ():
            if address == current:
                break
            found.append((address, self.holders[address]))
        return found

    def resolve_conflicts(self) -> set[str]:
        """Decide the claims that changed. Returns the Nodes whose addresses may have changed."""
        dirty, self._dirty = self._dirty, set()
        concerned = self._connected(dirty)
        before = [
            self.tunnel_addresses.pop(name) for name in concerned if name in self.tunnel_addresses
        ]
        for end in before:
            self.holders.pop(end, None)
        waiting = {name: iter(self._drafts[name].candidates) for name in concerned}
        free = list(concerned)
        while free:
            name = free.pop()
            address = next(waiting[name], None)
            if address is None:
                continue
            holder = self.holders.get(address)
            if holder is None or self.rank(name, address) < self.rank(holder, address):
                self.holders[address] = name
                if holder is not None:
                    free.append(holder)
            else:
                free.append(name)
        addresses = {each for name in concerned for each in self._drafts[name].candidates}
        for each in addresses:
            if (holder := self.holders.get(each)) is not None:
                self.tunnel_addresses[holder] = each
        first = {self._named[each][0][1] for each in dirty | addresses if each in self._named}
        displaced, self._displaced = self._displaced & self._drafts.keys(), set()
        return concerned | first | displaced

    def _connected(self, addresses: set[IPAddress]) -> set[str]:
        """The Nodes that claim one of these, or another address of such a Node, and so on."""
        found: set[str] = set()
        seen = set(addresses)
        queue = list(addresses)
        while queue:
            for name in self._candidates.get(queue.pop(), ()):
                if name not in found:
                    found.add(name)
                    new = [each for each in self._drafts[name].candidates if each not in seen]
                    seen.update(new)
                    queue += new
        return found
