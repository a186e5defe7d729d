"""Who has which address of the cluster, for those that need one owner at a time."""

from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address
from typing import Final

from controller.address_owners.claims import Claim
from flows.view import Key

Follower = Callable[[Collection[IPv4Address]], set[Key]]
"""Called with the addresses whose owner changed; returns the keys of the view it changed."""


class AddressOwners:
    """Chooses one owner for each claimed address."""

    def __init__(self) -> None:
        self.owners: Final[dict[IPv4Address, str]] = {}
        """By address, the name of the node that has it now. An address without an owner is absent.
        A controller that does not lead has what the owners themselves say."""
        self.followers: Final[list[Follower]] = []
        self._claims: dict[str, Mapping[IPv4Address, Claim]] = {}

    def want(self, source: str, claims: Mapping[IPv4Address, Claim]) -> None:
        """Set all claims of one source ("load balancer", "egress"), in place of its last ones.

        An address that another source claims already stays with that one, which is reported. Cheap
        where little has changed; may be called on every change.
        """
        self._claims[source] = claims
