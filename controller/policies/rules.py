"""The rules of a policy with their sets, and what is wrong with them."""

from collections.abc import Iterator
from typing import Final

from controller.policies.drafts import Rule
from controller.policies.named_ports import MOST_NUMBERS, NamedPorts, PortNumbers
from controller.policies.peer_sets import PeerSets, PeerSetState
from controller.policies.slices import Slices
from controller.policies.walks import PolicyState, RuleState, name_of_rule
from flows.policy import DIRECTIONS, Direction, PortRange, rule_id

_FIELDS: Final = {Direction.FROM_POD: "spec.egress", Direction.TO_POD: "spec.ingress"}


class Rules:
    """Finds the sets of rules."""

    def __init__(self, peers: PeerSets, named: NamedPorts) -> None:
        self._peers = peers
        self._named = named

    def build(self, policy: PolicyState) -> Slices[None]:
        """Find the sets of all rules of a new policy."""
        for direction in DIRECTIONS:
            rules = policy.draft.rules(direction)
            if rules is None:
                continue
            states: list[RuleState] = []
            for rule in rules:
                yield
                states.append((yield from self._build(policy, direction, rule)))
            policy.rules[direction] = tuple(states)

    def _build(self, policy: PolicyState, direction: Direction, rule: Rule) -> Slices[RuleState]:
        number = rule_id(name_of_rule(policy.ref, direction, rule.number))
        peers = None
        if rule.peers:
            peers = yield from self._peers.use(rule.peers, direction, None, policy.ref)
            if peers in policy.peer_sets:
                self._peers.release(peers, policy.ref)
            policy.peer_sets[peers] = None
        numbers: list[PortNumbers] = []
        has_pods = rule.peers is None or bool(rule.peers.selections)
        if direction is Direction.FROM_POD and rule.ports is not None and has_pods:
            for port in rule.ports.named:
                found = yield from self._named.use(rule.peers, port, policy.ref)
                numbers += [found]
        state = RuleState(rule, number, peers, tuple(numbers))
        return (yield from self._with_numbers(policy, state)) if numbers else state

    def number_again(self, policy: PolicyState) -> Slices[list[PeerSetState]]:
        """The numbers of named ports changed. Returns the sets to `release` after the walks."""
        old, policy.named_sets = policy.named_sets, []
        states: list[RuleState] = []
        for state in policy.rules.get(Direction.FROM_POD, ()):
            found = yield from self._with_numbers(policy, state)
            states += [found]
        if states:
            policy.rules[Direction.FROM_POD] = tuple(states)
        return old

    def _with_numbers(self, policy: PolicyState, state: RuleState) -> Slices[RuleState]:
        named: list[tuple[PeerSetState, PortRange]] = []
        peers = None if state.rule.peers is None else state.rule.peers._replace(blocks=())
        has_too_many = False
        for numbers in state.numbers:
            ranges = numbers.ranges
            has_too_many |= len(ranges) > MOST_NUMBERS
            for port in ranges[:MOST_NUMBERS]:
                yield
                of = numbers.port._replace(protocol=port.protocol), port.first or 0
                found = yield from self._peers.use(peers, Direction.FROM_POD, of, policy.ref)
                policy.named_sets.append(found)
                named.append((found, port))
        return state._replace(named=tuple(named), has_too_many=has_too_many)

    def release(self, policy: PolicyState) -> Slices[None]:
        """A policy is not in force any more, and no walk uses its sets."""
        for each in (*policy.peer_sets, *policy.named_sets):
            yield
            self._peers.release(each, policy.ref)
        for state in policy.rules.get(Direction.FROM_POD, ()):
            for numbers in state.numbers:
                self._named.release(numbers, policy.ref)


def problems_of(policy: PolicyState) -> Iterator[str]:
    """What is wrong with the rules of a policy in this cluster, though each by itself is valid."""
    for direction, states in policy.rules.items():
        walks = [walk for walk in policy.walks.values() if walk.direction is direction]
        refused = {number for walk in walks for number in walk.refused_rules}
        for state in states:
            field = f"{_FIELDS[direction]}[{state.rule.number}]"
            if state.rule.number in refused:
                yield f"{field}: its peers or ports have the id of others; it fails closed"
            if state.has_too_many:
                yield (
                    f"{field}: a named port has more than {MOST_NUMBERS} numbers among its peers;"
                    " the further ones fail closed"
                )
            for numbers in state.numbers:
                if numbers.has_pods and not numbers.ranges:
                    yield f'{field}: none of its peers has a port "{numbers.port.name}"'
    yield from _unknown_names(policy)


def _unknown_names(policy: PolicyState) -> Iterator[str]:
    """Named ports that no pod has that the policy is for."""
    if not policy.named_to_pod:
        return
    variants = [
        dict(resolution) for direction, resolution in policy.walks if direction is Direction.TO_POD
    ]
    for port in policy.named_to_pod:
        if variants and not any(variant.get(port) for variant in variants):
            for state in policy.rules[Direction.TO_POD]:
                if state.rule.ports is not None and port in state.rule.ports.named:
                    field = f"spec.ingress[{state.rule.number}]"
                    yield f'{field}: no selected pod has a port "{port.name}"'
