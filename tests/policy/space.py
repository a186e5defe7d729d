"""The packets that a cluster is checked with: the space of packets, cut into pieces.

It is cut at every boundary of addresses and ports, of policies *and* flows. All packets of one
piece are treated alike, so one representative of each piece is enough.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any, Final, NamedTuple

from flows import names
from flows.pipeline import LAYOUT
from tests.flows.worlds import CLUSTER
from tests.policy import evaluator
from tests.policy.evaluator import Cluster, End, Packet, gateway, node_addresses
from tests.policy.simulator import FRAGMENTS, PacketSet, Tables, product

NUMBERS: Final = {"ICMP": 1, "TCP": 6, "UDP": 17, "SCTP": 132, "GRE": 47}
"""The protocols of packets, with IANA's numbers."""
_NAMES: Final = {number: name for name, number in NUMBERS.items()}
_POLICY_TABLES: Final = [n for n in LAYOUT.by_number if 80 <= n < 115 or 150 <= n < 160]
_ROUTER: Final = int(names.ROUTER_MAC.replace(":", ""), 16)


class Kind(NamedTuple):
    """What has ports, or not: protocol, destination port, and whether it is a later fragment."""

    protocol: str
    port: int | None
    fragment: str = "no"


class Space:
    """The packets of a cluster: one of each piece, as numbers and as columns."""

    def __init__(self, clusters: Sequence[Cluster], tables: Iterable[Tables]) -> None:
        """The first of the clusters has the pods. Of the others only the policies count."""
        cluster = clusters[0]
        self._objects = [each for one in clusters for each in one.objects]
        tables = list(tables)
        pods = [
            End(each.address, each.pod or f"/{each.address}", each.node)
            for each in cluster.attachments
        ]
        self.nodes = cluster.nodes
        own = [End(gateway(node), "", name) for name, node in self.nodes.items()]
        status = [
            End(address, "", name)
            for name, node in self.nodes.items()
            for address in node_addresses(node)
        ]
        outside = [End(address) for address in self._outside(tables)]
        self.sources = [*pods, *own, *status, *outside]
        self.destinations = [*pods, *own, *(End(end.address) for end in status), *outside]
        self.kinds = self._kinds(tables)
        self.count, self.columns = product(
            [
                [{"nw_src": number_of(end.address)} for end in self.sources],
                [{"nw_dst": number_of(end.address)} for end in self.destinations],
                [self._kind_fields(kind) for kind in self.kinds],
            ]
        )
        everything = (1 << self.count) - 1
        self.columns["dl_type"] = {0x0800: everything}
        self.columns["dl_dst"] = {_ROUTER: everything}

    def _kind_fields(self, kind: Kind) -> dict[str, int]:
        fields = {"nw_proto": NUMBERS[kind.protocol], "nw_frag": FRAGMENTS[kind.fragment]}
        if kind.port is not None:
            fields["tp_dst"] = kind.port
        return fields

    def _outside(self, tables: Iterable[Tables]) -> list[str]:
        """An address of each piece outside the pod range, but for addresses of nodes."""
        cuts = {0, 1 << 24, 1 << 32}
        for network in (*_networks(self._objects), CLUSTER.pod_range, *_NOT_FORWARDED):
            cuts |= {int(network[0]), int(network[-1]) + 1}
        for each in tables:
            for value, mask in each.addresses(_POLICY_TABLES):
                size = (1 << 32) - mask
                if size & (size - 1) == 0:  # others are within the pod range
                    cuts |= {value, value + size}
        taken = {number_of(a) for node in self.nodes.values() for a in node_addresses(node)}
        ordered = sorted(cuts)
        found = []
        for first, after in pairwise(ordered):
            for candidate in range(first, after):
                address = IPv4Address(candidate)
                if address in CLUSTER.pod_range or any(address in n for n in _NOT_FORWARDED):
                    break
                if candidate not in taken:
                    found.append(str(address))
                    break
        return found

    def _kinds(self, tables: Iterable[Tables]) -> list[Kind]:
        """A packet of each piece of the protocols and their ports."""
        cuts: dict[str, set[int]] = {protocol: {0} for protocol in evaluator.PROTOCOLS}
        for protocol, first, last in _port_ranges(self._objects):
            for each in cuts if protocol is None else (protocol,):
                cuts[each] |= {first, last + 1}
        for tables_of_one in tables:
            for number, value, mask in tables_of_one.ports(_POLICY_TABLES):
                size = 0x1_0000 - mask
                if size & (size - 1):
                    raise ValueError(f"a port mask that is no range: {value:#x}/{mask:#x}")
                cuts[_NAMES[number]] |= {value, value + size}
        return [
            *(
                Kind(protocol, port)
                for protocol, ports in cuts.items()
                for port in sorted(ports)
                if port <= 0xFFFF
            ),
            Kind("ICMP", None),
            Kind("GRE", None),
            Kind("TCP", None, "later"),
            Kind("UDP", None, "later"),
            Kind("UDP", None, "first"),
        ]

    def packet(self, number: int) -> Packet:
        """The packet of this number."""
        rest, kind = divmod(number, len(self.kinds))
        source, destination = divmod(rest, len(self.destinations))
        of = self.kinds[kind]
        return Packet(self.sources[source], self.destinations[destination], of.protocol, of.port)

    def kind(self, number: int) -> Kind:
        return self.kinds[number % len(self.kinds)]

    def from_source(self, index: int) -> PacketSet:
        """The packets of one source."""
        width = len(self.destinations) * len(self.kinds)
        return ((1 << width) - 1) << (index * width)

    @cached_property
    def _first_to(self) -> int:
        """Of each source, the first packet to the first destination."""
        width = len(self.destinations) * len(self.kinds)
        return ((1 << self.count) - 1) // ((1 << width) - 1)

    def to_destination(self, index: int) -> PacketSet:
        """The packets to one destination."""
        block = (1 << len(self.kinds)) - 1
        return (block << (index * len(self.kinds))) * self._first_to

    def sent_from(self, node: str) -> PacketSet:
        """The packets that come into the switch of this node first.

        A packet from outside comes in where its destination is. A node's own stack uses its other
        addresses for pods of the node only. What does not go to a pod has to come from one.
        """
        return self._sent_from[node]

    @cached_property
    def _sent_from(self) -> dict[str, PacketSet]:
        found = dict.fromkeys(self.nodes, 0)
        to_pods = dict.fromkeys(self.nodes, 0)
        for index, end in enumerate(self.destinations):
            if end.pod:
                to_pods[end.node] |= self.to_destination(index)
        all_pods = 0
        for packets in to_pods.values():
            all_pods |= packets
        for index, end in enumerate(self.sources):
            packets = self.from_source(index)
            if end.pod:
                found[end.node] |= packets
            elif not end.node:
                for node in self.nodes:
                    found[node] |= packets & to_pods[node]
            elif end.address == gateway(self.nodes[end.node]):
                found[end.node] |= packets & all_pods
            else:
                found[end.node] |= packets & to_pods[end.node]
        return found


