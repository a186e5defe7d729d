"""What routes depend on, out of the inventory."""

from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address

from controller.address_owners.standing import Standing, standing_of
from controller.bgp.peers import PeerDraft
from controller.bgp.routes import World
from controller.inventory import Inventory
from controller.policies.selectors import EVERYTHING, Selector, matches
from flows.refs import ObjectRef

BGP = "BGP"
"""In `announce` of AddressPools and EgressAddresses."""


def selected_nodes(inventory: Inventory, selector: Selector) -> frozenset[str]:
    """The accepted Nodes that a selector matches."""
    nodes = inventory.nodes
    if selector == EVERYTHING:
        return frozenset(nodes.accepted)
    return frozenset(
        name
        for name in nodes.accepted
        if matches(selector, nodes.objects[name].metadata.labels or {})
    )


def world_of(inventory: Inventory) -> World:
    """As it is now; what it refers to goes on changing."""

    @lru_cache
    def selected(selector: Selector) -> frozenset[str]:
        return selected_nodes(inventory, selector)

    def of_peer(peer: PeerDraft) -> frozenset[str]:
        return selected(peer.nodes)

    return World(
        inventory.view,
        lambda name: _is_fit(inventory, name),
        of_peer,
        _balanced(inventory),
        _egress(inventory),
        frozenset((*inventory.load_balancers.announced, *_egress_addresses(inventory).values())),
    )


def _is_fit(inventory: Inventory, name: str) -> bool:
    node = inventory.nodes.objects.get(name)
    return node is not None and standing_of(node) is Standing.READY


def _balanced(
    inventory: Inventory,
) -> dict[IPv4Address, tuple[frozenset[str], tuple[ObjectRef, ...]]]:
    # Addresses that are of no pool are not ours to announce: of a cloud, for example.
    return {
        address: (each.nodes, each.services)
        for address, each in inventory.load_balancers.announced.items()
        if BGP in each.ways
    }


def _egress(inventory: Inventory) -> dict[IPv4Address, tuple[str, ObjectRef]]:
    found = {}
    for name, address in _egress_addresses(inventory).items():
        ways = inventory.egress_addresses.objects[name].spec.announce
        if ways is not None and BGP not in ways:
            continue
        if owner := inventory.address_owners.owners.get(address):
            found[address] = owner, ObjectRef("EgressAddress", "", name)
    return found


def _egress_addresses(inventory: Inventory) -> dict[str, IPv4Address]:
    """By EgressAddress; without those that cannot be read, which is reported on the object."""
    found = {}
    for name, given in inventory.egress_addresses.objects.items():
        with suppress(ValueError):
            found[name] = IPv4Address(given.spec.address)
    return found
