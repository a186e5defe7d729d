"""The addresses of nodes, as far as sets of peers depend on them."""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from flows.family import IPNetwork
from flows.policy import PeerBlock
from flows.view import Node

Outsiders = tuple[tuple[IPNetwork, ...], int | None]
"""`PeerSet.outsiders` and `PeerSet.outsiders_mask`."""


class Gateways:
    """All nodes by their addresses. The cost of a change does not grow with the number of nodes."""

    def __init__(self, pod_range: IPNetwork) -> None:
        self.nodes: dict[str, Node] = {}
        self.outsiders: Outsiders = (), None
        """The gateway addresses, which are in the pod range and no pod's."""
        self._pod_range = pod_range
        self._addresses: list[tuple[int, str]] = []
        """Of all nodes, sorted, with the node's name."""
        self._gateways: list[IPv4Network] = []
        """Sorted."""
        self._lengths: dict[int, int] = {}
        """How many podCIDRs have a prefix of this length."""

    def set(self, changed: Collection[str], nodes: Mapping[str, Node]) -> bool:
        """Some nodes were added, changed or removed. Returns whether `outsiders` changed."""
        for name in changed:
            if (old := self.nodes.pop(name, None)) is not None:
                for address in addresses_of(old):
                    del self._addresses[bisect_left(self._addresses, (address, name))]
                del self._gateways[bisect_left(self._gateways, IPv4Network(old.gateway))]
                self._count(old, -1)
            if (new := nodes.get(name)) is not None:
                self.nodes[name] = new
                for address in addresses_of(new):
                    insort(self._addresses, (address, name))
                insort(self._gateways, IPv4Network(new.gateway))
                self._count(new, 1)
        before, self.outsiders = self.outsiders, self._outsiders()
        return self.outsiders != before

    def nodes_in(self, block: PeerBlock) -> Iterator[tuple[int, Node]]:
        """The addresses of nodes in a block, and their nodes."""
        last = int(block.network.broadcast_address)
        at = bisect_left(self._addresses, (int(block.network.network_address), ""))
        while at < len(self._addresses):
            address, name = self._addresses[at]
            if address > last:
                return
            if (node := self.nodes.get(name)) is not None:
                yield address, node
            at += 1

    def _count(self, node: Node, by: int) -> None:
        length = node.pod_cidr.prefixlen
        self._lengths[length] = self._lengths.get(length, 0) + by
        if not self._lengths[length]:
            del self._lengths[length]

    def _outsiders(self) -> Outsiders:
        if len(self._lengths) != 1:
            return tuple(self._gateways), None
        # All bits of the address but for the number of the podCIDR within the pod range.
        (length,) = self._lengths
        bits = self._pod_range.max_prefixlen
        number = ((1 << (length - self._pod_range.prefixlen)) - 1) << (bits - length)
        mask = ((1 << bits) - 1) ^ number
        first = int(self._gateways[0].network_address) & mask
        return (IPv4Network((first, bits)),), mask


def addresses_of(node: Node) -> list[int]:
    """All addresses of a node, as numbers."""
    return [
        int(address)
        for address in (node.address, *node.further_addresses)
        if isinstance(address, IPv4Address)
    ]
