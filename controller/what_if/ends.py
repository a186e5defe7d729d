"""Whatever a connection may come from or go to: pods, nodes, ranges outside. Each is an *end*.

An end has a number, so a set of ends is one integer (`controller.what_if.bits`). Pods of one
workload have adjacent numbers. What is outside is cut at the boundaries of all address blocks in
the policies, and each piece is one end: no policy can tell two addresses of a piece apart.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

from controller.what_if.bits import bits_of, span
from flows.family import IPAddress, IPNetwork
from flows.policy import Isolation, PeerSet
from flows.refs import ObjectRef
from flows.view import ClusterView

NODES: Final = ObjectRef("nodes", "", "")
"""The workload of all nodes: their own processes, and pods with `hostNetwork`."""
ANYWHERE: Final = IPv4Network("0.0.0.0/0")


class End(NamedTuple):
    """A pod, a node in one of its two roles, or a range of addresses outside."""

    workload: ObjectRef
    """The owner of a pod; of a Pod without an owner, the Pod. `NODES`. Of a range: `outside`."""
    address: IPAddress
    name: str
    """`NAMESPACE/NAME` of a pod, the name of a node, a range."""
    node: str = ""
    """The node of a pod, or the node itself."""
    exists: bool = True
    """False: a pod that its workload has not now."""
    opens: bool = True
    """Whether it can open connections in this role."""
    accepts: bool = True
    """Whether it can accept connections in this role."""
    range: IPNetwork | None = None
    """The range that it stands for, without longer ranges and the cluster's pods."""


def outside(text: str) -> ObjectRef:
    """The reference to a range outside of the cluster's pods."""
    return ObjectRef("outside", "", text)


@dataclass(frozen=True)
class Ends:
    """All ends, by number."""

    ends: tuple[End, ...]
    _all_pods: dict[tuple[IPNetwork, tuple[IPNetwork, ...], int | None], int] = field(
        default_factory=dict
    )

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def all(self) -> int:
        """The set of all ends."""
        return (1 << len(self.ends)) - 1

    @cached_property
    def opening(self) -> int:
        """Those that can open connections."""
        return self.bits(number for number, end in enumerate(self.ends) if end.opens)

    @cached_property
    def accepting(self) -> int:
        """Those that can accept connections."""
        return self.bits(number for number, end in enumerate(self.ends) if end.accepts)

    @cached_property
    def existing(self) -> int:
        """Those that exist now."""
        return self.bits(number for number, end in enumerate(self.ends) if end.exists)

    @cached_property
    def by_pod(self) -> dict[str, int]:
        """The number of each pod, by `NAMESPACE/NAME`."""
        return {end.name: n for n, end in enumerate(self.ends) if end.opens and end.accepts}

    @cached_property
    def by_address(self) -> dict[IPAddress, int]:
        """The number of the end with this address."""
        return {end.address: number for number, end in enumerate(self.ends)}

    @cached_property
    def workloads(self) -> tuple[ObjectRef, ...]:
        """Each workload once, in the order of its ends."""
        return tuple(dict.fromkeys(end.workload for end in self.ends))

    @cached_property
    def members(self) -> dict[ObjectRef, int]:
        """The ends of each workload."""
        first: dict[ObjectRef, int] = {}
        last: dict[ObjectRef, int] = {}
        for number, end in enumerate(self.ends):
            first.setdefault(end.workload, number)
            last[end.workload] = number
        return {workload: span(first[workload], last[workload]) for workload in first}

    @cached_property
    def node_clients(self) -> dict[int, int]:
        """By the number of a node that opens connections: the pods that it runs."""
        pods: dict[str, list[int]] = {}
        nodes: dict[str, int] = {}
        for number, end in enumerate(self.ends):
            if end.workload != NODES:
                pods.setdefault(end.node, []).append(number)
            elif end.opens:
                nodes[end.node] = number
        return {number: self.bits(pods.get(node, ())) for node, number in nodes.items()}

    @cached_property
    def all_node_clients(self) -> int:
        """The nodes that open connections."""
        return self.bits(self.node_clients)

    @cached_property
    def _in_order(self) -> tuple[list[int], list[int]]:
        """Addresses in ascending order, and the number of the end with each."""
        pairs = sorted((int(end.address), number) for number, end in enumerate(self.ends))
        return [address for address, _ in pairs], [number for _, number in pairs]

    def find(self, address: IPAddress) -> int:
        """The number of the end that an address belongs to."""
        number = self.by_address.get(address)
        for length, ranges in () if number is not None else self._ranges:
            shift = 32 - length
            number = ranges.get(int(address) >> shift << shift)
            if number is not None:
                break
        if number is None:
            raise KeyError(address)
        return number

    @cached_property
    def _ranges(self) -> list[tuple[int, dict[int, int]]]:
        """By length of prefix, the longest first: the end of each range, by its first address."""
        found: dict[int, dict[int, int]] = {}
        for number, end in enumerate(self.ends):
            if end.range is not None:
                of_length = found.setdefault(end.range.prefixlen, {})
                of_length[int(end.range.network_address)] = number
        return sorted(found.items(), reverse=True)

    def bits(self, numbers: Iterable[int]) -> int:
        """The set of these ends."""
        return bits_of(numbers, len(self.ends))

    def inside(self, network: IPNetwork) -> int:
        """The ends whose address is in this range."""
        addresses, numbers = self._in_order
        low = bisect_left(addresses, int(network.network_address))
        high = bisect_right(addresses, int(network.broadcast_address))
        return self.bits(numbers[low:high])

    def all_pods(
        self, pod_range: IPNetwork, outsiders: tuple[IPNetwork, ...], mask: int | None
    ) -> int:
        """The ends in the pod range that are pods; many sets have all of them."""
        key = pod_range, outsiders, mask
        if key not in self._all_pods:
            pods = self.inside(pod_range)
            for network in outsiders:
                gone = self.inside(network) if mask is None else self.masked(network, mask)
                pods &= ~gone
            self._all_pods[key] = pods
        return self._all_pods[key]

    def masked(self, network: IPNetwork, mask: int) -> int:
        """The ends whose address agrees with the network's in the bits of a mask."""
        wanted = int(network.network_address) & mask
        addresses, numbers = self._in_order
        pairs = zip(addresses, numbers, strict=True)
        return self.bits(number for address, number in pairs if address & mask == wanted)


