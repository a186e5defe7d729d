"""All policies, with the Namespaces and attachments that they are about.

Objects and attachments come in and are only noted. `settle` brings the view up to date in slices:
first the isolation of changed attachments, because it is published together with their
connectivity; then their membership of sets; then, as one batch, everything else. The keys that a
batch touched are handed over when it is complete, so what belongs together is published together.
A set is complete before a walk refers to it. The result depends on the objects and attachments
alone, never on the order in which they came.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Final

from controller.inventory.kind import Note
from controller.policies.drafts import PolicyDraft
from controller.policies.needs import KINDS, Changes, NeededBy
from controller.policies.network_policies import read_network_policy
from controller.policies.peer_sets import PeerSets
from controller.policies.pod_groups import SLICE, GroupKey, Place, PodGroup, PodGroups
from controller.policies.port_sets import NamedPort, PortSets
from controller.policies.slices import Slices
from controller.policies.texts import sentence
from controller.policies.walks import (
    NO_WALKS,
    AllWalks,
    GroupWalks,
    PolicyState,
    WalkState,
    build_rules,
    group_walks,
)
from controller.service_fields import PROTOCOLS
from controller.sources.metadata import Metadata
from controller.sources.objects import PodObject
from controller.sources.policy_objects import (
    ClusterNetworkPolicyObject,
    NamespaceObject,
    NetworkPolicyObject,
)
from controller.work_budget import WorkBudget
from flows.family import IPAddress
from flows.policy import Isolation
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
        self.isolations: Final[dict[str, dict[str, Isolation]]] = {}
        """See `ClusterView.isolations`."""
        self.namespaces: Final[dict[str, NamespaceObject]] = {}
        self.objects: Final[dict[ObjectRef, PolicyObject]] = {}
        """Every policy of the source."""
        self._cluster = cluster
        self._note = note
        self._owner = owner
        self._attachments = attachments
        self._nodes = nodes
        self.mirror_pods_as_members: Final = mirror_pods_as_members
        self._changes = Changes()
        self.groups: Final = PodGroups()
        self.peers: Final = PeerSets(self.groups, self._changes, cluster.pod_range)
        self.ports: Final = PortSets(self._changes)
        self.walks: Final = AllWalks(self.ports, self._changes)
        self.peers.refusal_changed = self.ports.refusal_changed = self._dirty_steps_of
        self.walks.changed = self._dirty_groups_of
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
        self._places: dict[Place, tuple[Attachment, PodGroup]] = {}
        self._dirty_places: dict[Place, None] = {}
        self._at: dict[IPAddress, Place] = {}
        """By address, the attachment that has it."""
        self._joined: dict[IPAddress, tuple[Attachment, PodGroup]] = {}
        """By address, what the sets have it as."""
        self._moved: dict[IPAddress, None] = {}
        """Addresses of which the sets are not up to date."""
        self._dirty_nodes: dict[str, None] = {}
        self._dirty_namespaces: dict[str, None] = {}
        self._dirty_policies: dict[ObjectRef, None] = {}
        self._dirty_steps: dict[ObjectRef, None] = {}
        self._dirty_groups: dict[PodGroup, None] = {}
        self._obsolete: list[PolicyState] = []
        self._unused: dict[WalkState, None] = {}
        self._emptied: dict[PodGroup, None] = {}
        """Groups that had no attachment for a moment."""
        self._refused: set[Place] = set()
        """Attachments of which a problem was noted."""
        self._batch: Generator[None, None, None] | None = None
        self._withheld: set[Key] = set()

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

    def attachment_changed(self, node: str, port: str) -> None:
        """An attachment was added, changed or removed, or its Pod changed."""
        self._dirty_places[Place(node, port)] = None

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
        found = self._places.get(Place(node, port))
        return found[1] if found else None

    @staticmethod
    def selecting(group: PodGroup) -> list[PolicyState]:
        """The policies that select the attachments of a group, in the order of their tiers."""
        found = (user for state in group.selected for user in state.users)
        current = [user for user in found if isinstance(user, PolicyState) and user.is_current]
        return sorted(current, key=lambda each: (each.draft.tier, each.draft.order))

    # --- the work ---

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left for `settle`."""
        return not (self._batch or self._dirty_places or self._moved or self._has_batch)

    @property
    def _has_batch(self) -> bool:
        return bool(
            self._dirty_nodes
            or self._dirty_namespaces
            or self._dirty_policies
            or self._dirty_steps
            or self._dirty_groups
            or self._obsolete
            or self._unused
        )

    def settle(self, budget: WorkBudget | None = None) -> set[Key]:
        """Bring the view up to date, as far as the budget reaches. Returns the keys that changed.

        Without a budget: all of it.
        """
        withheld = self._changes.take()
        self._settle_attachments(budget)
        touched = self._changes.take()
        self._changes.keys = withheld
        while not self._moved and (self._batch or self._has_batch):
            if self._batch is None:
                self._batch = self._work()
            for _ in self._batch:
                if budget:
                    budget.spend(SLICE_COST)
                    if budget.over:
                        return touched
            self._batch = None
            touched |= self._changes.take()
        return touched

    def _settle_attachments(self, budget: WorkBudget | None) -> None:
        dirty, self._dirty_places = self._dirty_places, {}
        for place in dirty:
            self._place(place)
        while self._moved:
            if budget and budget.over:
                return
            self._move(next(iter(self._moved)))
            if budget:
                budget.spend(1)
        emptied, self._emptied = self._emptied, {}
        for group in emptied:
            self._forget_if_empty(group)

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
        while self._dirty_steps or self._dirty_groups:
            steps, self._dirty_steps = self._dirty_steps, {}
            for ref in steps:
                yield
                if (policy := self._policies.get(ref)) is not None:
                    self._build(policy)
            while self._dirty_groups:
                group = next(iter(self._dirty_groups))
                del self._dirty_groups[group]
                yield from self._walk_again(group)
        yield from self._drop_obsolete()

    # --- attachments ---

    def _place(self, place: Place) -> None:
        """Find the group of an attachment, and isolate it."""
        old = self._places.get(place)
        attachment = self._attachments.get(place.node, {}).get(place.port)
        key = self._group_key(place, attachment, old)
        if attachment is None or key is None:
            self._isolate(place, None, None)
            if old is not None:
                del self._places[place]
                self._vacate(place, old[0])
                self._leave(old[1], place)
            return
        if old is not None and old[1].key == key:
            if old[0] == attachment:
                return
            group = old[1]
            group.attachments[place] = attachment
        else:
            group = self._enter(key, place, attachment)
        if old is not None and old[0].address != attachment.address:
            self._vacate(place, old[0])
        self._at[attachment.address] = place
        self._moved[attachment.address] = None
        self._places[place] = attachment, group
        self._isolate(place, attachment, group)
        if old is not None and group is not old[1]:
            self._leave(old[1], place)

    def _vacate(self, place: Place, attachment: Attachment) -> None:
        """An attachment does not have its address any more; another one may have it already."""
        if self._at.get(attachment.address) == place:
            del self._at[attachment.address]
        self._moved[attachment.address] = None

    def _enter(self, key: GroupKey, place: Place, attachment: Attachment) -> PodGroup:
        """An attachment comes into a group."""
        group = self.groups.add(key, place, attachment)
        if group.state is None:
            group.state = walks = group_walks(self.walks, group)
            for walk in walks.used:
                walk.groups += 1
                self.walks.begin(walk, group.nodes)
        elif group.nodes[place.node] == 1:
            for walk in _walks_of(group).used:
                self.walks.begin(walk, [place.node])
        return group

    def _leave(self, group: PodGroup, place: Place) -> None:
        """An attachment leaves a group."""
        self.groups.remove(group, place)
        if not group.attachments:
            self._emptied[group] = None
        if place.node not in group.nodes:
            for walk in _walks_of(group).used:
                self.walks.cease(walk, [place.node])

    def _group_key(
        self,
        place: Place,
        attachment: Attachment | None,
        old: tuple[Attachment, PodGroup] | None,
    ) -> GroupKey | None:
        if attachment is None or not attachment.pod:
            return None
        pod = self._owner(*place)
        if pod is None or f"{pod.metadata.namespace}/{pod.metadata.name}" != attachment.pod:
            # The Pod is gone, and its containers still run: they are what they were.
            same = old is not None and old[0].pod == attachment.pod
            if same and old is not None:
                return old[1].key
            return GroupKey(attachment.pod.partition("/")[0], (), (), False)
        ports = {
            (NamedPort(port.name, protocol), port.container_port)
            for port in pod.spec.named_ports
            if (protocol := PROTOCOLS.get(port.protocol)) is not None
        }
        return GroupKey(
            pod.metadata.namespace,
            tuple(sorted((pod.metadata.labels or {}).items())),
            tuple(sorted(ports)),
            self.mirror_pods_as_members or not pod.is_mirror,
        )

    def _isolate(self, place: Place, attachment: Attachment | None, group: PodGroup | None) -> None:
        """Set the isolation of an attachment."""
        walks = NO_WALKS if group is None else _walks_of(group)
        if walks.refusal or place in self._refused:
            self._note_refusal(place, attachment, walks.refusal)
        isolation = None
        if attachment is not None and (walks.from_pod is not None or walks.to_pod is not None):
            isolation = Isolation(attachment, walks.from_pod, walks.to_pod)
        of_node = self.isolations.get(place.node, {})
        if of_node.get(place.port) == isolation:
            return
        if isolation is None:
            del of_node[place.port]
            if not of_node:
                del self.isolations[place.node]
        else:
            self.isolations.setdefault(place.node, {})[place.port] = isolation
        self._changes.keys.add(Key(place.node, "isolation", place.port))

    def _note_refusal(self, place: Place, attachment: Attachment | None, refusal: str) -> None:
        known = self._places.get(place)
        if refusal and attachment is not None:
            self._refused.add(place)
            self._note(attachment.ref, refusal)
        else:
            self._refused.discard(place)
            if (gone := attachment or (known[0] if known else None)) is not None:
                self._note(gone.ref, "")

    def _move(self, address: IPAddress) -> None:
        """Bring the sets up to date with who has an address."""
        del self._moved[address]
        old = self._joined.pop(address, None)
        place = self._at.get(address)
        new = self._places[place] if place is not None else None
        before = self.peers.sets_of(old[1]) if old else {}
        after = self.peers.sets_of(new[1]) if new else {}
        if new:
            self._joined[address] = new
            for each in after:
                self.peers.add_member(each, new[0])
        if old:
            for each in before:
                if each not in after:
                    self.peers.remove_member(each, old[0])

    def _forget_if_empty(self, group: PodGroup) -> None:
        if group.attachments or group.state is None:
            return
        self.groups.drop_if_empty(group)
        self._dirty_groups.pop(group, None)
        for walk in _walks_of(group).used:
            walk.groups -= 1
            if not walk.groups:
                self._unused[walk] = None
        group.state = None

    # --- Namespaces ---

    def _relabel(self, name: str) -> Slices[None]:
        found = self.namespaces.get(name)
        labels = None if found is None else found.metadata.labels or {}
        groups = yield from self.groups.set_namespace(name, labels)
        for number, group in enumerate(groups):
            if number % SLICE == 0:
                yield
            if group.attachments:
                yield from self._select_again(group)

    def _select_again(self, group: PodGroup) -> Slices[None]:
        """Find again which selections match a group."""
        before = self.peers.sets_of(group)
        joined, left = self.groups.select_again(group)
        after = self.peers.sets_of(group)
        if any(isinstance(user, PolicyState) for state in (*joined, *left) for user in state.users):
            self._dirty_groups[group] = None
        for change, concerned in (
            (self.peers.add_member, after.keys() - before.keys()),
            (self.peers.remove_member, before.keys() - after.keys()),
        ):
            for each in concerned:
                for done, (place, attachment) in enumerate(list(group.attachments.items())):
                    if done % SLICE == SLICE - 1:
                        yield
                    if group.attachments.get(place) is attachment:
                        change(each, attachment)

    # --- policies ---

    def _read(self, ref: ObjectRef) -> Slices[None]:
        given, old = self.objects.get(ref), self._policies.get(ref)
        if given is None:
            self._note(ref, "")
            if old is not None:
                del self._policies[ref]
                self._retire(old)
            return
        draft = yield from _draft_of(given)
        self._note(ref, sentence(draft.problems))
        if old is not None and old.draft._replace(problems=()) == draft._replace(problems=()):
            old.draft = draft
            return
        new = PolicyState(draft)
        new.subject = yield from self.groups.use(draft.subject, new)
        yield from build_rules(new, self.peers)
        # From here on it is in force; the walks that groups go through stay the same objects.
        self._policies[ref] = new
        new.is_current = True
        if old is not None:
            self._retire(old)
            for direction, walks in old.walks.items():
                if new.named_ports(direction) == old.named_ports(direction):
                    new.walks[direction], old.walks[direction] = walks, {}
                    for walk in walks.values():
                        walk.policy = new
            self._build(new)
        self._dirty_groups.update(new.subject.groups)

    def _build(self, policy: PolicyState) -> None:
        for walks in policy.walks.values():
            for walk in walks.values():
                self.walks.build(walk)

    def _retire(self, old: PolicyState) -> None:
        old.is_current = False
        if old.subject is not None:
            self._dirty_groups.update(old.subject.groups)
        self._obsolete.append(old)

    def _walk_again(self, group: PodGroup) -> Slices[None]:
        """Find again what the attachments of a group go through."""
        yield
        if group.state is None:
            return
        old, new = _walks_of(group), group_walks(self.walks, group)
        if old == new:
            return
        nodes = list(group.nodes)
        group.state = new
        for walk in new.used:
            walk.groups += 1
            self.walks.begin(walk, nodes)
        same = old._replace(used=()) == new._replace(used=())
        places = [] if same else list(group.attachments.items())
        for number, (place, attachment) in enumerate(places):
            if number % SLICE == SLICE - 1:
                yield
            if group.attachments.get(place) is attachment:
                self._isolate(place, attachment, group)
        for walk in old.used:
            walk.groups -= 1
            self.walks.cease(walk, nodes)
            if not walk.groups:
                self._unused[walk] = None

    def _drop_obsolete(self) -> Slices[None]:
        unused, self._unused = self._unused, {}
        for walk in unused:
            yield
            self.walks.drop_if_unused(walk)
        obsolete, self._obsolete = self._obsolete, []
        for policy in obsolete:
            for each in policy.peer_sets:
                yield
                self.peers.release(each, policy.ref)
            if policy.subject is not None:
                self.groups.release(policy.draft.subject, policy)

    def _dirty_steps_of(self, refs: Iterable[ObjectRef]) -> None:
        self._dirty_steps.update(dict.fromkeys(refs))

    def _dirty_groups_of(self, policy: PolicyState) -> None:
        if policy.is_current and policy.subject is not None:
            self._dirty_groups.update(policy.subject.groups)


def _walks_of(group: PodGroup) -> GroupWalks:
    state = group.state
    return state if isinstance(state, GroupWalks) else NO_WALKS


def _ref(kind: str, metadata: Metadata) -> ObjectRef:
    return ObjectRef(kind, metadata.namespace, metadata.name)


def _draft_of(given: PolicyObject) -> Slices[PolicyDraft]:
    if isinstance(given, NetworkPolicyObject):
        return read_network_policy(given)
    raise NotImplementedError
