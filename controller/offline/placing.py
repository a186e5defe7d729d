"""Pods in an inventory without switches: each gets a node, an address and a port of its own."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from itertools import islice
from typing import Final

import msgspec

from controller.inventory import BridgePort, Inventory
from controller.inventory.ports import ATTACHMENT_OFPORTS, MAX_PORTS
from controller.sources.objects import (
    NodeMetadata,
    NodeObject,
    NodeObjectAddress,
    NodeSpec,
    NodeStatus,
    PodObject,
)
from flows import names

SANDBOX: Final = "no sandbox"
"""In place of a container id."""
INVENTED: Final = IPv4Network("198.18.0.0/15")
"""Addresses of nodes that have none (RFC 2544: they are nobody's)."""
PODS_PER_NODE: Final = 110


class Placer:
    """Attaches pods to the nodes of an inventory."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._taken: set[IPv4Address] = set()
        self._ofports: dict[str, Iterator[int]] = {}
        self._free: dict[str, Iterator[IPv4Address]] = {}
        for name, node in inventory.view.nodes.items():
            attachments = inventory.view.attachments.get(name, {}).values()
            used = {each.ofport for each in attachments}
            self._taken |= {IPv4Address(int(each.address)) for each in attachments}
            # From above: the counters of agents begin below.
            free = (number for number in reversed(ATTACHMENT_OFPORTS) if number not in used)
            self._ofports[name] = islice(free, MAX_PORTS - len(used))
            hosts = range(2, node.pod_cidr.num_addresses - 1)
            first = int(node.pod_cidr.network_address)
            self._free[name] = (IPv4Address(first + host) for host in hosts)
        self._open = list(self._free)
        """Nodes that may have room."""

    def put(self, pod: PodObject, wanted: IPv4Address | None = None) -> IPv4Address | None:
        """Attach a pod, with this address if its node has it. None: no node has room."""
        node = pod.spec.node_name
        place = self._on(node, wanted) if node in self._free else None
        while place is None and self._open:
            node = self._open[-1]
            place = self._on(node, None)
            if place is None:
                self._open.pop()
        if place is None:
            return None
        address, ofport = place
        metadata = pod.metadata
        if not metadata.uid:
            metadata = msgspec.structs.replace(metadata, uid="none")
        spec = msgspec.structs.replace(pod.spec, node_name=node)
        self._inventory.set_object(PodObject(metadata, spec))
        port = names.port_name(metadata.namespace, metadata.name, metadata.uid, "eth0", SANDBOX)
        self._inventory.set_port(node, BridgePort(port, ofport, names.mac_of(address)))
        return address

    def _on(self, node: str, wanted: IPv4Address | None) -> tuple[IPv4Address, int] | None:
        """An address and an ofport of a node."""
        ofport = next(self._ofports[node], None)
        if ofport is None:
            return None
        cidr = self._inventory.view.nodes[node].pod_cidr
        if wanted is None or wanted not in cidr or wanted in self._taken:
            wanted = next((each for each in self._free[node] if each not in self._taken), None)
        if wanted is None:
            return None
        self._taken.add(wanted)
        return wanted, ofport


def pod_range_of(nodes: Iterable[NodeObject]) -> IPv4Network:
    """The smallest range with all podCIDRs; 10.244.0.0/16 if it has them all, or there are none."""
    usual = IPv4Network("10.244.0.0/16")
    cidrs = [cidr for node in nodes if (cidr := _cidr(node)) is not None]
    if all(cidr.subnet_of(usual) for cidr in cidrs):
        return usual
    found = cidrs[0]
    while not all(cidr.subnet_of(found) for cidr in cidrs):
        found = found.supernet()
    # Room for nodes without a podCIDR.
    return found.supernet() if found.prefixlen > 16 else found


def complete_nodes(
    nodes: Iterable[NodeObject], pod_range: IPv4Network, pods: int
) -> list[NodeObject]:
    """Nodes that a controller accepts, with room for so many pods.

    A node without a podCIDR or an address gets one. Where the nodes have not enough room, there are
    further ones.
    """
    given = list(nodes)
    cidrs = [cidr for node in given if (cidr := _cidr(node)) is not None]
    length = max(min([24, *(cidr.prefixlen for cidr in cidrs)]), pod_range.prefixlen)
    free = _free_ranges(pod_range, length, cidrs)
    addresses = iter(INVENTED)
    found: list[NodeObject] = []
    room = 0
    wanted = max(1, -(-pods // PODS_PER_NODE))
    for number in range(max(len(given), wanted) * 2):
        if number < len(given):
            node = given[number]
        elif room < pods or not found:
            node = NodeObject(NodeMetadata(name=f"node-{number}", uid=f"node-{number}"))
        else:
            break
        cidr = _cidr(node)
        if cidr is None:
            cidr = next(free, None)
            if cidr is None:
                break
        address = node.internal_addresses or (str(next(addresses)),)
        found.append(
            msgspec.structs.replace(
                node,
                spec=NodeSpec(pod_cidr=str(cidr)),
                status=NodeStatus([NodeObjectAddress("InternalIP", each) for each in address]),
            )
        )
        room += min(cidr.num_addresses - 3, MAX_PORTS)
    return found


def _cidr(node: NodeObject) -> IPv4Network | None:
    for text in node.pod_cidrs:
        try:
            return IPv4Network(text)
        except ValueError:
            continue
    return None


def _free_ranges(
    pod_range: IPv4Network, length: int, taken: Iterable[IPv4Network]
) -> Iterator[IPv4Network]:
    """The parts of the pod range that are in no podCIDR, from the end."""
    first = int(pod_range.network_address)
    last = int(pod_range.broadcast_address)
    edges = sorted((int(cidr.network_address), int(cidr.broadcast_address)) for cidr in taken)
    holes: list[tuple[int, int]] = []
    for low, high in edges:
        if low > first:
            holes.append((first, low - 1))
        first = max(first, high + 1)
    if first <= last:
        holes.append((first, last))
    for low, high in reversed(holes):
        for network in summarize_address_range(IPv4Address(low), IPv4Address(high)):
            if network.prefixlen <= length:
                yield from network.subnets(new_prefix=length)
