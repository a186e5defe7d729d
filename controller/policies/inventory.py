"""All policies, with the Namespaces and attachments that they are about.

Objects and attachments come in and are only noted. `settle` brings the view up to date in slices:
first the isolation of changed attachments, because they are not connected without it; then their
membership of sets; then, as one batch, everything else. The keys that a batch touched are handed
over when it is complete, so what belongs together is published together. A set is complete before a
walk refers to it. The result depends on the objects and attachments alone, never on the order in
which they came.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Final

from controller.policies.attachments import Attachments
from controller.policies.cluster_policies import read_cluster_policy
from controller.policies.drafts import PolicyDraft
from controller.policies.named_ports import NamedPorts
from controller.policies.needs import KINDS, Changes, NeededBy, Noted
from controller.policies.network_policies import read_network_policy
from controller.policies.peer_sets import PeerSets
from controller.policies.pod_groups import PodGroup, PodGroups
from controller.policies.port_sets import PortSets
from controller.policies.priorities import Priorities
from controller.policies.rules import Rules, problems_of
from controller.policies.slices import Slices
from controller.policies.texts import sentence
from controller.policies.walks import AllWalks, PolicyState, selecting
from controller.problems import Note
from controller.sources.metadata import Metadata
from controller.sources.objects import PodObject
from controller.sources.policy_objects import (
    ClusterNetworkPolicyObject,
    NamespaceObject,
    NetworkPolicyObject,
)
from controller.work_budget import WorkBudget
from flows.refs import ObjectRef
from flows.view import Attachment, Cluster, Key, Node

PolicyObject = NetworkPolicyObject | ClusterNetworkPolicyObject

SLICE_COST: Final = 20
"""Of one slice of work, as `work_budget.MAX_COST` counts."""


class PolicyInventory:
    """Takes in Namespaces, policies and attachments, and keeps the policies of the view."""

    def __init__(
        self,
        cluster: Cluster,
        note: Note,
        owner: Callable[[str, str], PodObject | None],
        attachments: Mapping[str, Mapping[str, Attachment]],
        nodes: Mapping[str, Node],
        *,
        mirror_pods_as_members: bool = False,
    ) -> None:
        """`owner` finds the Pod of a node's port. `attachments` and `nodes` are those of the view.

        `mirror_pods_as_members`: whether selectors match mirror pods as peers.
        """
        self.namespaces: Final[dict[str, NamespaceObject]] = {}
        self.objects: Final[dict[ObjectRef, PolicyObject]] = {}
        """Every policy of the source."""
        self._note = note
        self._nodes = nodes
        self.mirror_pods_as_members: Final = mirror_pods_as_members
        self._changes = Changes()
        self._of_attachments = Noted()
        self._of_batch = self._changes.noted
        self.groups: Final = PodGroups()
        self.peers: Final = PeerSets(self.groups, self._changes, cluster.pod_range)
        self.ports: Final = PortSets(self._changes)
        self.walks: Final = AllWalks(self.ports, self._changes)
        self.named_ports: Final = NamedPorts(self.groups, self._dirty_numbers_of)
        self.peers.refusal_changed = self.ports.refusal_changed = self._dirty_steps_of
        self.walks.variants_changed = self._dirty_problems_of
        self._rules = Rules(self.peers, self.named_ports)
        self.walks.changed = self._dirty_groups_of
        self.attachments: Final = Attachments(
            attachments,
            owner,
            self.groups,
            self.peers,
            self.walks,
            self._changes,
            note,
            mirror_pods_as_members=mirror_pods_as_members,
        )
        self.may_begin: Callable[[], bool] = lambda: True
        """Whether `settle` with a budget may begin a batch. As long as it must not, the view stays
        in one state of the policies, so that whoever compiles it can finish."""
        self.needed_by: Final = NeededBy(
            dict(
                zip(
                    KINDS,
                    (
                        self.walks.states,
                        self.peers.states,
                        self.peers.states,
                        self.ports.states,
                    ),
                    strict=True,
                )
            )
        )
        self._policies: dict[ObjectRef, PolicyState] = {}
        self._dirty_nodes: dict[str, None] = {}
        self._dirty_namespaces: dict[str, None] = {}
        self._dirty_policies: dict[ObjectRef, None] = {}
        self._dirty_steps: dict[ObjectRef, None] = {}
        self._dirty_groups: dict[PodGroup, None] = {}
        self._dirty_numbers: dict[ObjectRef, None] = {}
        self._dirty_problems: dict[ObjectRef, None] = {}
        self._priorities = Priorities()
        self._obsolete: list[PolicyState] = []
        self._batch: Generator[None, None, None] | None = None

    # --- objects in ---

    def put_namespace(self, new: NamespaceObject) -> None:
        """A Namespace was added or changed."""
        name = new.metadata.name
        old = self.namespaces.get(name)
        self.namespaces[name] = new
        if old is None or old.metadata.labels != new.metadata.labels:
            self._dirty_namespaces[name] = None

    def remove_namespace(self, name: str) -> None:
        """A Namespace was removed."""
        if self.namespaces.pop(name, None) is not None:
            self._dirty_namespaces[name] = None

    def put_policy(self, new: PolicyObject) -> None:
        """A policy was added or changed."""
        ref = _ref(new.kind, new.metadata)
        old = self.objects.get(ref)
        self.objects[ref] = new
        if old is None or old.spec != new.spec:
            self._dirty_policies[ref] = None

    def remove_policy(self, ref: ObjectRef) -> None:
        """A policy was removed."""
        if self.objects.pop(ref, None) is not None:
            self._dirty_policies[ref] = None

    def nodes_changed(self, names: Iterable[str]) -> None:
        """Nodes were added, changed or removed."""
        self._dirty_nodes.update(dict.fromkeys(names))

    # --- what others ask ---

    @property
    def policies(self) -> Mapping[ObjectRef, PolicyState]:
        """The policies that are in force."""
        return self._policies

    def group(self, node: str, port: str) -> PodGroup | None:
        """The group of an attachment; None: it is no pod's."""
        return self.attachments.group(node, port)

    @staticmethod
    def selecting(group: PodGroup) -> list[PolicyState]:
        """The policies that select the attachments of a group, in the order of their tiers."""
        return selecting(group)

    # --- the work ---

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left for `settle`."""
        return self.attachments.is_settled and not (self._batch or self._has_batch)

    @property
    def is_consistent(self) -> bool:
        """Whether the view is in one state of the policies, though newer objects may wait."""
        return self.attachments.is_settled and self._batch is None

    @property
    def _has_batch(self) -> bool:
        return bool(
            self._dirty_nodes
            or self._dirty_namespaces
            or self._dirty_policies
            or self._dirty_steps
            or self._dirty_groups
            or self._dirty_numbers
            or self._dirty_problems
            or self._obsolete
            or self.walks.unused
        )

    def settle(self, budget: WorkBudget | None = None) -> set[Key]:
        """Bring the view up to date, as far as the budget reaches. Returns the keys that changed.

        Without a budget: all of it.
        """
        if not (self._batch or self._of_attachments) and self.may_begin():
            self._changes.compiled()
        self._changes.noted = self._of_attachments
        self.attachments.settle(budget)
        touched = self._changes.take()
        self._changes.noted = self._of_batch
        while self.attachments.is_settled and (self._batch or self._has_batch):
            if self._batch is None:
                if budget and not self.may_begin():
                    break
                self._batch = self._work()
            for _ in self._batch:
                if budget:
                    budget.spend(SLICE_COST)
                    if budget.over:
                        return touched
            self._batch = None
            touched |= self._changes.take()
            if budget and touched:
                # It is compiled before the next batch changes it again.
                break
        return touched

    def _work(self) -> Generator[None, None, None]:
        """One batch: everything that has changed by now."""
        nodes, self._dirty_nodes = self._dirty_nodes, {}
        if nodes:
            yield from self.peers.set_nodes(nodes, self._nodes)
        namespaces, self._dirty_namespaces = self._dirty_namespaces, {}
        for name in namespaces:
            yield from self._relabel(name)
        policies, self._dirty_policies = self._dirty_policies, {}
        for ref in policies:
            yield
            yield from self._read(ref)
        yield from self._walk_again()
        yield from self._drop_obsolete()
        noted, self._dirty_problems = self._dirty_problems, {}
        for ref in noted:
            yield
            if (policy := self._policies.get(ref)) is not None:
                self._note_problems(policy)
        yield from self._changes.spread()

    def _walk_again(self) -> Slices[None]:
        """Bring walks up to date with sets, and groups with walks."""
        while self._dirty_numbers or self._dirty_steps or self._dirty_groups:
            numbers, self._dirty_numbers = self._dirty_numbers, {}
            for ref in numbers:
                yield
                if (policy := self._policies.get(ref)) is not None:
                    yield from self._number_again(policy)
            steps, self._dirty_steps = self._dirty_steps, {}
            for ref in steps:
                yield
                if (policy := self._policies.get(ref)) is not None:
                    yield from self._build(policy)
                    self._dirty_groups_of(policy)
                    self._dirty_problems[ref] = None
            groups, self._dirty_groups = self._dirty_groups, {}
            for group in groups:
                yield from self.attachments.walk_again(group)

    # --- Namespaces ---

    def _relabel(self, name: str) -> Slices[None]:
        found = self.namespaces.get(name)
        labels = None if found is None else found.metadata.labels or {}
        groups = yield from self.groups.set_namespace(name, labels)
        for group in groups:
            yield
            if group.attachments and (yield from self.attachments.select_again(group)):
                self._dirty_groups[group] = None

    # --- policies ---

    def _read(self, ref: ObjectRef) -> Slices[None]:
        given, old = self.objects.get(ref), self._policies.get(ref)
        if given is None:
            self._note(ref, "")
            self._dirty_problems.update(self._priorities.set(ref, None))
            if old is not None:
                del self._policies[ref]
                self._retire(old)
            return
        draft = yield from _draft_of(given)
        self._dirty_problems[ref] = None
        self._dirty_problems.update(self._priorities.set(ref, draft))
        if old is not None and old.draft._replace(problems=()) == draft._replace(problems=()):
            old.draft = draft
            return
        new = PolicyState(draft)
        new.subject = yield from self.groups.use(draft.subject, new)
        yield from self._rules.build(new)
        # From here on it is in force; the walks that groups go through stay the same objects.
        self._policies[ref] = new
        new.is_current = True
        if old is not None:
            self._retire(old)
            new.walks = old.walks
            old.walks = {}
            for walk in new.walks.values():
                walk.policy = new
            yield from self._build(new)
        self._dirty_groups.update(new.subject.groups)

    def _number_again(self, policy: PolicyState) -> Slices[None]:
        old = yield from self._rules.number_again(policy)
        yield from self._build(policy)
        # Also those that are refused and so go through no walk.
        self._dirty_groups_of(policy)
        for each in old:
            yield
            self.peers.release(each, policy.ref)

    def _note_problems(self, policy: PolicyState) -> None:
        problems = [*policy.draft.problems, *problems_of(policy)]
        if (before := self._priorities.before(policy.ref)) is not None:
            problems.append(
                f"spec.priority: {before} has {policy.draft.priority}, too, and comes first"
            )
        self._note(policy.ref, sentence(problems))

    def _build(self, policy: PolicyState) -> Slices[None]:
        for walk in list(policy.walks.values()):
            yield from self.walks.build(walk)

    def _retire(self, old: PolicyState) -> None:
        old.is_current = False
        if old.subject is not None:
            self._dirty_groups.update(old.subject.groups)
        self._obsolete.append(old)

    def _drop_obsolete(self) -> Slices[None]:
        yield from self.walks.drop_unused()
        obsolete, self._obsolete = self._obsolete, []
        for policy in obsolete:
            yield from self._rules.release(policy)
            if policy.subject is not None:
                self.groups.release(policy.draft.subject, policy)

    def _dirty_steps_of(self, refs: Iterable[ObjectRef]) -> None:
        self._dirty_steps.update(dict.fromkeys(refs))
        self._dirty_problems.update(dict.fromkeys(refs))

    def _dirty_numbers_of(self, refs: Iterable[ObjectRef]) -> None:
        self._dirty_numbers.update(dict.fromkeys(refs))
        self._dirty_problems.update(dict.fromkeys(refs))

    def _dirty_problems_of(self, policy: PolicyState) -> None:
        if policy.named_to_pod:
            self._dirty_problems[policy.ref] = None

    def _dirty_groups_of(self, policy: PolicyState) -> None:
        if policy.is_current and policy.subject is not None:
            self._dirty_groups.update(policy.subject.groups)


def _ref(kind: str, metadata: Metadata) -> ObjectRef:
    return ObjectRef(kind, metadata.namespace, metadata.name)


def _draft_of(given: PolicyObject) -> Slices[PolicyDraft]:
    if isinstance(given, NetworkPolicyObject):
        return read_network_policy(given)
    return read_cluster_policy(given)
