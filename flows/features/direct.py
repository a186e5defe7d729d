"""Direct connections to endpoints: they must not have the reply tuple of a Service connection.

A pod may have a connection to an endpoint through a Service, and open a direct connection to the
same endpoint from the same source port. The client sees two connections, but both have the same
reply tuple. If the direct connection is first, conntrack changes the source port of the Service
connection, which it translates anyway. If the direct connection is second, nothing of it is
translated. So before its first packet is committed, `Direct` reverses the tuple of the packet and
looks it up. If the tuple is the reply tuple of another connection, `Commit` gives the direct
connection a free source port.

The reversal makes the datapath flow match all addresses and ports, so each such connection costs
two upcalls. Therefore it is done only where Services have endpoints: there is one flow for each
endpoint port in the pod range, for any number of pods, and one for each address and port elsewhere.
"""

from collections.abc import Iterable
from typing import Final

from flows.family import Family, IPAddress, family_of
from flows.features.conntrack import LABELS
from flows.features.protocols import LAYER_4_NAMES
from flows.flow import (
    Action,
    Ct,
    CtClear,
    Flow,
    MatchValue,
    Nat,
    Pop,
    Push,
    SetField,
    ct_state,
    ip,
    net,
)
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, TARGET
from flows.pipeline import CT_ZONE, FROM_SERVICE, KNOWN, LAYOUT, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node, Target

FREE_PORTS: Final = (1024, 65_535)
"""The first and last source port that a direct connection may get instead of its own."""


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """Check the reversed tuple, then look the restored packet up again."""
    yield LAYOUT.flow(
        Feature.DIRECT, "Direct", Priority.GUARD,
        {"Source": Source.GATEWAY},
        [LAYOUT.goto("DestinationGuard")],
        "from outside the cluster: not checked, because SNAT would need the client's address",
    )  # fmt: skip
    for family in cluster.families:
        yield from _reply_tuples(family)


def _reply_tuples(family: Family) -> Iterable[Flow]:
    for protocol in LAYER_4_NAMES:
        fields: dict[str, MatchValue] = {"dl_type": family.ether_type, "nw_proto": protocol}
        lookup = Ct(CT_ZONE, table=LAYOUT.goto("DestinationGuard").table, nat=Nat())
        back = [*_reverse_tuple(family, protocol), *_lookup_again(lookup)]
        yield LAYOUT.flow(
            Feature.DIRECT, "ReplyTuple", Priority.SHARED, fields,
            [LAYOUT.load("SourcePortConflict", 1), *back],
            "reply tuple in use",
        )  # fmt: skip
        yield LAYOUT.flow(
            Feature.DIRECT, "ReplyTuple", Priority.OVERRIDE,
            # A connection without a reply so far is +new as well, but it has a mark.
            {
                **fields,
                "ct_state": ct_state("+trk+new-inv"),
                "ct_mark": (0, KNOWN | FROM_SERVICE),
            },
            back,
            "reply tuple free",
        )  # fmt: skip


def target(_: Cluster, target: Target) -> Iterable[Flow]:
    """Where the reply tuple has to be checked."""
    family = family_of(target.network)
    lookup = Ct(CT_ZONE, table=LAYOUT.goto("ReplyTuple").table)
    yield LAYOUT.flow(
        Feature.DIRECT, "Direct", Priority.SHARED,
        {
            "dl_type": family.ether_type,
            "nw_proto": target.protocol,
            family.destination: net(target.network),
            "tp_dst": target.port,
        },
        [*_reverse_tuple(family, target.protocol), *_lookup_again(lookup)],
        "Services have endpoints there: check for a conflicting reply tuple",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """The node as the client."""
    family = family_of(node.gateway)
    yield _change_source_port({family.source: ip(node.gateway)}, node.gateway, Priority.OWN_RANGE)


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """A pod as the client."""
    yield _change_source_port({"in_port": attachment.ofport}, attachment.address, Priority.LOCAL)


def _change_source_port(
    client: dict[str, MatchValue], address: IPAddress, priority: Priority
) -> Flow:
    family = family_of(address)
    return LAYOUT.flow(
        Feature.DIRECT, "Commit", priority,
        {
            **client,
            "dl_type": family.ether_type,
            "SourcePortConflict": 1,
            "ct_state": ct_state("+trk+new-inv"),
        },
        [
            Ct(
                CT_ZONE, table=LAYOUT.goto("Snat").table, commit=True,
                nat=Nat(source=ip(address), ports=FREE_PORTS, version=address.version),
                exec=(SetField("ct_mark", KNOWN, KNOWN), *LABELS),
            )
        ],
        "a direct connection whose reply tuple is in use: change its source port",
    )  # fmt: skip


def _lookup_again(lookup: Ct) -> list[Action]:
    """Without `ct_clear`, the kernel would keep the result of the previous lookup."""
    return [CtClear(), lookup]


def _reverse_tuple(family: Family, protocol: int) -> list[Action]:
    l4 = LAYER_4_NAMES[protocol]
    return [
        action
        for one, two in ((family.source, family.destination), (f"{l4}_src", f"{l4}_dst"))
        for action in (Push(one), Push(two), Pop(one), Pop(two))
    ]


WRITES: Final = (
    EVERY_NODE.by(every_node),
    TARGET.by(target),
    NODE.by(node),
    ATTACHMENT.by(attachment),
)
