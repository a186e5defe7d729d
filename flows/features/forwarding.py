"""Forwarding: the switch routes by destination address to a pod, a peer or the node.

Forwarded packets have the router's MAC as source. The pod ranges of peers are in `PeerWay`, with
the same flows on every node: one for the tunnel, and those for nodes that do not use it.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.family import Family, family_of
from flows.features.direct_peers import direct_nodes, own_ways
from flows.flow import Action, Flow, MatchValue, SetField, ct_state, ip, mac, net
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER
from flows.pipeline import LAYOUT, NEEDS_SNAT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node
from flows.ways import Mode


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The outside, and addresses that are not forwarded."""
    for family in cluster.families:
        yield from _of_family(family, cluster)


def _of_family(family: Family, cluster: Cluster) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC, "Egress"),
        "to the outside, through the node or an egress gateway",
    )  # fmt: skip
    if family_of(cluster.pod_range) is family:
        yield LAYOUT.flow(
            Feature.FORWARDING, "Forwarding", Priority.RANGE,
            {"dl_type": family.ether_type, family.destination: net(cluster.pod_range)},
            [LAYOUT.goto("PeerWay")],
            "to a peer, or an address that no node has",
        )  # fmt: skip
    dropped = [(network, f"{name} is not carried") for network, name in family.not_carried]
    if family_of(cluster.service_range) is family:
        dropped.append((cluster.service_range, "an address of the Service range without a Service"))
    for network, reason in dropped:
        yield LAYOUT.flow(
            Feature.FORWARDING, "Forwarding", Priority.RANGE,
            {"dl_type": family.ether_type, family.destination: net(network)}, [], reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.OVERRIDE,
        {"dl_type": family.ether_type, "Source": Source.PEER},
        [LAYOUT.goto("Egress")],
        "packets from another node go to pods of this node, or out by this egress gateway",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {
            "dl_type": family.ether_type,
            "Source": Source.PEER,
            "ct_state": ct_state("+rpl"),
            "ct_mark": (NEEDS_SNAT, NEEDS_SNAT),
        },
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "except replies to external Service clients that entered at this node",
    )  # fmt: skip


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """All pods of one peer: through the tunnel, or without it from nodes that may do so."""
    family, outer = family_of(node.pod_cidr), family_of(node.address)
    to_peer: dict[str, MatchValue] = {
        "dl_type": family.ether_type,
        family.destination: net(node.pod_cidr),
    }
    yield LAYOUT.flow(
        Feature.FORWARDING, "PeerWay", Priority.SHARED, to_peer,
        [
            SetField(outer.tunnel_destination, ip(node.address)),
            *_to(names.TUNNEL_OFPORT, names.ROUTER_MAC),
        ],
        "to the pods of a peer, through the tunnel",
    )  # fmt: skip
    for senders, who in direct_nodes(node):
        yield LAYOUT.flow(
            Feature.FORWARDING, "PeerWay", Priority.OVERRIDE,
            {**to_peer, **senders},
            [LAYOUT.load("ToPeer", 1), *_to(names.GATEWAY_OFPORT, names.GATEWAY_MAC)],
            f"to the pods of a peer, from {who}: the node's own stack routes it",
        )  # fmt: skip


def node(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """The node's own range and its own stack, and how it sends to peers."""
    family = family_of(node.pod_cidr)
    if node.mode is not Mode.ENCAP:
        yield LAYOUT.flow(
            Feature.FORWARDING, "Forwarding", Priority.SHARED,
            {"dl_type": family.ether_type, family.destination: net(cluster.pod_range)},
            [*own_ways(node, "Subnet", "NoEncap"), LAYOUT.goto("PeerWay")],
            f"to a peer, by a node in mode {node.mode}",
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.OWN_RANGE,
        {"dl_type": family.ether_type, family.destination: net(node.pod_cidr)},
        [],
        "an address of this node's podCIDR without a pod",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {"dl_type": family.ether_type, family.destination: ip(node.gateway)},
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "to the node's own stack",
    )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """A pod of this node."""
    family = family_of(attachment.address)
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {"dl_type": family.ether_type, family.destination: ip(attachment.address)},
        _to(attachment.ofport, attachment.mac),
        "to this pod",
    )  # fmt: skip


def _to(ofport: int, destination_mac: str, onward: str = "PolicyToPod") -> list[Action]:
    return [
        SetField("dl_src", mac(names.ROUTER_MAC)),
        SetField("dl_dst", mac(destination_mac)),
        LAYOUT.load("OutputPort", ofport),
        LAYOUT.goto(onward),
    ]


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
