"""Names, MACs and numbers that controller and node agent must both know.

They are contracts between processes of different versions: change them only together with
`docs/decisions.md`.
"""

import base64
import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import overload

INTEGRATION_BRIDGE = "br-int"
TUNNEL_PORT = "sluice-tun"
GATEWAY_PORT = "sluice-gw"
# Fixed, so that the flows which name them are byte-identical on every node.
TUNNEL_OFPORT = 1
GATEWAY_OFPORT = 2
FIRST_ATTACHMENT_OFPORT = 16
# OVS hands out and accepts port numbers below OFPP_MAX of OpenFlow 1.0 only.
LAST_ATTACHMENT_OFPORT = 0xFEFF

# The switch is the router: the next hop of every pod and every host has this address and MAC.
ROUTER_ADDRESS = IPv4Address("169.254.1.1")
ROUTER_MAC = "0a:58:a9:fe:01:01"
# The MAC of sluice-gw, the same on all nodes, so that flows are shared.
GATEWAY_MAC = "0a:58:a9:fe:01:02"

# Hairpin: the source of connections that leave by the port they came in by.
HAIRPIN_ADDRESS = IPv4Address("169.254.1.2")
# What the host translates its own addresses to for a connection to a NodePort.
NODE_PORT_ADDRESS = IPv4Address("169.254.1.3")
# The same, for a Service that names an address of the host: the nth address for the nth one.
STAND_INS = IPv4Network("169.254.1.16/28")

# The switch's own meters. Those of attachments have numbers from `FIRST_ATTACHMENT_OFPORT` on.
REFUSAL_METER = 1
POD_REFUSAL_METER = 2
# What is added to an attachment's ofport for the number of each of its meters. The kernel's
# datapath takes numbers below 200,000 (DP_METER_NUM_MAX of net/openvswitch/meter.h).
_CONNECTION_METERS, _FRAGMENT_METERS, _REFUSAL_METERS = 0, 0x1_0000, 0x2_0000
# Group ids of Sluice; groups with other ids are foreign.
GROUPS = range(0x1000_0000, 0x2000_0000)

# The MAC of the bridge's own port, which nothing uses. udev would change a random one.
BRIDGE_MAC = "0a:58:a9:fe:01:03"

RESERVED_TCP_PORTS = {22: "SSH", 10250: "the kubelet"}
"""Ports of a node that neither Services nor hostPorts may take, and who has them."""


def reserved_for(protocol: int, port: int, tunnel_port: int) -> str:
    """Who has this port of every node; empty: nobody. `protocol` is IANA's number."""
    if protocol == 6:
        return RESERVED_TCP_PORTS.get(port, "")
    return "the tunnel" if (protocol, port) == (17, tunnel_port) else ""


ENCAPSULATION_OVERHEAD = 50
"""Bytes that Geneve (without options) and VXLAN add over an IPv4 underlay."""


def port_name(namespace: str, name: str, uid: str, ifname: str, container_id: str) -> str:
    """The OVS port of a Kubernetes pod's interface: which pod, and which sandbox of it."""
    return pod_port_prefix(namespace, name, uid, ifname) + _base32(container_id, 4)


PREFIX_LENGTH = 11


def pod_port_prefix(namespace: str, name: str, uid: str, ifname: str = "eth0") -> str:
    """The first `PREFIX_LENGTH` characters of `port_name`, those that say which pod."""
    return "p" + _base32(f"{namespace}/{name}/{uid}/{ifname}", 10)


def container_port_name(container_id: str, ifname: str) -> str:
    """The OVS port of a container that no Kubernetes pod stands behind."""
    return "c" + _base32(f"{container_id}/{ifname}", 10) + _base32(container_id, 4)


def is_attachment_port(name: str) -> bool:
    """Whether an OVS port's name is one of `port_name` or `container_port_name`."""
    return len(name) == 15 and name[0] in "pc" and set(name[1:]) <= _BASE32_ALPHABET


def attachment_tag(port: str) -> int:
    """20 bits that tell this sandbox's attachment from every earlier one of the same pod."""
    value = 0
    for character in port[-4:]:
        value = value << 5 | _BASE32_ORDER.index(character)
    return value


def mac_of(address: IPv4Address | IPv6Address) -> str:
    """The MAC of both ends of a pod's veth; PORT_STATUS thereby carries the pod's address."""
    return "0a:58:" + address.packed.hex(":")


def address_of(mac: str) -> IPv4Address | None:
    """The inverse of `mac_of`; None where the MAC is not of that form."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv4Address(octets[2:]) if octets[:2] == b"\x0a\x58" else None


@overload
def gateway_address(pod_cidr: IPv4Network) -> IPv4Address: ...
@overload
def gateway_address(pod_cidr: IPv6Network) -> IPv6Address: ...
def gateway_address(pod_cidr: IPv4Network | IPv6Network) -> IPv4Address | IPv6Address:
    """The host's own address among its pods: the first of the node's podCIDR."""
    return pod_cidr[1]


def connection_meter(ofport: int) -> int:
    """The meter of an attachment's new connections."""
    return _CONNECTION_METERS + ofport


def fragment_meter(ofport: int) -> int:
    """The meter of the fragments that an attachment sends."""
    return _FRAGMENT_METERS + ofport


def refusal_meter(ofport: int) -> int:
    """The meter of an attachment's refusals and ARP answers, which cost more than a packet."""
    return _REFUSAL_METERS + ofport


def is_our_meter(number: int) -> bool:
    """Whether a meter of this id is an attachment's, or the switch's own."""
    if number in (REFUSAL_METER, POD_REFUSAL_METER):
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
    """The source, on other nodes, of what came to a Service of this node from outside.

    The first address of the podCIDR, which no pod has and the host does not send from: so its
    ports are never in each other's way.
    """
    return pod_cidr[0]


def datapath_id(node: str) -> int:
    """The OpenFlow datapath id (64 bits) of a node's bridge."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")


_BASE32_ORDER = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32_ALPHABET = frozenset(_BASE32_ORDER)


def _base32(text: str, length: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:length]
