"""Two nodes with flannel's VXLAN backend and the bridge plugin, as flanneld leaves them.

Each node has a bridge `cni0` for its pods and a device `flannel.1`; a peer is one route, one
permanent neighbour and one forwarding entry. The filters and the masquerade are those of flannel's
nftables mode. Sources: flannel's pkg/backend/vxlan and pkg/trafficmngr/nftables, and the `cni-conf`
of its manifest. flanneld itself does not run: on a cluster that does not change it has no work.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address

from bench.nodes import set_up_uplink
from flows import names
from lab import Lab
from lab.commands import run
from lab.layout import POD_RANGE, NodeLayout
from lab.network import UPLINK, configure, connect, create_namespace

DEVICE = "flannel.1"
BRIDGE = "cni0"
PORT = 8472
MTU = 1500 - names.ENCAPSULATION_OVERHEAD


def set_up(lab: Lab, nodes: Sequence[NodeLayout]) -> None:
    """Make the nodes, which have the kernel's VXLAN. Raises `LabError`."""
    connect(lab.layout, nodes, "system")
    for node in nodes:
        set_up_uplink(node)
        run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], netns=node.netns)
        gateway = node.pod_cidr[1]
        configure(
            node.netns,
            [
                f"link add {DEVICE} address {_mac(node)} mtu {MTU} type vxlan id 1 dev {UPLINK} "
                f"local {node.address} dstport {PORT} nolearning noudpcsum",
                f"addr add {node.pod_cidr[0]}/32 dev {DEVICE}",
                f"link set {DEVICE} up",
                f"link add {BRIDGE} address {names.mac_of(gateway)} mtu {MTU} type bridge",
                f"addr add {gateway}/{node.pod_cidr.prefixlen} dev {BRIDGE}",
                f"link set {BRIDGE} up",
            ],
        )
        run(["nft", "-f", "-"], netns=node.netns, stdin=rules(node))
        for peer in nodes:
            if peer != node:
                _join(node, peer)


def add_pod(lab: Lab, node: NodeLayout, name: str, address: IPv4Address) -> str:
    """A pod's namespace, attached to the node's bridge; its name. Raises `LabError`."""
    pod = lab.layout.pod_netns("default", name)
    create_namespace(pod)
    configure(
        node.netns,
        [
            f"link add {name} mtu {MTU} type veth peer name eth0 address {names.mac_of(address)} "
            f"mtu {MTU} netns {pod}",
            f"link set {name} master {BRIDGE} up",
            f"link set {name} type bridge_slave hairpin on",
        ],
    )
    gateway = node.pod_cidr[1]
    configure(
        pod,
        [
            "link set eth0 up",
            f"addr add {address}/{node.pod_cidr.prefixlen} dev eth0",
            f"route add default via {gateway}",
            f"route add {POD_RANGE} via {gateway}",
        ],
    )
    return pod


def _mac(node: NodeLayout) -> str:
    return names.mac_of(node.address)


def _join(node: NodeLayout, peer: NodeLayout) -> None:
    first = peer.pod_cidr[0]
    configure(
        node.netns,
        [
            f"neigh replace {first} lladdr {_mac(peer)} dev {DEVICE} nud permanent",
            f"route add {peer.pod_cidr} via {first} dev {DEVICE} onlink",
        ],
    )
    entry = [_mac(peer), "dev", DEVICE, "dst", str(peer.address), "self", "permanent"]
    run(["bridge", "fdb", "append", *entry], netns=node.netns)


def rules(node: NodeLayout) -> str:
    """The rules, for `nft -f`."""
    return f"""
table ip flannel-ipv4 {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ip saddr {POD_RANGE} accept
        ip daddr {POD_RANGE} accept
    }}
    chain postrtg {{
        type nat hook postrouting priority srcnat; policy accept;
        meta mark 0x4000 return
        ip saddr {node.pod_cidr} ip daddr {POD_RANGE} return
        ip saddr {POD_RANGE} ip daddr {node.pod_cidr} return
        ip saddr != {node.pod_cidr} ip daddr {POD_RANGE} return
        ip saddr {POD_RANGE} ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != {POD_RANGE} ip daddr {POD_RANGE} masquerade fully-random
    }}
}}
"""
