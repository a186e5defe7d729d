"""Which node has an address that one node at a time may have (see `grants` for the rules)."""

from controller.address_owners.claims import Claim, ownership_order
from controller.address_owners.owners import AddressOwners

__all__ = ["AddressOwners", "Claim", "ownership_order"]
