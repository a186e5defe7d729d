"""Where to? The switch is the router: by destination address to a pod, a peer, the host.

What leaves has the router's MAC as its source. A peer's range is one flow, the same on every
node; a node's own range stands above the flow that names it as a peer.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final

from flows import names
from flows.features.protocols import IPV4
from flows.flow import Action, Flow, SetField, ct_state, ip, mac, net
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER
from flows.pipeline import LAYOUT, NEEDS_SNAT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The outside world, and what is nobody's."""
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.DEFAULT,
        {"dl_type": IPV4},
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "the outside world, through the node",
    )  # fmt: skip
    for network, reason in (
        (cluster.pod_range, "an address of the pod range that is no node's"),
        (cluster.service_range, "an address of the Service range that is no Service's"),
        (IPv4Network("224.0.0.0/4"), "multicast is not carried"),
        (IPv4Network("255.255.255.255/32"), "broadcast is not carried"),
    ):
        yield LAYOUT.flow(
            Feature.FORWARDING, "Forwarding", Priority.RANGE,
            {"dl_type": IPV4, "nw_dst": net(network)}, [], reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.FENCE,
        {"dl_type": IPV4, "Source": Source.TUNNEL},
        [],
        "what came from a tunnel goes to a pod here or nowhere",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {
            "dl_type": IPV4,
            "Source": Source.TUNNEL,
            "ct_state": ct_state("+rpl"),
            "ct_mark": (NEEDS_SNAT, NEEDS_SNAT),
        },
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "but for answers to who asked a Service from outside, by this node",
    )  # fmt: skip


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """All pods of one node, by its tunnel."""
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.SHARED,
        {"dl_type": IPV4, "nw_dst": net(node.pod_cidr)},
        [
            SetField("tun_dst", ip(node.address)),
            *_to(names.TUNNEL_OFPORT, names.ROUTER_MAC),
        ],
        "a peer's pods, by the tunnel",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """The node's own range and its own stack."""
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.OWN_RANGE,
        {"dl_type": IPV4, "nw_dst": net(node.pod_cidr)},
        [],
        "an address of this node's range that no pod has",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {"dl_type": IPV4, "nw_dst": ip(node.gateway)},
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "the node's own stack",
    )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """A pod of this node."""
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {"dl_type": IPV4, "nw_dst": ip(attachment.address)},
        _to(attachment.ofport, attachment.mac),
        "to this pod",
    )  # fmt: skip


def _to(ofport: int, destination_mac: str) -> list[Action]:
    return [
        SetField("dl_src", mac(names.ROUTER_MAC)),
        SetField("dl_dst", mac(destination_mac)),
        LAYOUT.load("OutputPort", ofport),
        LAYOUT.goto("PolicyToPod"),
    ]


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
