"""EndpointSlices, each read by itself.

Who serves what follows kube-proxy (k8s.io/kubernetes, pkg/proxy/endpointslicecache.go). What is
refused is named with its field, and changes nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from sys import intern
from typing import Final

from controller.known_addresses import KnownAddresses
from controller.service_fields import PORTS, PROTOCOLS, FieldProblems
from controller.sources.endpoint_objects import EndpointPort as EndpointPortObject
from controller.sources.endpoint_objects import SliceEndpoint, SliceObject
from flows.features.protocols import UDP
from flows.view import Cluster, Endpoint, Target
from settings.plain_yaml import shown

MAX_SLICE_ENDPOINTS: Final = 32_768
"""Endpoints times ports of one EndpointSlice. Kubernetes' own have 100 endpoints."""
MAX_HINTS: Final = 8
"""Zones, or nodes, that one endpoint is meant for (discovery/v1 EndpointHints)."""

_Place = tuple[int, int]
"""Address and port."""


@dataclass(frozen=True, slots=True)
class PortEndpoints:
    """The endpoints of one Service port, with values computed over all of them."""

    by_place: Mapping[_Place, Endpoint]
    """Sorted by address and port, without duplicates."""
    targets: frozenset[Target]
    zones: frozenset[str]
    """All zones that hints name."""
    has_node_hints: bool
    buckets: int
    """The largest number of groups in which its endpoints can be."""


NO_ENDPOINTS: Final = PortEndpoints({}, frozenset(), frozenset(), has_node_hints=False, buckets=0)


@dataclass(frozen=True, slots=True)
class SliceDraft:
    """An EndpointSlice that has been read."""

    service: str
    """`NAMESPACE/NAME`."""
    ipv6: bool = False
    ports: Mapping[tuple[str, int], PortEndpoints] | None = None
    """By port name and protocol."""
    problems: tuple[str, ...] = ()


def service_of(given: SliceObject) -> str:
    """`NAMESPACE/NAME` of its Service."""
    return f"{given.metadata.namespace}/{given.service}"


def read_slice(given: SliceObject, cluster: Cluster, known: KnownAddresses) -> SliceDraft:
    """The endpoints that an EndpointSlice adds to its Service."""
    service = service_of(given)
    if given.address_type == "IPv6":
        return SliceDraft(service, ipv6=True)
    if given.address_type != "IPv4":
        why = f"addressType: {shown(given.address_type)} is not IPv4"
        return SliceDraft(service, problems=(why,))
    problems = FieldProblems()
    ports = _read_ports(given, problems)
    found: dict[tuple[str, int], dict[_Place, Endpoint]] = {}
    endpoints = given.endpoints or []
    if ports and len(endpoints) * len(ports) > MAX_SLICE_ENDPOINTS:
        most = MAX_SLICE_ENDPOINTS // len(ports)
        problems.append(
            f"endpoints: {len(endpoints)} with {len(ports)} ports each are more than"
            f" {MAX_SLICE_ENDPOINTS}; only the first {most} are used"
        )
        endpoints = endpoints[:most]
    for number, endpoint in enumerate(endpoints):
        field = f"endpoints[{number}].addresses"
        address = _read_address(field, endpoint, cluster, problems)
        if address is None:
            continue
        ready = _is_ready(endpoint)
        at = int(address)
        for name, protocol, port in ports:
            if (protocol, port) == (UDP, cluster.tunnel_port) and address in known.of_nodes:
                # The switch trusts packets from a tunnel.
                node = known.of_nodes[address].node
                problems.append(f"{field}: {address}, port {port}/UDP is Node {node}'s tunnel")
            elif ready is not None:
                made = _endpoint(endpoint, address, port, ready)
                _add(found.setdefault((name, protocol), {}), (at, port), made)
    return SliceDraft(
        service,
        ports={key: _summed_up(key[1], places, cluster) for key, places in found.items()},
        problems=tuple(problems),
    )


def _summed_up(protocol: int, places: dict[_Place, Endpoint], cluster: Cluster) -> PortEndpoints:
    endpoints = places.values()
    hinted = [each for each in endpoints if each.zones or each.nodes]
    pods = cluster.pod_range
    first, last = int(pods.network_address), int(pods.broadcast_address)
    # Most endpoints are pods with one port: compare one target, not a thousand.
    of_pods = {port for at, port in places if first <= at <= last}
    targets = {Target(pods, protocol, port) for port in of_pods}
    targets |= {
        Target.of(each, protocol, pods)
        for (at, _), each in places.items()
        if not first <= at <= last
    }
    return PortEndpoints(
        dict(sorted(places.items())),
        frozenset(targets),
        frozenset(zone for each in hinted for zone in each.zones),
        any(each.nodes for each in hinted),
        len(endpoints) + sum(len(each.zones) + len(each.nodes) for each in hinted),
    )


