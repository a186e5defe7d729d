"""Connections: one conntrack lookup, early. Only new connections reach flows that match layer 4.

All connections are in one zone. `+new` is not "first packet": a repeated SYN, and every datagram
before the first reply, is `+new` again. Policy evaluates it again, with the same result. Only the
first packet is metered and committed; the commit sets the mark `Known`.
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
    CT_ZONE,
    EGRESS_ADDRESS,
    ENDPOINT,
    FROM_SERVICE,
    KNOWN,
    LAYOUT,
    NEEDS_SNAT,
    RULE_FROM_POD,
    RULE_TO_POD,
    Feature,
    Priority,
    Source,
)
from flows.view import Attachment, Cluster, Node

FRAGMENTS_PER_SECOND: Final = 50
"""Of one pod. The userspace datapath keeps incomplete datagrams for 15 s, the kernel datapath for
30 s, in memory that all pods share: 5,000 fragments (`node_agent.limits`), or 4 MB."""
_ICMP_ERROR: Final = "+trk+rel-new-inv"
LABELS: Final = (
    LAYOUT.move("RuleFromPod", RULE_FROM_POD),
    LAYOUT.move("DecidedRule", RULE_TO_POD),
    LAYOUT.move("EgressAddress", EGRESS_ADDRESS),
)
"""What a commit stores in ct_label: the rules that allowed the connection, and how it leaves."""
_LOOKUP: Final = Ct(CT_ZONE, table=LAYOUT.goto("ConntrackState").table, nat=Nat())


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """Look up, branch by state, commit."""
    yield from _states()
    for family in cluster.families:
        yield from _lookup(family)
        yield from _commit(family)


def _states() -> Iterable[Flow]:
    for state, actions, reason in (
        ("+trk+est-new-rel-inv", [LAYOUT.goto("DestinationGuard")], "established"),
        (_ICMP_ERROR, [LAYOUT.goto("IcmpError")], "an ICMP error about a connection"),
        ("+trk+new-inv", [LAYOUT.goto("NewConnection")], "a new connection"),
        ("+trk+inv", [], "invalid: of no connection, and cannot open one"),
    ):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "ConntrackState", Priority.DEFAULT,
            {"ct_state": ct_state(state)}, actions, reason,
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.OVERRIDE,
        {"ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},
        [LAYOUT.goto("DestinationGuard")],
        "a committed connection without a reply so far",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "ConntrackState", Priority.LOCAL,
        {"ct_state": ct_state("+trk+new+dnat-inv")},
        [LAYOUT.goto("DestinationGuard")],
        "a connection to a Service without a reply so far: its endpoint is chosen",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "IcmpError", Priority.OVERRIDE,
        {"Source": Source.POD},
        [],
        "an ICMP error from a pod about a connection of others",
    )  # fmt: skip
    # Established connections skip policy, unless it may cut them (`flows.features.judgement`).
    for state in ("+trk+est-new-rel-inv", _ICMP_ERROR):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.DEFAULT,
            {"ct_state": ct_state(state)}, [LAYOUT.goto("Forwarding")],
            "a packet of an established connection",
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
        "ICMP unreachable from the node for an uncommitted refused connection",
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
            "a DHCP server in a pod",
        )  # fmt: skip


def _commit(family: Family) -> Iterable[Flow]:
    # Without `nat`: a `nat` that translates nothing crashes Open vSwitch 3.1 (docs/decisions.md).
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.DEFAULT,
        {"dl_type": family.ether_type, "ct_state": ct_state("+trk+new-inv")},
        _commit_with(KNOWN),
        "commit the new connection",
    )  # fmt: skip
    for fields, reason in (
        ({"Hairpin": 1}, "hairpin: a Service connection that leaves by the port it came in by"),
        (
            {"in_port": names.GATEWAY_OFPORT, "OutputPort": names.TUNNEL_OFPORT},
            "a Service connection from outside to an endpoint on another node",
        ),
    ):
        yield LAYOUT.flow(
            Feature.CONNTRACK, "Commit", Priority.SHARED,
            {"dl_type": family.ether_type, "ct_state": ct_state("+trk+new+dnat-inv"), **fields},
            _commit_with(KNOWN | NEEDS_SNAT),
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
        "already committed",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.LOCAL,
        {"dl_type": family.ether_type, "Refused": 1},
        [LAYOUT.goto("Snat")],
        "to be refused: not committed",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Commit", Priority.GUARD,
        {
            "dl_type": family.ether_type,
            "nw_proto": TCP,
            "ct_state": ct_state("+trk+new-inv"),
            "Refused": 1,
        },
        _commit_with(0),
        "TCP to be refused: committed without Known, so that the RST counts as a reply",
    )  # fmt: skip


def _commit_with(mark: int) -> list[Action]:
    """Commit, and go on: to `Snat` by one more recirculation, only where it reads the new mark."""
    marked = (SetField("ct_mark", mark, mark), *LABELS) if mark else ()
    if mark & NEEDS_SNAT:
        return [Ct(CT_ZONE, table=LAYOUT.goto("Snat").table, commit=True, exec=marked)]
    return [Ct(CT_ZONE, commit=True, exec=marked), LAYOUT.goto("Snat")]


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """Commits for connections of the node itself that leave by the tunnel."""
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
        _commit_with(KNOWN),
        "the node by its gateway address to a Service: other nodes can route the reply",
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
            _commit_with(KNOWN | NEEDS_SNAT),
            "other nodes accept only pod sources from tunnels, so the source is translated",
        )  # fmt: skip


def peer(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """A pod must not send to the tunnel port of a node: it could inject packets as any pod."""
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
            "from a pod to the tunnel port of a node",
        )  # fmt: skip
        # The kernel datapath has reassembled fragments here. The userspace datapath has not, and
        # its fragments show no port. A reply goes to a port that the node has sent from.
        yield LAYOUT.flow(
            Feature.CONNTRACK, "DestinationGuard", Priority.GUARD,
            {**to_node, "nw_frag": ANY_FRAGMENT, "ct_state": ct_state("-rpl")},
            [],
            "a fragment to a node: its destination port is unknown",
        )  # fmt: skip


def attachment(cluster: Cluster, attachment: Attachment) -> Iterable[Entry]:
    """Limits of one pod on shared resources, and the ICMP errors that it may send."""
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
        "new connections of the pod, metered",
    )  # fmt: skip
    rate = cluster.new_connections_per_second
    yield Meter(connections, rate=rate, burst=rate)
    fragments = names.fragment_meter(attachment.ofport)
    yield LAYOUT.flow(
        Feature.CONNTRACK, "Conntrack", Priority.LOCAL,
        {**from_pod, "nw_frag": ANY_FRAGMENT},
        [ApplyMeter(fragments), _LOOKUP],
        "reassemble fragments of the pod and look the connection up, metered",
    )  # fmt: skip
    yield Meter(fragments, rate=FRAGMENTS_PER_SECOND, burst=FRAGMENTS_PER_SECOND)
    address = ip(attachment.address)
    endpoint, bits = ENDPOINT.value(address)
    fields: tuple[tuple[str, MatchValue, str], ...] = (
        (family.opener, address, "an ICMP error about a connection that the pod opened"),
        (family.opened_to, address, "an ICMP error about a connection that was opened to the pod"),
        (
            "ct_mark",
            (endpoint | FROM_SERVICE, bits | FROM_SERVICE),
            "an ICMP error about a connection that a Service translated to the pod",
        ),
    )
    for field, value, reason in fields:
        yield LAYOUT.flow(
            Feature.CONNTRACK, "IcmpError", Priority.LOCAL,
            {**from_pod, "ct_state": ct_state(_ICMP_ERROR), field: value},
            [LAYOUT.goto("DestinationGuard")],
            reason,
        )  # fmt: skip


WRITES: Final = (EVERY_NODE.by(every_node), PEER.by(peer), NODE.by(node), ATTACHMENT.by(attachment))
