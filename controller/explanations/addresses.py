"""What an address is: of a pod, a node, a gateway, a Service, a tunnel peer, or outside."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from controller.explanations.objects import kind_of, of_object, services_at
from controller.inventory import Inventory
from controller.policies.slices import SLICE, Slices
from controller.programs import Programs
from controller.reports.explanation import Explanation
from controller.service_fields import PROTOCOL_NAMES
from flows import names
from flows.family import IPAddress, family_of
from flows.refs import ObjectRef
from flows.view import ClusterView, Node


class Address(NamedTuple):
    """What is known of an address."""

    sentence: str
    """Begins with what the address is, without the address."""
    object: ObjectRef | None = None
    is_all: bool = True
    """Whether everything about the object matters to somebody who asks about the address."""


_FIXED: Final[Mapping[IPAddress, str]] = {
    names.ROUTER_ADDRESS: "the next hop of every pod and every host: the switch itself",
    names.HAIRPIN_ADDRESS: (
        "the source that a pod sees if it reaches itself through a Service (hairpin)"
    ),
    names.NODE_PORT_ADDRESS: "what a node's own stack translates connections to its NodePorts to",
}


def of_address(
    inventory: Inventory, programs: Programs, asked: str, address: IPAddress
) -> Slices[Explanation]:
    """What an address is, and the object behind it."""
    found = yield from address_facts(inventory, address)
    sentence = f"{address}: {found.sentence}"
    uses = yield from services_at(inventory.view, address)
    if found.object is None:
        return Explanation(asked=asked, kind="address", sentence=sentence, services=uses)
    made = yield from of_object(inventory, programs, asked, found.object)
    return Explanation(
        asked=asked,
        kind="address",
        sentence=sentence,
        object=made.object,
        facts=made.facts,
        tables=made.tables if found.is_all else (),
        policies=made.policies,
        services=made.services or uses,
        problems=made.problems,
    )


def address_facts(inventory: Inventory, address: IPAddress) -> Slices[Address]:
    """What an address is."""
    view = inventory.view
    if (fixed := _FIXED.get(address)) is not None:
        return Address(fixed)
    if address.version != view.cluster.pod_range.version:
        return Address("of another family than the pods; Sluice does not carry it")
    for number, node in enumerate(list(view.nodes.values())):
        if number % SLICE == 0:
            yield
        if address in node.pod_cidr:
            return _in_pod_cidr(view, node, address)
        if address == node.address:
            what = "where other nodes send the packets for its pods"
            return Address(f"the address of Node {node.name}, {what}", node.ref)
        if address in node.further_addresses:
            return Address(f"a further address of Node {node.name}", node.ref, is_all=False)
    found = yield from _of_services(inventory, address)
    return found or _of_ranges(inventory, address)


def _in_pod_cidr(view: ClusterView, node: Node, address: IPAddress) -> Address:
    if address == node.gateway:
        what = "the address of its own network stack in its podCIDR"
        return Address(f"the gateway of Node {node.name}: {what}", node.ref, is_all=False)
    if address == names.snat_address(node.pod_cidr):
        what = f"that Node {node.name} sends to endpoints on other nodes"
        return Address(f"the source of connections from outside {what}", node.ref, is_all=False)
    for attachment in view.attachments.get(node.name, {}).values():
        if attachment.address == address:
            where = f"on Node {node.name}, at ofport {attachment.ofport}"
            ref = attachment.ref if attachment.pod else None
            return Address(f"the address of {attachment.ref} {where}", ref)
    return Address(f"in the podCIDR of Node {node.name}, but no pod has it", node.ref, is_all=False)


def _of_services(inventory: Inventory, address: IPAddress) -> Slices[Address | None]:
    ports: list[str] = []
    ref: ObjectRef | None = None
    services = set[str]()
    for number, service in enumerate(list(inventory.view.services.values())):
        if number % SLICE == 0:
            yield
        for port in service.ports:
            for frontend in port.frontends:
                if frontend.address == address:
                    ref = ref or service.ref
                    services.add(str(service.ref))
                    protocol = PROTOCOL_NAMES[port.protocol]
                    ports.append(f"{frontend.port}/{protocol} ({kind_of(frontend)})")
    if ref is None:
        return None
    named = ", ".join(sorted(services))
    return Address(f"an address of {named}, at {', '.join(dict.fromkeys(ports))}", ref)


def _of_ranges(inventory: Inventory, address: IPAddress) -> Address:
    cluster = inventory.view.cluster
    if address in names.HOST_DNAT_RANGE:
        return Address("what a node's own stack translates a Service at its own address to")
    if address in cluster.pod_range:
        return Address("in the range of pods, but in no node's podCIDR: packets to it are dropped")
    if address in cluster.service_range:
        return Address("in the range of Services, but no Service has it: packets to it are dropped")
    for network, name in family_of(address).not_carried:
        if address in network:
            return Address(f"{name}: not carried between pods")
    return Address(
        "outside the cluster: packets of pods to it leave through their node's own stack"
    )
