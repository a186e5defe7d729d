"""What each node's host must do for Services that the flows cannot: see `HostServices`.

What a Service changes here costs as much as it has ports and endpoints, however many others there
are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from controller.service_drafts import Claim
from flows.view import Service


class NodePort(NamedTuple):
    """A port that is served at each node's own addresses."""

    protocol: int
    port: int
    service: str


class OwnAddress(NamedTuple):
    """A port of one of a node's own addresses, which a Service names."""

    address: IPv4Address
    protocol: int
    port: int
    stand_in: IPv4Address
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

    node_ports: tuple[NodePort, ...]
    addresses: tuple[IPv4Address, ...]
    """Of Services, outside the Service range, and no node's own."""
    health_checks: tuple[HealthCheck, ...]
    own_addresses: tuple[OwnAddress, ...] = ()


class Hosts:
    """Changes of Services in; for each node its `HostServices`, and when they change, out."""

    def __init__(self, service_range: IPv4Network) -> None:
        self.changes = 0
        """Grows whenever `wanted` of any node changes."""
        self._service_range = service_range
        self._node_ports: dict[tuple[int, int], str] = {}
        self._served_at: dict[IPv4Address, set[str]] = {}
        self._health_checks: dict[str, int] = {}
        self._ready_on: dict[str, dict[str, int]] = {}
        """By node, then by Service with a health check: how many endpoints are ready there."""
        self._own_addresses: dict[str, dict[Claim, tuple[IPv4Address, str]]] = {}
        """By node: stand-in and Service."""
        self._shared_revision = 0
        self._node_revisions: dict[str, int] = {}
        self._shared_part: tuple[int, HostServices] | None = None

    # --- what others ask ---

    def revision(self, node: str) -> tuple[int, int]:
        """Changes whenever `wanted` of this node does; cheap."""
        return self._shared_revision, self._node_revisions.get(node, 0)

    def wanted(self, node: str) -> HostServices:
        """What this node's host must do. What is every node's is made once."""
        if self._shared_part is None or self._shared_part[0] != self._shared_revision:
            shared = HostServices(
                tuple(sorted(NodePort(*at, name) for at, name in self._node_ports.items())),
                tuple(sorted(self._served_at)),
                tuple(sorted(HealthCheck(at, name, 0) for name, at in self._health_checks.items())),
            )
            self._shared_part = self._shared_revision, shared
        shared = self._shared_part[1]
        if node not in self._node_revisions:
            return shared
        ready = self._ready_on.get(node, {})
        checks = tuple(
            check._replace(endpoints=ready.get(check.service, 0)) for check in shared.health_checks
        )
        own = tuple(
            OwnAddress(at.address, at.protocol, at.port, stand_in, service)
            for at, (stand_in, service) in sorted(self._own_addresses.get(node, {}).items())
            if at.address
        )
        return HostServices(shared.node_ports, shared.addresses, checks, own)

    # --- Services in ---

    def follow(
        self, name: str, old: Service | None, new: Service | None, health_check: int | None
    ) -> None:
        """A Service of the view, `NAMESPACE/NAME`, may have changed; None: there is none.

        `health_check` is the port that it has for that now. It may change alone, and be there
        without a Service in the view. Whoever gets a port that another had may be told of first.
        """
        shared = self._follow_node_ports(name, _node_ports(old), _node_ports(new))
        shared |= self._follow_addresses(name, self._outside(old), self._outside(new))
        self._follow_own_addresses(name, _own_addresses(old), _own_addresses(new))
        checked = self._health_checks.get(name)
        if health_check != checked:
            shared = True
            if health_check is None:
                del self._health_checks[name]
            else:
                self._health_checks[name] = health_check
        if shared:
            self._shared_revision = self._next_revision()
        if health_check is not None or checked is not None:
            self._count_ready(
                name,
                _ready_on(old) if checked is not None else {},
                _ready_on(new) if health_check is not None else {},
            )

    def _follow_node_ports(
        self, name: str, before: set[tuple[int, int]], after: set[tuple[int, int]]
    ) -> bool:
        """Whether there is another one now, or another's."""
        changed = False
        for at in before - after:
            # Its next holder may have been told of before.
            if self._node_ports[at] == name:
                del self._node_ports[at]
                changed = True
        for at in after:
            changed |= self._node_ports.get(at) != name
            self._node_ports[at] = name
        return changed

    def _follow_addresses(
        self, name: str, before: set[IPv4Address], after: set[IPv4Address]
    ) -> bool:
        """Whether one came or went."""
        changed = False
        for address in before - after:
            self._served_at[address].discard(name)
            if not self._served_at[address]:
                del self._served_at[address]
                changed = True
        for address in after - before:
            changed |= address not in self._served_at
            self._served_at.setdefault(address, set()).add(name)
        return changed

    def _outside(self, service: Service | None) -> set[IPv4Address]:
        """See `HostServices.addresses`."""
        return {
            frontend.address
            for port in (service.ports if service else ())
            for frontend in port.frontends
            if frontend.address
            and not frontend.node
            and frontend.address not in self._service_range
        }

    def _follow_own_addresses(
        self,
        name: str,
        before: Mapping[tuple[str, Claim], IPv4Address],
        after: Mapping[tuple[str, Claim], IPv4Address],
    ) -> None:
        changed: set[str] = set()
        for node, at in before.keys() - after.keys():
            # Its next holder may have been told of before.
            if self._own_addresses[node][at][1] == name:
                del self._own_addresses[node][at]
                changed.add(node)
        for (node, at), stand_in in after.items():
            own = self._own_addresses.setdefault(node, {})
            if own.get(at) != (stand_in, name):
                own[at] = stand_in, name
                changed.add(node)
        for node in changed:
            if not self._own_addresses[node]:
                del self._own_addresses[node]
            self._renumber(node)

    def _count_ready(self, name: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        for node in before.keys() | after.keys():
            if before.get(node) == after.get(node):
                continue
            counts = self._ready_on.setdefault(node, {})
            if node in after:
                counts[name] = after[node]
            else:
                del counts[name]
            if not counts:
                del self._ready_on[node]
            self._renumber(node)

    # --- revisions ---

    def _renumber(self, node: str) -> None:
        """What is this node's alone has changed; where there is nothing any more, it has none."""
        revision = self._next_revision()
        if node in self._ready_on or node in self._own_addresses:
            self._node_revisions[node] = revision
        else:
            self._node_revisions.pop(node, None)

    def _next_revision(self) -> int:
        # One row for all: a number that a node had before never means something else.
        self.changes += 1
        return self.changes


# --- of one Service ---


def _node_ports(service: Service | None) -> set[tuple[int, int]]:
    return {
        (port.protocol, frontend.port)
        for port in (service.ports if service else ())
        for frontend in port.frontends
        if frontend.address is None
    }


def _own_addresses(service: Service | None) -> dict[tuple[str, Claim], IPv4Address]:
    """By node, and where there: the stand-in."""
    return {
        (frontend.node, Claim(frontend.address, port.protocol, frontend.port)): frontend.stand_in
        for port in (service.ports if service else ())
        for frontend in port.frontends
        if frontend.stand_in
    }


def _ready_on(service: Service | None) -> dict[str, int]:
    """How many addresses are ready on which node."""
    found: dict[str, set[IPv4Address]] = {}
    for port in service.ports if service else ():
        for endpoint in port.endpoints:
            if endpoint.ready and endpoint.node:
                found.setdefault(endpoint.node, set()).add(endpoint.address)
    return {node: len(addresses) for node, addresses in found.items()}
