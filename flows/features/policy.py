"""Policy: which new connections of isolated pods may pass.

A new connection is judged twice: by the policies from the pod that sends it, at its node, and by
the policies to the pod that gets it, at that pod's node. Each judgement goes like this:

1. `PolicyFromPod` (`PolicyToPod`) resubmits to `IsolationFromPod` (`IsolationToPod`), which has one
   flow for each pod that policies select. It resubmits to the walk of each policy.
2. A walk (`PolicyWalk`) tries the rules of the policy in order. For each step it loads a set of
   peers, a set of ports, an action and the id of the rule, and resubmits to `PolicyPeers`.
3. `PolicyPeers` finds the other end among the peers and resubmits to `PolicyPorts`. That finds the
   port and writes the verdict. After that no other step matches.
4. `PolicyFromPodVerdict` (`PolicyToPodVerdict`) lets the packet pass, or drops and counts it.

A pod that a NetworkPolicy selects is isolated: without a verdict its packets are dropped. So
whatever is missing (a walk, a member) closes. Established connections and ICMP errors are not
`+new`, and no flow here matches them.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from flows import names
from flows.family import Family, IPNetwork, family_of
from flows.features.protocols import TCP, UDP
from flows.flow import (
    ANY_FRAGMENT,
    Action,
    ApplyMeter,
    Ct,
    Flow,
    MatchValue,
    Meter,
    SetField,
    ToController,
    ct_state,
    ip,
    net,
)
from flows.kinds import EVERY_NODE, ISOLATION, NODE, PEER_MEMBER, PEER_SET, PORT_SET, WALK, Entry
from flows.pipeline import (
    BLOCKED,
    CT_ZONE,
    LAYOUT,
    Feature,
    Pass,
    Priority,
    Source,
    Verdict,
)
from flows.policy import (
    EVERY_PORT,
    Direction,
    Isolation,
    PeerMember,
    PeerSet,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    PortRange,
    PortSet,
    Walks,
    blocks_id,
    policy_digest,
)
from flows.shapes import Piece, Pieces, Shape
from flows.view import Attachment, Cluster, Node

MOST_STEPS: Final = 400
"""The most steps of a walk in one flow: 80 bytes each. A flow message has at most 64 KB, and Open
vSwitch must be able to dump it, with its counters, in one message as well."""
MOST_WALKS: Final = 1_000
"""The most walks of a tier in one flow: 32 bytes each."""
MOST_RESUBMITS: Final = 4_000
"""The most resubmits of one packet in one direction. Open vSwitch drops the packet after 4,096
(MAX_RESUBMITS of ofproto-dpif-xlate.c), and its other tables need some, too."""

Control = Literal["single", "both", "new", "closed"]
"""How the policies of a switch are applied at a time:

- "single": one state of the policies is in force;
- "both": what the old *and* the new state allow (`flows.transition`);
- "new": what the new state allows;
- "closed": nothing new passes that a policy could deny.
"""

LOGGED_PER_SECOND: Final = 100
"""Denied packets that one switch reports to its agent."""
_LOGGED_SIZE: Final = 128
"""Bytes of each: enough for all headers."""
_DNS_PORT: Final = 53
_DNS_PROTOCOLS: Final = (UDP, TCP)
_NEW: Final = ct_state("+trk+new")
_RESET: Final = {"Verdict": 0, "Selected": 0, "Isolated": 0, "Pass": 0, "DecidedRule": 0}


@dataclass(frozen=True, slots=True)
class _Side:
    """The names of one direction in the layout."""

    entry: str
    again: str
    isolation: str
    verdict: str
    denied: str
    onward: str
    """The table behind the judgement."""
    port: str
    """The field that has the pod's ofport."""


_SIDES: Final = {
    Direction.FROM_POD: _Side(
        "PolicyFromPod", "PolicyFromPodAgain", "IsolationFromPod", "PolicyFromPodVerdict",
        "DeniedFromPod", "Forwarding", "in_port",
    ),
    Direction.TO_POD: _Side(
        "PolicyToPod", "PolicyToPodAgain", "IsolationToPod", "PolicyToPodVerdict",
        "DeniedToPod", "Hairpin", "OutputPort",
    ),
}  # fmt: skip


