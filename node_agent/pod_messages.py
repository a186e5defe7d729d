"""What is requested of the kernel for a pod, as netlink messages: its veth pair and its inside.

The pod is at layer 3: a /32 address, and a link-local router whose MAC it knows for ever.
"""

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from flows import names
from node_agent import netlink
from node_agent.host import NUD_PERMANENT

IFF_UP: Final = 1
_LOOPBACK_INDEX: Final = 1
_RT_SCOPE_LINK: Final = 253


@dataclass(frozen=True, slots=True)
class PodLink:
    """What a pod gets."""

    ifname: str
    port: str
    """The name of the host's end."""
    address: IPv4Address
    mtu: int
    userspace: bool
    """Whether the datapath is Open vSwitch's own, which is not in the kernel. It forwards checksums
    as it finds them, and the host's own stack gets a copy of each frame."""

    @property
    def mac(self) -> bytes:
        """Of both ends."""
        return _mac(names.mac_of(self.address))


# Of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h and linux/veth.h.
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 20, 24, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1
_RT_SCOPE_UNIVERSE: Final = 0
_LINK: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, which flags to change."""
_ADDRESS: Final = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, index."""
_NEIGHBOUR: Final = struct.Struct("=B3xiHBB")
"""ndmsg: family, index, state, flags, type."""
_ROUTE: Final = struct.Struct("=8BI")
"""rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags."""


def pair_message(link: PodLink, namespace: int) -> bytes:
    """The request for the pair, with the host's end up."""
    # MACs are set here and not left to chance, or udev rewrites them later.
    peer = netlink.nested(
        _VETH_INFO_PEER,
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0),
        netlink.text(_IFLA_IFNAME, link.ifname),
        netlink.number(_IFLA_NET_NS_FD, namespace),
        netlink.attribute(_IFLA_ADDRESS, link.mac),
        netlink.number(_IFLA_MTU, link.mtu),
    )
    kind = netlink.text(_INFO_KIND, "veth"), netlink.nested(_INFO_DATA, peer)
    return netlink.message(
        _NEW_LINK,
        netlink.NEW,
        _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP),
        netlink.text(_IFLA_IFNAME, link.port),
        netlink.attribute(_IFLA_ADDRESS, link.mac),
        netlink.number(_IFLA_MTU, link.mtu),
        netlink.nested(_IFLA_LINKINFO, *kind),
    )


def inner_messages(link: PodLink, index: int) -> list[bytes]:
    """What is requested inside the pod: address, both interfaces up, neighbour, two routes."""
    address, router = link.address.packed, names.ROUTER_ADDRESS.packed
    neighbour = _NEIGHBOUR.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0)
    return [
        netlink.message(
            _NEW_ADDRESS,
            netlink.NEW,
            _ADDRESS.pack(socket.AF_INET, 32, 0, 0, index),
            netlink.attribute(_IFA_ADDRESS, address),
            netlink.attribute(_IFA_LOCAL, address),
        ),
        *(
            netlink.message(
                _NEW_LINK,
                netlink.CHANGE,
                _LINK.pack(socket.AF_UNSPEC, 0, each, IFF_UP, IFF_UP),
            )
            for each in (_LOOPBACK_INDEX, index)
        ),
        netlink.message(
            _NEW_NEIGHBOUR,
            netlink.NEW,
            neighbour,
            netlink.attribute(_NDA_DST, router),
            netlink.attribute(_NDA_LLADDR, _mac(names.ROUTER_MAC)),
        ),
        _route(32, _RT_SCOPE_LINK, netlink.attribute(_RTA_DST, router), index),
        _route(0, _RT_SCOPE_UNIVERSE, netlink.attribute(_RTA_GATEWAY, router), index),
    ]


def _route(length: int, scope: int, where: bytes, index: int) -> bytes:
    way = _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST
    return netlink.message(
        _NEW_ROUTE,
        netlink.NEW,
        _ROUTE.pack(socket.AF_INET, length, 0, 0, *way, 0),
        where,
        netlink.number(_RTA_OIF, index),
    )


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
