"""Connections: looked up once, early; only new ones meet the flows that look at layer 4.

One zone for everything. `+new` is not "first packet": a repeated SYN, and every datagram that has
no answer, comes as `+new` again. Policy sees it again, to the same end; but only the first is
metered and committed, which marks the connection as known.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.family import IPV4, Family, family_of
from flows.features.protocols import DHCP_SERVER_PORT, TCP, UDP
from flows.flow import Action, ApplyMeter, Ct, Flow, Meter, Nat, SetField, ct_state, ip
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER, Entry
from flows.pipeline import KNOWN, LAYOUT, NEEDS_SNAT, ZONE, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """Look up, tell apart, remember."""
    yield from _states()
    for family in cluster.families:
        yield from _lookup(family)
        yield from _commit(family)


def _states() -> Iterable[Flow]:
    for state, actions, reason in (
        ("+trk+est-new-rel-inv", [LAYOUT.goto("Forwarding")], "established"),
        ("+trk+rel-new-inv", [LAYOUT.goto("Forwarding")], "an ICMP error about a connection"),
        ("+trk+new-inv", [LAYOUT.goto("NewConnection")], "a new connection"),
        ("+trk+inv", [], "belongs to no connection and cannot open one"),
    ):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "ConntrackState", Priority.DEFAULT,
            {"ct_state": ct_state(state)}, actions, reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.FENCE,
        {"ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},
        [LAYOUT.goto("PolicyFromPod")],
        "a known connection without an answer so far",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.LOCAL,
        {"ct_state": ct_state("+trk+new+dnat-inv")},
        [LAYOUT.goto("PolicyFromPod")],
        "a connection to a Service without an answer so far: its endpoint is chosen",
    )  # fmt: skip


def _lookup(family: Family) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Conntrack", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        [Ct(ZONE, table=LAYOUT.goto("ConntrackState").table, nat=Nat())],
        "look the connection up",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.FENCE,
        {
            "ct_state": ct_state("+trk+inv"),
            "Source": Source.HOST,
            "dl_type": family.ether_type,
            "nw_proto": family.icmp,
            family.icmp_type: family.icmp_unreachable,
        },
        [LAYOUT.goto("Forwarding")],
        "the node refuses what the switch sent it to be refused, and did not remember",
    )  # fmt: skip
    if family is IPV4:
        yield LAYOUT.flow(
            Feature.CONNTRACK, "NewConnection", Priority.GUARD,
            {
                "Source": Source.POD,
                "dl_type": family.ether_type,
                "nw_proto": UDP,
                "tp_src": DHCP_SERVER_PORT,
            },
            [],
            "a pod that acts as a DHCP server",
        )  # fmt: skip


def _commit(family: Family) -> Iterable[Flow]:
    # Without nat: a translation that translates nothing ends Open vSwitch 3.1 (docs/decisions.md).
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.DEFAULT,
        {"dl_type": family.ether_type, "ct_state": ct_state("+trk+new-inv")},
        _remember(KNOWN),
        "remember the new connection",
    )  # fmt: skip
    for fields, reason in (
        ({"Hairpin": 1}, "a connection to a Service that comes back to its own port"),
        (
            {"in_port": names.GATEWAY_OFPORT, "OutputPort": names.TUNNEL_OFPORT},
            "a connection to a Service from outside that goes on to another node",
        ),
    ):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "Commit", Priority.SHARED,
            {"dl_type": family.ether_type, "ct_state": ct_state("+trk+new+dnat-inv"), **fields},
            _remember(KNOWN | NEEDS_SNAT),
            reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.FENCE,
        {
            "dl_type": family.ether_type,
            "ct_state": ct_state("+trk+new-inv"),
            "ct_mark": (KNOWN, KNOWN),
        },
        [LAYOUT.goto("Snat")],
        "remembered already",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.LOCAL,
        {"dl_type": family.ether_type, "Refused": 1},
        [LAYOUT.goto("Snat")],
        "what is to be refused is not remembered",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.GUARD,
        {
            "dl_type": family.ether_type,
            "nw_proto": TCP,
            "ct_state": ct_state("+trk+new-inv"),
            "Refused": 1,
        },
        _remember(0),
        "remembered until the RST, which finds its way back by that; never as known",
    )  # fmt: skip


def _remember(mark: int) -> list[Action]:
    marked = (SetField("ct_mark", mark, mark),) if mark else ()
    return [Ct(ZONE, table=LAYOUT.goto("Snat").table, commit=True, exec=marked)]


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """What the host sends by its gateway address finds its way back."""
    family = family_of(node.gateway)
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.OWN_RANGE,
        {
            "in_port": names.GATEWAY_OFPORT,
            "dl_type": family.ether_type,
            family.source: ip(node.gateway),
            "ct_state": ct_state("+trk+new+dnat-inv"),
            "OutputPort": names.TUNNEL_OFPORT,
        },
        _remember(KNOWN),
        "the host itself to a Service: other nodes know the way back",
    )  # fmt: skip


def peer(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """A pod must not speak to a node's tunnel port: it could inject packets as any pod."""
    for address in (node.address, *node.further_addresses):
        family = family_of(address)
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.GUARD,
            {
                "Source": Source.POD,
                "dl_type": family.ether_type,
                "nw_proto": UDP,
                family.destination: ip(address),
                "tp_dst": cluster.tunnel_port,
            },
            [],
            "a pod that speaks to a node's tunnel port",
        )  # fmt: skip


def attachment(cluster: Cluster, attachment: Attachment) -> Iterable[Entry]:
    """One pod alone cannot fill the zone."""
    yield LAYOUT.flow(
        Feature.CONNTRACK, "NewConnection", Priority.LOCAL,
        {"in_port": attachment.ofport},
        [ApplyMeter(attachment.ofport), LAYOUT.goto("NodeAddress")],
        "the pod's new connections, metered",
    )  # fmt: skip
    rate = cluster.new_connections_per_second
    yield Meter(attachment.ofport, rate=rate, burst=rate)


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
