"""The course of each judgement of policy, without any policy (see `flows.features.policy`).

It also has the states of control for a change of policies, the exceptions for every pod, and what
becomes of established connections.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from flows import names
from flows.family import family_of
from flows.features.protocols import TCP, UDP
from flows.flow import (
    Action,
    Ct,
    Flow,
    MatchValue,
    Meter,
    SetField,
    ct_state,
    ip,
)
from flows.kinds import Entry
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
)
from flows.view import Cluster, Node

Control = Literal["single", "both", "new", "closed"]
"""How the policies of a switch are applied at a time:

- "single": one state of the policies is in force;
- "both": what the old *and* the new state allow (`flows.transition`);
- "new": what the new state allows;
- "closed": nothing new passes that a policy could deny.
"""

LOGGED_PER_SECOND: Final = 100
"""Denied packets that one switch reports to its agent."""
_DNS_PORT: Final = 53
_DNS_PROTOCOLS: Final = (UDP, TCP)
_NEW: Final = ct_state("+trk+new")
_RESET: Final = {"Verdict": 0, "Selected": 0, "Isolated": 0, "Pass": 0, "DecidedRule": 0}


@dataclass(frozen=True, slots=True)
class Side:
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


SIDES: Final = {
    Direction.FROM_POD: Side(
        "PolicyFromPod", "PolicyFromPodAgain", "IsolationFromPod", "PolicyFromPodVerdict",
        "DeniedFromPod", "Forwarding", "in_port",
    ),
    Direction.TO_POD: Side(
        "PolicyToPod", "PolicyToPodAgain", "IsolationToPod", "PolicyToPodVerdict",
        "DeniedToPod", "Hairpin", "OutputPort",
    ),
}  # fmt: skip


def policy_flow(
    table: str,
    priority: int,
    fields: dict[str, MatchValue],
    actions: Iterable[Action],
    reason: str,
) -> Flow:
    """`Layout.flow` for policy."""
    return LAYOUT.flow(Feature.POLICY, table, priority, fields, actions, reason)


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The course of each judgement, without any policy."""
    for direction in Direction:
        yield _judge(direction, "single", Priority.SHARED)
        yield from _again(SIDES[direction])
        yield from _verdicts(direction)
    if cluster.cut_established:
        yield from _cut(cluster)
    yield policy_flow(
        "PolicyToPod", Priority.GUARD, {"ToItself": 1}, [LAYOUT.goto("Hairpin")],
        "a pod to itself: always allowed",
    )  # fmt: skip
    # `GatewayGuard` lets only the node's own addresses be `HOST`.
    yield policy_flow(
        "PolicyToPod", Priority.LOCAL, {"Source": Source.HOST}, [LAYOUT.goto("Hairpin")],
        "the node to its own pods: always allowed",
    )  # fmt: skip
    yield from _walk_control()
    yield policy_flow(
        "PolicyPorts", Priority.GUARD, {"Verdict": 0, "PortSet": EVERY_PORT}, decide(),
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
    yield policy_flow(
        "DestinationGuard", Priority.OVERRIDE, {"ct_state": ct_state("+trk+est-new-rel-rpl-inv")},
        [LAYOUT.load("Rejudged", 1), LAYOUT.goto("PolicyFromPod")],
        "a packet of an established connection, from who opened it: judge it",
    )  # fmt: skip
    yield policy_flow(
        "DestinationGuard", Priority.GUARD,
        {"ct_state": ct_state("+trk+est+rpl"), "ct_mark": (BLOCKED, BLOCKED)}, [],
        "a reply of a connection that policy has cut",
    )  # fmt: skip
    for direction, side in SIDES.items():
        yield _judge_again(direction, "single", Priority.SHARED)
        for family in cluster.families:
            yield policy_flow(
                side.verdict, Priority.DEFAULT, {"dl_type": family.ether_type, "Rejudged": 1},
                [_mark(BLOCKED), LAYOUT.goto(side.denied)],
                "denied, although established: cut it",
            )  # fmt: skip
    for family in cluster.families:
        yield policy_flow(
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
    side = SIDES[direction]
    if state == "closed":
        return policy_flow(
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
    side = SIDES[direction]
    first: dict[str, int] = {"DecidedRule": 0}
    if state == "new":
        first["Pass"] = Pass.NEW
    elif state == "closed":
        first["Verdict"] = Verdict.DENY
    return policy_flow(
        side.entry, priority, fields,
        [
            *LAYOUT.loads(**first),
            LAYOUT.resubmit(side.isolation),
            *([LAYOUT.resubmit(side.again)] if state == "both" else []),
            LAYOUT.goto(side.verdict),
        ],
        reason,
    )  # fmt: skip


def _again(side: Side) -> Iterable[Flow]:
    accepted: tuple[tuple[dict[str, MatchValue], str], ...] = (
        ({"Verdict": Verdict.ACCEPT}, "accepted by the old policies"),
        ({"Verdict": 0, "Isolated": 0}, "no old policy denies it"),
    )
    for fields, reason in accepted:
        yield policy_flow(
            side.again, Priority.DEFAULT, fields,
            [
                *LAYOUT.loads(**{**_RESET, "Pass": Pass.NEW}),
                LAYOUT.resubmit(side.isolation),
            ],
            f"{reason}: judge it by the new ones",
        )  # fmt: skip


def _verdicts(direction: Direction) -> Iterable[Flow]:
    side = SIDES[direction]
    onward = LAYOUT.goto(side.onward)
    # The last judgement leaves its rule in DecidedRule for the commit.
    last = direction is Direction.TO_POD
    reset: list[Action] = [] if last else [*LAYOUT.loads(**_RESET)]
    remember: list[Action] = [] if last else [LAYOUT.move("DecidedRule", "RuleFromPod")]
    yield policy_flow(
        side.verdict, Priority.GUARD, {"Selected": 0}, [*reset, onward], "no policy selects the pod"
    )
    yield policy_flow(
        side.verdict, Priority.SHARED, {"Verdict": Verdict.ACCEPT}, [*remember, *reset, onward],
        "allowed by a rule",
    )  # fmt: skip
    yield policy_flow(
        side.verdict, Priority.SHARED, {"Verdict": 0, "Isolated": 0}, [*reset, onward],
        "no rule concerns it, and no NetworkPolicy selects the pod",
    )  # fmt: skip


def _walk_control() -> Iterable[Flow]:
    yield policy_flow(
        "PolicyWalk", Priority.DEFAULT, {}, LAYOUT.loads(Verdict=Verdict.DENY),
        "an unknown policy: denied",
    )  # fmt: skip
    for bit in (1, 2):
        yield policy_flow(
            "PolicyWalk", Priority.GUARD, {"Verdict": (bit, bit)}, [],
            "decided by an earlier policy",
        )  # fmt: skip
    yield policy_flow(
        "PolicyTier", Priority.DEFAULT, {"Verdict": Verdict.PASS},
        LAYOUT.loads(Verdict=0, DecidedRule=0),
        "passed: the next tier decides",
    )  # fmt: skip


def decide() -> list[Action]:
    """The actions of a step that matches: its action is the verdict."""
    return [LAYOUT.move("StepAction", "Verdict"), LAYOUT.move("PolicyRule", "DecidedRule")]


def node(cluster: Cluster, node: Node) -> Iterable[Entry]:
    """The meter of reported denials; the node's own DNS server, if every pod may reach it."""
    if cluster.log_denials:
        yield Meter(names.DENIAL_METER, LOGGED_PER_SECOND, LOGGED_PER_SECOND)
    if not cluster.node_local_dns:
        return
    for address in (node.gateway, node.address, *node.further_addresses):
        family = family_of(address)
        for protocol in _DNS_PROTOCOLS:
            yield policy_flow(
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
