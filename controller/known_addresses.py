"""Whose an address is: a node's, an API server's, or anybody's.

A Service may take ports of a node's address. Addresses that the cluster itself needs to work are
never a Service's: with one of them a tenant could cut all nodes off from the controller.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from flows import names
from flows.family import IPAddress
from flows.view import HostDnatAddress


class NodeAddress(NamedTuple):
    """An address that a Node object names as the node's."""

    node: str
    number: int
    """Which of the node's addresses, from 0."""


class KnownAddresses:
    """What the cluster knows of addresses outside its own ranges.

    Each method that changes something returns the addresses that mean something else now.
    """

    def __init__(self, protected: Mapping[IPAddress, str]) -> None:
        """`protected`: addresses that no Service may take, and what they are, in words."""
        self.of_nodes: Mapping[IPAddress, NodeAddress] = {}
        self.on_protected: Callable[[], object] = lambda: None
        """Called when other addresses are protected."""
        self._protected = protected
        self._api_servers: frozenset[IPAddress] = frozenset()
        self._reported: dict[str, frozenset[IPAddress]] = {}
        """By node, what its agent found on the host's interfaces."""
        self._nodes_with: dict[IPAddress, set[str]] = {}
        """By reported address."""
        self._service_addresses: set[IPAddress] = set()
        """Addresses that at least one Service uses."""
        self._host_dnat: dict[str, dict[IPAddress, IPAddress]] = {}
        """By node, then by address: what the host translates it to."""
        self._own_count: Counter[str] = Counter()

    def protected(self, address: IPAddress) -> str:
        """Why no Service may take this address, in words; empty: one may."""
        if address in self._api_servers:
            return "the address of an API server"
        return self._protected.get(address, "")

    @property
    def all_protected(self) -> frozenset[IPAddress]:
        """Every address that no Service may take."""
        return self._api_servers | self._protected.keys()

    def nodes_with(self, address: IPAddress) -> AbstractSet[str]:
        """The nodes whose agents found this address on an interface of the host."""
        return self._nodes_with.get(address, frozenset())

    def host_dnat(self, address: IPAddress) -> tuple[HostDnatAddress, ...]:
        """Where this address is on an interface though no Node object names it, by node."""
        return tuple(
            HostDnatAddress(node, self._host_dnat[node][address])
            for node in sorted(self._nodes_with.get(address, ()))
            if address in self._host_dnat.get(node, {})
        )

    def set_of_nodes(self, new: Mapping[IPAddress, NodeAddress]) -> set[IPAddress]:
        """The addresses that Node objects name; reports of nodes without an object are dropped."""
        old, self.of_nodes = self.of_nodes, new
        changed = {each for each in old.keys() | new.keys() if old.get(each) != new.get(each)}
        if not changed:
            return set()
        self._own_count = Counter(each.node for each in new.values())
        for node in self._reported.keys() - self._own_count.keys():
            changed |= self.report(node, ())
        nodes = {each.node for at in changed for each in (old.get(at), new.get(at)) if each}
        nodes |= {node for address in changed for node in self._nodes_with.get(address, ())}
        return changed.union(*(self._assign(node) for node in nodes))

    def set_api_servers(self, new: Iterable[IPAddress]) -> set[IPAddress]:
        """The endpoints of Service default/kubernetes."""
        old, self._api_servers = self._api_servers, frozenset(new)
        if old != self._api_servers:
            self.on_protected()
        return set(old ^ self._api_servers)

    def report(self, node: str, addresses: Iterable[IPAddress]) -> set[IPAddress]:
        """What a node's agent has found on its interfaces, in place of what it found before."""
        new = frozenset(addresses)
        old = self._reported.pop(node, frozenset())
        if new:
            self._reported[node] = new
        for address in old - new:
            self._nodes_with[address].discard(node)
            if not self._nodes_with[address]:
                del self._nodes_with[address]
        for address in new - old:
            self._nodes_with.setdefault(address, set()).add(node)
        return self._assign(node)

    def service_address_added(self, address: IPAddress) -> set[IPAddress]:
        """The first Service that uses this address was added."""
        self._service_addresses.add(address)
        return self._assign_all(address)

    def service_address_removed(self, address: IPAddress) -> set[IPAddress]:
        """The last Service that used this address was removed."""
        self._service_addresses.discard(address)
        return self._assign_all(address)

    def _assign_all(self, address: IPAddress) -> set[IPAddress]:
        nodes = self._nodes_with.get(address, ())
        return set().union(*(self._assign(node) for node in nodes))

    def _assign(self, node: str) -> set[IPAddress]:
        """Give a host DNAT address to each reported address that a Service uses.

        The node's own addresses use the first ones; these get the last ones, in the order of
        the addresses, so that every controller assigns the same ones.
        """
        found = sorted(
            each
            for each in self._reported.get(node, ())
            if each in self._service_addresses and each not in self.of_nodes
        )
        free = range(names.HOST_DNAT_RANGE.num_addresses - 1, self._own_count[node] - 1, -1)
        new: dict[IPAddress, IPAddress] = {
            address: names.HOST_DNAT_RANGE[number]
            for address, number in zip(found, free)  # noqa: B905 - the shorter one counts
        }
        old = self._host_dnat.pop(node, {})
        if new:
            self._host_dnat[node] = new
        return {each for each in old.keys() | new.keys() if old.get(each) != new.get(each)}