def number_of(address: str) -> int:
    return int(IPv4Address(address))


_NOT_FORWARDED: Final = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")),
    CLUSTER.service_range,
)
"""Ranges that no packet from or to the outside is of."""


def _networks(given: Any) -> Iterator[IPv4Network]:
    """All address blocks anywhere in objects."""
    match given:
        case dict():
            for value in given.values():
                yield from _networks(value)
        case list():
            for value in given:
                yield from _networks(value)
        case str() if re.fullmatch(r"\d+\.\d+\.\d+\.\d+/\d+", given):
            yield IPv4Network(given, strict=False)


def _port_ranges(given: Any, protocol: str | None = None) -> Iterator[tuple[str | None, int, int]]:
    """All numbers and ranges of ports anywhere in objects; the protocol is None if it is any."""
    match given:
        case {"port": int(first), **rest}:
            yield rest.get("protocol", "TCP"), first, rest.get("endPort", first)
        case {"containerPort": int(first), **rest}:
            yield rest.get("protocol", "TCP"), first, first
        case {"start": int(first), "end": int(last)}:
            yield protocol, first, last
        case {"number": int(first)}:
            yield protocol, first, first
        case dict():
            for key, value in given.items():
                named = key.upper() if key in {"tcp", "udp", "sctp"} else protocol
                yield from _port_ranges(value, named)
        case list():
            for value in given:
                yield from _port_ranges(value, protocol)
