"""The ends of a connection that somebody asks about: from their text to pods, nodes, addresses."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import chain, islice
from typing import Final

from controller.inventory import Inventory
from controller.policy_reports.pods import Attached, attached, why_not_attached
from controller.policy_reports.report import EndRow
from controller.service_fields import PROTOCOL_NAMES, PROTOCOLS
from controller.sources.objects import PodObject
from flows import names
from flows.family import IPAddress
from flows.view import Node
from wire.sentences import readable

MOST_ENDPOINTS: Final = 100
"""Endpoints of a Service that are judged. They are usually alike."""


class QuestionError(ValueError):
    """There is no such pod, node, Service or port; the text says which."""


@dataclass(frozen=True)
class End:
    """One end of a connection."""

    name: str
    address: IPAddress
    """As the policies of the other end see it."""
    pod: Attached | None = None
    node: Node | None = None
    """The node that it is."""
    port: int | None = None
    """Of the destination."""

    @property
    def row(self) -> EndRow:
        """For a report."""
        kind = "pod" if self.pod else "node" if self.node else "address"
        node = self.pod.node if self.pod else self.node.name if self.node else ""
        return EndRow(kind, self.name, str(self.address), node, self.port)


def source(inventory: Inventory, text: str) -> End:
    """Who opens the connection. Raises `QuestionError`."""
    if (kind := text.partition("/")[0].lower()) in {"service", "svc"}:
        raise QuestionError(f"{text}: a Service opens no connections ({kind}/ goes with TO only)")
    return _end(inventory, text, opens=True)


def destinations(inventory: Inventory, text: str, port: str, protocol: int) -> Iterator[End]:
    """Who accepts it; of a Service, its first `MOST_ENDPOINTS` endpoints. Raises `QuestionError`.

    `port` is a number, or the name of a port of the pod or the Service. It is empty for protocols
    without ports. Each end is looked for when it is its turn: among thousands of nodes that takes
    some milliseconds.
    """
    prefix, _, rest = text.partition("/")
    is_service = prefix.lower() in {"service", "svc"} and rest.count("/") == 1
    name = rest if is_service else text
    is_pod = name.count("/") == 1 and inventory.pod(*name.split("/")) is not None
    if is_service or (not is_pod and name in inventory.view.services):
        yield from _endpoints(inventory, name, port, protocol)
        return
    end = _end(inventory, text, opens=False)
    number = _port(inventory, end, port, protocol)
    yield End(end.name, end.address, end.pod, end.node, number)


def _end(inventory: Inventory, text: str, *, opens: bool) -> End:
    view = inventory.view
    prefix, _, rest = text.partition("/")
    if prefix.lower() == "node" and "/" not in rest:
        text = rest
    if prefix.lower() == "pod" and rest.count("/") == 1:
        text = rest
    if text.count("/") == 1:
        namespace, name = text.split("/")
        pod = inventory.pod(namespace, name)
        if pod is not None and pod.spec.host_network:
            return _node(inventory, pod.spec.node_name, opens=opens)
        found = attached(inventory, text)
        if found is None:
            raise QuestionError(why_not_attached(inventory, text))
        return End(text, found.attachment.address, found)
    try:
        address = IPv4Address(text)
    except ValueError:
        if text not in view.nodes:
            raise QuestionError(
                f"{text}: neither NAMESPACE/NAME of a pod, nor an IPv4 address, nor the name of a"
                " Node"
            ) from None
        return _node(inventory, text, opens=opens)
    return at(inventory, address, opens=opens)


def at(inventory: Inventory, address: IPAddress, *, opens: bool, node: str = "") -> End:
    """The end that has an address; `node`: where it most likely is."""
    nodes = inventory.view.nodes
    likely = nodes.get(node)
    for each in chain([likely] if likely else [], nodes.values()):
        if (found := _at_node(inventory, each, address, opens=opens)) is not None:
            return found
    return End(_known_range(inventory, address), address)


def _at_node(inventory: Inventory, node: Node, address: IPAddress, *, opens: bool) -> End | None:
    # Asked of thousands of nodes: what most of them can say no to comes first.
    if address in node.pod_cidr:
        if address == node.gateway:
            return End(node.name, address, node=node)
        for attachment in inventory.view.attachments.get(node.name, {}).values():
            if attachment.address == address:
                group = inventory.policies.group(node.name, attachment.port)
                found = Attached(node.name, attachment, group)
                return End(attachment.pod or attachment.port, address, found)
    if address == node.address or address in node.further_addresses:
        return End(node.name, node.gateway if opens else address, node=node)
    return None


def _known_range(inventory: Inventory, address: IPAddress) -> str:
    cluster = inventory.view.cluster
    if address in cluster.pod_range:
        for node in inventory.view.nodes.values():
            if address == names.snat_address(node.pod_cidr):
                return f"clients outside, through node {node.name}"
        return "nobody has this address of the pod range"
    if address in cluster.service_range:
        raise QuestionError(
            f"{address} is in the Service range: ask about the Service, as svc/NAMESPACE/NAME"
        )
    return "outside"


def _node(inventory: Inventory, name: str, *, opens: bool) -> End:
    node = inventory.view.nodes.get(name)
    if node is None:
        raise QuestionError(f"Node {name}: {inventory.nodes.reason(name)}")
    # What a node sends to pods has its gateway address.
    return End(name, node.gateway if opens else node.address, node=node)


def _port(inventory: Inventory, end: End, text: str, protocol: int) -> int | None:
    if protocol not in PROTOCOL_NAMES:
        if text:
            raise QuestionError(f"PORT {text}: this protocol has no ports")
        return None
    if text.isdecimal():
        return port_number(text, "PORT")
    pod: PodObject | None = None
    if end.pod is not None and end.name.count("/") == 1:
        pod = inventory.pod(*end.name.split("/"))
    ports = pod.spec.named_ports if pod else ()
    for each in ports:
        if each.name == text and PROTOCOLS.get(each.protocol) == protocol:
            return each.container_port
    if not text:
        raise QuestionError("PORT is missing")
    known = ", ".join(f"{each.name}/{each.protocol}" for each in ports) or "none"
    raise QuestionError(
        f"PORT {text}: {end.name} has no port of this name for {PROTOCOL_NAMES[protocol]}"
        f" (its named ports: {known})"
    )


def port_number(text: str, field: str) -> int:
    """A port as a number. Raises `QuestionError`, which names the field."""
    # Python refuses to read very long numbers.
    digits = text.lstrip("0")
    if not text.isdecimal() or len(digits) > 5 or not 1 <= int(digits or "0") <= 65_535:
        raise QuestionError(f"{field} {readable(text[:20])}: not from 1 to 65535")
    return int(digits)


def _endpoints(inventory: Inventory, name: str, text: str, protocol: int) -> Iterator[End]:
    service = inventory.view.services.get(name)
    if service is None:
        ignored = inventory.services.ignored.get(name)
        why = f": {ignored}" if ignored else ""
        raise QuestionError(f"there is no Service {name} with an address{why}")
    ports = [
        port
        for port in service.ports
        if port.protocol == protocol
        and (text in {port.name, *(str(each.port) for each in port.frontends)} or not text)
    ]
    if not ports:
        known = ", ".join(
            f"{min((each.port for each in port.frontends), default=port.name)}"
            f"/{PROTOCOL_NAMES[port.protocol]}"
            for port in service.ports
        )
        raise QuestionError(f"PORT {text}: Service {name} has no such port; it has {known}")
    if not any(port.endpoints for port in ports):
        raise QuestionError(f"Service {name} has no endpoint at port {text}: nobody would answer")
    endpoints = (endpoint for port in ports for endpoint in port.endpoints)
    for endpoint in islice(endpoints, MOST_ENDPOINTS):
        end = at(inventory, endpoint.address, opens=False, node=endpoint.node)
        yield End(end.name, end.address, end.pod, end.node, endpoint.port)
