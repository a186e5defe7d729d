"""What Services have at a node's own stack, as the sets of `table ip sluice` hold it."""

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import islice
from typing import Final, Self, TypeAlias

from wire.documents import MAX_EXTERNAL_PORTS, NodeServices

SETS: Final = (
    "node-ports", "own-addresses", "external-ports", "host-endpoints", "host-endpoints-at",
    "host-ports", "host-ports-at", "balancer-addresses",
)  # fmt: skip
"""Sets and maps of `table ip sluice`. Those for hostPorts are the agent's own."""

NodePort: TypeAlias = tuple[int, int]
"""IANA's number of the protocol, and the port."""
AddressPort: TypeAlias = tuple[IPv4Address, int, int]
"""An address, the protocol and the port."""

Elements: TypeAlias = dict[str, dict[str, str]]
"""By set, key and value as nft prints them; a plain set's values are empty."""


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """What Services have at this host."""

    node_ports: AbstractSet[NodePort] = frozenset()
    own: Mapping[AddressPort, IPv4Address] = field(default_factory=dict)
    """At addresses of the host itself: what the host translates the address to."""
    external: AbstractSet[AddressPort] = frozenset()
    """At other addresses: what goes into the switch."""
    host_endpoints: Mapping[tuple[IPv4Address | None, int, int], tuple[IPv4Address, int]] = field(
        default_factory=dict
    )
    """What the host translates to an endpoint of its own for clients outside, by address (None:
    each of the host's), protocol and port."""
    balancers: AbstractSet[IPv4Address] = frozenset()
    """Addresses of Services alone: the host refuses what it would send on to them."""

    def without(self, busy: AbstractSet[NodePort], there: "ServicePorts") -> "ServicePorts":
        """All but those that a process of the host had before they were `there`."""
        return ServicePorts(
            {*self.node_ports} - (busy - there.node_ports),
            {at: to for at, to in self.own.items() if at in there.own or at[1:] not in busy},
            self.external,
            {
                at: to
                for at, to in self.host_endpoints.items()
                # At an address that is not the host's own, no process is in the way.
                if at[0] is not None or at in there.host_endpoints or at[1:] not in busy
            },
            self.balancers,
        )

    def elements(self) -> dict[str, dict[str, str]]:
        """As `nft` prints them."""
        endpoints: dict[str, str] = {}
        endpoints_at: dict[str, str] = {}
        for (address, protocol, port), (to, to_port) in self.host_endpoints.items():
            if address is None:
                endpoints[f"{protocol} . {port}"] = f"{to} . {to_port}"
            else:
                endpoints_at[f"{address} . {protocol} . {port}"] = f"{to} . {to_port}"
        return {
            "node-ports": {f"{protocol} . {port}": "" for protocol, port in self.node_ports},
            "own-addresses": {f"{a} . {p} . {n}": str(to) for (a, p, n), to in self.own.items()},
            "external-ports": {f"{a} . {p} . {n}": "" for a, p, n in self.external},
            "host-endpoints": endpoints,
            "host-endpoints-at": endpoints_at,
            "balancer-addresses": {str(address): "" for address in self.balancers},
        }

    @classmethod
    def read(cls, elements: Elements) -> Self:
        """The inverse of `elements`."""
        endpoints: dict[tuple[IPv4Address | None, int, int], tuple[IPv4Address, int]] = {}
        for key, value in elements["host-endpoints"].items():
            endpoints[None, *_node_port(key)] = _address_and_port(value)
        for key, value in elements["host-endpoints-at"].items():
            endpoints[_address_port(key)] = _address_and_port(value)
        return cls(
            {_node_port(key) for key in elements["node-ports"]},
            {_address_port(k): IPv4Address(v) for k, v in elements["own-addresses"].items()},
            {_address_port(key) for key in elements["external-ports"]},
            endpoints,
            {IPv4Address(key) for key in elements["balancer-addresses"]},
        )

    @classmethod
    def of(cls, services: NodeServices, left_out: Collection[IPv4Address]) -> Self:
        """What the controller wants; at addresses that are left out, nothing."""
        own = {(a, p, n): dnat_address for a, p, n, dnat_address, _ in services.own_addresses}
        return cls(
            {(protocol, port) for protocol, port, _ in services.node_ports},
            own,
            {at[:3] for at in external_ports(services) if at[0] not in left_out},
            {
                (address, protocol, port): (to, to_port)
                for address, protocol, port, to, to_port, _ in services.host_endpoints
                if address not in left_out or (address, protocol, port) in own
            },
            {*services.balancer_addresses} - {*left_out},
        )


def external_ports(services: NodeServices) -> Iterator[tuple[IPv4Address, int, int, str]]:
    """Address, protocol, port and Service of each frontend at an address of others."""
    own = {at[:3] for at in services.own_addresses}
    every = (
        (address, protocol, port, service)
        for addresses, ports, service in services.external_ports
        for address in addresses
        for protocol, port in ports
    )
    yield from (at for at in islice(every, MAX_EXTERNAL_PORTS) if at[:3] not in own)


def whole_addresses(services: NodeServices, left_out: Collection[IPv4Address]) -> set[IPv4Address]:
    """Addresses of others whose traffic all goes into the switch."""
    by_port = {address for addresses, *_ in services.external_ports for address in addresses}
    return {*services.external_addresses} - by_port - {*left_out}


def _node_port(key: str) -> NodePort:
    protocol, _, port = key.partition(" . ")
    return int(protocol), int(port)


def _address_port(key: str) -> AddressPort:
    address, _, rest = key.partition(" . ")
    return IPv4Address(address), *_node_port(rest)


def _address_and_port(value: str) -> tuple[IPv4Address, int]:
    address, _, port = value.partition(" . ")
    return IPv4Address(address), int(port)
