"""The custom resources of Sluice as the sources read them (deploy/chart/templates/crds.yaml).

The types are those of the CRDs. Whether the values make sense is decided where they are used, so
that one bad value is reported on its object and changes nothing else.
"""

from typing import ClassVar, Final

import msgspec

from controller.sources.metadata import Metadata
from controller.sources.policy_objects import LabelSelector

GROUP_VERSION: Final = "sluice.dev/v1alpha1"


class PasswordSecret(msgspec.Struct, frozen=True):
    """A Secret in the namespace of the controller, and the key of the password in it."""

    name: str = ""
    key: str = "password"


class BGPPeerSpec(msgspec.Struct, frozen=True, rename="camel"):
    """A BGP neighbour, and what it is told."""

    address: str = ""
    port: int = 179
    asn: int = 0
    local_asn: int = msgspec.field(default=0, name="localASN")
    from_: str = msgspec.field(default="Controllers", name="from")
    """`Controllers`: each controller has one session, for all nodes. `Nodes`: each node that
    `nodeSelector` selects has one, for itself."""
    node_selector: LabelSelector | None = None
    announce: tuple[str, ...] | None = None
    """Of `PodRanges`, `LoadBalancerAddresses`, `ClusterIPs`, `ExternalIPs`, `EgressAddresses`."""
    communities: tuple[str, ...] | None = None
    local_preference: int | None = None
    password_secret: PasswordSecret | None = None
    hold_time_seconds: int = 90
    graceful_restart_seconds: int = 120
    """0: no graceful restart (RFC 4724)."""
    multihop: int = 0
    """The TTL of packets to a peer that is not on the link; 0: it is on the link."""


class BGPPeerObject(msgspec.Struct, frozen=True):
    """sluice.dev/v1alpha1 BGPPeer."""

    kind: ClassVar = "BGPPeer"

    metadata: Metadata
    spec: BGPPeerSpec = BGPPeerSpec()


class AddressPoolSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Addresses for Services of type LoadBalancer."""

    ranges: tuple[str, ...] | None = None
    """Each `CIDR` or `FIRST-LAST`."""
    namespace_selector: LabelSelector | None = None
    """The namespaces whose Services may have them; None: all."""
    auto_assign: bool = True
    """False: only Services that ask for an address, or for the pool, get one of it."""
    announce: tuple[str, ...] | None = None
    """Of `BGP` and `Link`; None: both."""
    node_selector: LabelSelector | None = None
    """The nodes that take connections to them; None: all."""


class AddressPoolObject(msgspec.Struct, frozen=True):
    """sluice.dev/v1alpha1 AddressPool."""

    kind: ClassVar = "AddressPool"

    metadata: Metadata
    spec: AddressPoolSpec = AddressPoolSpec()


class EgressAddressSpec(msgspec.Struct, frozen=True, rename="camel"):
    """An address by which pods leave the cluster, through one gateway node at a time."""

    address: str = ""
    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None
    gateways: LabelSelector | None = None
    """The nodes that may be the gateway."""
    announce: tuple[str, ...] | None = None
    """Of `BGP` and `Link`; None: both."""


class EgressAddressObject(msgspec.Struct, frozen=True):
    """sluice.dev/v1alpha1 EgressAddress."""

    kind: ClassVar = "EgressAddress"

    metadata: Metadata
    spec: EgressAddressSpec = EgressAddressSpec()


RoutedObject = BGPPeerObject | AddressPoolObject | EgressAddressObject
ROUTED_KINDS: Final[tuple[type[RoutedObject], ...]] = (
    BGPPeerObject,
    AddressPoolObject,
    EgressAddressObject,
)
ROUTED_PATHS: Final[dict[str, str]] = {
    kind.kind: f"/apis/{GROUP_VERSION}/{plural}"
    for kind, plural in zip(
        ROUTED_KINDS, ("bgppeers", "addresspools", "egressaddresses"), strict=True
    )
}
"""By kind, the path of all its objects at the API server."""
