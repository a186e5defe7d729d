"""EgressAddresses: which pods leave from which address, and through which node."""

from controller.egress.addresses import EgressAddresses
from controller.egress.ledger import Ledger
from controller.egress.needs import Needs

__all__ = ["EgressAddresses", "Ledger", "Needs"]
