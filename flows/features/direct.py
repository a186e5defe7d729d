"""To an endpoint without its Service: such a connection must not take another's answers.

A pod that is connected to one endpoint by a Service may connect to it directly, from the same
source port: for the client these are two connections, for the endpoint and for the answers they are
one. Where the direct one is first, conntrack moves the port of the other, which it translates
anyway. Where it is second, it is a connection that nothing is translated of; so before the first
packet of it is committed it is turned round and looked up: if the answer that it asks for would be
another connection's, it is committed with a source port that is free.

Turning round means to look at all of the addresses and ports, so each such connection costs two
upcalls. Therefore it is done only where Services' endpoints are: a flow for each port that they
have among pods, whatever the number of pods, and one for each address and port elsewhere.
"""

from collections.abc import Iterable
from typing import Final

from flows.family import Family, IPAddress, family_of
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
from flows.pipeline import FROM_SERVICE, KNOWN, LAYOUT, ZONE, Feature, Priority, Source
from flows.view import Attachment, Cluster, Node, Target

FREE_PORTS: Final = (1024, 65_535)
"""What a source port may become."""


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """Look up, and look up again."""
    yield LAYOUT.flow(
        Feature.DIRECT, "Direct", Priority.GUARD,
        {"Source": Source.GATEWAY},
        [LAYOUT.goto("DestinationGuard")],
        "the world, whose addresses nobody knows: none could be kept while its port moves",
    )  # fmt: skip
    for family in cluster.families:
        yield from _reply_tuples(family)


def _reply_tuples(family: Family) -> Iterable[Flow]:
    for protocol in LAYER_4_NAMES:
        fields: dict[str, MatchValue] = {"dl_type": family.ether_type, "nw_proto": protocol}
        lookup = Ct(ZONE, table=LAYOUT.goto("DestinationGuard").table, nat=Nat())
        back = [*_turn(family, protocol), *_anew(lookup)]
        yield LAYOUT.flow(
            Feature.DIRECT, "ReplyTuple", Priority.SHARED, fields,
            [LAYOUT.load("PortTaken", 1), *back],
            "such answers are another connection's",
        )  # fmt: skip
        yield LAYOUT.flow(
            Feature.DIRECT, "ReplyTuple", Priority.OVERRIDE,
            # One that has had no answer so far is as new as if there were none; but it is marked.
            {
                **fields,
                "ct_state": ct_state("+trk+new-inv"),
                "ct_mark": (0, KNOWN | FROM_SERVICE),
            },
            back,
            "nobody else gets such answers",
        )  # fmt: skip


def target(_: Cluster, target: Target) -> Iterable[Flow]:
    """Where it has to be asked."""
    family = family_of(target.network)
    yield LAYOUT.flow(
        Feature.DIRECT, "Direct", Priority.SHARED,
        {
            "dl_type": family.ether_type,
            "nw_proto": target.protocol,
            family.destination: net(target.network),
            "tp_dst": target.port,
        },
        [*_turn(family, target.protocol), *_anew(Ct(ZONE, table=LAYOUT.goto("ReplyTuple").table))],
        "Services have endpoints there: who else gets answers like this one's?",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Flow]:
    """The host as the client."""
    family = family_of(node.gateway)
    yield _move({family.source: ip(node.gateway)}, node.gateway, Priority.OWN_RANGE)


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """A pod as the client."""
    yield _move({"in_port": attachment.ofport}, attachment.address, Priority.LOCAL)


def _move(who: dict[str, MatchValue], address: IPAddress, priority: Priority) -> Flow:
    family = family_of(address)
    return LAYOUT.flow(
        Feature.DIRECT, "Commit", priority,
        {**who, "dl_type": family.ether_type, "PortTaken": 1, "ct_state": ct_state("+trk+new-inv")},
        [
            Ct(
                ZONE, table=LAYOUT.goto("Snat").table, commit=True,
                nat=Nat(source=ip(address), ports=FREE_PORTS, version=address.version),
                exec=(SetField("ct_mark", KNOWN, KNOWN),),
            )
        ],
        "directly to an endpoint, from a source port that a connection to its Service has",
    )  # fmt: skip


def _anew(lookup: Ct) -> list[Action]:
    """The kernel would go by what it found of the packet the other way round."""
    return [CtClear(), lookup]


def _turn(family: Family, protocol: int) -> list[Action]:
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
