"""Services and EndpointSlices, each judged by itself: what it would be if there were no other.

Rules of who serves what are kube-proxy's (k8s.io/kubernetes, pkg/proxy/serviceport.go and
endpointslicecache.go). What is refused is named with its field, and costs nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, ip_network
from ipaddress import ip_address as parse_address
from sys import intern
from typing import Final, NamedTuple

from controller.sources.objects import EndpointPort as EndpointPortObject
from controller.sources.objects import ServiceObject, ServicePortObject, SliceObject
from controller.sources.objects import SliceEndpoint as EndpointObject
from flows import names
from flows.features.protocols import LAYER_4_NAMES, TCP, UDP
from flows.view import Cluster, Endpoint, Frontend
from settings.plain_yaml import shown

PROTOCOL_NAMES: Final = {number: name.upper() for number, name in LAYER_4_NAMES.items()}
PROTOCOLS: Final = {name: number for number, name in PROTOCOL_NAMES.items()}
"""IANA's numbers, by the names of core/v1 Protocol."""
USUAL_AFFINITY: Final = 10_800
LONGEST_AFFINITY: Final = 86_400
"""Seconds (core/v1 ClientIPConfig)."""
_PORTS: Final = range(1, 65_536)
_ANYWHERE: Final = IPv4Network("0.0.0.0/0")
_BROADCAST: Final = IPv4Address("255.255.255.255")


class NodeAddress(NamedTuple):
    """Whose own an address is."""

    node: str
    number: int
    """Which of the node's addresses, from 0."""


class Claim(NamedTuple):
    address: IPv4Address | None
    protocol: int
    port: int

    def __str__(self) -> str:
        where = f" of {self.address}" if self.address else " of every node"
        return f"port {self.port}/{PROTOCOL_NAMES[self.protocol]}{where}"


class Offer(NamedTuple):
    """A frontend that nothing is wrong with, unless another Service has it."""

    frontend: Frontend
    protocol: int
    field: str

    @property
    def claim(self) -> Claim:
        return Claim(self.frontend.address, self.protocol, self.frontend.port)


@dataclass(frozen=True, slots=True)
class DraftPort:
    name: str
    protocol: int
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A Service as it would be if there were no other."""

    age: tuple[str, str]
    """Sorts the older of two first."""
    ports: tuple[DraftPort, ...] = ()
    health_check: Offer | None = None
    internal_local: bool = False
    external_local: bool = False
    affinity: int | None = None
    ipv4_only: bool = False
    addresses: frozenset[IPv4Address] = frozenset()
    """All outside the Service range that it names: to be judged anew when a node gets or loses one
    of them."""
    problems: tuple[str, ...] = ()

    def offers(self) -> Iterable[Offer]:
        for port in self.ports:
            yield from port.offers
        if self.health_check:
            yield self.health_check


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice, judged."""

    service: str
    ipv6: bool = False
    endpoints: Mapping[tuple[str, int], tuple[Endpoint, ...]] | None = None
    """By port name and protocol; sorted, each address and port once."""
    problems: tuple[str, ...] = ()


NOTHING: Final = Draft(("", ""))


class _Problems(list[str]):
    """What is wrong with an object, said while it is judged."""

    def address(self, field: str, text: str, *, quiet_ipv6: bool) -> IPv4Address | None:
        """Read an IPv4 address. `quiet_ipv6`: one of IPv6 is left out without a word."""
        try:
            found = parse_address(text)
        except ValueError:
            self.append(f"{field}: {shown(text)} is not an IP address")
            return None
        if isinstance(found, IPv4Address):
            if (why := _unreachable(found)) != "":
                self.append(f"{field}: {found} is {why}")
                return None
            return found
        if not quiet_ipv6:
            self.append(f"{field}: {found} is not IPv4")
        return None

    def choice(self, field: str, text: str, choices: tuple[str, str]) -> bool:
        """Whether it is the second of two; what is neither is told and counts as the first."""
        if text not in {"", *choices}:
            self.append(f"{field}: {shown(text)} is neither {choices[0]} nor {choices[1]}")
        return text == choices[1]


def _unreachable(address: IPv4Address) -> str:
    """Why no connection may be sent there (and CVE-2021-25737 is what comes of it)."""
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified:
        return "the unspecified address"
    return "the broadcast address" if address == _BROADCAST else ""


# --- Services, each by itself ---


def why_none_of_ours(given: ServiceObject) -> str:
    """Why nobody can connect to it by us; empty for one of ours."""
    spec = given.spec
    if spec.type == "ExternalName":
        return "its type is ExternalName: it is a name in DNS alone"
    if "None" in spec.cluster_addresses:
        return "it is headless: clients find its endpoints in DNS and connect to them themselves"
    labels = given.metadata.labels
    if labels is not None and labels.proxy_name is not None:
        return f"its label service.kubernetes.io/service-proxy-name says {shown(labels.proxy_name)}"
    return "its label service.kubernetes.io/headless says so" if given.is_anothers else ""