def _flow(
    table: str,
    priority: int,
    fields: dict[str, MatchValue],
    actions: Iterable[Action],
    reason: str,
) -> Flow:
    return LAYOUT.flow(Feature.POLICY, table, priority, fields, actions, reason)


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Entry]:
    """The course of each judgement, without any policy."""
    for direction in Direction:
        yield _judge(direction, "single", Priority.SHARED)
        yield from _again(_SIDES[direction])
        yield from _verdicts(direction)
    if cluster.cut_established:
        yield from _cut(cluster)
    if cluster.log_denials:
        yield Meter(names.DENIAL_METER, LOGGED_PER_SECOND, LOGGED_PER_SECOND)
    yield _flow(
        "PolicyToPod", Priority.GUARD, {"ToItself": 1}, [LAYOUT.goto("Hairpin")],
        "a pod to itself: always allowed",
    )  # fmt: skip
    # `GatewayGuard` lets only the node's own addresses be `HOST`.
    yield _flow(
        "PolicyToPod", Priority.LOCAL, {"Source": Source.HOST}, [LAYOUT.goto("Hairpin")],
        "the node to its own pods: always allowed",
    )  # fmt: skip
    yield from _walk_control()
    yield _flow(
        "PolicyPorts", Priority.GUARD, {"Verdict": 0, "PortSet": EVERY_PORT}, _decide(),
        "all ports of all protocols",
    )  # fmt: skip


def control(state: Control) -> Iterable[Flow]:
    """The flows of one node that put another state of control in place of "single"."""
    if state != "single":
        for direction in Direction:
            yield _judge(direction, state, Priority.OVERRIDE)
            yield _judge_again(direction, state, Priority.OVERRIDE)


def _cut(cluster: Cluster) -> Iterable[Flow]:
    """Established connections are judged like new ones, by the packets of who opened them.

    Replies are not judged: their addresses and ports are exchanged, and those that a Service
    translated have its address. A connection that is denied gets the mark Blocked, which drops its
    replies; what is allowed again loses the mark.
    """
    yield _flow(
        "DestinationGuard", Priority.OVERRIDE, {"ct_state": ct_state("+trk+est-new-rel-rpl-inv")},
        [LAYOUT.load("Rejudged", 1), LAYOUT.goto("PolicyFromPod")],
        "a packet of an established connection, from who opened it: judge it",
    )  # fmt: skip
    yield _flow(
        "DestinationGuard", Priority.GUARD,
        {"ct_state": ct_state("+trk+est+rpl"), "ct_mark": (BLOCKED, BLOCKED)}, [],
        "a reply of a connection that policy has cut",
    )  # fmt: skip
    for direction, side in _SIDES.items():
        yield _judge_again(direction, "single", Priority.SHARED)
        for family in cluster.families:
            yield _flow(
                side.verdict, Priority.DEFAULT, {"dl_type": family.ether_type, "Rejudged": 1},
                [_mark(BLOCKED), LAYOUT.goto(side.denied)],
                "denied, although established: cut it",
            )  # fmt: skip
    for family in cluster.families:
        yield _flow(
            "Commit", Priority.OVERRIDE,
            {"dl_type": family.ether_type, "Rejudged": 1, "ct_mark": (BLOCKED, BLOCKED)},
            [_mark(0), LAYOUT.goto("Snat")],
            "allowed again",
        )  # fmt: skip


def _mark(value: int) -> Ct:
    return Ct(CT_ZONE, commit=True, exec=(SetField("ct_mark", value, BLOCKED),))


def _judge(direction: Direction, state: Control, priority: Priority) -> Flow:
    return _judgement(
        direction, state, priority, {"ct_state": _NEW},
        {
            "single": "a new connection: judge it",
            "both": "a new connection while policies change: judge it by the old and the new ones",
            "new": "a new connection while policies change: judge it by the new ones",
            "closed": "a new connection while policies are incomplete: pods with policies wait",
        }[state],
    )  # fmt: skip


def _judge_again(direction: Direction, state: Control, priority: Priority) -> Flow:
    side = _SIDES[direction]
    if state == "closed":
        return _flow(
            side.entry, priority, {"Rejudged": 1}, [LAYOUT.goto(side.onward)],
            "an established connection while policies are incomplete: it goes on",
        )  # fmt: skip
    return _judgement(direction, state, priority, {"Rejudged": 1}, "an established connection")


