"""Services, each read by itself, as if there were no other.

Who serves what follows kube-proxy (k8s.io/kubernetes, pkg/proxy/serviceport.go). What is refused is
named with its field, and changes nothing else. What a Service may cost is bounded here: a Service
of 66 KB can name a million pairs of an address and a port.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from typing import Final, NamedTuple

from controller.known_addresses import KnownAddresses
from controller.service_fields import PORTS, PROTOCOL_NAMES, PROTOCOLS, FieldProblems
from controller.sources.objects import ServiceObject, ServicePortObject
from flows import names
from flows.family import IPAddress, IPNetwork
from flows.features.endpoints import MAX_IDLE
from flows.features.protocols import TCP
from flows.view import Cluster, Frontend, HostDnatAddress
from settings.plain_yaml import shown

DEFAULT_AFFINITY: Final = 10_800
MAX_AFFINITY: Final = 86_400
"""Seconds (core/v1 ClientIPConfig)."""
MAX_PORTS: Final = 1_024
"""Of one Service."""
MAX_EXTERNAL_ADDRESSES: Final = 1_024
"""Of one Service."""
MAX_EXTERNAL_PORTS: Final = 4_096
"""Pairs of an external address and a port, of one Service."""
MAX_SOURCE_RANGES: Final = 1_024
"""Of one Service."""
MAX_SOURCE_PAIRS: Final = 16_384
"""External addresses times ports times source ranges, of one Service."""
_ANYWHERE: Final = IPv4Network("0.0.0.0/0")


class Claim(NamedTuple):
    """What only one Service can have: a port of an address; None: of every node."""

    address: IPAddress | None
    protocol: int
    port: int

    def __str__(self) -> str:
        where = f" of {self.address}" if self.address else " of every node"
        return f"port {self.port}/{PROTOCOL_NAMES[self.protocol]}{where}"


ClaimKey = tuple[int, int, int]
"""Address (-1: every node's own), protocol and port."""


class Offer(NamedTuple):
    """A frontend that a Service gets unless an older Service has it."""

    frontend: Frontend
    protocol: int
    field: str

    @property
    def key(self) -> ClaimKey:
        """The claim as a number: there may be thousands, and addresses are slow to compare."""
        address = self.frontend.address
        return -1 if address is None else int(address), self.protocol, self.frontend.port

    @property
    def claim(self) -> Claim:
        """The claim that the Service must hold to get it."""
        return Claim(self.frontend.address, self.protocol, self.frontend.port)


@dataclass(frozen=True, slots=True)
class DraftPort:
    """One port of a Service, with all frontends that it asks for."""

    number: int
    """In `spec.ports`."""
    name: str
    protocol: int
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A Service as if there were no other."""

    age: tuple[str, str]
    """Sorts the older Service first."""
    ports: tuple[DraftPort, ...] = ()
    health_check: Offer | None = None
    internal_local: bool = False
    external_local: bool = False
    affinity: int | None = None
    ipv4_only: bool = False
    addresses: frozenset[IPAddress] = frozenset()
    """All addresses outside the Service range that it asks for. When one of them becomes a node's
    or a protected address, the Service is read again."""
    problems: tuple[str, ...] = ()

    def offers(self) -> Iterable[Offer]:
        """Every frontend that it asks for."""
        for port in self.ports:
            yield from port.offers
        if self.health_check:
            yield self.health_check


NOTHING: Final = Draft(("", ""))


def why_ignored(given: ServiceObject) -> str:
    """Why Sluice ignores this Service; empty: it does not."""
    spec = given.spec
    if spec.type == "ExternalName":
        return "its type is ExternalName: it is only a name in DNS"
    if "None" in spec.cluster_addresses:
        return "it is headless: clients find its endpoints in DNS and connect to them directly"
    labels = given.metadata.labels
    if labels is not None and labels.proxy_name is not None:
        return f"its label service.kubernetes.io/service-proxy-name is {shown(labels.proxy_name)}"
    return "it has the label service.kubernetes.io/headless" if given.is_anothers else ""


def read_service(given: ServiceObject, cluster: Cluster, known: KnownAddresses) -> Draft:
    """What a Service asks for, and what is wrong with it."""
    spec = given.spec
    metadata = given.metadata
    # One without a time is the youngest, as with Nodes.
    age = metadata.creation_timestamp or "never", f"{metadata.namespace}/{metadata.name}"
    problems = FieldProblems()
    families = spec.ip_families or [
        "IPv6" if ":" in text else "IPv4" for text in spec.cluster_addresses
    ]
    if families and "IPv4" not in families:
        return Draft(
            age, problems=("spec.ipFamilies holds only IPv6, and this cluster is IPv4-only",)
        )
    dual = "IPv6" in families
    cluster_ip, named = _read_cluster_ip(given, cluster, known, problems)
    external_local = problems.choice(
        "spec.externalTrafficPolicy", spec.external_traffic_policy, ("Cluster", "Local")
    )
    internal_local = problems.choice(
        "spec.internalTrafficPolicy", spec.internal_traffic_policy, ("Cluster", "Local")
    )
    external, more = _read_external(given, cluster, known, cluster_ip, dual, problems)
    ports = _read_ports(given, cluster, cluster_ip, external, problems)
    health_check = _read_health_check(given, external_local, ports, problems)
    return Draft(
        age,
        ports,
        health_check,
        internal_local,
        external_local,
        _read_affinity(given, problems),
        not dual,
        named | more,
        tuple(problems),
    )


def _read_cluster_ip(
    given: ServiceObject, cluster: Cluster, known: KnownAddresses, problems: FieldProblems
) -> tuple[IPAddress | None, frozenset[IPAddress]]:
    """Its ClusterIP; and the same, refused or not, where it is outside the Service range."""
    texts = given.spec.cluster_addresses
    if not texts:
        problems.append("spec.clusterIP is missing: nobody has assigned one")
        return None, frozenset()
    readable = (problems.address("spec.clusterIP", text, quiet_ipv6=True) for text in texts[:2])
    found = next((address for address in readable if address), None)
    if found is None or found in cluster.service_range:
        return found, frozenset()
    # A cluster may have further ranges (ServiceCIDR objects), which the API server takes it from.
    if why := _inside(found, cluster):
        problems.append(f"spec.clusterIP: {found} is {why}")
    elif at := known.of_nodes.get(found):
        # Hosts send all traffic for such addresses into the switch: the node would be cut off.
        problems.append(f"spec.clusterIP: {found} is Node {at.node}'s own address")
    elif why := known.protected(found):
        problems.append(f"spec.clusterIP: {found} is {why}")
    else:
        return found, frozenset({found})
    return None, frozenset({found})


def _inside(address: IPAddress, cluster: Cluster) -> str:
    """The range of the cluster that contains the address, as text; empty: none."""
    if address in cluster.pod_range:
        return f"inside the pod range {cluster.pod_range}"
    if address in cluster.service_range:
        return f"inside the Service range {cluster.service_range}"
    return ""


def _read_external(
    given: ServiceObject,
    cluster: Cluster,
    known: KnownAddresses,
    cluster_ip: IPAddress | None,
    dual: bool,
    problems: FieldProblems,
) -> tuple[list[tuple[str, Frontend]], frozenset[IPAddress]]:
    """By field, its external addresses as frontends without a port; and all that it names."""
    spec = given.spec
    found: list[tuple[str, Frontend]] = []
    named: set[IPAddress] = set()
    texts: list[_AddressField] = []
    if spec.type == "LoadBalancer":
        sources = _read_sources(spec.load_balancer_source_ranges, problems)
        # First, so that the source ranges also apply to an address that is in externalIPs too.
        texts += [
            (f"status.loadBalancer.ingress[{number}].ip", ingress.ip, sources)
            for number, ingress in enumerate(given.status.load_balancer.ingress or ())
            if ingress.ip and ingress.ip_mode != "Proxy"
        ]
    texts += [
        (f"spec.externalIPs[{number}]", text, None)
        for number, text in enumerate(spec.external_ips or ())
    ]
    for field, text, sources in _affordable(texts, len(spec.ports or ()), problems):
        address = problems.address(field, text, quiet_ipv6=dual)
        if address is None or address in named or address == cluster_ip:
            continue
        named.add(address)
        at = known.of_nodes.get(address)
        if why := _inside(address, cluster) or known.protected(address):
            problems.append(f"{field}: {address} is {why}")
        elif at is None:
            host_dnat = known.host_dnat(address)
            found.append((field, Frontend(address, 0, True, sources, "", host_dnat)))
        elif at.number < names.HOST_DNAT_RANGE.num_addresses:
            dnat_address = HostDnatAddress(at.node, names.HOST_DNAT_RANGE[at.number])
            found.append((field, Frontend(address, 0, True, sources, at.node, (dnat_address,))))
        else:
            problems.append(
                f"{field}: {address} is one of Node {at.node}'s own addresses, of which only the"
                f" first {names.HOST_DNAT_RANGE.num_addresses} can be a Service's"
            )
    return found, frozenset(named)


_AddressField = tuple[str, str, tuple[IPNetwork, ...] | None]
"""Field, text and source ranges of an external address."""


def _affordable(
    texts: Sequence[_AddressField], ports: int, problems: FieldProblems
) -> Sequence[_AddressField]:
    """The external addresses that fit into the limits of one Service."""
    ports = max(1, min(ports, MAX_PORTS))
    most = min(MAX_EXTERNAL_ADDRESSES, MAX_EXTERNAL_PORTS // ports)
    ranges = max((len(sources) for _, _, sources in texts if sources), default=0)
    with_ranges = f"{ports} ports" + (f" and {ranges} source ranges" if ranges else "")
    if ranges:
        most = min(most, MAX_SOURCE_PAIRS // (ports * (ranges + 1)))
    if len(texts) > most:
        problems.append(
            f"{texts[most][0]}: a Service with {with_ranges} can have {most} external addresses,"
            f" not {len(texts)}; this one and those after it are not served"
        )
    return texts[:most]


def _read_sources(
    texts: Sequence[str] | None, problems: FieldProblems
) -> tuple[IPNetwork, ...] | None:
    """The source ranges of a load balancer. An unreadable one is left out, never widened."""
    if not texts:
        return None
    found: set[IPNetwork] = set()
    if len(texts) > MAX_SOURCE_RANGES:
        problems.append(
            f"spec.loadBalancerSourceRanges: {len(texts)} are more than {MAX_SOURCE_RANGES}; only"
            " the first of them are served"
        )
    for number, text in enumerate(texts[:MAX_SOURCE_RANGES]):
        try:
            # The API server accepts blanks around it, and host bits after the prefix.
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


def _read_ports(
    given: ServiceObject,
    cluster: Cluster,
    cluster_ip: IPAddress | None,
    external: Iterable[tuple[str, Frontend]],
    problems: FieldProblems,
) -> tuple[DraftPort, ...]:
    ports: list[DraftPort] = []
    seen: set[tuple[str, int]] = set()
    taken: dict[ClaimKey, int] = {}
    given_ports = given.spec.ports or []
    if len(given_ports) > MAX_PORTS:
        problems.append(
            f"spec.ports: {len(given_ports)} are more than {MAX_PORTS}; only the first of them are"
            " served"
        )
    for number, port in enumerate(given_ports[:MAX_PORTS]):
        field = f"spec.ports[{number}]"
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            problems.append(
                f"{field}.protocol: {shown(port.protocol)} is none of {', '.join(PROTOCOLS)}"
            )
            continue
        if port.port not in PORTS:
            problems.append(f"{field}.port: {port.port} is not a valid port (1-65535)")
            continue
        if (port.name, protocol) in seen:
            problems.append(f"{field}.name: {shown(port.name)} is another port's already")
            continue
        seen.add((port.name, protocol))
        offers: list[Offer] = []
        if cluster_ip:
            frontend = Frontend(cluster_ip, port.port, False)
            offers.append(Offer(frontend, protocol, "spec.clusterIP"))
        offers += _external_offers(external, protocol, port.port, cluster, problems)
        if node_port := _read_node_port(given, field, port, cluster, problems):
            frontend = Frontend(None, node_port, True)
            offers.append(Offer(frontend, protocol, f"{field}.nodePort"))
        good: list[Offer] = []
        for offer in offers:
            if (other := taken.setdefault(offer.key, number)) == number:
                good.append(offer)
            else:
                problems.append(f"{field}: {offer.claim} is spec.ports[{other}]'s already")
        ports.append(DraftPort(number, port.name, protocol, tuple(good)))
    return tuple(ports)


def _external_offers(
    external: Iterable[tuple[str, Frontend]],
    protocol: int,
    port: int,
    cluster: Cluster,
    problems: FieldProblems,
) -> Iterable[Offer]:
    holder = names.reserved_for(protocol, port, cluster.tunnel_port)
    for field, frontend in external:
        if holder and frontend.host_dnat:
            claim = Claim(frontend.address, protocol, port)
            node = frontend.host_dnat[0].node
            problems.append(f"{field}: {claim} is reserved for {holder} of Node {node}")
        else:
            found = Frontend(
                frontend.address, port, True, frontend.sources, frontend.node, frontend.host_dnat
            )
            yield Offer(found, protocol, field)


def _read_node_port(
    given: ServiceObject,
    field: str,
    port: ServicePortObject,
    cluster: Cluster,
    problems: FieldProblems,
) -> int:
    """Its NodePort; 0: none."""
    if given.spec.type not in {"NodePort", "LoadBalancer"}:
        return 0
    if port.node_port == 0:
        # A load balancer may do without (allocateLoadBalancerNodePorts).
        if given.spec.type == "NodePort":
            problems.append(f"{field}.nodePort is missing: nobody has assigned one")
        return 0
    if port.node_port not in PORTS:
        problems.append(f"{field}.nodePort: {port.node_port} is not a valid port (1-65535)")
        return 0
    protocol = PROTOCOLS[port.protocol]
    if holder := names.reserved_for(protocol, port.node_port, cluster.tunnel_port):
        what = f"{port.node_port}/{port.protocol}"
        problems.append(f"{field}.nodePort: {what} is reserved for {holder} of each node")
        return 0
    return port.node_port


def _read_health_check(
    given: ServiceObject, external_local: bool, ports: Iterable[DraftPort], problems: FieldProblems
) -> Offer | None:
    if given.spec.type != "LoadBalancer" or not external_local:
        return None
    field, port = "spec.healthCheckNodePort", given.spec.health_check_node_port
    if port not in PORTS:
        problems.append(
            f"{field} is missing" if port == 0 else f"{field}: {port} is not a valid port (1-65535)"
        )
        return None
    check = Offer(Frontend(None, port, True), TCP, field)
    if any(offer.key == check.key for each in ports for offer in each.offers):
        problems.append(f"{field}: {check.claim} is a nodePort of its own already")
        return None
    return check


def _read_affinity(given: ServiceObject, problems: FieldProblems) -> int | None:
    spec = given.spec
    if not problems.choice("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP")):
        return None
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY
    if not 0 < seconds <= MAX_AFFINITY:
        problems.append(
            f"spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not in 1 to"
            f" {MAX_AFFINITY}; {DEFAULT_AFFINITY} is taken instead"
        )
        return DEFAULT_AFFINITY
    if seconds > MAX_IDLE:
        problems.append(
            f"spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is more than a switch"
            f" can hold; {MAX_IDLE} is taken instead"
        )
        return MAX_IDLE
    return seconds
