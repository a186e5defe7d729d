"""What differs between IPv4 and IPv6, as a value: a feature is written once, for any family.

A second family is a second `Family` in `FAMILIES`, not a second copy of a feature.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from flows import names

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One IP version: its numbers, its field names (ovs-fields(7)) and Sluice's addresses in it.

    There is one object of each, which are compared, and hashed, as such.
    """

    version: int
    bits: int
    """The length of an address."""
    ether_type: int
    source: str
    """The field of the source address."""
    destination: str
    opener: str
    """The field of the original source address of the connection (ovs-fields(7), *ct_nw_src*)."""
    opened_to: str
    """The field of the original destination address, before any translation (*ct_nw_dst*)."""
    tunnel_source: str
    """The field of the tunnel's source address, for tunnels over this family."""
    tunnel_destination: str
    icmp: int
    """The IP protocol number of its ICMP."""
    icmp_type: str
    icmp_unreachable: int
    """The ICMP type of "destination unreachable"."""
    resolution: int | None
    """The ether type of its address resolution; None: it uses ICMP."""
    not_carried: tuple[tuple[IPNetwork, str], ...]
    """Ranges that are not forwarded, each with a name for the flow's reason."""
    router: IPAddress
    hairpin: IPAddress
    """The SNAT address of hairpin connections: they leave by the port they came in by."""
    node_port: IPAddress
    """The DNAT address that the node's stack uses for connections to its NodePorts."""

    def prefix_mask(self, length: int) -> int:
        """The netmask of a prefix of this length, as a number."""
        return (1 << self.bits) - (1 << (self.bits - length))


IPV4: Final = Family(
    version=4,
    bits=32,
    ether_type=0x0800,
    source="nw_src",
    destination="nw_dst",
    opener="ct_nw_src",
    opened_to="ct_nw_dst",
    tunnel_source="tun_src",
    tunnel_destination="tun_dst",
    icmp=1,
    icmp_type="icmp_type",
    icmp_unreachable=3,
    resolution=0x0806,
    not_carried=(
        (IPv4Network("224.0.0.0/4"), "multicast"),
        (IPv4Network("255.255.255.255/32"), "broadcast"),
    ),
    router=names.ROUTER_ADDRESS,
    hairpin=names.HAIRPIN_ADDRESS,
    node_port=names.NODE_PORT_ADDRESS,
)

FAMILIES: Final[dict[int, Family]] = {IPV4.version: IPV4}
"""The families that Sluice forwards, by version."""

FIELD_OF_IPV4: Final = {
    "ipv6_src": IPV4.source,
    "ipv6_dst": IPV4.destination,
    "ct_ipv6_src": IPV4.opener,
    "ct_ipv6_dst": IPV4.opened_to,
    "tun_ipv6_src": IPV4.tunnel_source,
    "tun_ipv6_dst": IPV4.tunnel_destination,
    "icmpv6_type": IPV4.icmp_type,
}
"""Tables declare a field by its IPv4 name, which stands for all families."""


def family_of(given: IPAddress | IPNetwork) -> Family:
    """The family of an address or a range. Raises `ValueError` for one that is not forwarded."""
    try:
        return FAMILIES[given.version]
    except KeyError:
        raise ValueError(f"{given}: IPv{given.version} is not supported") from None
