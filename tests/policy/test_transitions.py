"""Between two states of the policies: what the switches let pass while some of them are ahead.

A packet whose ends are at two switches must never pass if neither state allows it, and always if
both do, whichever switch is ahead of the other.
"""

from collections.abc import Mapping
from itertools import pairwise

import pytest

from controller.policy_effects import Effects
from controller.policy_order import BOTH
from controller.policy_publication import CONTROL, _control_key, _Transaction
from flows.compile import Fragment
from tests.policy.controlled import Controlled
from tests.policy.evaluator import Cluster
from tests.policy.generator import as_yaml, generate
from tests.policy.proof import NEW, Proof
from tests.policy.simulator import numbers
from tests.policy.switches import Contents, Switches

CHANGES = 8
"""Changes of one test."""


def under_other_policies(pods: Cluster, other: Cluster) -> Cluster:
    """The pods of one cluster, with the policies and the labels of another one."""
    kinds = {"NetworkPolicy", "ClusterNetworkPolicy", "Namespace"}
    objects = [each for each in other.objects if each["kind"] in kinds]
    for each in pods.objects:
        if each["kind"] in kinds:
            continue
        twin = next((o for o in other.objects if _is_same_pod(o, each)), each)
        objects.append({**each, "metadata": twin["metadata"]})
    return Cluster(objects, pods.attachments)


def _is_same_pod(one: Mapping[str, object], two: Mapping[str, object]) -> bool:
    keys = ("namespace", "name", "uid", "annotations")
    return one["kind"] == two["kind"] == "Pod" and all(
        one["metadata"].get(key) == two["metadata"].get(key)  # type: ignore[attr-defined]
        for key in keys
    )


class Change:
    """A change of the policies of a cluster, and the states that each switch may be in."""

    def __init__(self, before: Cluster, now: Cluster, nodes: tuple[str, ...]) -> None:
        self.before, self.now = before, now
        controlled = Controlled()
        controlled.become(before)
        self.old = controlled.contents(nodes)
        controlled.become(now)
        self.new = controlled.contents(nodes)
        effects = Effects()
        transaction = _Transaction(
            {n: {k: c.new for k, c in controlled.changes.get(n, {}).items()} for n in nodes}, 0
        )
        for node in nodes:
            changes = controlled.changes.get(node, {})
            transaction.effective[node] = {
                key: change
                for key, change in changes.items()
                if controlled.judge.add_effects(effects, node, key, change, changes.get)
            }
        self.has_two_phases = not effects.may_follow(Effects())
        """Whether the controller publishes it in two phases."""
        self.between = {}
        for node in nodes:
            changes = controlled.changes.get(node, {})
            fragments = {key: change.old for key, change in changes.items()}
            if transaction.effective[node]:
                fragments |= transaction.first_phase(node, changes)
                fragments[_control_key(node)] = Fragment((CONTROL,), BOTH)
            self.between[node] = controlled.contents_with(node, fragments)

    def mixtures(self) -> list[dict[str, Contents]]:
        """All combinations of states that two switches may have at one time."""
        one, two = self.old
        steps = [self.old, self.between, self.new] if self.has_two_phases else [self.old, self.new]
        found = [{one: each[one], two: each[two]} for each in steps]
        for first, second in pairwise(steps):
            found.append({one: first[one], two: second[two]})
            found.append({one: second[one], two: first[two]})
        return found


def check(change: Change, switches: Switches) -> None:
    for mixture in change.mixtures():
        proof = Proof(change.now, mixture, switches, before=change.before)
        _, arrived = proof.sent(NEW)
        by_state = [from_pod & to_pod for from_pod, to_pod in proof.verdicts]
        for what, wrong in (
            ("neither state allows it", arrived & ~(by_state[0] | by_state[1])),
            ("both states allow it", by_state[0] & by_state[1] & ~arrived),
        ):
            for number in numbers(wrong & proof.checked):
                pytest.fail(
                    f"{what}: {proof.space.packet(number)} (two phases: {change.has_two_phases})\n"
                    f"# before\n{as_yaml(change.before)}\n# now\n{as_yaml(change.now)}"
                )


@pytest.mark.parametrize("seed", range(0, 5 * CHANGES, CHANGES))
def test_no_switch_is_ahead_of_another_in_a_way_that_matters(switches: Switches, seed: int) -> None:
    two_phases = 0
    for number in range(seed, seed + CHANGES):
        before = generate(number)
        # Large changes, and small ones: most of the latter need one phase only.
        other = generate(number + 1) if number % 2 else generate(number + 7919)
        change = Change(before, under_other_policies(before, other), switches.nodes)
        check(change, switches)
        two_phases += change.has_two_phases
    assert 0 < two_phases < CHANGES