def _judgement(
    direction: Direction,
    state: Control,
    priority: Priority,
    fields: dict[str, MatchValue],
    reason: str,
) -> Flow:
    side = _SIDES[direction]
    first: dict[str, int] = {"DecidedRule": 0}
    if state == "new":
        first["Pass"] = Pass.NEW
    elif state == "closed":
        first["Verdict"] = Verdict.DENY
    return _flow(
        side.entry, priority, fields,
        [
            *LAYOUT.loads(**first),
            LAYOUT.resubmit(side.isolation),
            *([LAYOUT.resubmit(side.again)] if state == "both" else []),
            LAYOUT.goto(side.verdict),
        ],
        reason,
    )  # fmt: skip


def _again(side: _Side) -> Iterable[Flow]:
    accepted: tuple[tuple[dict[str, MatchValue], str], ...] = (
        ({"Verdict": Verdict.ACCEPT}, "accepted by the old policies"),
        ({"Verdict": 0, "Isolated": 0}, "no old policy denies it"),
    )
    for fields, reason in accepted:
        yield _flow(
            side.again, Priority.DEFAULT, fields,
            [
                *LAYOUT.loads(**{**_RESET, "Pass": Pass.NEW}),
                LAYOUT.resubmit(side.isolation),
            ],
            f"{reason}: judge it by the new ones",
        )  # fmt: skip


def _verdicts(direction: Direction) -> Iterable[Flow]:
    side = _SIDES[direction]
    onward = LAYOUT.goto(side.onward)
    # The last judgement leaves its rule in DecidedRule for the commit.
    last = direction is Direction.TO_POD
    reset: list[Action] = [] if last else [*LAYOUT.loads(**_RESET)]
    remember: list[Action] = [] if last else [LAYOUT.move("DecidedRule", "RuleFromPod")]
    yield _flow(
        side.verdict, Priority.GUARD, {"Selected": 0}, [*reset, onward], "no policy selects the pod"
    )
    yield _flow(
        side.verdict, Priority.SHARED, {"Verdict": Verdict.ACCEPT}, [*remember, *reset, onward],
        "allowed by a rule",
    )  # fmt: skip
    yield _flow(
        side.verdict, Priority.SHARED, {"Verdict": 0, "Isolated": 0}, [*reset, onward],
        "no rule concerns it, and no NetworkPolicy selects the pod",
    )  # fmt: skip


def _walk_control() -> Iterable[Flow]:
    yield _flow(
        "PolicyWalk", Priority.DEFAULT, {}, LAYOUT.loads(Verdict=Verdict.DENY),
        "an unknown policy: denied",
    )  # fmt: skip
    for bit in (1, 2):
        yield _flow(
            "PolicyWalk", Priority.GUARD, {"Verdict": (bit, bit)}, [],
            "decided by an earlier policy",
        )  # fmt: skip
    yield _flow(
        "PolicyTier", Priority.DEFAULT, {"Verdict": Verdict.PASS},
        LAYOUT.loads(Verdict=0, DecidedRule=0),
        "passed: the next tier decides",
    )  # fmt: skip


def _decide() -> list[Action]:
    return [LAYOUT.move("StepAction", "Verdict"), LAYOUT.move("PolicyRule", "DecidedRule")]


def node(cluster: Cluster, node: Node) -> Iterable[Flow]:
    """The node's own DNS server, if every pod may reach it."""
    if not cluster.node_local_dns:
        return
    for address in (node.gateway, node.address, *node.further_addresses):
        family = family_of(address)
        for protocol in _DNS_PROTOCOLS:
            yield _flow(
                "PolicyFromPod", Priority.LOCAL,
                {
                    "ct_state": _NEW,
                    "dl_type": family.ether_type,
                    "nw_proto": protocol,
                    family.destination: ip(address),
                    "tp_dst": _DNS_PORT,
                },
                [*LAYOUT.loads(DecidedRule=0), LAYOUT.goto("Forwarding")],
                "to a DNS server of the node: allowed for every pod",
            )  # fmt: skip


