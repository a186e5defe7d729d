"""What is questionable in a policy though all of it is valid: it may be meant, or a slip."""

from collections.abc import Iterable, Iterator

from controller.policies.pod_groups import PodGroup
from controller.policies.walks import PolicyState, RuleState
from controller.policy_reports import words
from flows.policy import Direction


def doubts(policy: PolicyState, groups: Iterable[PodGroup]) -> Iterator[str]:
    """Each as a sentence with its field. `groups` are those of all pods."""
    subject = policy.subject
    if subject is None or not any(group.attachments for group in subject.groups):
        yield "it selects no pod that there is now"
        return
    every = [group for group in groups if group.attachments]
    for direction, rules in policy.rules.items():
        for state in rules:
            field = words.rule_field(direction, state.rule.number)
            peers = _peers(state, every)
            if state.rule.peers and not state.rule.peers.blocks and not peers:
                yield f"{field}: no pod that there is now is a peer"
                continue
            having = [*subject.groups] if direction is Direction.TO_POD else peers
            for port in state.rule.ports.named if state.rule.ports else ():
                if not any(group.attachments and group.numbers(port) for group in having):
                    whose = "selected pod" if direction is Direction.TO_POD else "peer"
                    yield f"{field}.ports: no {whose} has {words.of_named(port)}"


def _peers(state: RuleState, every: list[PodGroup]) -> list[PodGroup]:
    """The pods that a rule selects as peers."""
    if state.rule.peers is None or state.rule.peers.has_all_pods:
        return every
    found = state.peers.selections if state.peers is not None else ()
    return [group for each in found for group in each.groups if group.attachments]
