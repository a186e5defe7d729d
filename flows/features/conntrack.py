"""Connections: looked up once, early; only new ones meet the flows that look at layer 4.

One zone for everything. `+new` is not "first packet": a repeated SYN, and every datagram that has
no answer, comes as `+new` again. Policy sees it again, to the same end; but only the first is
metered and committed, which marks the connection as known.
"""

from collections.abc import Iterable

from flows.features.protocols import DHCP_SERVER_PORT, IPV4, UDP
from flows.flow import ApplyMeter, Ct, Flow, Meter, Nat, SetField, ct_state, ip
from flows.pipeline import KNOWN, LAYOUT, ZONE, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node


def cluster(_: Cluster) -> Iterable[Flow]:
    """Look up, tell apart, remember."""
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Conntrack", Priority.DEFAULT,
        {"dl_type": IPV4},
        [Ct(ZONE, table=LAYOUT.goto("ConntrackState").table, nat=Nat())],
        "look the connection up",
    )  # fmt: skip
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
        Feature.CONNTRACK, "NewConnection", Priority.GUARD,
        {"Source": Source.POD, "dl_type": IPV4, "nw_proto": UDP, "tp_src": DHCP_SERVER_PORT},
        [],
        "a pod that acts as a DHCP server",
    )  # fmt: skip
    # Without nat: a translation that translates nothing ends Open vSwitch 3.1 (docs/decisions.md).
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.DEFAULT,
        {"dl_type": IPV4, "ct_state": ct_state("+trk+new-inv")},
        [
            Ct(
                ZONE, table=LAYOUT.goto("Snat").table, commit=True,
                exec=(SetField("ct_mark", KNOWN, KNOWN),),
            )
        ],
        "remember the new connection",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.FENCE,
        {"dl_type": IPV4, "ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},
        [LAYOUT.goto("Snat")],
        "remembered already",
    )  # fmt: skip


def peer(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """A pod must not speak to a node's tunnel port: it could inject packets as any pod."""
    for address in (node.address, *node.further_addresses):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "NewConnection", Priority.GUARD,
            {
                "Source": Source.POD,
                "dl_type": IPV4,
                "nw_proto": UDP,
                "nw_dst": ip(address),
                "tp_dst": cluster.tunnel_port,
            },
            [],
            "a pod that speaks to a node's tunnel port",
        )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """One pod alone cannot fill the zone."""
    yield LAYOUT.flow(
        Feature.CONNTRACK, "NewConnection", Priority.LOCAL,
        {"in_port": attachment.ofport},
        [ApplyMeter(attachment.ofport), LAYOUT.goto("ServiceChoice")],
        "the pod's new connections, metered",
    )  # fmt: skip


def attachment_meter(cluster: Cluster, attachment: Attachment) -> Meter:
    """New connections a second that one pod may open; the meter's id is its ofport."""
    rate = cluster.new_connections_per_second
    return Meter(attachment.ofport, rate=rate, burst=rate)
