"""Who sent this? By which port a packet came in, and whether it may claim to be who it says.

`Classifier` tells pods, tunnel and gateway apart. `SpoofGuard`, `TunnelGuard` and `GatewayGuard`
hold each to its own addresses, before anything else looks at them.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.family import Family, family_of
from flows.features.protocols import ARP, ICMPV6, ICMPV6_ROUTER_ADVERTISEMENT, IPV6
from flows.flow import ApplyMeter, Flow, MatchValue, ip, mac, net
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER
from flows.pipeline import LAYOUT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node

_MAC_BITS: Final = 48
_GROUP_BIT: Final = 1 << 40
_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The two ports that every bridge has, and what nobody may send."""
    yield LAYOUT.flow(
        Feature.CLASSIFY, "Classifier", Priority.SHARED,
        {"in_port": names.TUNNEL_OFPORT},
        [LAYOUT.load("Source", Source.TUNNEL), LAYOUT.goto("TunnelGuard")],
        "from another node",
    )  # fmt: skip
    yield gateway_entry()
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
        "a pod that claims to be an IPv6 router",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.DEFAULT,
        {"dl_type": ARP, "dl_src": mac(names.GATEWAY_MAC)},
        [LAYOUT.goto("Arp")],
        "the host asks for its next hop",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "RouterGuard", Priority.DEFAULT,
        {"dl_type": ARP},
        [LAYOUT.goto("Arp")],
        "ARP to the router alone",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "RouterGuard", Priority.LOCAL,
        {"dl_type": ARP, "dl_dst": (_GROUP_BIT, _GROUP_BIT)},
        [LAYOUT.goto("BroadcastGuard")],
        "ARP to more than one",
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
                f"a bit of the destination MAC that is not {whose}",
            )  # fmt: skip
    for family in cluster.families:
        yield from _through_gateway(family, cluster)


def _wrong_bits(right: str, count: int) -> Iterable[tuple[int, int]]:
    """For each of a MAC's first `count` bits, what is wrong there, as value and mask.

    Where one flow matches a whole MAC, Open vSwitch keeps a datapath flow for each wrong one that
    it meets: 20,000 a second for a pod that invents them. With a flow for each bit it looks at no
    more than the first bit that is wrong, and keeps as many as there are bits.
    """
    for number in range(count):
        bit = 1 << (_MAC_BITS - 1 - number)
        yield ~mac(right) & bit, bit


def _through_gateway(family: Family, cluster: Cluster) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.DEFAULT,
        {"dl_type": family.ether_type, "dl_src": mac(names.GATEWAY_MAC)},
        [LAYOUT.goto("UnSnat")],
        "the host, or the outside world through it",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CLASSIFY, "GatewayGuard", Priority.OVERRIDE,
        {"dl_type": family.ether_type, family.source: net(cluster.pod_range)},
        [],
        "a pod's address does not come in by the host",
    )  # fmt: skip


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """What may come out of the tunnel from this node."""
    inner, outer = family_of(node.pod_cidr), family_of(node.address)
    yield LAYOUT.flow(
        Feature.CLASSIFY, "TunnelGuard", Priority.SHARED,
        {
            "dl_type": inner.ether_type,
            outer.tunnel_source: ip(node.address),
            inner.source: net(node.pod_cidr),
        },
        [LAYOUT.goto("UnSnat")],
        "a peer sends for its own pods",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """What only this node's own bridge knows."""
    family = family_of(node.pod_cidr)
    yield LAYOUT.flow(
        Feature.CLASSIFY, "TunnelGuard", Priority.OVERRIDE,
        {
            "dl_type": family.ether_type,
            family_of(node.address).tunnel_source: ip(node.address),
        },
        [],
        "this node's own address does not come out of the tunnel",
    )  # fmt: skip
    # The MACs of a node's pods begin alike (`names.mac_of`).
    alike = _MAC_BITS - (family.bits - node.pod_cidr.prefixlen)
    for value in _wrong_bits(names.mac_of(node.pod_cidr.network_address), alike):
        matches: tuple[dict[str, MatchValue], ...] = (
            {"dl_src": value},
            {"dl_type": ARP, "arp_sha": value},
        )
        for fields in matches:
            yield LAYOUT.flow(
                Feature.CLASSIFY, "SpoofGuard", Priority.GUARD,
                fields,
                [],
                "a bit of the source MAC that no pod of this node has",
            )  # fmt: skip
    for address, reason in (
        (node.gateway, "the host speaks to pods as the gateway address"),
        *((a, "the host speaks as the node") for a in (node.address, *node.further_addresses)),
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
    """Lets a pod in, as itself."""
    yield attachment_entry(attachment.ofport, attachment.tag)
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


def gateway_entry() -> Flow:
    """The flow that admits the packets of the node itself.

    It is among the first flows of a bridge. A node agent waits for its cookie.
    """
    return LAYOUT.flow(
        Feature.CLASSIFY, "Classifier", Priority.SHARED,
        {"in_port": names.GATEWAY_OFPORT},
        [LAYOUT.load("Source", Source.GATEWAY), LAYOUT.goto("GatewayGuard")],
        "from the node itself, or through it from outside",
    )  # fmt: skip


def attachment_entry(ofport: int, tag: int) -> Flow:
    """The flow that admits one sandbox's packets.

    Its cookie is this attachment's and no other's, because the tag is in it. It travels in one
    bundle with the attachment's other flows: a node agent that sees it has seen them all.
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
