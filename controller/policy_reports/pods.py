"""Which policies select a pod, and what they allow: `sluice policy POD`."""

from collections.abc import Mapping
from typing import NamedTuple

from controller.inventory import Inventory
from controller.offline.workloads import workload_of
from controller.policies.pod_groups import PodGroup
from controller.policies.selectors import NAMESPACE_NAME
from controller.policies.slices import Slices
from controller.policies.walks import PolicyState
from controller.policy_reports import words
from controller.policy_reports.report import DirectionRow, PodPolicies, PolicyRow, RuleRow
from controller.references import Reference
from flows.policy import Direction, Walks
from flows.refs import ObjectRef
from flows.view import Attachment


class Attached(NamedTuple):
    """A pod's interface, with what policies depend on."""

    node: str
    attachment: Attachment
    group: PodGroup | None

    def walks(self, inventory: Inventory, direction: Direction) -> Walks | None:
        """What its flows go through, in the view that is compiled."""
        found = inventory.view.isolations.get(self.node, {}).get(self.attachment.port)
        if found is None:
            return None
        return found.from_pod if direction is Direction.FROM_POD else found.to_pod

    def policies(self, direction: Direction) -> list[PolicyState]:
        """The policies that select it, in the order in which they decide."""
        if self.group is None:
            return []
        found = [
            user
            for state in self.group.selected
            for user in state.users
            if isinstance(user, PolicyState) and user.is_current and direction in user.rules
        ]
        return sorted(found, key=lambda each: (each.draft.tier, each.draft.order))


def attached(inventory: Inventory, pod: str) -> Attached | None:
    """The interface of a pod (`NAMESPACE/NAME`); of several sandboxes, the one that is newest."""
    namespace, _, name = pod.partition("/")
    known = inventory.pod(namespace, name)
    nodes = [known.spec.node_name] if known else [*inventory.view.attachments]
    found = [
        (node, each)
        for node in nodes
        for each in inventory.view.attachments.get(node, {}).values()
        if each.pod == pod
    ]
    if not found:
        return None
    node, attachment = max(found, key=lambda pair: pair[1].ofport)
    return Attached(node, attachment, inventory.policies.group(node, attachment.port))


def namespace_labels(inventory: Inventory, name: str) -> Mapping[str, str]:
    """The labels of a Namespace, with the one that the API server gives it."""
    known = inventory.policies.namespaces.get(name)
    given = (known.metadata.labels or {}) if known else {}
    return {**given, NAMESPACE_NAME: name}


def pod_policies(inventory: Inventory, pod: str) -> Slices[PodPolicies | str]:
    """The report; a text where there is none."""
    found = attached(inventory, pod)
    if found is None:
        return why_not_attached(inventory, pod)
    namespace, _, name = pod.partition("/")
    known = inventory.pod(namespace, name)
    ref = ObjectRef("Pod", namespace, name)
    directions = []
    for direction in Direction:
        row = yield from _direction(inventory, found, direction)
        directions.append(row)
    return PodPolicies(
        Reference.of(ref),
        Reference.of(workload_of(known) if known else ref),
        found.node,
        str(found.attachment.address),
        dict(found.group.key.labels) if found.group else {},
        dict(namespace_labels(inventory, namespace)),
        tuple(directions),
        tuple(problem.text for problem in inventory.problems.of_subject(ref)),
    )


def why_not_attached(inventory: Inventory, pod: str) -> str:
    """Why there are no policies for a Pod."""
    namespace, _, name = pod.partition("/")
    known = inventory.pod(namespace, name)
    if known is None:
        return f"there is no Pod {pod}"
    if known.spec.host_network:
        return (
            f"Pod {pod} uses the network of its node: no policy selects it; for policies of others"
            f" it is Node {known.spec.node_name}"
        )
    if not known.spec.node_name:
        return f"Pod {pod} has no node yet"
    return f"Pod {pod} has no interface on Node {known.spec.node_name} (it has ended, or starts)"


def _direction(inventory: Inventory, found: Attached, direction: Direction) -> Slices[DirectionRow]:
    walks = found.walks(inventory, direction)
    policies = []
    for policy in found.policies(direction):
        row = yield from policy_row(inventory, policy, direction)
        policies.append(row)
    return DirectionRow(
        words.DIRECTIONS[direction],
        walks is not None and walks.isolated,
        walks is not None and walks.refused,
        tuple(policies),
    )


def policy_row(
    inventory: Inventory, policy: PolicyState, direction: Direction
) -> Slices[PolicyRow]:
    """A policy with its rules for one direction."""
    draft = policy.draft
    rules: list[RuleRow] = []
    for state in policy.rules.get(direction, ()):
        yield
        rules.append(
            RuleRow(
                words.rule_field(direction, state.rule.number),
                words.ACTIONS[state.rule.action],
                words.of_peers(state.rule.peers, draft.ref.namespace),
                words.of_ports(state.rule.ports),
            )
        )
    return PolicyRow(
        Reference.of(draft.ref),
        words.TIERS[draft.tier],
        draft.priority,
        tuple(rules),
        tuple(problem.text for problem in inventory.problems.of_subject(draft.ref)),
    )
