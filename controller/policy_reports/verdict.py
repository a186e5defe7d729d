"""Why a connection may pass or not: `sluice policy FROM TO PORT`.

The verdict is found in the view that is compiled into flows: isolations, walks, sets and members,
step by step as a packet goes through them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from controller.inventory import Inventory
from controller.policies.drafts import Tier
from controller.policies.slices import Slices
from controller.policies.walks import PolicyState, RuleState
from controller.policy_reports import words
from controller.policy_reports.ends import MOST_ENDPOINTS, End, destinations, source
from controller.policy_reports.missing import Missing
from controller.policy_reports.report import CaseRow, JudgementRow, StepRow, Verdict
from controller.references import Reference
from controller.service_fields import PROTOCOLS
from flows.family import IPAddress
from flows.features.protocols import ICMP, TCP, UDP
from flows.policy import EVERY_PORT, Direction, PolicyAction, PolicyStep, PortRange
from flows.refs import ObjectRef

DNS_PORT: Final = 53
PROTOCOL_WORDS: Final = {**PROTOCOLS, "ICMP": ICMP}
"""The protocols that somebody may ask about."""
MOST_STEPS: Final = 1_000
"""Rules of one direction that a report shows, and one more that decides."""


def verdict(
    inventory: Inventory,
    asked: tuple[str, str],
    port: str,
    protocol: str,
    *,
    node_dns: bool = False,
) -> Slices[Verdict]:
    """The report for a connection `asked` from one end to the other.

    `node_dns`: whether pods may always reach port 53 of their own node. Raises `QuestionError`.
    """
    number = PROTOCOL_WORDS[protocol.upper()]
    opener = source(inventory, asked[0])
    cases: list[CaseRow] = []
    for target in destinations(inventory, asked[1], port, number):
        case = yield from _case(inventory, opener, target, number, node_dns=node_dns)
        cases.append(case)
    known = {case.destination.port for case in cases}
    return Verdict(
        asked[0],
        asked[1],
        known.pop() if len(known) == 1 else None,
        protocol.upper(),
        all(case.accepted for case in cases),
        tuple(cases),
        tuple(_notes(inventory, opener, number, len(cases))),
    )


def _notes(inventory: Inventory, opener: End, protocol: int, cases: int) -> Iterator[str]:
    if cases == MOST_ENDPOINTS:
        yield f"only the first {MOST_ENDPOINTS} endpoints are judged"
    if not inventory.policies.is_settled:
        yield "changes of policies are being taken in at this moment"
    if protocol == ICMP:
        yield "ICMP matches only rules without ports; ICMP errors of a connection always pass"
    if opener.pod is None and opener.node is None:
        yield (
            "a client outside that comes by a NodePort of another node may have that node's address"
        )


def _case(
    inventory: Inventory, opener: End, target: End, protocol: int, *, node_dns: bool
) -> Slices[CaseRow]:
    judgements: tuple[JudgementRow, ...]
    if why := _bypass(opener, target, protocol, node_dns=node_dns):
        judgements = (JudgementRow("", "", True, why),)
    else:
        judgements = (
            (yield from _Judge(inventory, Direction.FROM_POD, (opener, target), protocol).judge()),
            (yield from _Judge(inventory, Direction.TO_POD, (opener, target), protocol).judge()),
        )
    accepted = all(each.accepted for each in judgements)
    return CaseRow(opener.row, target.row, accepted, judgements)


def _bypass(opener: End, target: End, protocol: int, *, node_dns: bool) -> str:
    """Why no policy is asked; empty: policies decide."""
    if opener.pod is not None and target.pod is not None and opener.address == target.address:
        return "a pod can always reach itself"
    if opener.node is not None and target.pod is not None and opener.node.name == target.pod.node:
        return "a node can always reach its own pods"
    is_dns = node_dns and protocol in {TCP, UDP} and target.port == DNS_PORT
    if is_dns and opener.pod and target.node and opener.pod.node == target.node.name:
        return "policy.nodeLocalDns: every pod can reach port 53 of its own node"
    return ""


_PAST: Final = {
    PolicyAction.ACCEPT: "accepts",
    PolicyAction.DENY: "denies",
    PolicyAction.PASS: "passes",
}


class _Judge:
    """The policies of one end, about one other end and one port."""

    def __init__(
        self, inventory: Inventory, direction: Direction, ends: tuple[End, End], protocol: int
    ) -> None:
        """`ends`: the one that opens the connection, and the one that accepts it."""
        self._inventory = inventory
        self._direction = direction
        opener, target = ends
        is_opener = direction is Direction.FROM_POD
        self._end, self._peer = (opener, target) if is_opener else (target, opener)
        self._missing = Missing(inventory, self._peer, target, protocol)
        self._protocol, self._port = protocol, target.port
        self._steps: list[StepRow] = []

    def judge(self) -> Slices[JudgementRow]:
        """What they say."""
        pod = self._end.pod
        if pod is None:
            return self._row(True, f"{self._end.name} is no pod, so no policy selects it")
        walks = pod.walks(self._inventory, self._direction)
        if walks is None:
            return self._row(True, "no policy selects the pod in this direction")
        if walks.refused:
            problems = self._inventory.problems.of_subject(pod.attachment.ref)
            why = "; ".join(problem.text for problem in problems) or "its policies are refused"
            return self._row(False, f"nothing may pass: {why}")
        policies = pod.policies(self._direction)
        by_ref = {each.ref: each for each in policies}
        passed = ""
        for numbers in (walks.admin, walks.policies if walks.isolated else walks.baseline):
            action = yield from self._tier(numbers, by_ref)
            if action is PolicyAction.PASS:
                passed = f"{self._last} passes it on; "
            elif action is not None:
                accepted = action is PolicyAction.ACCEPT
                return self._row(accepted, f"{passed}{self._last} {_PAST[action]} it")
        if not walks.isolated:
            because = "no rule decides, and no NetworkPolicy isolates the pod"
            return self._row(True, passed + because)
        isolating = [each for each in policies if each.draft.tier is Tier.POLICY]
        return self._row(False, passed + isolated_by(isolating), self._nearest(isolating))

    def _tier(
        self, numbers: Iterable[int], policies: Mapping[ObjectRef, PolicyState]
    ) -> Slices[PolicyAction | None]:
        """Go through the walks of a tier; what the step that matches does."""
        for number in numbers:
            walk = self._inventory.view.walks.get(f"{number:016x}")
            if walk is None or walk.policy not in policies:
                # As the switch does it with an unknown walk.
                return PolicyAction.DENY
            action = yield from self._walk(policies[walk.policy], walk.steps)
            if action is not None:
                return action
        return None

    @property
    def _last(self) -> str:
        if not self._steps or not self._steps[-1].decides:
            return "a walk that is missing"
        return f"{self._steps[-1].field} of {self._steps[-1].policy}"

    def _row(self, accepted: bool, because: str, nearest: StepRow | None = None) -> JudgementRow:
        name = self._end.name if self._end.pod else ""
        way = words.DIRECTIONS[self._direction]
        return JudgementRow(way, name, accepted, because, tuple(self._steps), nearest)

    def _walk(
        self, policy: PolicyState, steps: Iterable[PolicyStep]
    ) -> Slices[PolicyAction | None]:
        """Go through a walk up to the step that matches; what that does."""
        by_rule: dict[int, list[PolicyStep]] = {}
        for step in steps:
            by_rule.setdefault(step.rule, []).append(step)
        for state in policy.rules.get(self._direction, ()):
            yield
            of_rule = by_rule.get(state.id, ())
            hits = [step for step in of_rule if self._matches(step)]
            if hits or len(self._steps) < MOST_STEPS:
                self._steps.append(self._step(policy, state, of_rule, decides=bool(hits)))
            if hits:
                return hits[0].action
        return None

    def _matches(self, step: PolicyStep) -> bool:
        return self._is_peer(step) and self._holds(step)

    def _is_peer(self, step: PolicyStep) -> bool:
        return step.peers is None or is_member(self._inventory, step.peers, self._peer.address)

    def _holds(self, step: PolicyStep) -> bool:
        """Whether the ports of a step hold the port of this connection."""
        if step.ports == EVERY_PORT:
            return True
        found = self._inventory.view.port_sets.get(f"{step.ports:016x}")
        return found is not None and holds(found.ranges, self._protocol, self._port)

    def _step(
        self, policy: PolicyState, state: RuleState, steps: Iterable[PolicyStep], *, decides: bool
    ) -> StepRow:
        draft, rule = policy.draft, state.rule
        # The sets of steps with a named port hold only peers with that port.
        if rule.peers is None or any(map(self._is_peer, steps)):
            is_peer = True
        else:
            known = state.peers
            address = self._peer.address
            is_peer = known is not None and is_member(self._inventory, known.number, address)
        holds_port = decides or any(
            self._holds(step) for step in steps if self._is_peer(step) or not is_peer
        )
        missing: tuple[str, ...] = ()
        if not decides:
            missing = (
                *(() if is_peer else self._missing.of_peers(rule)),
                *(() if holds_port else self._missing.of_ports(rule)),
            )
        return StepRow(
            Reference.of(draft.ref),
            words.TIERS[draft.tier],
            words.rule_field(self._direction, rule.number),
            words.ACTIONS[rule.action],
            words.of_peers(rule.peers, draft.ref.namespace),
            is_peer,
            words.of_ports(rule.ports),
            holds_port,
            decides,
            missing,
        )

    def _nearest(self, isolating: Iterable[PolicyState]) -> StepRow | None:
        """The rule that would accept the connection if the least were different."""
        refs = {Reference.of(each.ref) for each in isolating}
        rows = [row for row in self._steps if row.policy in refs and row.missing]
        return min(rows, key=lambda row: len(row.missing), default=None)


def isolated_by(policies: Iterable[PolicyState]) -> str:
    """`NetworkPolicy shop/web isolates the pod, and no rule accepts this connection`."""
    named = [str(each.ref) for each in policies]
    verb = "isolates" if len(named) == 1 else "isolate"
    return f"{', '.join(named)} {verb} the pod, and no rule accepts this connection"


def is_member(inventory: Inventory, number: int, address: IPAddress) -> bool:
    """Whether an address is in a peer set, as the view has it."""
    view, key = inventory.view, f"{number:016x}"
    if str(address) in view.peer_members.get(key, {}):
        return True
    found = view.peer_sets.get(key)
    if found is None:
        return False
    if found.outsiders is not None and address in view.cluster.pod_range:
        mask = found.outsiders_mask
        if not any(
            address in network
            if mask is None
            else not (int(address) ^ int(network.network_address)) & mask
            for network in found.outsiders
        ):
            return True
    state = inventory.policies.peers.states.get(key)
    return state is not None and state.lookup is not None and int(address) in state.lookup


def holds(ranges: Iterable[PortRange], protocol: int, port: int | None) -> bool:
    """Whether these ports hold this one; None: the protocol has no ports."""
    return port is not None and any(
        each.protocol == protocol
        and (each.first is None or each.last is None or each.first <= port <= each.last)
        for each in ranges
    )