def judge_service(
    given: ServiceObject, cluster: Cluster, node_addresses: Mapping[IPv4Address, NodeAddress]
) -> Draft:
    spec = given.spec
    metadata = given.metadata
    # One without a time is the youngest, as with Nodes.
    age = metadata.creation_timestamp or "never", f"{metadata.namespace}/{metadata.name}"
    problems = _Problems()
    families = spec.ip_families or [
        "IPv6" if ":" in text else "IPv4" for text in spec.cluster_addresses
    ]
    if families and "IPv4" not in families:
        return Draft(age, problems=("spec.ipFamilies holds IPv6 alone; this cluster is IPv4-only",))
    dual = "IPv6" in families
    cluster_ip, named = _judge_cluster_ip(given, cluster, node_addresses, problems)
    external_local = problems.choice(
        "spec.externalTrafficPolicy", spec.external_traffic_policy, ("Cluster", "Local")
    )
    internal_local = problems.choice(
        "spec.internalTrafficPolicy", spec.internal_traffic_policy, ("Cluster", "Local")
    )
    external, more = _judge_external(given, cluster, node_addresses, cluster_ip, dual, problems)
    ports = _judge_ports(given, cluster, cluster_ip, external, problems)
    health_check = _judge_health_check(given, external_local, ports, problems)
    return Draft(
        age,
        ports,
        health_check,
        internal_local,
        external_local,
        _judge_affinity(given, problems),
        not dual,
        named | more,
        tuple(problems),
    )


def _judge_cluster_ip(
    given: ServiceObject,
    cluster: Cluster,
    node_addresses: Mapping[IPv4Address, NodeAddress],
    problems: _Problems,
) -> tuple[IPv4Address | None, frozenset[IPv4Address]]:
    """Its ClusterIP; and the same, refused or not, where it is outside the Service range."""
    texts = given.spec.cluster_addresses
    if not texts:
        problems.append("spec.clusterIP is missing: nobody has given it one")
        return None, frozenset()
    readable = (problems.address("spec.clusterIP", text, quiet_ipv6=True) for text in texts)
    found = next((address for address in readable if address), None)
    if found is None or found in cluster.service_range:
        return found, frozenset()
    # A cluster may have further ranges (ServiceCIDR objects), which the API server takes it from.
    if why := _inside(found, cluster):
        problems.append(f"spec.clusterIP: {found} is {why}")
    elif at := node_addresses.get(found):
        # Whoever routes it into the bridge has cut the node off.
        problems.append(f"spec.clusterIP: {found} is Node {at.node}'s own address")
    else:
        return found, frozenset({found})
    return None, frozenset({found})


def _inside(address: IPv4Address, cluster: Cluster) -> str:
    """In which of the cluster's own ranges it is, in words."""
    if address in cluster.pod_range:
        return f"inside the pod range {cluster.pod_range}"
    if address in cluster.service_range:
        return f"inside the Service range {cluster.service_range}"
    return ""


def _judge_external(
    given: ServiceObject,
    cluster: Cluster,
    node_addresses: Mapping[IPv4Address, NodeAddress],
    cluster_ip: IPv4Address | None,
    dual: bool,
    problems: _Problems,
) -> tuple[list[tuple[str, Frontend]], frozenset[IPv4Address]]:
    """By field, its external addresses as frontends without a port; and all that it names."""
    spec = given.spec
    found: list[tuple[str, Frontend]] = []
    named: set[IPv4Address] = set()
    texts: list[tuple[str, str, tuple[IPv4Network, ...] | None]] = []
    if spec.type == "LoadBalancer":
        sources = _judge_sources(spec.load_balancer_source_ranges, problems)
        # First, so that the sources hold also where an address is among the externalIPs too.
        texts += [
            (f"status.loadBalancer.ingress[{number}].ip", ingress.ip, sources)
            for number, ingress in enumerate(given.status.load_balancer.ingress or ())
            if ingress.ip and ingress.ip_mode != "Proxy"
        ]
    texts += [
        (f"spec.externalIPs[{number}]", text, None)
        for number, text in enumerate(spec.external_ips or ())
    ]
    for field, text, sources in texts:
        address = problems.address(field, text, quiet_ipv6=dual)
        if address is None or address in named or address == cluster_ip:
            continue
        named.add(address)
        at = node_addresses.get(address)
        if why := _inside(address, cluster):
            problems.append(f"{field}: {address} is {why}")
        elif at is None:
            found.append((field, Frontend(address, 0, True, sources)))
        elif at.number < names.STAND_INS.num_addresses:
            stand_in = names.STAND_INS[at.number]
            found.append((field, Frontend(address, 0, True, sources, at.node, stand_in)))
        else:
            problems.append(
                f"{field}: {address} is one of Node {at.node}'s own addresses, of which the first"
                f" {names.STAND_INS.num_addresses} can be a Service's"
            )
    return found, frozenset(named)