def isolation(cluster: Cluster, found: Isolation) -> Iterable[Flow]:
    """The policies of one attachment, the way to itself, and the counters of what is denied."""
    attachment = found.attachment
    yield _to_itself(family_of(attachment.address)).flow(
        (attachment.ofport, ip(attachment.address))
    )
    if found.from_pod is not None:
        yield from _isolated(cluster, attachment, Direction.FROM_POD, found.from_pod)
    if found.to_pod is not None:
        yield from _isolated(cluster, attachment, Direction.TO_POD, found.to_pod)


@cache
def _to_itself(family: Family) -> Shape:
    flow = _flow(
        "PolicyFromPod", Priority.LOCAL,
        {"in_port": 0, "dl_type": family.ether_type, family.destination: 0},
        [*LAYOUT.loads(ToItself=1, DecidedRule=0), LAYOUT.goto("Forwarding")],
        "this pod to itself: always allowed",
    )  # fmt: skip
    return Shape(flow, ("in_port", family.destination))


def _of_pod(table: str, field: str, reason: str, actions: Iterable[Action] = ()) -> Shape:
    register = LAYOUT.registers.get(field)
    return Shape(
        _flow(table, Priority.LOCAL, {field: 0}, actions, reason),
        [register.register if register else field],
    )


_ISOLATED: Final = {
    direction: _of_pod(side.isolation, side.port, "the policies of this pod")
    for direction, side in _SIDES.items()
}
_DENIED: Final = {
    direction: _of_pod(side.denied, side.port, "denied by the policies of this pod")
    for direction, side in _SIDES.items()
}
_LOGGED: Final = {
    direction: _of_pod(
        side.denied, side.port, "denied by the policies of this pod, and reported to the agent",
        [
            ApplyMeter(names.DENIAL_METER),
            ToController(names.AGENT_CONNECTION, _LOGGED_SIZE),
        ],
    )
    for direction, side in _SIDES.items()
}  # fmt: skip
_ACTIONS: Final = {direction: Pieces(side.isolation) for direction, side in _SIDES.items()}


def _isolated(
    cluster: Cluster, attachment: Attachment, direction: Direction, walks: Walks
) -> Iterable[Flow]:
    pieces = _ACTIONS[direction]
    isolated = walks.isolated or walks.refused
    (selected,) = LAYOUT.loads(Selected=1, Isolated=isolated)
    actions = [pieces.action(selected)]
    tiers = [(walks.admin, True), (walks.policies, False)]
    if not isolated:
        tiers.append((walks.baseline, True))
    for ids, may_pass in tiers if not walks.refused else ():
        if len(ids) > MOST_WALKS:
            # Pages are walks with ids of their own.
            pages: list[int] = []
            for at in range(0, len(ids), MOST_WALKS):
                name = f"{attachment.port} {direction.value} {ids[0]}"
                pages.append(_page_id(name, len(pages)))
                part = _through(ids[at : at + MOST_WALKS], _WALK_ACTIONS)
                yield _walk_flow(pages[-1], part, "a page of the policies of this pod")
            actions += _through(pages, pieces)
        else:
            actions += _through(ids, pieces)
        if ids and may_pass:
            actions.append(pieces.action(_END_OF_TIER))
    reason = "the policies of this pod do not fit: nothing may pass" if walks.refused else ""
    yield _ISOLATED[direction].flow((attachment.ofport,), reason, actions)
    denied = _LOGGED if cluster.log_denials else _DENIED
    yield denied[direction].flow((attachment.ofport,))


def _through(ids: Iterable[int], pieces: Pieces) -> list[Piece]:
    walk = pieces.action(_WALK)
    return [piece for number in ids for piece in (pieces.load("Walk", number), walk)]


def _page_id(of: object, number: int) -> int:
    return policy_digest(f"page {number} of {of}")


_END_OF_TIER: Final = LAYOUT.resubmit("PolicyTier")
_WALK: Final = LAYOUT.resubmit("PolicyWalk")
_PEERS: Final = LAYOUT.resubmit("PolicyPeers")
_PORTS: Final = LAYOUT.resubmit("PolicyPorts")
_DENIALS: Final = LAYOUT.resubmit("PolicyDenials")
_WALK_ACTIONS: Final = Pieces("PolicyWalk")


