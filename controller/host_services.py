"""What each node's host must do for Services, because flows cannot: see `HostServices`.

The cost of a change depends on the ports and endpoints of the changed Service only.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from controller.known_addresses import KnownAddresses
from flows import topology
from flows.family import IPAddress, IPNetwork
from flows.view import Endpoint, Frontend, Service, ServicePort
from wire.documents import NodeServices

_Port = tuple[int, int]
"""Protocol (IANA's number) and port."""


class HostNodePort(NamedTuple):
    """A port that is served at each node's own addresses."""

    protocol: int
    port: int
    service: str


class HostExternalPorts(NamedTuple):
    """The ports that a Service has at each of these addresses, none of which is a node's own."""

    addresses: tuple[IPAddress, ...]
    ports: tuple[_Port, ...]
    service: str


class OwnAddress(NamedTuple):
    """A port of a Service address that is on one of the node's interfaces."""

    address: IPAddress
    protocol: int
    port: int
    dnat_address: IPAddress
    service: str


class HostEndpoint(NamedTuple):
    """A port with policy Local whose only endpoint on this node is the node itself."""

    address: IPAddress | None
    """None: each of the node's own."""
    protocol: int
    port: int
    endpoint: IPAddress
    endpoint_port: int
    service: str


class HealthCheck(NamedTuple):
    """A port at which a node tells load balancers whether to send it a Service's connections."""

    port: int
    service: str
    endpoints: int
    """Those that are ready and on this node, each address once."""


@dataclass(frozen=True, slots=True)
class HostServices:
    """What a node's host must do for Services; each sorted."""

    node_ports: tuple[HostNodePort, ...]
    addresses: tuple[IPAddress, ...]
    """Addresses of Services outside the Service range, none of which is a node's own."""
    health_checks: tuple[HealthCheck, ...]
    own_addresses: tuple[OwnAddress, ...] = ()
    external_ports: tuple[HostExternalPorts, ...] = ()
    """The ports of `addresses` that Services use; for an address not listed here, all ports."""
    host_endpoints: tuple[HostEndpoint, ...] = ()
    protected: tuple[IPAddress, ...] = ()
    """Addresses that no Service may take."""
    balancers: tuple[IPAddress, ...] = ()
    """Addresses of AddressPools that Services have."""


def document(node: str, services: HostServices, revision: str, *, whole: bool) -> NodeServices:
    """As the node's agent gets it. `whole` as `NodeServices.source_complete`."""
    # The protocol has IPv4 only, as have all Services that are accepted.
    wanted: Any = services
    return NodeServices(
        node=node,
        node_ports=wanted.node_ports,
        external_addresses=wanted.addresses,
        health_checks=wanted.health_checks,
        own_addresses=wanted.own_addresses,
        external_ports=wanted.external_ports,
        protected_addresses=wanted.protected,
        host_endpoints=wanted.host_endpoints,
        balancer_addresses=wanted.balancers,
        revision=revision,
        source_complete=whole,
    )


@dataclass(slots=True)
class _NodePart:
    """What one Service means for one node."""

    own_addresses: list[OwnAddress] = field(default_factory=list)
    host_endpoints: list[HostEndpoint] = field(default_factory=list)
    ready: int = 0
    """How many of its addresses are ready there; only with a health check."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one Service means for every node, and by node."""

    node_ports: tuple[HostNodePort, ...] = ()
    addresses: frozenset[IPAddress] = frozenset()
    external_ports: tuple[HostExternalPorts, ...] = ()
    health_check: int | None = None
    nodes: Mapping[str, _NodePart] = field(default_factory=dict)

    @property
    def shared(self) -> tuple[object, ...]:
        addresses = tuple(sorted(self.addresses))
        return self.node_ports, addresses, self.external_ports, self.health_check


_NOTHING: Final = _Part()


class Hosts:
    """Keeps the `HostServices` of every node up to date."""

    def __init__(self, service_range: IPNetwork, known: KnownAddresses) -> None:
        self.changes = 0
        """Grows whenever `wanted` of any node changes."""
        self._service_range = service_range
        self._known = known
        self._parts: dict[str, _Part] = {}
        """By Service, if a host has something to do for it."""
        self._on_node: dict[str, set[str]] = {}
        """By node, the Services of which it has a part of its own."""
        self._protected = tuple(sorted(known.all_protected))
        self._balancers: tuple[IPAddress, ...] = ()
        self._shared_revision = _change(None, (), self._protected)
        self._node_revisions: dict[str, int] = {}
        """By node, if it has a part of its own."""
        self._shared_part: tuple[int, HostServices] | None = None

    # --- what others ask ---

    def revision(self, node: str) -> tuple[int, int]:
        """Equal if `wanted` of this node is equal, also in another controller; cheap.

        So an agent that asks another controller than before, as all do when one ends, gets the
        document only if it differs.
        """
        own = self._node_revisions.get(node, 0)
        return self._shared_revision % _MODULUS, own % _MODULUS

    def wanted(self, node: str) -> HostServices:
        """What this node's host must do. What is the same for all nodes is made once."""
        if self._shared_part is None or self._shared_part[0] != self._shared_revision:
            self._shared_part = self._shared_revision, self._for_every_node()
        shared = self._shared_part[1]
        services = sorted(self._on_node.get(node, ()))
        if not services:
            return shared
        parts = {name: self._parts[name].nodes[node] for name in services}
        return HostServices(
            shared.node_ports,
            shared.addresses,
            tuple(
                check._replace(endpoints=parts[check.service].ready)
                if check.service in parts
                else check
                for check in shared.health_checks
            ),
            tuple(sorted(each for part in parts.values() for each in part.own_addresses)),
            shared.external_ports,
            tuple(each for part in parts.values() for each in part.host_endpoints),
            shared.protected,
            shared.balancers,
        )

    def _for_every_node(self) -> HostServices:
        parts = sorted(self._parts.items())
        return HostServices(
            tuple(sorted(each for _, part in parts for each in part.node_ports)),
            tuple(sorted({each for _, part in parts for each in part.addresses})),
            tuple(
                sorted(
                    HealthCheck(part.health_check, name, 0)
                    for name, part in parts
                    if part.health_check is not None
                )
            ),
            external_ports=tuple(each for _, part in parts for each in part.external_ports),
            protected=self._protected,
            balancers=self._balancers,
        )

    # --- Services in ---

    def protect(self) -> None:
        """The addresses that no Service may take have changed."""
        new = tuple(sorted(self._known.all_protected))
        if new != self._protected:
            self._shared_revision += _change(None, self._protected, new)
            self._protected = new
            self.changes += 1

    def use_balancers(self, addresses: Iterable[IPAddress]) -> None:
        """Set which addresses of AddressPools Services have."""
        new = tuple(sorted(addresses))
        if new != self._balancers:
            self._shared_revision += _change("balancers", self._balancers, new)
            self._balancers = new
            self.changes += 1

    def follow(self, name: str, service: Service | None, health_check: int | None) -> None:
        """A Service of the view, `NAMESPACE/NAME`, may have changed; None: there is none.

        `health_check` is the port that it has for that now. It may change alone, and be there
        without a Service in the view.
        """
        old, new = self._parts.pop(name, _NOTHING), self._part(name, service, health_check)
        if new != _NOTHING:
            self._parts[name] = new
        if old.shared != new.shared:
            self._shared_revision += _change(name, old.shared, new.shared)
            self.changes += 1
        for node in old.nodes.keys() | new.nodes.keys():
            if old.nodes.get(node) == new.nodes.get(node):
                continue
            services = self._on_node.setdefault(node, set())
            (services.add if node in new.nodes else services.discard)(name)
            change = _change(name, old.nodes.get(node), new.nodes.get(node))
            self._node_revisions[node] = self._node_revisions.get(node, 0) + change
            self.changes += 1
            # A node without such Services has no revision of its own.
            if not services:
                del self._on_node[node], self._node_revisions[node]

    def _part(self, name: str, service: Service | None, health_check: int | None) -> _Part:
        ports = service.ports if service else ()
        outside = [
            (port, each)
            for port in ports
            for each in port.frontends
            if each.address and not each.node and each.address not in self._service_range
        ]
        return _Part(
            tuple(
                HostNodePort(port.protocol, frontend.port, name)
                for port in ports
                for frontend in port.frontends
                if frontend.address is None
            ),
            frozenset(each.address for _, each in outside if each.address),
            tuple(_external_ports(name, outside)),
            health_check,
            self._by_node(name, ports, counted=health_check is not None),
        )

    def _by_node(
        self, name: str, ports: Iterable[ServicePort], *, counted: bool
    ) -> dict[str, _NodePart]:
        found: dict[str, _NodePart] = {}
        ready: dict[str, set[IPAddress]] = {}
        for port in ports:
            for node, own in _own_addresses(name, port):
                found.setdefault(node, _NodePart()).own_addresses.append(own)
            for endpoint in port.endpoints if counted else ():
                if endpoint.ready and endpoint.node:
                    ready.setdefault(endpoint.node, set()).add(endpoint.address)
            if port.external_local:
                for node, endpoint in self._host_endpoints(port):
                    part = found.setdefault(node, _NodePart())
                    part.host_endpoints += _translated_by_host(name, port, endpoint)
        for node, addresses in ready.items():
            found.setdefault(node, _NodePart()).ready = len(addresses)
        return found

    def _host_endpoints(self, port: ServicePort) -> Iterable[tuple[str, Endpoint]]:
        """By node, its only endpoint there, where that is the node itself."""
        nodes = {
            at.node
            for endpoint in port.endpoints
            if (at := self._known.of_nodes.get(endpoint.address)) and at.node == endpoint.node
        }
        for node in sorted(nodes):
            chosen = topology.local(port, node)
            at = self._known.of_nodes.get(chosen[0].address)
            if len(chosen) == 1 and at and at.node == node:
                yield node, chosen[0]


_MODULUS: Final = 1 << 128


def _change(of: str | None, old: object, new: object) -> int:
    """What a sum of digests grows by; the same in each process, whatever came before."""
    return _digest(of, new) - _digest(of, old)


def _digest(*content: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:16], "big")


