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
from functools import cache, lru_cache
from typing import Final

from flows import names
from flows.family import Family, IPNetwork, family_of
from flows.features import judgement
from flows.features.judgement import SIDES, decide, policy_flow
from flows.flow import (
    ANY_FRAGMENT,
    Action,
    ApplyMeter,
    Flow,
    MatchValue,
    ToController,
    ip,
    net,
)
from flows.kinds import EVERY_NODE, ISOLATION, NODE, PEER_MEMBER, PEER_SET, PORT_SET, WALK
from flows.pipeline import (
    LAYOUT,
    Priority,
    Verdict,
)
from flows.policy import (
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
from flows.shapes import Done, Piece, Pieces, Shape, done
from flows.view import Attachment, Cluster

MOST_STEPS: Final = 400
"""The most steps of a walk in one flow: 80 bytes each. A flow message has at most 64 KB, and Open
vSwitch must be able to dump it, with its counters, in one message as well."""
MOST_WALKS: Final = 1_000
"""The most walks of a tier in one flow: 32 bytes each."""
MOST_RESUBMITS: Final = 4_000
"""The most resubmits of one packet in one direction. Open vSwitch drops the packet after 4,096
(MAX_RESUBMITS of ofproto-dpif-xlate.c), and its other tables need some, too."""

_LOGGED_SIZE: Final = 128
"""Bytes of a denied packet that are reported: enough for all headers."""


def isolation(cluster: Cluster, found: Isolation) -> Iterable[Flow]:
    """The policies of one attachment, the way to itself, and the counters of what is denied."""
    attachment = found.attachment
    to_itself = _to_itself(family_of(attachment.address))
    flows = [to_itself.flow((attachment.ofport, ip(attachment.address)))]
    if found.from_pod is not None:
        flows += _FROM_POD.flows(cluster, attachment, found.from_pod)
    if found.to_pod is not None:
        flows += _TO_POD.flows(cluster, attachment, found.to_pod)
    return flows


@cache
def _to_itself(family: Family) -> Shape:
    flow = policy_flow(
        "PolicyFromPod", Priority.LOCAL,
        {"in_port": 0, "dl_type": family.ether_type, family.destination: 0},
        [*LAYOUT.loads(ToItself=1, DecidedRule=0), LAYOUT.goto("Forwarding")],
        "this pod to itself: always allowed",
    )  # fmt: skip
    return Shape(flow, ("in_port", family.destination))


class _Isolating:
    """The flows of isolated attachments in one direction."""

    def __init__(self, direction: Direction) -> None:
        side = SIDES[direction]
        self._direction = direction
        self._pieces = Pieces(side.isolation)
        # Most pods share their policies with others.
        self._shared = lru_cache(4_096)(self._judged_by)
        self._isolated = self._shape(side.isolation, "the policies of this pod")
        self._denied = self._shape(side.denied, "denied by the policies of this pod")
        self._logged = self._shape(
            side.denied, "denied by the policies of this pod, and reported to the agent",
            [
                ApplyMeter(names.DENIAL_METER),
                ToController(names.AGENT_CONNECTION, _LOGGED_SIZE),
            ],
        )  # fmt: skip

    def _shape(self, table: str, reason: str, actions: Iterable[Action] = ()) -> Shape:
        field = SIDES[self._direction].port
        register = LAYOUT.registers.get(field)
        flow = policy_flow(table, Priority.LOCAL, {field: 0}, actions, reason)
        return Shape(flow, [register.register if register else field])

    def flows(self, cluster: Cluster, attachment: Attachment, walks: Walks) -> list[Flow]:
        """The flow that judges, and the one that counts denials; before them, its pages."""
        ofport = (attachment.ofport,)
        denied = (self._logged if cluster.log_denials else self._denied).flow(ofport)
        if walks.refused:
            reason = "the policies of this pod do not fit: nothing may pass"
            return [self._isolated.flow(ofport, reason, self._shared(walks)), denied]
        if max(len(walks.admin), len(walks.policies), len(walks.baseline)) > MOST_WALKS:
            walks, pages = _in_pages(f"{attachment.port} {self._direction.value}", walks)
            return [*pages, self._isolated.flow(ofport, "", self._judged_by(walks)), denied]
        return [self._isolated.flow(ofport, "", self._shared(walks)), denied]

    def _judged_by(self, walks: Walks) -> Done:
        pieces = self._pieces
        isolated = walks.isolated or walks.refused
        (selected,) = LAYOUT.loads(Selected=1, Isolated=isolated)
        actions = [pieces.action(selected)]
        if not walks.refused:
            actions += _through(walks.admin, pieces)
            if walks.admin:
                actions.append(pieces.action(_END_OF_TIER))
            actions += _through(walks.policies, pieces)
            if walks.baseline and not isolated:
                actions += _through(walks.baseline, pieces)
                actions.append(pieces.action(_END_OF_TIER))
        return done(actions)


def _in_pages(name: str, walks: Walks) -> tuple[Walks, list[Flow]]:
    """The same walks with each tier in pages: those are walks with ids of their own."""
    flows: list[Flow] = []

    def paged(ids: tuple[int, ...]) -> tuple[int, ...]:
        if len(ids) <= MOST_WALKS:
            return ids
        pages: list[int] = []
        for at in range(0, len(ids), MOST_WALKS):
            pages.append(_page_id(f"{name} {ids[0]}", len(pages)))
            actions = _through(ids[at : at + MOST_WALKS], _WALK_ACTIONS)
            flows.append(_walk_flow(pages[-1], done(actions), "a page of the policies of this pod"))
        return tuple(pages)

    made = walks._replace(
        admin=paged(walks.admin),
        policies=paged(walks.policies),
        baseline=paged(walks.baseline),
    )
    return made, flows


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
_FROM_POD, _TO_POD = map(_Isolating, (Direction.FROM_POD, Direction.TO_POD))


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
    yield _walk_flow(found.id, done(_through(pages, _WALK_ACTIONS)), f"{title}, in pages")


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
    yield _walk_flow(number, done(actions), title)
    for rule in denying:
        yield policy_flow(
            "PolicyDenials", Priority.SHARED,
            {"Walk": number, "DecidedRule": rule, "Verdict": Verdict.DENY}, [],
            f"{title}: denied by rule {rule:#x}",
        )  # fmt: skip


_WALK_SHAPE: Final = Shape(
    policy_flow("PolicyWalk", Priority.SHARED, {"Walk": 0}, [], ""), ("reg8", "reg9")
)


def _walk_flow(number: int, actions: Done, reason: str) -> Flow:
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


def is_member(table: int, priority: int) -> bool:
    """Whether a flow of this table and priority is a member of a peer set."""
    return priority == Priority.MEMBER and table == LAYOUT.tables["PolicyPeers"].number


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
    return policy_flow("PolicyPeers", priority, fields, actions, reason)


def _field(family: Family, direction: Direction) -> str:
    """The field of the other end."""
    return family.destination if direction is Direction.FROM_POD else family.source


def _end(family: Family, direction: Direction, network: IPNetwork) -> dict[str, MatchValue]:
    return {_field(family, direction): net(network)}


def port_set(cluster: Cluster, found: PortSet) -> Iterable[Flow]:
    """The ports of a set, by masks."""
    actions = decide()
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
                yield policy_flow(
                    "PolicyPorts", Priority.SHARED, fields, actions, "a port of the set"
                )
            if None not in masks:
                yield _fragment(found.id, family, protocol)


def _fragment(number: int, family: Family, protocol: int) -> Flow:
    # A fragment shows no port. What accepts a port does not match it; what denies a port, or passes
    # it to the next tier, must.
    return policy_flow(
        "PolicyPorts", Priority.DEFAULT,
        {
            "Verdict": 0,
            "StepAction": (2, 2),
            "PortSet": number,
            "dl_type": family.ether_type,
            "nw_proto": protocol,
            "nw_frag": ANY_FRAGMENT,
        },
        [*decide(), *LAYOUT.loads(Verdict=Verdict.DENY)],
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
    EVERY_NODE.by(judgement.every_node),
    NODE.by(judgement.node),
    ISOLATION.by(isolation),
    WALK.by(walk),
    PEER_SET.by(peer_set),
    PEER_MEMBER.by(peer_member),
    PORT_SET.by(port_set),
)
