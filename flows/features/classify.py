"""The sender of a packet: its ingress port, and a check of its source addresses.

`Classifier` distinguishes pods, tunnel and gateway. `SpoofGuard`, `TunnelGuard`, `GatewayGuard` and
`PeerGuard` drop packets with source addresses of others, before any other table sees the packet.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.family import Family, family_of
from flows.features.direct_peers import direct_nodes, own_ways
from flows.features.protocols import ARP, ICMPV6, ICMPV6_ROUTER_ADVERTISEMENT, IPV6
from flows.flow import ApplyMeter, Flow, MatchValue, ip, mac, net
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER
from flows.pipeline import LAYOUT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node
from flows.ways import Mode

_MAC_BITS: Final = 48
_GROUP_BIT: Final = 1 << 40
_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The two ports that every bridge has, and packets that no pod may send."""
    yield LAYOUT.flow(
        Feature.CLASSIFY, "Classifier", Priority.SHARED,
        {"in_port": names.TUNNEL_OFPORT},
        [LAYOUT.load("Source", Source.PEER), LAYOUT.goto("TunnelGuard")],
        "from another node",
    )  # fmt: skip
    yield gateway_classifier_flow()
    yield LAYOUT.flow(
        Feature.CLASSIFY, "SpoofGuard", Priority.DEFAULT,
        {"dl_type": IPV6},
        [],
        "IPv6 from a pod, while the cluster is IPv4-only",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "SpoofGuard", Priority.GUARD,
        {"dl_type": IPV6, "nw_proto": ICMPV6, "icmpv6_type": ICMPV6_ROUTER_ADVERTISEMENT},
        [],
        "an IPv6 router advertisement from a pod",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.DEFAULT,
        {"dl_type": ARP, "dl_src": mac(names.GATEWAY_MAC)},
        [LAYOUT.goto("Arp")],
        "ARP from the node for its next hop",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "RouterGuard", Priority.DEFAULT,
        {"dl_type": ARP},
        [LAYOUT.goto("Arp")],
        "unicast ARP to the router",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "RouterGuard", Priority.LOCAL,
        {"dl_type": ARP, "dl_dst": (_GROUP_BIT, _GROUP_BIT)},
        [LAYOUT.goto("BroadcastGuard")],
        "multicast or broadcast ARP",
    )  # fmt: skip
    for table, right, whose in (
        ("RouterGuard", names.ROUTER_MAC, "the router's"),
        ("BroadcastGuard", _BROADCAST, "the broadcast address's"),
    ):
        for value in _wrong_bits(right, _MAC_BITS):
            yield LAYOUT.flow(
                Feature.CLASSIFY, table, Priority.OVERRIDE,
                {"dl_dst": value},
                [],
                f"a bit of the destination MAC differs from {whose}",
            )  # fmt: skip
    for family in cluster.families:
        yield from _through_gateway(family, cluster)


def _wrong_bits(right: str, count: int) -> Iterable[tuple[int, int]]:
    """For each of the first `count` bits of a MAC, the wrong value of that bit, as value and mask.

    If one flow matches a whole MAC, Open vSwitch keeps a datapath flow for each wrong MAC that it
    sees: 20,000 a second for a pod that invents them. With one flow for each bit, a datapath flow
    matches only up to the first wrong bit, so there are at most as many as bits.
    """
    for number in range(count):
        bit = 1 << (_MAC_BITS - 1 - number)
        yield ~mac(right) & bit, bit


def _through_gateway(family: Family, cluster: Cluster) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.DEFAULT,
        {"dl_type": family.ether_type, "dl_src": mac(names.GATEWAY_MAC)},
        [LAYOUT.goto("UnSnat")],
        "from the node, or from outside through it",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.RANGE,
        {"dl_type": family.ether_type, family.source: net(cluster.pod_range)},
        [],
        "a pod address as the source of a packet from the node",
    )  # fmt: skip


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """Packets that are accepted from this node, by the tunnel and without it."""
    inner, outer = family_of(node.pod_cidr), family_of(node.address)
    yield LAYOUT.flow(
        Feature.CLASSIFY, "TunnelGuard", Priority.SHARED,
        {
            "dl_type": inner.ether_type,
            outer.tunnel_source: ip(node.address),
            inner.source: net(node.pod_cidr),
        },
        [LAYOUT.goto("UnSnat")],
        "from a pod of a peer",
    )  # fmt: skip
    for receivers, who in direct_nodes(node, "GuardSubnet", "GuardNoEncap"):
        yield LAYOUT.flow(
            Feature.CLASSIFY, "PeerGuard", Priority.SHARED,
            {"dl_type": inner.ether_type, inner.source: net(node.pod_cidr), **receivers},
            [LAYOUT.load("Source", Source.PEER), LAYOUT.goto("UnSnat")],
            f"from a pod of a peer, without the tunnel to {who}",
        )  # fmt: skip


