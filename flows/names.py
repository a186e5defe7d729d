"""Names, MACs and numbers that controller and agent share.

They are contracts between processes of different versions: change them only together with
`docs/decisions.md`.
"""

import base64
import hashlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import overload

INTEGRATION_BRIDGE = "br-int"
TUNNEL_PORT = "sluice-tun"
GATEWAY_PORT = "sluice-gw"
# Fixed, so that flows with these numbers are byte-identical on every node.
TUNNEL_OFPORT = 1
GATEWAY_OFPORT = 2
FIRST_ATTACHMENT_OFPORT = 16
# OVS assigns and accepts only port numbers below OFPP_MAX of OpenFlow 1.0.
LAST_ATTACHMENT_OFPORT = 0xFEFF

# The switch is the router: the next hop of every pod and every host has this address and MAC.
ROUTER_ADDRESS = IPv4Address("169.254.1.1")
ROUTER_MAC = "0a:58:a9:fe:01:01"
# The MAC of sluice-gw, the same on all nodes, so that flows are shared.
GATEWAY_MAC = "0a:58:a9:fe:01:02"

# Hairpin: the SNAT address of connections that leave by the port they came in by.
HAIRPIN_ADDRESS = IPv4Address("169.254.1.2")
# The DNAT address that the node's stack uses for connections to its NodePorts.
NODE_PORT_ADDRESS = IPv4Address("169.254.1.3")
# The DNAT addresses for Services that name an address of the node: one for each such address.
HOST_DNAT_RANGE = IPv4Network("169.254.1.16/28")

# The switch's own meters. Those of attachments have numbers from `FIRST_ATTACHMENT_OFPORT` on.
REFUSAL_METER = 1
POD_REFUSAL_METER = 2
DENIAL_METER = 3
# The number of an attachment's meter is its ofport plus one of these. The kernel datapath takes
# numbers below 200,000 (DP_METER_NUM_MAX of net/openvswitch/meter.h).
_CONNECTION_METERS, _FRAGMENT_METERS, _REFUSAL_METERS = 0, 0x1_0000, 0x2_0000
# The id of an agent's connection to its bridge. It alone gets the packets that are to be logged.
AGENT_CONNECTION = 0x534C
# Group ids of Sluice; groups with other ids are foreign.
GROUPS = range(0x1000_0000, 0x2000_0000)

# The MAC of the bridge's own port. Nothing uses it, but udev would change a random one.
BRIDGE_MAC = "0a:58:a9:fe:01:03"

RESERVED_TCP_PORTS = {22: "SSH", 10250: "the kubelet"}
"""TCP ports of a node that Services and hostPorts must not use, and their users."""


def reserved_for(protocol: int, port: int, tunnel_port: int) -> str:
    """The user of this reserved port of every node; empty: not reserved. `protocol` is IANA's."""
    if protocol == 6:
        return RESERVED_TCP_PORTS.get(port, "")
    return "the tunnel" if (protocol, port) == (17, tunnel_port) else ""


ENCAPSULATION_OVERHEAD = 50
"""Bytes that Geneve (without options) and VXLAN add over an IPv4 underlay."""


def port_name(namespace: str, name: str, uid: str, ifname: str, container_id: str) -> str:
    """The OVS port name of a pod's interface. It identifies the pod and its sandbox."""
    return pod_port_prefix(namespace, name, uid, ifname) + _base32(container_id, 4)


PREFIX_LENGTH = 11


@lru_cache(maxsize=1024)
def pod_port_prefix(namespace: str, name: str, uid: str, ifname: str = "eth0") -> str:
    """The first `PREFIX_LENGTH` characters of `port_name`: they identify the pod."""
    return "p" + _base32(f"{namespace}/{name}/{uid}/{ifname}", 10)


def container_port_name(container_id: str, ifname: str) -> str:
    """The OVS port name of a container without a Kubernetes pod."""
    return "c" + _base32(f"{container_id}/{ifname}", 10) + _base32(container_id, 4)


def is_attachment_port(name: str) -> bool:
    """Whether an OVS port's name is one of `port_name` or `container_port_name`."""
    return len(name) == 15 and name[0] in "pc" and set(name[1:]) <= _BASE32_ALPHABET


def attachment_tag(port: str) -> int:
    """20 bits that distinguish the attachments of successive sandboxes of one pod."""
    value = 0
    for character in port[-4:]:
        value = value << 5 | _BASE32_ORDER.index(character)
    return value


def mac_of(address: IPv4Address | IPv6Address) -> str:
    """The MAC of both ends of a pod's veth. So PORT_STATUS carries the pod's address."""
    return "0a:58:" + address.packed.hex(":")


def address_of(mac: str) -> IPv4Address | None:
    """The inverse of `mac_of`; None if the MAC does not have that form."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv4Address(octets[2:]) if octets[:2] == b"\x0a\x58" else None


@overload
def gateway_address(pod_cidr: IPv4Network) -> IPv4Address: ...
@overload
def gateway_address(pod_cidr: IPv6Network) -> IPv6Address: ...
def gateway_address(pod_cidr: IPv4Network | IPv6Network) -> IPv4Address | IPv6Address:
    """The node's own address in its podCIDR: the one after the network address."""
    return pod_cidr[1]


def connection_meter(ofport: int) -> int:
    """The meter of an attachment's new connections."""
    return _CONNECTION_METERS + ofport


def fragment_meter(ofport: int) -> int:
    """The meter of the fragments that an attachment sends."""
    return _FRAGMENT_METERS + ofport


def refusal_meter(ofport: int) -> int:
    """The meter of an attachment's refusals and ARP replies, which cost more than forwarding."""
    return _REFUSAL_METERS + ofport


def is_our_meter(number: int) -> bool:
    """Whether Sluice uses this meter id: for an attachment, or for the switch."""
    if number in (REFUSAL_METER, POD_REFUSAL_METER, DENIAL_METER):
        return True
    kind, ofport = number & ~0xFFFF, number & 0xFFFF
    return kind in (_CONNECTION_METERS, _FRAGMENT_METERS, _REFUSAL_METERS) and ofport in range(
        FIRST_ATTACHMENT_OFPORT, LAST_ATTACHMENT_OFPORT + 1
    )


@overload
def snat_address(pod_cidr: IPv4Network) -> IPv4Address: ...
@overload
def snat_address(pod_cidr: IPv6Network) -> IPv6Address: ...
def snat_address(pod_cidr: IPv4Network | IPv6Network) -> IPv4Address | IPv6Address:
    """The SNAT address for Service connections from outside that this node sends to other nodes.

    It is the network address of the podCIDR. No pod has it and the node does not send from it, so
    its source ports do not conflict with others.
    """
    return pod_cidr[0]


def datapath_id(node: str) -> int:
    """The OpenFlow datapath id (64 bits) of a node's bridge."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")


_BASE32_ORDER = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32_ALPHABET = frozenset(_BASE32_ORDER)


def _base32(text: str, length: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:length]