def walk(_: Cluster, found: PolicyWalk) -> Iterable[Flow]:
    """The rules of a policy in one direction, and the counters of those that deny."""
    title = f"{found.policy}, {found.direction.value}"
    steps = found.steps
    if len(steps) <= MOST_STEPS:
        yield from _page(found.id, steps, title)
        return
    pages: list[int] = []
    for at in range(0, len(steps), MOST_STEPS):
        pages.append(_page_id(f"{found.id:016x}", len(pages)))
        yield from _page(pages[-1], steps[at : at + MOST_STEPS], f"{title}, page {len(pages)}")
    yield _walk_flow(found.id, _through(pages, _WALK_ACTIONS), f"{title}, in pages")


def _page(number: int, steps: Sequence[PolicyStep], title: str) -> Iterable[Flow]:
    pieces = _WALK_ACTIONS
    actions: list[Piece] = []
    ports = rule = action = None
    for step in steps:
        # What a step before has loaded is still there.
        if step.rule != rule:
            rule = step.rule
            actions.append(pieces.load("PolicyRule", rule))
        if step.action != action:
            action = step.action
            actions.append(pieces.load("StepAction", action))
        if step.ports != ports:
            ports = step.ports
            actions.append(pieces.load("PortSet", ports))
        if step.peers is None:
            actions.append(pieces.action(_PORTS))
        else:
            actions.append(pieces.load("PeerSet", step.peers))
            actions.append(pieces.action(_PEERS))
    denying = dict.fromkeys(s.rule for s in steps if s.action is PolicyAction.DENY)
    if denying:
        actions.append(pieces.action(_DENIALS))
    yield _walk_flow(number, actions, title)
    for rule in denying:
        yield _flow(
            "PolicyDenials", Priority.SHARED,
            {"Walk": number, "DecidedRule": rule, "Verdict": Verdict.DENY}, [],
            f"{title}: denied by rule {rule:#x}",
        )  # fmt: skip


_WALK_SHAPE: Final = Shape(
    _flow("PolicyWalk", Priority.SHARED, {"Walk": 0}, [], ""), ("reg8", "reg9")
)


def _walk_flow(number: int, actions: Iterable[Piece], reason: str) -> Flow:
    return _WALK_SHAPE.flow((number >> 32, number & 0xFFFF_FFFF), reason, actions)


