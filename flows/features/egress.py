"""Egress addresses: selected pods reach the outside through a gateway node, from one address.

A new connection of a selected pod gets the egress address (`Egress`), and the commit stores it in
ct_label. So a connection keeps the address that it was opened with, whatever is selected later.
`EgressRoute` sends its packets through the tunnel to the gateway: the node that has the address at
the moment. There they pass `Egress` again, which knows the selected pods, and leave by the host;
`Snat` translates their source in the SNAT zone. Without a gateway they are dropped, never sent from
another address.

The host of the gateway routes replies into its switch. `UnSnat` restores the pod's address, and the
packet goes to the pod's node. If it comes through the tunnel, its source is outside all pod ranges:
`TunnelGuard` lets it pass to `EgressReply`, which accepts it only as a reply of a connection with
an address of that gateway.
"""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from flows import names
from flows.family import Family, IPNetwork, family_of
from flows.flow import Action, Ct, Flow, MatchValue, Nat, SetField, ct_state, ip, mac, net
from flows.kinds import (
    EGRESS,
    EGRESS_GATEWAY,
    EGRESS_HERE,
    EGRESS_MEMBER,
    EGRESS_POD,
    EVERY_NODE,
    PEER,
)
from flows.pipeline import (
    CT_ZONE,
    EGRESS_ADDRESS,
    KNOWN,
    LAYOUT,
    SNAT_ZONE,
    Feature,
    Priority,
    Source,
)
from flows.view import Cluster, EgressAddress, EgressMember, EgressPod, Node

_LINK_LOCAL: Final[dict[int, tuple[IPNetwork, ...]]] = {
    4: (ip_network("169.254.0.0/16"), ip_network("127.0.0.0/8")),
    6: (ip_network("fe80::/10"), ip_network("::1/128")),
}
"""By IP version, ranges that have a meaning on one node only."""
_REPLIES: Final = (
    ("+trk+est+rpl-new-rel-inv", "a reply of a connection that a pod of this node opened"),
    ("+trk+rel-new-inv", "an ICMP error about a connection that a pod of this node opened"),
)


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """What is not the outside, and what no gateway accepts."""
    for family in cluster.families:
        yield from _of_family(family, cluster)


def _of_family(family: Family, cluster: Cluster) -> Iterable[Flow]:
    ether_type = family.ether_type
    # Below the flows of peers, above those of gateways.
    yield _flow(
        "TunnelGuard", Priority.RANGE,
        {"dl_type": ether_type, family.source: net(cluster.pod_range)}, [],
        "from a tunnel, an address of the pod range that is no pod's of that peer",
    )  # fmt: skip
    yield _flow(
        "Conntrack", Priority.OVERRIDE,
        {"dl_type": ether_type, "Source": Source.EGRESS},
        [Ct(CT_ZONE, table=LAYOUT.goto("EgressReply").table, nat=Nat())],
        "from an egress gateway: look the connection up",
    )  # fmt: skip
    yield _flow(
        "Forwarding", Priority.OVERRIDE,
        {"dl_type": ether_type, "Source": Source.EGRESS}, [],
        "packets from an egress gateway go to pods of this node only",
    )  # fmt: skip
    yield _flow(
        "Egress", Priority.DEFAULT,
        {"dl_type": ether_type, "Source": Source.PEER}, [],
        "from another node to the outside, and not from a pod with an egress address",
    )  # fmt: skip
    of_pod: dict[str, MatchValue] = {
        "dl_type": ether_type,
        "Source": Source.POD,
        "ct_mark": (KNOWN, KNOWN),
    }
    yield _flow(
        "Egress", Priority.OVERRIDE,
        {**of_pod, "ct_label": EGRESS_ADDRESS.value(0)},
        [LAYOUT.goto("PolicyToPod")],
        "opened without an egress address: out through this node",
    )  # fmt: skip
    yield _flow(
        "Egress", Priority.OWN_RANGE, of_pod, [],
        "opened with an egress address that does not exist any more",
    )  # fmt: skip
    yield _flow(
        "EgressRoute", Priority.OVERRIDE,
        {"dl_type": ether_type, "Source": Source.PEER}, [],
        "from another node, and this one is not the gateway of the egress address",
    )  # fmt: skip
    link_local = _LINK_LOCAL[family.version]
    inside: Iterable[tuple[IPNetwork, str]] = (
        (cluster.pod_range, "the pod range"),
        (cluster.service_range, "the Service range"),
        *((network, str(network)) for network in link_local),
        *family.not_carried,
    )
    for network, what in inside:
        if family_of(network) is family:
            yield _flow(
                "EgressRoute", Priority.GUARD,
                {
                    "dl_type": ether_type,
                    "Source": Source.PEER,
                    family.destination: net(network),
                },
                [],
                f"from another node to {what}, which is not the outside",
            )  # fmt: skip
    for network in link_local:
        yield _straight_on(family, network, f"to {network}, which only this node has")


def peer(_: Cluster, node: Node) -> Iterable[Flow]:
    """The addresses of nodes are not the outside."""
    for address in (node.address, *node.further_addresses):
        family = family_of(address)
        yield _straight_on(family, ip_network(address), "to a node of the cluster")


def _straight_on(family: Family, network: IPNetwork, reason: str) -> Flow:
    # The commit must not find the egress address.
    return _flow(
        "EgressRoute", Priority.GUARD,
        {
            "dl_type": family.ether_type,
            "Source": Source.POD,
            family.destination: net(network),
        },
        [LAYOUT.load("EgressAddress", 0), LAYOUT.goto("PolicyToPod")],
        f"{reason}: not from the egress address",
    )  # fmt: skip


