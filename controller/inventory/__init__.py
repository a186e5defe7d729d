"""What is known of the cluster, and what of it is accepted: one module per kind of object."""

from controller.inventory.inventory import Inventory
from controller.inventory.ports import BridgePort

__all__ = ["BridgePort", "Inventory"]
