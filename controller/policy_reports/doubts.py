"""What is questionable in a policy though all of it is valid: it may be meant, or a slip."""

from collections.abc import Iterator

from controller.policies.walks import PolicyState
from controller.policy_reports import words


def doubts(policy: PolicyState) -> Iterator[str]:
    """Each as a sentence with its field. Named ports of nobody are problems of the policy."""
    subject = policy.subject
    if subject is None or not any(group.attachments for group in subject.groups):
        yield "it selects no pod that there is now"
        return
    for direction, rules in policy.rules.items():
        for state in rules:
            peers = state.rule.peers
            if not peers or peers.blocks or peers.has_all_pods or state.peers is None:
                continue
            groups = (group for each in state.peers.selections for group in each.groups)
            if not any(group.attachments for group in groups):
                field = words.rule_field(direction, state.rule.number)
                yield f"{field}: no pod that there is now is a peer"