def resubmits(found: PolicyWalk, mixed: Container[int] = ()) -> int:
    """The most resubmits that one packet needs for this walk (see `MOST_RESUBMITS`).

    `mixed` has the peer sets with the whole pod range and with blocks, which need one more.
    """
    steps = found.steps
    pages = -(-len(steps) // MOST_STEPS) if len(steps) > MOST_STEPS else 0
    denies = any(step.action is PolicyAction.DENY for step in steps)
    # It is the most if all peers match, but no ports.
    tried = len(steps) + sum(1 + (s.peers in mixed) for s in steps if s.peers is not None)
    return 1 + pages + (pages or 1) * denies + tried


def peer_set(cluster: Cluster, found: PeerSet) -> Iterable[Flow]:
    """The blocks of a set, and the whole pod range if that is in it."""
    number = found.id
    blocks: list[Action] = []
    if found.outsiders is not None and found.blocks:
        # Addresses that no pod has are judged by the blocks, which have an id of their own.
        number = blocks_id(found.id)
        blocks = [
            LAYOUT.load("PeerSet", number), _PEERS, LAYOUT.load("PeerSet", found.id)
        ]  # fmt: skip
        for family in cluster.families:
            yield _peers(found.id, family, {}, Priority.PREFIX, blocks, "not in the pod range")
    if found.outsiders is not None:
        family = family_of(cluster.pod_range)
        yield _peers(
            found.id, family, _end(family, found.direction, cluster.pod_range), Priority.POD_RANGE,
            [_PORTS], "every pod",
        )  # fmt: skip
        for network in found.outsiders:
            value = net(network)
            if found.outsiders_mask is not None:
                value = value[0] & found.outsiders_mask, found.outsiders_mask
            field = _field(family, found.direction)
            yield _peers(
                found.id, family, {field: value}, Priority.OUTSIDERS, blocks, "no pod's address"
            )
    for block in found.blocks:
        network = block.network
        shape = _block(family_of(network), found.direction, network.prefixlen, block.is_member)
        values = [number >> 32, number & 0xFFFF_FFFF]
        if network.prefixlen:
            values.append(int(network.network_address))
        yield shape.flow(values)


@cache
def _block(family: Family, direction: Direction, length: int, is_member: bool) -> Shape:
    field = _field(family, direction)
    flow = _peers(
        0, family, {field: (0, family.prefix_mask(length))}, Priority.PREFIX + length,
        [_PORTS] if is_member else [],
        "a block of the set" if is_member else "an exception of a block",
    )  # fmt: skip
    return Shape(flow, ("reg10", "reg11", field) if length else ("reg10", "reg11"))


def peer_member(_: Cluster, found: PeerMember) -> Iterable[Flow]:
    """One member of a set."""
    number = found.peer_set
    yield _member(family_of(found.address), found.direction).flow(
        (number >> 32, number & 0xFFFF_FFFF, ip(found.address))
    )


@cache
def _member(family: Family, direction: Direction) -> Shape:
    field = _field(family, direction)
    flow = _peers(0, family, {field: 0}, Priority.MEMBER, [_PORTS], "a member of the set")
    return Shape(flow, ("reg10", "reg11", field))


def _peers(
    number: int,
    family: Family,
    end: dict[str, MatchValue],
    priority: int,
    actions: Iterable[Action],
    reason: str,
) -> Flow:
    fields = {"Verdict": 0, "PeerSet": number, "dl_type": family.ether_type, **end}
    return _flow("PolicyPeers", priority, fields, actions, reason)


def _field(family: Family, direction: Direction) -> str:
    """The field of the other end."""
    return family.destination if direction is Direction.FROM_POD else family.source


def _end(family: Family, direction: Direction, network: IPNetwork) -> dict[str, MatchValue]:
    return {_field(family, direction): net(network)}


def port_set(cluster: Cluster, found: PortSet) -> Iterable[Flow]:
    """The ports of a set, by masks."""
    decide = _decide()
    for family in cluster.families:
        for protocol in sorted({each.protocol for each in found.ranges}):
            ranges = [each for each in found.ranges if each.protocol == protocol]
            masks = port_masks(ranges)
            for masked in masks:
                fields: dict[str, MatchValue] = {
                    "Verdict": 0,
                    "PortSet": found.id,
                    "dl_type": family.ether_type,
                    "nw_proto": protocol,
                }
                if masked is not None:
                    fields["tp_dst"] = masked
                yield _flow("PolicyPorts", Priority.SHARED, fields, decide, "a port of the set")
            if None not in masks:
                yield _fragment(found.id, family, protocol)


def _fragment(number: int, family: Family, protocol: int) -> Flow:
    # A fragment shows no port. What accepts a port does not match it; what denies a port, or passes
    # it to the next tier, must.
    return _flow(
        "PolicyPorts", Priority.DEFAULT,
        {
            "Verdict": 0,
            "StepAction": (2, 2),
            "PortSet": number,
            "dl_type": family.ether_type,
            "nw_proto": protocol,
            "nw_frag": ANY_FRAGMENT,
        },
        [*_decide(), *LAYOUT.loads(Verdict=Verdict.DENY)],
        "a fragment, which may be to a port that is denied or passed on",
    )  # fmt: skip


def port_masks(ranges: Iterable[PortRange]) -> list[tuple[int, int] | None]:
    """Ports of one protocol as (value, mask), as few as possible; None stands for all ports."""
    spans: list[tuple[int, int]] = []
    for each in sorted(ranges, key=lambda each: each.first or 0):
        if each.first is None:
            return [None]
        last = each.first if each.last is None else each.last
        if spans and each.first <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], max(last, spans[-1][1])
        else:
            spans.append((each.first, last))
    masks: list[tuple[int, int] | None] = []
    for first, last in spans:
        at = first
        while at <= last:
            # The largest block that begins here: as aligned as `at`, and not beyond the end.
            size = min(at & -at or 1 << 16, 1 << (last - at + 1).bit_length() - 1)
            masks.append((at, 0xFFFF & ~(size - 1)))
            at += size
    return masks


WRITES: Final = (
    EVERY_NODE.by(every_node),
    NODE.by(node),
    ISOLATION.by(isolation),
    WALK.by(walk),
    PEER_SET.by(peer_set),
    PEER_MEMBER.by(peer_member),
    PORT_SET.by(port_set),
)
