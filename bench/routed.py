"""Two nodes that route packets of pods to each other plainly, as flannel's backend host-gw does.

Each node has a route to the other's podCIDR by the other's address. A pod has a pair of veth
interfaces. Either the node has a route to it, which is the cheapest way that there is, or its end
is on a bridge, as flannel's CNI configuration has it. The filters and the masquerade are those of
flannel's nftables mode.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address

from bench.flannel import rules
from bench.nodes import set_up_uplink
from flows import names
from lab import Lab
from lab.commands import run
from lab.layout import NodeLayout
from lab.network import UPLINK, configure, connect, create_namespace

BRIDGE = "cni0"


def set_up(lab: Lab, nodes: Sequence[NodeLayout], *, bridged: bool = False) -> None:
    """Make the nodes, with a bridge for their pods or without one. Raises `LabError`."""
    connect(lab.layout, nodes, "system")
    for node in nodes:
        set_up_uplink(node)
        run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], netns=node.netns)
        run(["nft", "-f", "-"], netns=node.netns, stdin=rules(node))
        ways = [
            f"route add {peer.pod_cidr} via {peer.address} dev {UPLINK}"
            for peer in nodes
            if peer != node
        ]
        if bridged:
            gateway = node.pod_cidr[1]
            ways += [
                f"link add {BRIDGE} address {names.mac_of(gateway)} type bridge",
                f"addr add {gateway}/{node.pod_cidr.prefixlen} dev {BRIDGE}",
                f"link set {BRIDGE} up",
            ]
        configure(node.netns, ways)


def add_pod(
    lab: Lab, node: NodeLayout, name: str, address: IPv4Address, *, bridged: bool = False
) -> str:
    """A pod's namespace, attached to the node; its name. Raises `LabError`."""
    pod = lab.layout.pod_netns("default", name)
    create_namespace(pod)
    mac = names.mac_of(address)
    gateway = node.pod_cidr[1]
    to_node = [f"addr add {gateway}/32 dev {name}", f"route add {address}/32 dev {name}"]
    if bridged:
        to_node = [f"link set {name} master {BRIDGE}"]
    configure(
        node.netns,
        [
            f"link add {name} address {names.mac_of(gateway)} type veth peer name eth0 "
            f"address {mac} netns {pod}",
            f"link set {name} up",
            *to_node,
        ],
    )
    configure(
        pod,
        [
            "link set eth0 up",
            f"addr add {address}/32 dev eth0",
            f"route add {gateway} dev eth0 scope link",
            f"route add default via {gateway}",
        ],
    )
    return pod