def _judge_sources(
    texts: Iterable[str] | None, problems: _Problems
) -> tuple[IPv4Network, ...] | None:
    """Whom a load balancer's addresses serve; what cannot be read is left out, never widened."""
    if not texts:
        return None
    found: set[IPv4Network] = set()
    for number, text in enumerate(texts):
        try:
            # The API server takes blanks around it, and bits behind the prefix.
            network = ip_network(text.strip(), strict=False)
        except ValueError:
            field = f"spec.loadBalancerSourceRanges[{number}]"
            problems.append(f"{field}: {shown(text)} is not a CIDR")
            continue
        if isinstance(network, IPv4Network):
            found.add(network)
    if _ANYWHERE in found:
        return None
    if not found:
        problems.append("spec.loadBalancerSourceRanges holds no IPv4 range: it serves nobody")
    return tuple(sorted(found))


def _judge_ports(
    given: ServiceObject,
    cluster: Cluster,
    cluster_ip: IPv4Address | None,
    external: Iterable[tuple[str, Frontend]],
    problems: _Problems,
) -> tuple[DraftPort, ...]:
    ports: list[DraftPort] = []
    taken: dict[Claim, int] = {}
    for number, port in enumerate(given.spec.ports or ()):
        field = f"spec.ports[{number}]"
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            problems.append(
                f"{field}.protocol: {shown(port.protocol)} is none of {', '.join(PROTOCOLS)}"
            )
            continue
        if port.port not in _PORTS:
            problems.append(f"{field}.port: {port.port} is no port")
            continue
        if any((port.name, protocol) == (other.name, other.protocol) for other in ports):
            problems.append(f"{field}.name: {shown(port.name)} is another port's already")
            continue
        offers: list[Offer] = []
        if cluster_ip:
            frontend = Frontend(cluster_ip, port.port, False)
            offers.append(Offer(frontend, protocol, "spec.clusterIP"))
        offers += _external_offers(external, protocol, port.port, cluster, problems)
        if node_port := _judge_node_port(given, field, port, cluster, problems):
            frontend = Frontend(None, node_port, True)
            offers.append(Offer(frontend, protocol, f"{field}.nodePort"))
        good: list[Offer] = []
        for offer in offers:
            if (other := taken.setdefault(offer.claim, number)) == number:
                good.append(offer)
            else:
                problems.append(f"{field}: {offer.claim} is spec.ports[{other}]'s already")
        ports.append(DraftPort(port.name, protocol, tuple(good)))
    return tuple(ports)


def _external_offers(
    external: Iterable[tuple[str, Frontend]],
    protocol: int,
    port: int,
    cluster: Cluster,
    problems: _Problems,
) -> Iterable[Offer]:
    for field, frontend in external:
        if frontend.node and (protocol, port) == (UDP, cluster.tunnel_port):
            where = f"{frontend.address}, port {port}/UDP"
            problems.append(f"{field}: {where} is Node {frontend.node}'s tunnel")
        else:
            yield Offer(replace(frontend, port=port), protocol, field)


def _judge_node_port(
    given: ServiceObject, field: str, port: ServicePortObject, cluster: Cluster, problems: _Problems
) -> int:
    """Its NodePort; 0: none."""
    if given.spec.type not in {"NodePort", "LoadBalancer"}:
        return 0
    if port.node_port == 0:
        # A load balancer may do without (allocateLoadBalancerNodePorts).
        if given.spec.type == "NodePort":
            problems.append(f"{field}.nodePort is missing: nobody has given it one")
        return 0
    if port.node_port not in _PORTS:
        problems.append(f"{field}.nodePort: {port.node_port} is no port")
        return 0
    if port.protocol == "UDP" and port.node_port == cluster.tunnel_port:
        problems.append(f"{field}.nodePort: {port.node_port}/UDP is the tunnels' port")
        return 0
    return port.node_port


def _judge_health_check(
    given: ServiceObject, external_local: bool, ports: Iterable[DraftPort], problems: _Problems
) -> Offer | None:
    if given.spec.type != "LoadBalancer" or not external_local:
        return None
    field, port = "spec.healthCheckNodePort", given.spec.health_check_node_port
    if port not in _PORTS:
        problems.append(f"{field} is missing" if port == 0 else f"{field}: {port} is no port")
        return None
    check = Offer(Frontend(None, port, True), TCP, field)
    if any(offer.claim == check.claim for each in ports for offer in each.offers):
        problems.append(f"{field}: {check.claim} is a nodePort of its own already")
        return None
    return check


