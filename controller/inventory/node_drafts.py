"""One Node judged by itself, before it is compared with other Nodes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Network,
    ip_network,
)
from itertools import islice
from typing import Final

from controller.faults import ControllerFault
from controller.sources.objects import NodeObject
from flows.family import IPAddress, IPNetwork
from flows.view import Cluster
from flows.ways import Mode
from settings.plain_yaml import shown

LONGEST_PREFIX: Final = 30
"""Of a podCIDR: network, gateway, one pod, broadcast."""
MAX_POD_CIDRS: Final = 2
"""One per family; the API server takes no more."""
MAX_ADDRESSES: Final = 64
"""Entries of `status.addresses` that are used."""
LONGEST_TEXT: Final = 64
"""Characters of an address or a range; IPv6 takes at most 49."""
MAX_CANDIDATES: Final = 8
"""InternalIPs of a Node that may become its tunnel address."""

Range = tuple[str, IPNetwork]
"""A range and what it is called."""

Age = tuple[str, str, str]
"""Orders Nodes, the oldest first."""


class NodeRefusedError(ControllerFault):
    """A Node cannot take part; the text names the field."""


@dataclass(frozen=True, slots=True)
class NodeDraft:
    """A Node that could take part."""

    name: str
    uid: str
    age: Age
    zone: str
    pod_cidr: IPv4Network
    candidates: tuple[IPv4Address, ...]
    """Addresses that may become its tunnel address, in order of preference."""
    addresses: tuple[IPv4Address, ...]
    """All of its addresses, of any type."""
    problem: str = ""
    """What is wrong with it, although it takes part."""
    outdated: bool = False
    """The draft is from an earlier state: the object as it is now cannot be used."""
    mode: Mode = Mode.ENCAP
    uplink: IPv4Interface | None = None
    """The address that its agent found, with the prefix length of its subnet; None: unknown."""

    def subnet_of(self, address: IPAddress) -> IPNetwork | None:
        """The subnet of its tunnel address; None: unknown."""
        if self.uplink is None or self.uplink.ip != address:
            return None
        return self.uplink.network


def age_of(given: NodeObject) -> Age:
    """Without a time it is the youngest: a manifest made by hand displaces nobody."""
    created = given.metadata.creation_timestamp or "never"
    return created, given.metadata.name, given.metadata.uid


def draft_of(given: NodeObject, cluster: Cluster, reserved: Iterable[Range]) -> NodeDraft:
    """Judge a Node by itself. Raises `NodeRefusedError`."""
    count = len(given.status.addresses or ())
    problems = []
    if count > MAX_ADDRESSES:
        problems.append(f"status.addresses has {count} entries; the first {MAX_ADDRESSES} are used")
    mode = cluster.mode
    if text := given.network_mode:
        try:
            mode = Mode(text)
        except ValueError:
            problems.append(
                f"label sluice.dev/network-mode: {shown(text)} is none of {', '.join(Mode)};"
                f" its mode is {mode}"
            )
    uplink = None
    if text := given.own_address:
        try:
            uplink = IPv4Interface(text[: LONGEST_TEXT + 1])
        except ValueError:
            problems.append(
                f"annotation sluice.dev/address: {shown(text)} is not an IPv4 address with the"
                " prefix length of its subnet"
            )
    return NodeDraft(
        given.metadata.name,
        given.metadata.uid,
        age_of(given),
        given.zone,
        _pod_cidr(given, cluster, reserved),
        _candidates(given, cluster),
        tuple(dict.fromkeys(_ipv4(islice(given.addresses, MAX_ADDRESSES)))),
        "; ".join(problems),
        mode=mode,
        uplink=uplink,
    )


def _candidates(given: NodeObject, cluster: Cluster) -> tuple[IPv4Address, ...]:
    texts = list(islice(given.internal_addresses, MAX_ADDRESSES))
    if not texts:
        raise NodeRefusedError("status.addresses holds no InternalIP")
    addresses = list(dict.fromkeys(_ipv4(texts)))
    if not addresses:
        raise NodeRefusedError(
            f"status.addresses: InternalIP {shown(texts[0])} is not an IPv4 address"
        )
    problems = [_tunnel_problem(address, cluster) for address in addresses]
    usable = [each for each, problem in zip(addresses, problems, strict=True) if not problem]
    if not usable:
        raise NodeRefusedError(problems[0])
    return tuple(usable[:MAX_CANDIDATES])


def _tunnel_problem(address: IPv4Address, cluster: Cluster) -> str:
    if (
        address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or address.is_link_local
        or address.is_reserved
    ):
        return f"status.addresses: InternalIP {address} cannot be the end of a tunnel"
    for name, network in (
        ("the pod range", cluster.pod_range),
        ("the Service range", cluster.service_range),
    ):
        if address in network:
            return f"status.addresses: InternalIP {address} is inside {name} {network}"
    return ""


def _pod_cidr(given: NodeObject, cluster: Cluster, reserved: Iterable[Range]) -> IPv4Network:
    texts = given.pod_cidrs
    if not texts:
        raise NodeRefusedError("spec.podCIDR is missing")
    if len(texts) > MAX_POD_CIDRS:
        problem = f"spec.podCIDRs has {len(texts)} entries; {MAX_POD_CIDRS} is the most"
        raise NodeRefusedError(problem)
    networks = [_network(text) for text in texts]
    found = next((each for each in networks if isinstance(each, IPv4Network)), None)
    if found is None:
        problem = f"spec.podCIDR {', '.join(texts)} is not IPv4; this cluster is IPv4-only"
        raise NodeRefusedError(problem)
    if found.prefixlen > LONGEST_PREFIX:
        problem = f"spec.podCIDR {found} is too small: /{LONGEST_PREFIX} is the least"
        raise NodeRefusedError(problem)
    for name, network in reserved:
        if found.overlaps(network):
            raise NodeRefusedError(f"spec.podCIDR {found} overlaps {name} {network}")
    pods = cluster.pod_range
    if not (isinstance(pods, IPv4Network) and found.subnet_of(pods)):
        problem = f"spec.podCIDR {found} is outside the pod range {cluster.pod_range}"
        raise NodeRefusedError(problem)
    return found


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        # The error repeats the text, however long it is.
        why = f": {error}" if len(text) <= LONGEST_TEXT else ""
        raise NodeRefusedError(f"spec.podCIDR {shown(text)} is not a CIDR{why}") from error


def _ipv4(texts: Iterable[str]) -> Iterator[IPv4Address]:
    for text in texts:
        try:
            yield IPv4Address(text)
        except AddressValueError:
            continue
