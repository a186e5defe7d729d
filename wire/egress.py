"""What a gateway's agent tells of the connections that leave from its egress addresses."""

from ipaddress import IPv4Address
from typing import Annotated, Final

import msgspec
from msgspec import Meta

MAX_ADDRESSES: Final = 1_024
"""In one `EgressUse`."""
MAX_DESTINATIONS: Final = 20
"""Of one address; the agent chooses those that use most ports."""
MAX_PODS: Final = 10
"""Of one address or destination; the agent chooses those that use most ports."""

Count = Annotated[int, Meta(ge=0, lt=1 << 32)]
PodUse = tuple[IPv4Address, Count]
"""The address of a pod, and how many connections it has there."""


class DestinationUse(msgspec.Struct, frozen=True):
    """Connections from one egress address to one destination: each needs a source port."""

    address: IPv4Address
    protocol: Annotated[int, Meta(ge=0, lt=1 << 8)]
    """IANA's number."""
    port: Annotated[int, Meta(ge=0, lt=1 << 16)]
    """0: the protocol has none."""
    ports: Count
    """Source ports in use."""
    pods: Annotated[tuple[PodUse, ...], Meta(max_length=MAX_PODS)]
    """Those that use most."""


class AddressUse(msgspec.Struct, frozen=True, rename="camel"):
    """The connections from one egress address."""

    address: IPv4Address
    connections: Count
    destination_count: Count
    pods: Annotated[tuple[PodUse, ...], Meta(max_length=MAX_PODS)]
    """Those that use most."""
    destinations: Annotated[tuple[DestinationUse, ...], Meta(max_length=MAX_DESTINATIONS)]
    """Those that use most source ports."""


class EgressUse(msgspec.Struct, frozen=True):
    """All egress addresses that a node is the gateway of (`paths.EGRESS`).

    The agent sends it at intervals, in place of its last one.
    """

    addresses: Annotated[tuple[AddressUse, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    tracked: Count = 0
    """Connections with a translated source that the switch tracks, also for other reasons."""
    capacity: Count = 0
    """How many of these it can track; 0: unknown."""
