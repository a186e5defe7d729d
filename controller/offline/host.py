"""A node's own stack without the node: what its agent would make it, and nothing else.

Its routes are those that Sluice sets. Everything else leaves by the uplink. Nobody knows of
hostPorts, which agents learn from the container runtime, nor which processes listen.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, cast

from controller.host_services import document
from controller.inventory import Inventory
from controller.tracing.hops import direct_peer
from flows import names
from flows.view import Node
from wire.questions import Packet
from wire.service_ports import SETS, ServicePorts, whole_addresses
from wire.tracing.host import Route

UPLINK: Final = "its uplink"
"""In place of the name of an interface."""
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_HAIRPIN: Final = IPv4Network((names.HAIRPIN_ADDRESS, 31))
"""With the address for NodePorts."""


class OfflineHost:
    """What is known of a node's own stack; `wire.tracing.host.HostFacts`."""

    def __init__(self, inventory: Inventory, node: Node) -> None:
        # All accepted Nodes and Services have IPv4 only.
        known: Any = node
        self.pod_cidr: IPv4Network = known.pod_cidr
        self.pod_range = cast("IPv4Network", inventory.view.cluster.pod_range)
        wanted = inventory.services.hosts.wanted(node.name)
        services = document(node.name, wanted, "", whole=True)
        left_out = {*services.protected_addresses}
        ports = ServicePorts.of(services, left_out)
        self.elements: Mapping[str, Mapping[str, str]] = {
            **{name: {} for name in SETS},
            **ports.elements(),
        }
        self._own = {known.address, *known.further_addresses, known.gateway}
        self._address: IPv4Address = known.address
        self._gateway: IPv4Address = known.gateway
        self._by_switch = (
            self.pod_range,
            cast("IPv4Network", inventory.view.cluster.service_range),
            _HAIRPIN,
            names.HOST_DNAT_RANGE,
        )
        self._inventory, self._node = inventory, known
        self._whole = whole_addresses(services, left_out) | inventory.egress.at(node.name)
        self._by_port = {address for address, *_ in ports.external}

    async def route(self, destination: IPv4Address, *, marked: bool) -> Route:
        """As `HostFacts.route`."""
        if destination in self._own or destination in _LOOPBACK:
            return Route("local", "lo", source=destination)
        if peer := direct_peer(self._inventory.view, self._node.name, destination):
            # The protocol has IPv4 only, as have all Nodes that are accepted.
            hop = cast("IPv4Address", peer.address)
            return Route("unicast", UPLINK, hop, self._gateway)
        if (
            destination in self._whole
            or (marked and destination in self._by_port)
            or any(destination in each for each in self._by_switch)
        ):
            return Route("unicast", names.GATEWAY_PORT, names.ROUTER_ADDRESS, self._gateway)
        return Route("unicast", UPLINK, source=self._address)

    async def is_listening(self, packet: Packet) -> bool | None:  # noqa: ARG002
        """As `HostFacts.is_listening`."""
        return None
