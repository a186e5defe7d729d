"""What a Service of type LoadBalancer asks for, and which address it has."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from itertools import islice
from typing import Final

from controller.sources.objects import ServiceObject
from flows.refs import ObjectRef
from settings.plain_yaml import shown

CLASS: Final = "sluice.dev/load-balancer"
"""`spec.loadBalancerClass` of Services whose addresses are of an AddressPool."""
ASSIGNED: Final = "sluice.dev/AddressAssigned"
"""The type of the condition of a Service whose address Sluice has written."""
MAX_INGRESS: Final = 64
"""Entries of `status.loadBalancer.ingress` that are looked at."""
MAX_WANTED: Final = 8
"""Addresses that an annotation may list: one for each family is enough."""


@dataclass(frozen=True, slots=True)
class Request:
    """A Service that gets its address from a pool."""

    name: str
    """`NAMESPACE/NAME`."""
    age: tuple[str, str]
    """Sorts the older Service first."""
    given: ServiceObject
    addresses: tuple[int, ...]
    """The IPv4 addresses in `status.loadBalancer`."""
    has_other_ingress: bool
    """Whether `status.loadBalancer` has more than IPv4 addresses."""
    wanted: int | None = None
    wanted_by: str = ""
    """The field that names the wanted address."""
    pool: str = ""
    """The pool that it asks for; empty: any."""
    share_key: str = ""
    """Services with the same key may have one address; empty: it shares none."""
    ports: frozenset[tuple[str, int]] = frozenset()
    """Protocol and number."""
    backend: tuple[str, frozenset[tuple[str, str]]] | None = None
    """With the policy Local, where the endpoints are from, as the nodes that serve depend on that:
    the namespace and the selector, or the Service itself if it has no selector. None: Cluster."""
    problem: str = ""
    """What is wrong with the request. It gets no new address until this ends."""

    @property
    def namespace(self) -> str:
        """Of the Service."""
        return self.name.partition("/")[0]

    @property
    def ref(self) -> ObjectRef:
        """The Service."""
        return ObjectRef.namespaced("Service", self.name)

    def may_share_with(self, other: "Request") -> str:
        """Why both cannot have one address, by the rules of MetalLB; empty: they can."""
        if not self.share_key or self.share_key != other.share_key:
            return f"Service {other.name} has it, and both do not have one sharing key"
        if self.backend != other.backend:
            return (
                f"Service {other.name} has it, and they do not both have externalTrafficPolicy"
                " Cluster, nor both Local with one selector in one namespace"
            )
        if common := self.ports & other.ports:
            protocol, port = min(common)
            return f"Service {other.name} has its port {port}/{protocol}"
        return ""


def ingress_addresses(given: ServiceObject) -> tuple[tuple[int, ...], bool]:
    """The IPv4 addresses in its status, and whether there is something else."""
    found: list[int] = []
    other = False
    for each in islice(given.status.load_balancer.ingress or (), MAX_INGRESS):
        try:
            address = ip_address(each.ip)
        except ValueError:
            other = True
            continue
        if isinstance(address, IPv4Address):
            found.append(int(address))
        else:
            other = True
    return tuple(found), other


def is_assigned(given: ServiceObject) -> bool:
    """Whether Sluice has written the address in its status."""
    return any(
        each.type == ASSIGNED and each.status == "True" for each in given.status.conditions or ()
    )


def another_class(given: ServiceObject) -> str:
    """The class by which the Service belongs to another load balancer; empty: it does not."""
    found = given.spec.load_balancer_class
    return "" if found in {None, "", CLASS} else str(found)


def read_request(given: ServiceObject) -> Request:
    """What a Service of type LoadBalancer asks for."""
    metadata, spec = given.metadata, given.spec
    name = f"{metadata.namespace}/{metadata.name}"
    annotations = metadata.annotations
    addresses, other = ingress_addresses(given)
    wanted, wanted_by, problem = _wanted(given)
    families = spec.ip_families or ()
    if families and "IPv4" not in families:
        problem = "spec.ipFamilies holds only IPv6, and pools have IPv4 addresses"
    return Request(
        name,
        # One without a time is the youngest, as with Nodes.
        (metadata.creation_timestamp or "never", name),
        given,
        addresses,
        other,
        wanted,
        wanted_by,
        (annotations.pool or annotations.metallb_pool) if annotations else "",
        (annotations.share or annotations.metallb_share) if annotations else "",
        frozenset((port.protocol, port.port) for port in spec.ports or ()),
        _backend(given) if spec.external_traffic_policy == "Local" else None,
        problem,
    )


def _backend(given: ServiceObject) -> tuple[str, frozenset[tuple[str, str]]]:
    namespace, selector = given.metadata.namespace, given.spec.selector
    if not selector:
        return f"{namespace}/{given.metadata.name}", frozenset()
    return namespace, frozenset(selector.items())


def _wanted(given: ServiceObject) -> tuple[int | None, str, str]:
    """The address that it asks for, the field that names it, and what is wrong with that."""
    annotations = given.metadata.annotations
    texts: Mapping[str, str] = {
        "spec.loadBalancerIP": given.spec.load_balancer_ip,
    }
    if annotations:
        texts = {
            "annotation sluice.dev/addresses": annotations.addresses,
            "annotation metallb.io/loadBalancerIPs": annotations.metallb_addresses,
            "annotation metallb.universe.tf/loadBalancerIPs": annotations.metallb_old_addresses,
            **texts,
        }
    for field, text in texts.items():
        if not text:
            continue
        parts = text.split(",", MAX_WANTED)
        found: list[int] = []
        for part in parts[:MAX_WANTED]:
            try:
                address = ip_address(part.strip())
            except ValueError:
                return None, field, f"{field}: {shown(part.strip())} is not an IP address"
            # The IPv6 address of a dual-stack Service is not ours to give.
            if isinstance(address, IPv4Address):
                found.append(int(address))
        if len(found) > 1 or len(parts) > MAX_WANTED:
            return None, field, f"{field}: a Service can have one IPv4 address, not {len(parts)}"
        if not found:
            return None, field, f"{field}: {shown(text)} holds no IPv4 address"
        return found[0], field, ""
    return None, "", ""