def joined(parts: list[PortEndpoints]) -> PortEndpoints:
    """The endpoints of one Service port in several EndpointSlices, given in the slices' order."""
    if not parts:
        return NO_ENDPOINTS
    if len(parts) == 1:
        return parts[0]
    places: dict[_Place, Endpoint] = {}
    for part in parts:
        if places.keys().isdisjoint(part.by_place):
            places.update(part.by_place)
        else:
            for place, endpoint in part.by_place.items():
                _add(places, place, endpoint)
    return PortEndpoints(
        {place: places[place] for place in sorted(places)},
        frozenset().union(*(part.targets for part in parts)),
        frozenset().union(*(part.zones for part in parts)),
        any(part.has_node_hints for part in parts),
        sum(part.buckets for part in parts),
    )


def _add(places: dict[_Place, Endpoint], place: _Place, endpoint: Endpoint) -> None:
    """Of endpoints with the same address and port, keep the first that is ready, else the first."""
    other = places.get(place)
    if other is None or (endpoint.ready and not other.ready):
        places[place] = endpoint


def _read_ports(given: SliceObject, problems: FieldProblems) -> list[tuple[str, int, int]]:
    """Name, protocol and number of each valid port."""
    good: list[tuple[str, int, int]] = []
    ports = given.ports or ()
    if len(ports) > MAX_SLICE_ENDPOINTS:
        problems.append(f"ports: {len(ports)} are more than {MAX_SLICE_ENDPOINTS}")
        return []
    for number, port in enumerate(ports):
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        if protocol is None:
            names = ", ".join(PROTOCOLS)
            problems.append(f"ports[{number}].protocol: {shown(port.protocol)} is none of {names}")
        elif port.port is None:
            problems.append(f"ports[{number}].port is missing")
        elif port.port not in PORTS:
            problems.append(f"ports[{number}].port: {port.port} is not a valid port (1-65535)")
        else:
            good.append((intern(port.name or ""), protocol, port.port))
    return good


def _read_address(
    field: str, given: SliceEndpoint, cluster: Cluster, problems: FieldProblems
) -> IPv4Address | None:
    if not given.addresses:
        problems.append(f"{field} is empty")
        return None
    # Further addresses mean the same endpoint, and no proxy uses them (discovery/v1 Endpoint).
    address = problems.address(field, given.addresses[0], quiet_ipv6=False)
    if address is not None and address in cluster.service_range:
        problems.append(f"{field}: {address} is inside the Service range {cluster.service_range}")
        return None
    return address


def _is_ready(given: SliceEndpoint) -> bool | None:
    """False: it is terminating but still serving. None: it gets no connections."""
    conditions = given.conditions
    if conditions is None or conditions.ready is not False:
        return True
    return False if conditions.terminating and conditions.serving is not False else None


def _endpoint(given: SliceEndpoint, address: IPv4Address, port: int, ready: bool) -> Endpoint:
    # Thousands of endpoints name few nodes and zones.
    node = intern(given.node_name or "")
    hints = given.hints
    if hints is None:
        return Endpoint(address, port, ready, node)
    return Endpoint(
        address,
        port,
        ready,
        node,
        tuple(sorted({intern(hint.name) for hint in (hints.for_zones or ())[:MAX_HINTS]})),
        tuple(sorted({intern(hint.name) for hint in (hints.for_nodes or ())[:MAX_HINTS]})),
    )


def has_tunnel_port(ports: Iterable[EndpointPortObject] | None, cluster: Cluster) -> bool:
    """Whether one of a slice's ports is the number of the nodes' tunnels."""
    return any(each.protocol == "UDP" and each.port == cluster.tunnel_port for each in ports or ())


def ipv4_addresses(given: SliceObject) -> set[IPv4Address]:
    """The first address of each endpoint, where it is IPv4."""
    return {
        address for each in given.endpoints or () if (address := _first_address(each)) is not None
    }


def _first_address(given: SliceEndpoint) -> IPv4Address | None:
    try:
        return IPv4Address(given.addresses[0]) if given.addresses else None
    except AddressValueError:
        return None