def _own_addresses(name: str, port: ServicePort) -> Iterable[tuple[str, OwnAddress]]:
    """By node."""
    for frontend in port.frontends:
        for node, dnat_address in frontend.host_dnat:
            if at := frontend.address:
                yield node, OwnAddress(at, port.protocol, frontend.port, dnat_address, name)


def _external_ports(
    name: str, outside: Iterable[tuple[ServicePort, Frontend]]
) -> Iterable[HostExternalPorts]:
    """Addresses with the same ports are grouped, so that their size is the sum, not the product."""
    ports: dict[IPAddress, list[_Port]] = {}
    for port, frontend in outside:
        if frontend.external and frontend.address:
            ports.setdefault(frontend.address, []).append((port.protocol, frontend.port))
    addresses: dict[tuple[_Port, ...], list[IPAddress]] = {}
    for address, has in ports.items():
        addresses.setdefault(tuple(sorted(has)), []).append(address)
    for has_ports, having in sorted(addresses.items()):
        yield HostExternalPorts(tuple(sorted(having)), has_ports, name)


def _translated_by_host(name: str, port: ServicePort, endpoint: Endpoint) -> Iterable[HostEndpoint]:
    for frontend in port.frontends:
        # Source ranges are the switch's to check.
        if frontend.external and frontend.sources is None:
            yield HostEndpoint(
                frontend.address, port.protocol, frontend.port, endpoint.address, endpoint.port,
                name,
            )  # fmt: skip