def make_ends(
    view: ClusterView,
    workloads: Mapping[str, ObjectRef],
    missing: frozenset[str],
    blocks: Iterable[IPNetwork],
) -> Ends:
    """All ends of a cluster.

    `workloads` is by pod (`NAMESPACE/NAME`); `missing` are pods that do not exist now. `blocks` are
    all address blocks in the policies that matter.
    """
    ends = [
        End(
            workloads.get(attachment.pod, attachment.ref),
            attachment.address,
            attachment.pod or attachment.port,
            node,
            attachment.pod not in missing,
        )
        for node, attachments in view.attachments.items()
        for attachment in attachments.values()
    ]
    for node in view.nodes.values():
        ends.append(End(NODES, node.gateway, node.name, node.name, accepts=False))
        ends.append(End(NODES, node.address, node.name, node.name, opens=False))
    taken = {end.address for end in ends}
    ends += _ranges(set(blocks), view.cluster.pod_range, taken)
    return Ends(tuple(sorted(ends, key=lambda end: (end.workload, end.name, end.opens))))


def _ranges(blocks: set[IPNetwork], pod_range: IPNetwork, taken: set[IPAddress]) -> Iterator[End]:
    """An end for each block: an address that is in no longer block, and in no pod's range."""
    blocks.add(ANYWHERE)
    holes = sorted(
        {*blocks, pod_range}, key=lambda each: (int(each.network_address), each.prefixlen)
    )
    starts = [int(hole.network_address) for hole in holes]
    for block in blocks:
        if block.version != pod_range.version or block.subnet_of(pod_range):  # type: ignore[arg-type]
            continue
        address, last = int(block.network_address), int(block.broadcast_address)
        place = bisect_left(starts, address)
        while address <= last:
            # Skip what longer blocks contain, from left to right.
            inner = None
            while place < len(holes) and starts[place] <= address:
                hole = holes[place]
                place += 1
                is_inner = hole.prefixlen > block.prefixlen or (hole == pod_range != block)
                if is_inner and int(hole.broadcast_address) >= address:
                    inner = hole
                    break
            if inner is not None:
                address = int(inner.broadcast_address) + 1
            elif (found := IPv4Address(address)) in taken or (address == 0 and address < last):
                address += 1
            else:
                name = "any other address" if block == ANYWHERE else str(block)
                yield End(outside(name), found, name, range=block)
                break


def set_members(
    ends: Ends, found: PeerSet | None, members: Iterable[IPAddress], pod_range: IPNetwork
) -> int:
    """The ends in a peer set with these members. An unknown set is empty, as in the switch."""
    if found is None:
        return 0
    bits = 0
    for block in sorted(found.blocks, key=lambda each: each.network.prefixlen):
        inside = ends.inside(block.network)
        bits = bits | inside if block.is_member else bits & ~inside
    if found.outsiders is not None:
        bits |= ends.all_pods(pod_range, found.outsiders, found.outsiders_mask)
    known = ends.by_address
    return bits | ends.bits(known[address] for address in members if address in known)


def isolations(view: ClusterView) -> Iterator[Isolation]:
    """Every attachment that a policy selects."""
    for node in view.isolations.values():
        yield from node.values()