def _judge_affinity(given: ServiceObject, problems: _Problems) -> int | None:
    spec = given.spec
    if not problems.choice("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP")):
        return None
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return USUAL_AFFINITY
    if not 0 < seconds <= LONGEST_AFFINITY:
        problems.append(
            f"spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not in 1 to"
            f" {LONGEST_AFFINITY}; {USUAL_AFFINITY} is taken instead"
        )
        return USUAL_AFFINITY
    return seconds


# --- slices, each by itself ---


def service_of(given: SliceObject) -> str:
    return f"{given.metadata.namespace}/{given.service}"


def judge_slice(
    given: SliceObject, cluster: Cluster, node_addresses: Mapping[IPv4Address, NodeAddress]
) -> Slice:
    service = service_of(given)
    if given.address_type == "IPv6":
        return Slice(service, ipv6=True)
    if given.address_type != "IPv4":
        return Slice(service, problems=(f"addressType: {shown(given.address_type)} is not IPv4",))
    problems = _Problems()
    ports = _judge_slice_ports(given, problems)
    found: dict[tuple[str, int], list[Endpoint]] = {}
    for number, endpoint in enumerate(given.endpoints or ()):
        field = f"endpoints[{number}].addresses"
        address = _judge_endpoint(field, endpoint, cluster, problems)
        if address is None:
            continue
        ready = _ready(endpoint)
        for name, protocol, port in ports:
            if (protocol, port) == (UDP, cluster.tunnel_port) and address in node_addresses:
                # What comes out of a tunnel is believed.
                node = node_addresses[address].node
                problems.append(f"{field}: {address}, port {port}/UDP is Node {node}'s tunnel")
            elif ready is not None:
                made = _endpoint(endpoint, address, port, ready)
                found.setdefault((name, protocol), []).append(made)
    return Slice(
        service,
        endpoints={key: united(endpoints) for key, endpoints in found.items()},
        problems=tuple(problems),
    )


def _judge_slice_ports(given: SliceObject, problems: _Problems) -> list[tuple[str, int, int]]:
    """Name, protocol and number of each that is good."""
    good: list[tuple[str, int, int]] = []
    for number, port in enumerate(given.ports or ()):
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        if protocol is None:
            names = ", ".join(PROTOCOLS)
            problems.append(f"ports[{number}].protocol: {shown(port.protocol)} is none of {names}")
        elif port.port is None:
            problems.append(f"ports[{number}].port is missing")
        elif port.port not in _PORTS:
            problems.append(f"ports[{number}].port: {port.port} is no port")
        else:
            good.append((intern(port.name or ""), protocol, port.port))
    return good


def _judge_endpoint(
    field: str, given: EndpointObject, cluster: Cluster, problems: _Problems
) -> IPv4Address | None:
    if not given.addresses:
        problems.append(f"{field} is empty")
        return None
    # The others stand for the same endpoint, and nobody uses them (discovery/v1 Endpoint).
    address = problems.address(field, given.addresses[0], quiet_ipv6=False)
    if address is not None and address in cluster.service_range:
        problems.append(f"{field}: {address} is inside the Service range {cluster.service_range}")
        return None
    return address


def _ready(given: EndpointObject) -> bool | None:
    """False: it is terminating and still serves. None: nothing is to be sent there."""
    conditions = given.conditions
    if conditions is None or conditions.ready is not False:
        return True
    return False if conditions.terminating and conditions.serving is not False else None


def _endpoint(given: EndpointObject, address: IPv4Address, port: int, ready: bool) -> Endpoint:
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
        tuple(sorted({intern(hint.name) for hint in hints.for_zones or ()})),
        tuple(sorted({intern(hint.name) for hint in hints.for_nodes or ()})),
    )


def united(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Sorted, each address and port once: the first that is ready, else the first."""
    found: dict[tuple[int, int], Endpoint] = {}
    for endpoint in endpoints:
        place = int(endpoint.address), endpoint.port
        known = found.get(place)
        if known is None or (endpoint.ready and not known.ready):
            found[place] = endpoint
    return tuple(found[place] for place in sorted(found))


def is_tunnel_port(port: EndpointPortObject, cluster: Cluster) -> bool:
    return port.protocol == "UDP" and port.port == cluster.tunnel_port


def first_address(given: EndpointObject) -> IPv4Address | None:
    try:
        return IPv4Address(given.addresses[0]) if given.addresses else None
    except AddressValueError:
        return None
