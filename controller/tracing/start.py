"""Where a traced packet begins, and what it looks like there."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, cast

from controller.inventory import Inventory
from controller.policy_reports.ends import (
    End,
    QuestionError,
    at,
    destinations,
    port_number,
    source,
)
from controller.policy_reports.pods import Attached
from controller.policy_reports.verdict import PROTOCOL_WORDS
from flows.features.protocols import ICMP, LAYER_4_NAMES
from flows.view import Endpoint, Frontend, Node, Service, ServicePort
from wire.questions import Packet

OUTSIDE: Final = "outside"
SOMEBODY: Final = IPv4Address("192.0.2.1")
"""Stands for any address outside (RFC 5737)."""
USUAL_PORT: Final = 80
"""Of somebody outside."""
ECHO: Final = 8
_EPHEMERAL: Final = range(32_768, 61_000)
"""Ports that Linux gives to clients."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to know."""

    source: str
    destination: str
    port: str
    """A number, or the name of a port; empty: the only one."""
    protocol: int
    source_port: int | None = None
    node: str = ""
    """Where a packet from outside comes in; empty: where it most likely does."""
    endpoint: tuple[IPv4Address, int] | None = None
    """The endpoint that a Service is to choose; None: any."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first packet, and where it is."""

    packet: Packet
    node: str
    pod: Attached | None
    """The pod that sends it; None: the node's own stack has it."""
    is_outside: bool
    """Whether it comes from outside the node."""
    notes: tuple[str, ...] = ()


def start(inventory: Inventory, asked: Asked) -> Start:
    """Raises `QuestionError`."""
    opener = _opener(inventory, asked.source)
    service = _service(inventory, asked.destination)
    if service is not None:
        address, port, note = _frontend(inventory, service, asked, opener)
        notes = [note] if note else []
    else:
        address, port = _address(inventory, asked)
        notes = []
    number = asked.source_port
    if number is None:
        number = _EPHEMERAL[secrets.randbelow(len(_EPHEMERAL))]
    packet = Packet(
        protocol=asked.protocol,
        source=SOMEBODY if opener is None else cast("IPv4Address", opener.address),
        destination=address,
        source_port=ECHO if asked.protocol == ICMP else number,
        destination_port=0 if asked.protocol == ICMP else port,
    )
    if opener is not None and opener.pod is not None:
        return Start(packet, opener.pod.node, opener.pod, is_outside=False, notes=tuple(notes))
    if opener is not None and opener.node is not None:
        # The kernel of the node chooses the source address.
        chosen = Packet(
            packet.protocol, IPv4Address(0), packet.destination,
            packet.source_port, packet.destination_port,
        )  # fmt: skip
        return Start(chosen, opener.node.name, None, is_outside=False, notes=tuple(notes))
    node, note = _entry(inventory, asked.node, address, service)
    notes += [note] if note else []
    return Start(packet, node, None, is_outside=True, notes=tuple(notes))


def _opener(inventory: Inventory, text: str) -> End | None:
    return None if text == OUTSIDE else source(inventory, text)


def _service(inventory: Inventory, text: str) -> Service | None:
    prefix, _, rest = text.partition("/")
    if prefix.lower() in {"service", "svc"} and rest.count("/") == 1:
        found = inventory.view.services.get(rest)
        if found is None:
            ignored = inventory.services.ignored.get(rest)
            raise QuestionError(
                f"there is no Service {rest} with an address{f': {ignored}' if ignored else ''}"
            )
        return found
    is_pod = text.count("/") == 1 and inventory.pod(*text.split("/")) is not None
    return None if is_pod else inventory.view.services.get(text)


def _address(inventory: Inventory, asked: Asked) -> tuple[IPv4Address, int]:
    if asked.destination == OUTSIDE:
        return SOMEBODY, port_number(asked.port or str(USUAL_PORT), "PORT")
    try:
        address = IPv4Address(asked.destination)
    except ValueError:
        (end,) = destinations(inventory, asked.destination, asked.port, asked.protocol)
        return cast("IPv4Address", end.address), end.port or 0
    if asked.protocol not in LAYER_4_NAMES:
        return address, 0
    if asked.port.isdecimal():
        return address, port_number(asked.port, "PORT")
    end = at(inventory, address, opens=False)
    (end,) = destinations(inventory, end.name if end.pod else asked.destination, asked.port,
                          asked.protocol)  # fmt: skip
    return address, end.port or 0