def node(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """Flows with addresses of the node, for its own bridge."""
    family = family_of(node.pod_cidr)
    if node.mode is not Mode.ENCAP:
        yield LAYOUT.flow(
            Feature.CLASSIFY, "GatewayGuard", Priority.SHARED,
            {
                "dl_type": family.ether_type,
                "dl_src": mac(names.GATEWAY_MAC),
                family.source: net(cluster.pod_range),
            },
            [*own_ways(node, "GuardSubnet", "GuardNoEncap"), LAYOUT.goto("PeerGuard")],
            f"a pod address from the node, whose mode is {node.mode}",
        )  # fmt: skip
        yield LAYOUT.flow(
            Feature.CLASSIFY, "PeerGuard", Priority.OWN_RANGE,
            {"dl_type": family.ether_type, family.source: net(node.pod_cidr)},
            [],
            "the address of a pod of this node as the source of a packet from the node",
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "TunnelGuard", Priority.OVERRIDE,
        {
            "dl_type": family.ether_type,
            family_of(node.address).tunnel_source: ip(node.address),
        },
        [],
        "this node's own address as the source of a tunnel packet",
    )  # fmt: skip
    # The MACs of all pods of a node have the same first bits (`names.mac_of`).
    common = _MAC_BITS - (family.bits - node.pod_cidr.prefixlen)
    for value in _wrong_bits(names.mac_of(node.pod_cidr.network_address), common):
        matches: tuple[dict[str, MatchValue], ...] = (
            {"dl_src": value},
            {"dl_type": ARP, "arp_sha": value},
        )
        for fields in matches:
            yield LAYOUT.flow(
                Feature.CLASSIFY, "SpoofGuard", Priority.GUARD,
                fields,
                [],
                "a bit of the source MAC differs from all pods of this node",
            )  # fmt: skip
    for address, reason in (
        (node.gateway, "from the node, by its gateway address"),
        *(
            (a, "from the node, by its own address")
            for a in (node.address, *node.further_addresses)
        ),
    ):
        family = family_of(address)
        yield LAYOUT.flow(
            Feature.CLASSIFY, "GatewayGuard", Priority.LOCAL,
            {
                "dl_type": family.ether_type,
                "dl_src": mac(names.GATEWAY_MAC),
                family.source: ip(address),
            },
            [LAYOUT.load("Source", Source.HOST), LAYOUT.goto("UnSnat")],
            reason,
        )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """Admits the packets of a pod that have its own addresses."""
    yield attachment_classifier_flow(attachment.ofport, attachment.tag)
    family = family_of(attachment.address)
    yield LAYOUT.flow(
        Feature.CLASSIFY, "SpoofGuard", Priority.LOCAL,
        {
            "in_port": attachment.ofport,
            "dl_src": mac(attachment.mac),
            "dl_type": family.ether_type,
            family.source: ip(attachment.address),
        },
        [LAYOUT.goto("RouterGuard")],
        "the pod's own MAC and address",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "SpoofGuard", Priority.LOCAL,
        {
            "in_port": attachment.ofport,
            "dl_src": mac(attachment.mac),
            "dl_type": ARP,
            "arp_sha": mac(attachment.mac),
            "arp_spa": ip(attachment.address),
        },
        [ApplyMeter(names.refusal_meter(attachment.ofport)), LAYOUT.goto("RouterGuard")],
        "the pod's own MAC and address in ARP",
    )  # fmt: skip


def gateway_classifier_flow() -> Flow:
    """The flow that admits the packets of the node itself.

    It is among the first flows of a bridge. A node agent waits for its cookie.
    """
    return LAYOUT.flow(
        Feature.CLASSIFY, "Classifier", Priority.SHARED,
        {"in_port": names.GATEWAY_OFPORT},
        [LAYOUT.load("Source", Source.GATEWAY), LAYOUT.goto("GatewayGuard")],
        "from the node itself, or through it from outside",
    )  # fmt: skip


def attachment_classifier_flow(ofport: int, tag: int) -> Flow:
    """The flow that admits the packets of one sandbox.

    Its cookie is unique to this attachment, because its actions contain the tag. The flow is in
    one bundle with all other flows of the attachment: if an agent sees it, all are installed.
    """
    return LAYOUT.flow(
        Feature.CLASSIFY, "Classifier", Priority.LOCAL,
        {"in_port": ofport},
        [
            LAYOUT.load("Source", Source.POD),
            LAYOUT.load("AttachmentTag", tag),
            LAYOUT.goto("SpoofGuard"),
        ],
        "from this pod",
    )  # fmt: skip


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
