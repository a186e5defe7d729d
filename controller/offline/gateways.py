"""Who is the gateway of each egress address, where nobody can be asked."""

from collections.abc import Mapping
from ipaddress import IPv4Address

from controller.address_owners import ownership_order
from controller.inventory import Inventory


def gateways_of(inventory: Inventory) -> dict[str, str]:
    """By egress address, the node that is its gateway now."""
    known = inventory.view.egress_addresses.values()
    return {str(each.address): each.gateway for each in known if each.gateway}


def adopt(inventory: Inventory, gateways: Mapping[str, str]) -> None:
    """Take these nodes as the gateways. Raises `ValueError` for what is no address."""
    owners = inventory.address_owners
    given = {IPv4Address(address): node for address, node in gateways.items()}
    owners.owners.update(given)
    for follower in owners.followers:
        follower(given.keys())


def assume(inventory: Inventory) -> list[str]:
    """Take the first candidate of each egress address as its gateway; what was assumed."""
    first = {
        str(rule.address): ownership_order(rule.address, rule.candidates)[0]
        for rule in inventory.egress.rules.values()
        if rule.candidates
    }
    adopt(inventory, first)
    if not first:
        return []
    return [f"the gateway of {', '.join(sorted(first)[:3])} is the first that may be it"]
