"""What a change of policies would do: it is made in an inventory of its own, and both are compared.

The inventory is the controller's own code, so the answer is about the flows that switches would
get.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from controller.inventory import Inventory
from controller.offline.from_manifests import Offline
from controller.offline.workloads import workload_of
from controller.policies.drafts import PolicyDraft, Tier
from controller.policies.walks import name_of_rule
from controller.policy_reports import words
from controller.policy_reports.doubts import doubts
from controller.references import Reference
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import Object, ref
from controller.sources.policy_objects import NamespaceObject
from controller.what_if.bits import numbers_of
from controller.what_if.compare import Change, Comparison, compare
from controller.what_if.connections import Connection, lost_connections
from controller.what_if.cost import cost
from controller.what_if.ends import NODES, Ends, make_ends
from controller.what_if.moment import Moment
from controller.what_if.ports import in_words
from controller.what_if.report import (
    Caution,
    ChangeRow,
    Decision,
    PolicyChange,
    Share,
    Total,
    Totals,
    WhatIf,
)
from controller.what_if.rows import Rows, pairs_of
from controller.what_if.state import Decider, Evaluator, Reason, State
from flows.family import IPNetwork
from flows.kinds import PEER_MEMBER, PEER_SET
from flows.policy import Direction, rule_id
from flows.refs import ObjectRef
from flows.view import Key

CHANGEABLE: Final = ("NetworkPolicy", "ClusterNetworkPolicy", "Namespace")
"""The kinds of objects that a change may have."""
MOST_ROWS: Final = 5_000
"""Rows of a report, for losses and for gains."""


@dataclass(frozen=True)
class _Policies:
    """The policies at one moment."""

    drafts: Mapping[ObjectRef, PolicyDraft]
    isolating: Mapping[str, tuple[frozenset[ObjectRef], frozenset[ObjectRef]]]
    """By pod, the NetworkPolicies that select it: from the pod and to the pod."""
    problems: Mapping[ObjectRef, frozenset[str]]

    @classmethod
    def of(cls, inventory: Inventory) -> "_Policies":
        policies = inventory.policies
        by_group: dict[object, tuple[frozenset[ObjectRef], frozenset[ObjectRef]]] = {}
        isolating: dict[str, tuple[frozenset[ObjectRef], frozenset[ObjectRef]]] = {}
        for node, attachments in inventory.view.attachments.items():
            for port, attachment in attachments.items():
                group = policies.group(node, port)
                if group is None:
                    continue
                if group not in by_group:
                    found = [p for p in policies.selecting(group) if p.draft.tier is Tier.POLICY]
                    from_pod, to_pod = (
                        frozenset(p.ref for p in found if direction in p.rules)
                        for direction in (Direction.FROM_POD, Direction.TO_POD)
                    )
                    by_group[group] = from_pod, to_pod
                isolating[attachment.pod] = by_group[group]
        return cls(
            {found: policy.draft for found, policy in policies.policies.items()},
            isolating,
            {
                found: frozenset(each.text for each in inventory.problems.of_subject(found))
                for found in policies.objects
            },
        )


def what_if(
    offline: Offline,
    put: Iterable[Object],
    delete: Iterable[ObjectRef] = (),
    connections: Iterable[Connection] | None = None,
) -> WhatIf:
    """Make the change in this inventory, and report what it does."""
    inventory = offline.inventory
    view, needed = inventory.view, inventory.policies.needed_by
    inventory.settle()
    before, old = Moment.of(view, needed.nodes()), _Policies.of(inventory)
    changes, touched = _apply(inventory, list(put), list(delete))
    after, new = Moment.of(view, needed.nodes()), _Policies.of(inventory)
    states = State.of(before.view), State.of(after.view)
    workloads = {
        f"{pod.metadata.namespace}/{pod.metadata.name}": workload_of(pod)
        for pod in inventory.pods.objects.values()
    }
    missing = frozenset(offline.without_pods)
    ends = make_ends(view, workloads, missing, _blocks((before, after), touched))
    first = Evaluator(states[0], ends, view)
    evaluators = first, Evaluator(states[1], ends, view, first, _touched_sets(touched))
    found = compare(*evaluators)
    rows = _Rows(ends, found, (old, new))
    losses, gains = rows.rows(lost=True), rows.rows(lost=False)
    return WhatIf(
        tuple(changes),
        Totals(_total(found.lost), _total(found.gained), _total(found.kept)),
        tuple(losses[:MOST_ROWS]),
        tuple(gains[:MOST_ROWS]),
        found.more + sum(max(0, len(some) - MOST_ROWS) for some in (losses, gains)),
        tuple(map(Reference.of, sorted(offline.without_pods.values()))),
        tuple(_warnings(inventory, changes, old, new)),
        cost(before, after, touched),
        None if connections is None else lost_connections(connections, *evaluators),
        tuple(offline.assumed),
    )


def _apply(
    inventory: Inventory, put: Iterable[Object], delete: Iterable[ObjectRef]
) -> tuple[list[PolicyChange], set[Key]]:
    """Make the change; what it is, and the keys of the view that it touches."""
    touched: set[Key] = set()
    changes: list[PolicyChange] = []
    for new in put:
        subject = ref(new)
        known = _known(inventory, subject)
        change: Literal["added", "changed", "unchanged"] = "added"
        if known is not None:
            change = "unchanged" if _content(known) == _content(new) else "changed"
        changes.append(PolicyChange(Reference.of(subject), change))
        touched |= inventory.set_object(new)
    for subject in delete:
        there = _known(inventory, subject) is not None
        changes.append(PolicyChange(Reference.of(subject), "deleted" if there else "unchanged"))
        touched |= inventory.remove_object(*subject)
    return changes, touched | inventory.settle()


def _known(inventory: Inventory, subject: ObjectRef) -> Object | None:
    if subject.kind == "Namespace":
        return inventory.policies.namespaces.get(subject.name)
    return inventory.policies.objects.get(subject)


def _content(given: Object) -> object:
    """What policies depend on."""
    if isinstance(given, NamespaceObject):
        return given.metadata.labels
    return None if isinstance(given, SliceObject) else given.spec


def _blocks(moments: Iterable[Moment], touched: Collection[Key]) -> set[IPNetwork]:
    """The address blocks in the policies of pods that the change concerns.

    There may be very many in a large cluster, and each is a range outside to be compared.
    """
    return {
        block.network
        for moment in moments
        for concerned in [moment.concerned_sets(touched)]
        for page in moment.view.peer_sets.values()
        if page.id in concerned
        for block in page.blocks
    }


def _touched_sets(touched: Iterable[Key]) -> set[int]:
    """The peer sets among what a change touched."""
    kinds = {PEER_SET.name, PEER_MEMBER.name}
    return {int(key.name[:16], 16) for key in touched if key.kind in kinds}


def _total(rows: Rows) -> Total:
    return Total(rows.workload_pairs, rows.pairs)


def _warnings(
    inventory: Inventory, changes: Iterable[PolicyChange], old: _Policies, new: _Policies
) -> Iterator[Caution]:
    """What is questionable in the changed policies, and what has become so in others."""
    policies = inventory.policies
    for change in changes:
        if change.change == "unchanged":
            yield Caution(str(change.object), "this changes nothing")
        if (policy := policies.policies.get(change.object.ref)) is not None:
            for doubt in doubts(policy):
                yield Caution(str(change.object), doubt)
    changed = {change.object.ref for change in changes}
    for subject in sorted(new.problems):
        known = () if subject in changed else old.problems.get(subject, ())
        for text in sorted(new.problems[subject] - {*known}):
            yield Caution(str(subject), text)


class _Rows:
    """Turns changes into rows of the report."""

    def __init__(
        self, ends: Ends, found: Comparison, policies: tuple[_Policies, _Policies]
    ) -> None:
        self._ends = ends
        self._found = found
        self._policies = policies
        self._shares: dict[int, tuple[Share, ...]] = {}
        self._sizes = {
            workload: (bits & ends.existing).bit_count() for workload, bits in ends.members.items()
        }

    def rows(self, *, lost: bool) -> list[ChangeRow]:
        """The losses or the gains, those of the most pairs first."""
        rows = [row for each in self._found.changes if each.lost is lost for row in self._row(each)]
        return sorted(rows, key=lambda row: (-row.pairs, str(row.destinations[:1])))

    def _row(self, change: Change) -> Iterator[ChangeRow]:
        """A row for each set of policies that isolates the pods."""
        is_target = change.after.direction is Direction.TO_POD
        own = change.destinations if is_target else change.sources
        for decided, pods in self._by_isolation(change, own).items():
            sources = change.sources if is_target else pods
            destinations = pods if is_target else change.destinations
            yield ChangeRow(
                self._share(sources),
                self._share(destinations),
                tuple(in_words(change.pieces, self._found.pieces)),
                pairs_of(self._ends, sources, destinations),
                *decided,
            )

    def _by_isolation(self, change: Change, own: int) -> dict[tuple[Decision, Decision], int]:
        """The pods on the side that decides, by what decides before and after."""
        deciders = change.before, change.after
        if all(decider.reason is not Reason.ISOLATED for decider in deciders):
            before, after = (self._decision(decider, "", 0) for decider in deciders)
            return {(before, after): own}
        found: dict[tuple[Decision, Decision], list[int]] = {}
        known: dict[object, tuple[Decision, Decision]] = {}
        place = 0 if change.after.direction is Direction.FROM_POD else 1
        for number in numbers_of(own):
            pod = self._ends.ends[number].name
            key = tuple(p.isolating.get(pod, _NOBODY)[place] for p in self._policies)
            if key not in known:
                before, after = (self._decision(d, pod, n) for n, d in enumerate(deciders))
                known[key] = before, after
            found.setdefault(known[key], []).append(number)
        return {key: self._ends.bits(numbers) for key, numbers in found.items()}

    def _decision(self, decider: Decider, pod: str, moment: int) -> Decision:
        """What decides, in words; `moment` is 0 before and 1 after the change."""
        way = words.DIRECTIONS[decider.direction]
        if decider.reason is Reason.RULE and decider.policy is not None:
            policy = decider.policy
            draft = self._policies[moment].drafts.get(policy)
            rules = (draft.rules(decider.direction) or ()) if draft else ()
            field = next(
                (
                    words.rule_field(decider.direction, rule.number)
                    for rule in rules
                    if rule_id(name_of_rule(policy, decider.direction, rule.number)) == decider.rule
                ),
                "",
            )
            verb = "accepts" if decider.accepts else "denies"
            reason = f"{field} of {policy} {verb} it"
            return Decision(way, decider.accepts, (Reference.of(policy),), field, reason)
        if decider.reason is Reason.ISOLATED:
            place = 0 if decider.direction is Direction.FROM_POD else 1
            refs = sorted(self._policies[moment].isolating.get(pod, _NOBODY)[place])
            named = ", ".join(map(str, refs))
            verb = "isolates" if len(refs) == 1 else "isolate"
            reason = f"{named} {verb} the pod, and no rule accepts it"
            return Decision(way, False, tuple(map(Reference.of, refs)), "", reason)
        reason = "no policy denies it" if decider.accepts else decider.reason.value
        return Decision(way, decider.accepts, (), "", reason)

    def _share(self, bits: int) -> tuple[Share, ...]:
        """The workloads of some ends."""
        found = self._shares.get(bits)
        if found is None:
            counts = Counter(self._ends.ends[number].workload for number in numbers_of(bits))
            existing = bits & self._ends.existing
            found = self._shares[bits] = tuple(
                Share(
                    Reference.of(workload),
                    count if existing & self._ends.members[workload] else 0,
                    self._sizes[workload] if workload != NODES else len(self._ends.node_clients),
                )
                for workload, count in sorted(counts.items())
            )
        return found


_NOBODY: Final[tuple[frozenset[ObjectRef], frozenset[ObjectRef]]] = frozenset(), frozenset()