def egress(_: Cluster, egress: EgressAddress) -> Iterable[Flow]:
    """The way to the gateway, and back, on every node."""
    family = family_of(egress.address)
    yield _flow(
        "Forwarding", Priority.LOCAL,
        {"dl_type": family.ether_type, family.destination: ip(egress.address)}, [],
        f"to the egress address {egress.address}, where nothing listens",
    )  # fmt: skip
    yield _flow(
        "Egress", Priority.LOCAL,
        {
            "dl_type": family.ether_type,
            "ct_mark": (KNOWN, KNOWN),
            "ct_label": EGRESS_ADDRESS.value(egress.number),
        },
        _leave_from(egress.number),
        f"opened with the egress address {egress.address}",
    )  # fmt: skip
    of_address: dict[str, MatchValue] = {
        "dl_type": family.ether_type,
        "EgressAddress": egress.number,
    }
    if egress.tunnel_address is None:
        yield _flow(
            "EgressRoute", Priority.SHARED, of_address, [],
            f"no node is the gateway of {egress.address} now",
        )  # fmt: skip
        return
    outer = family_of(egress.tunnel_address)
    yield _flow(
        "EgressRoute", Priority.SHARED, of_address,
        [
            SetField(outer.tunnel_destination, ip(egress.tunnel_address)),
            *_to(names.TUNNEL_OFPORT, names.ROUTER_MAC),
        ],
        f"to {egress.gateway}, the gateway of {egress.address}, through the tunnel",
    )  # fmt: skip
    for state, reason in _REPLIES:
        yield _flow(
            "EgressReply", Priority.SHARED,
            {
                "dl_type": family.ether_type,
                "ct_state": ct_state(state),
                "ct_label": EGRESS_ADDRESS.value(egress.number),
                outer.tunnel_source: ip(egress.tunnel_address),
            },
            [LAYOUT.goto("DestinationGuard")],
            f"{reason} from {egress.address}",
        )  # fmt: skip


def gateway(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """Packets from outside that a gateway sends through the tunnel."""
    outer = family_of(node.address)
    for family in cluster.families:
        yield _flow(
            "TunnelGuard", Priority.DEFAULT,
            {"dl_type": family.ether_type, outer.tunnel_source: ip(node.address)},
            [LAYOUT.load("Source", Source.EGRESS), LAYOUT.goto("Conntrack")],
            f"from outside, through the egress gateway {node.name}",
        )  # fmt: skip


def here(_: Cluster, egress: EgressAddress) -> Iterable[Flow]:
    """The gateway itself: out by the host, and back."""
    family = family_of(egress.address)
    of_address: dict[str, MatchValue] = {
        "dl_type": family.ether_type,
        "EgressAddress": egress.number,
    }
    yield _flow(
        "EgressRoute", Priority.LOCAL, of_address,
        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),
        f"this node is the gateway of {egress.address}: out through the node",
    )  # fmt: skip
    nat = Nat(source=ip(egress.address), version=family.version)
    yield _flow(
        "Snat", Priority.LOCAL,
        {
            **of_address,
            "ct_state": ct_state("-rpl"),
            "OutputPort": names.GATEWAY_OFPORT,
        },
        [Ct(SNAT_ZONE, table=LAYOUT.goto("Output").table, commit=True, nat=nat)],
        f"out from {egress.address}",
    )  # fmt: skip
    for source in (Source.GATEWAY, Source.HOST):
        yield _flow(
            "UnSnat", Priority.LOCAL,
            {
                "dl_type": family.ether_type,
                family.destination: ip(egress.address),
                "Source": source,
            },
            [Ct(SNAT_ZONE, table=LAYOUT.goto("Conntrack").table, nat=Nat())],
            f"to {egress.address}: a reply to a pod, or an ICMP error",
        )  # fmt: skip


def pod(_: Cluster, pod: EgressPod) -> Iterable[Flow]:
    """A selected pod of this node."""
    yield _flow(
        "Egress", Priority.SHARED,
        {
            "in_port": pod.attachment.ofport,
            "dl_type": family_of(pod.attachment.address).ether_type,
        },
        _leave_from(pod.number),
        f"a new connection of this pod: from {pod.address}",
    )  # fmt: skip


def member(_: Cluster, member: EgressMember) -> Iterable[Flow]:
    """A selected pod, at the nodes that may be its gateway."""
    family = family_of(member.pod_address)
    yield _flow(
        "Egress", Priority.SHARED,
        {
            "dl_type": family.ether_type,
            "Source": Source.PEER,
            family.source: ip(member.pod_address),
        },
        _leave_from(member.number),
        f"a new connection of {member.pod_address}: from {member.address}",
    )  # fmt: skip


def _leave_from(number: int) -> list[Action]:
    return [LAYOUT.load("EgressAddress", number), LAYOUT.goto("EgressRoute")]


def _to(ofport: int, destination_mac: str) -> list[Action]:
    return [
        SetField("dl_src", mac(names.ROUTER_MAC)),
        SetField("dl_dst", mac(destination_mac)),
        LAYOUT.load("OutputPort", ofport),
        LAYOUT.goto("PolicyToPod"),
    ]


def _flow(
    table: str,
    priority: Priority,
    fields: dict[str, MatchValue],
    actions: Iterable[Action],
    reason: str,
) -> Flow:
    return LAYOUT.flow(Feature.EGRESS, table, priority, fields, actions, reason)


WRITES: Final = (
    EVERY_NODE.by(every_node),
    PEER.by(peer),
    EGRESS.by(egress),
    EGRESS_GATEWAY.by(gateway),
    EGRESS_HERE.by(here),
    EGRESS_POD.by(pod),
    EGRESS_MEMBER.by(member),
)
