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
from flows.flow import (
    ANY_FRAGMENT,
    Action,
    ApplyMeter,
    Ct,
    Flow,
    MatchValue,
    Meter,
    Nat,
    SetField,
    ct_state,
    ip,
)
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, PEER, Entry
from flows.pipeline import (
    ENDPOINT,
    FROM_SERVICE,
    KNOWN,
    LAYOUT,
    NEEDS_SNAT,
    ZONE,
    Feature,
    Priority,
    Source,
)
from flows.view import Attachment, Cluster, Node

FRAGMENTS_PER_SECOND: Final = 50
"""Of one pod. Datagrams that stay incomplete are kept for 15 s by the userspace datapath, 30 s by
the kernel's, in memory that all pods share: 5,000 fragments (`node_agent.limits`), or 4 MB."""
_ICMP_ERROR: Final = "+trk+rel-new-inv"
_LOOKUP: Final = Ct(ZONE, table=LAYOUT.goto("ConntrackState").table, nat=Nat())


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """Look up, tell apart, remember."""
    yield from _states()
    for family in cluster.families:
        yield from _lookup(family)
        yield from _commit(family)


def _states() -> Iterable[Flow]:
    for state, actions, reason in (
        ("+trk+est-new-rel-inv", [LAYOUT.goto("DestinationGuard")], "established"),
        (_ICMP_ERROR, [LAYOUT.goto("IcmpError")], "an ICMP error about a connection"),
        ("+trk+new-inv", [LAYOUT.goto("NewConnection")], "a new connection"),
        ("+trk+inv", [], "belongs to no connection and cannot open one"),
    ):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "ConntrackState", Priority.DEFAULT,
            {"ct_state": ct_state(state)}, actions, reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.OVERRIDE,
        {"ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},
        [LAYOUT.goto("DestinationGuard")],
        "a known connection without an answer so far",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.LOCAL,
        {"ct_state": ct_state("+trk+new+dnat-inv")},
        [LAYOUT.goto("DestinationGuard")],
        "a connection to a Service without an answer so far: its endpoint is chosen",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "IcmpError", Priority.OVERRIDE,
        {"Source": Source.POD},
        [],
        "a pod's ICMP error about a connection of others",
    )  # fmt: skip
    # What was let in before passes policy no more: a new policy cuts connections by their epoch.
    for state in ("+trk+est-new-rel-inv", _ICMP_ERROR):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.DEFAULT,
            {"ct_state": ct_state(state)}, [LAYOUT.goto("Forwarding")],
            "a packet of a connection that was let in",
        )  # fmt: skip


def _lookup(family: Family) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Conntrack", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        [_LOOKUP],
        "look the connection up",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.OVERRIDE,
        {
            "ct_state": ct_state("+trk+inv"),
            "Source": Source.HOST,
            "dl_type": family.ether_type,
            "nw_proto": family.icmp,
            family.icmp_type: family.icmp_unreachable,
        },
        [LAYOUT.goto("DestinationGuard")],
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
        Feature.CONNTRACK, "Commit", Priority.OVERRIDE,
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
    for address in (node.address, *node.further_addresses):
        of_address = family_of(address)
        yield LAYOUT.flow(
            Feature.CONNTRACK, "Commit", Priority.OWN_RANGE,
            {
                "in_port": names.GATEWAY_OFPORT,
                "dl_type": of_address.ether_type,
                of_address.source: ip(address),
                "ct_state": ct_state("+trk+new-inv"),
                "OutputPort": names.TUNNEL_OFPORT,
            },
            _remember(KNOWN | NEEDS_SNAT),
            "a process bound to the node's own address: other nodes take only pods' from a tunnel",
        )  # fmt: skip


def peer(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """A pod must not speak to a node's tunnel port: it could inject packets as any pod."""
    for address in (node.address, *node.further_addresses):
        family = family_of(address)
        to_node: dict[str, MatchValue] = {
            "Source": Source.POD,
            "dl_type": family.ether_type,
            "nw_proto": UDP,
            family.destination: ip(address),
        }
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.GUARD,
            {**to_node, "tp_dst": cluster.tunnel_port},
            [],
            "a pod that speaks to a node's tunnel port",
        )  # fmt: skip
        # The kernel's datapath has put fragments together by now; the userspace datapath has not,
        # and none of them shows a port. An answer goes to a port that the node has sent from.
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.GUARD,
            {**to_node, "nw_frag": ANY_FRAGMENT, "ct_state": ct_state("-rpl")},
            [],
            "a fragment to a node: nobody can say to which port",
        )  # fmt: skip


def attachment(cluster: Cluster, attachment: Attachment) -> Iterable[Entry]:
    """What one pod may take of what all pods share, and which ICMP errors it may send."""
    family = family_of(attachment.address)
    from_pod: dict[str, MatchValue] = {
        "in_port": attachment.ofport,
        "dl_type": family.ether_type,
    }
    connections = names.connection_meter(attachment.ofport)
    yield LAYOUT.flow(
        Feature.CONNTRACK, "NewConnection", Priority.LOCAL,
        {"in_port": attachment.ofport},
        [ApplyMeter(connections), LAYOUT.goto("NodeAddress")],
        "the pod's new connections, metered",
    )  # fmt: skip
    rate = cluster.new_connections_per_second
    yield Meter(connections, rate=rate, burst=rate)
    fragments = names.fragment_meter(attachment.ofport)
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Conntrack", Priority.LOCAL,
        {**from_pod, "nw_frag": ANY_FRAGMENT},
        [ApplyMeter(fragments), _LOOKUP],
        "look the connection up once all of the pod's fragments are there, metered",
    )  # fmt: skip
    yield Meter(fragments, rate=FRAGMENTS_PER_SECOND, burst=FRAGMENTS_PER_SECOND)
    address = ip(attachment.address)
    endpoint, bits = ENDPOINT.value(address)
    fields: tuple[tuple[str, MatchValue, str], ...] = (
        (family.opener, address, "that it has opened"),
        (family.opened_to, address, "that was opened to it"),
        (
            "ct_mark",
            (endpoint | FROM_SERVICE, bits | FROM_SERVICE),
            "that a Service has sent to it",
        ),
    )
    for field, value, which in fields:
        yield LAYOUT.flow(
            Feature.CONNTRACK, "IcmpError", Priority.LOCAL,
            {**from_pod, "ct_state": ct_state(_ICMP_ERROR), field: value},
            [LAYOUT.goto("DestinationGuard")],
            f"about a connection {which}",
        )  # fmt: skip


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