def _frontend(
    inventory: Inventory, service: Service, asked: Asked, opener: End | None
) -> tuple[IPv4Address, int, str]:
    """The address and port at which the client asks, and a note about the choice."""
    if asked.protocol not in LAYER_4_NAMES:
        raise QuestionError(f"Service {_name(service)}: Services have no {asked.protocol}")
    port = _service_port(service, asked)
    is_outside = opener is None or (opener.pod is None and opener.node is None)
    # Clients in the cluster ask at the ClusterIP, others have only external addresses.
    for each in sorted(port.frontends, key=lambda each: each.external):
        if is_outside and not each.external:
            continue
        if asked.port.isdecimal() and int(asked.port) != each.port:
            continue
        if each.address is not None:
            return cast("IPv4Address", each.address), each.port, ""
        node = inventory.view.nodes.get(asked.node) or _node_of(inventory, port.endpoints)
        if node is not None:
            note = f"the client asks at the NodePort {each.port} of node {node.name}"
            return cast("IPv4Address", node.address), each.port, note
    if is_outside:
        raise QuestionError(
            f"Service {_name(service)} has no address or NodePort for clients outside"
        )
    raise QuestionError(f"Service {_name(service)} has no address")


def _service_port(service: Service, asked: Asked) -> ServicePort:
    ports = [
        port
        for port in service.ports
        if port.protocol == asked.protocol
        and (not asked.port or asked.port in {port.name, *(str(f.port) for f in port.frontends)})
    ]
    if len(ports) == 1:
        return ports[0]
    known = ", ".join(_ports(service)) or "none"
    which = "has several ports: give one" if ports else "has no such port"
    raise QuestionError(f"Service {_name(service)} {which} (its ports: {known})")


def _ports(service: Service) -> Iterator[str]:
    for port in service.ports:
        frontend: Frontend | None = next(iter(port.frontends), None)
        number = frontend.port if frontend else "?"
        yield f"{number}/{LAYER_4_NAMES[port.protocol].upper()}"


def _name(service: Service) -> str:
    return f"{service.namespace}/{service.name}"


def _node_of(inventory: Inventory, endpoints: tuple[Endpoint, ...]) -> Node | None:
    nodes = inventory.view.nodes
    named = (nodes.get(each.node) for each in endpoints)
    return next((node for node in named if node), None) or next(iter(nodes.values()), None)


def _entry(
    inventory: Inventory, wanted: str, address: IPv4Address, service: Service | None
) -> tuple[str, str]:
    """The node at which a packet from outside arrives, and a note if that is a choice."""
    nodes = inventory.view.nodes
    if wanted:
        if wanted not in nodes:
            raise QuestionError(f"Node {wanted}: {inventory.nodes.reason(wanted)}")
        return wanted, ""
    for node in nodes.values():
        is_own = address == node.address or address in node.further_addresses
        if is_own or address in node.pod_cidr:
            return node.name, ""
    endpoints = tuple(e for port in service.ports for e in port.endpoints) if service else ()
    node_of = _node_of(inventory, endpoints)
    if node_of is None:
        raise QuestionError("there is no node at which a packet from outside could arrive")
    return node_of.name, f"from outside by node {node_of.name}; --node chooses another"


def asked_of(query: Callable[[str, str], str]) -> Asked:
    """Of the query of a request. Raises `QuestionError`."""
    for word in ("from", "to"):
        if not query(word, ""):
            raise QuestionError(f"{word}: give this")
    protocol = query("protocol", "TCP").upper()
    if protocol not in PROTOCOL_WORDS:
        raise QuestionError(f"protocol: none of {', '.join(PROTOCOL_WORDS)}")
    endpoint: tuple[IPv4Address, int] | None = None
    if text := query("endpoint", ""):
        host, _, port = text.rpartition(":")
        try:
            endpoint = IPv4Address(host), port_number(port, "endpoint")
        except ValueError:
            raise QuestionError(f"endpoint: {text!r} is not ADDRESS:PORT") from None
    source_port = query("sourcePort", "")
    return Asked(
        source=query("from", ""),
        destination=query("to", ""),
        port=query("port", ""),
        protocol=PROTOCOL_WORDS[protocol],
        source_port=port_number(source_port, "sourcePort") if source_port else None,
        node=query("node", ""),
        endpoint=endpoint,
    )
