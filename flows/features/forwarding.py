"""Forwarding: the switch routes by destination address to a pod, a peer or the node.

Forwarded packets have the router's MAC as source. The pod range of a peer is one flow, the same on
every node. The flow for the node's own range has a higher priority than the one for it as a peer.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.family import Family, family_of
from flows.flow import Action, Flow, SetField, ct_state, ip, mac, net
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER
from flows.pipeline import LAYOUT, NEEDS_SNAT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The outside, and addresses that are not forwarded."""
    for family in cluster.families:
        yield from _of_family(family, cluster)


def _of_family(family: Family, cluster: Cluster) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "to the outside, through the node",
    )  # fmt: skip
    ranges = [
        (cluster.pod_range, "an address of the pod range outside all podCIDRs"),
        (cluster.service_range, "an address of the Service range without a Service"),
    ]
    for network, reason in (
        *((network, reason) for network, reason in ranges if family_of(network) is family),
        *((network, f"{name} is not carried") for network, name in family.not_carried),
    ):
        yield LAYOUT.flow(
            Feature.FORWARDING, "Forwarding", Priority.RANGE,
            {"dl_type": family.ether_type, family.destination: net(network)}, [], reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.OVERRIDE,
        {"dl_type": family.ether_type, "Source": Source.TUNNEL},
        [],
        "packets from a tunnel go to pods of this node only",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.LOCAL,
        {
            "dl_type": family.ether_type,
            "Source": Source.TUNNEL,
            "ct_state": ct_state("+rpl"),
            "ct_mark": (NEEDS_SNAT, NEEDS_SNAT),
        },
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        "except replies to external Service clients that entered at this node",
    )  # fmt: skip


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """All pods of one peer, through the tunnel."""
    family, outer = family_of(node.pod_cidr), family_of(node.address)
    yield LAYOUT.flow(
        Feature.FORWARDING, "Forwarding", Priority.SHARED,
        {"dl_type": family.ether_type, family.destination: net(node.pod_cidr)},
        [
            SetField(outer.tunnel_destination, ip(node.address)),
            *_to(names.TUNNEL_OFPORT, names.ROUTER_MAC),
        ],
        "to the pods of a peer, through the tunnel",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """The node's own range and its own stack."""
    family = family_of(node.pod_cidr)
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


def _to(ofport: int, destination_mac: str) -> list[Action]:
    return [
        SetField("dl_src", mac(names.ROUTER_MAC)),
        SetField("dl_dst", mac(destination_mac)),
        LAYOUT.load("OutputPort", ofport),
        LAYOUT.goto("PolicyToPod"),
    ]


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
