"""Attachments: their groups, their isolation, and their membership of sets."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from controller.policies.needs import Changes
from controller.policies.peer_sets import PeerSets
from controller.policies.pod_groups import GroupKey, Place, PodGroup, PodGroups
from controller.policies.port_sets import NamedPort
from controller.policies.slices import NOWHERE, SLICE, Slices
from controller.policies.walks import NO_WALKS, AllWalks, GroupWalks, PolicyState, group_walks
from controller.problems import Note
from controller.service_fields import PROTOCOLS
from controller.sources.objects import PodObject
from controller.work_budget import WorkBudget
from flows.family import IPAddress
from flows.kinds import ISOLATION
from flows.policy import Isolation
from flows.view import Attachment

Follower = Callable[[Place, Attachment | None, PodGroup | None], None]
"""Called with each attachment that was added, changed or removed, and its group; both are None if
it is gone, or no pod's."""


class Attachments:
    """All attachments of pods. An attachment is isolated before it is a member of any set."""

    def __init__(
        self,
        accepted: Mapping[str, Mapping[str, Attachment]],
        owner: Callable[[str, str], PodObject | None],
        groups: PodGroups,
        peers: PeerSets,
        walks: AllWalks,
        changes: Changes,
        note: Note,
        *,
        mirror_pods_as_members: bool,
    ) -> None:
        """`accepted` are the attachments of the view; `owner` finds the Pod of a node's port."""
        self.isolations: Final[dict[str, dict[str, Isolation]]] = {}
        """See `ClusterView.isolations`."""
        self.followers: Final[list[Follower]] = []
        self._accepted = accepted
        self._owner = owner
        self._groups = groups
        self._peers = peers
        self._walks = walks
        self._changes = changes
        self._note = note
        self._mirror_pods_as_members = mirror_pods_as_members
        self._dirty: dict[Place, None] = {}
        self._placed: dict[Place, tuple[Attachment, PodGroup]] = {}
        self._at: dict[IPAddress, Place] = {}
        """By address, the attachment that has it."""
        self._joined: dict[IPAddress, tuple[Attachment, PodGroup]] = {}
        """By address, what the sets have it as."""
        self._moved: dict[IPAddress, None] = {}
        """Addresses of which the sets are not up to date."""
        self._emptied: dict[PodGroup, None] = {}
        """Groups that had no attachment for a moment."""
        self._refused: set[Place] = set()
        """Attachments of which a problem was noted."""
        self._work: Slices[None] | None = None
        """What follows their isolation, in slices."""

    def __len__(self) -> int:
        return len(self._placed)

    def changed(self, node: str, port: str) -> None:
        """An attachment was added, changed or removed, or its Pod changed."""
        self._dirty[Place(node, port)] = None

    def group(self, node: str, port: str) -> PodGroup | None:
        """The group of an attachment; None: it is no pod's."""
        found = self._placed.get(Place(node, port))
        return found[1] if found else None

    @property
    def is_settled(self) -> bool:
        """Whether all attachments are in their groups and sets."""
        return not (self._dirty or self._work)

    def settle(self, budget: WorkBudget | None) -> None:
        """Isolate the attachments that changed, and then do the rest, as far as the budget reaches.

        An attachment that is not isolated yet is not connected either: the inventory is not settled
        (`controller.compilation`).
        """
        while not self.is_settled:
            if budget and budget.over:
                return
            if self._dirty:
                self._place(self._dirty.popitem()[0])
                self._work = self._work or self._follow()
            elif self._work is not None and next(self._work, self) is self:
                self._work = None
            if budget:
                budget.spend(1)

    def _follow(self) -> Slices[None]:
        """Join attachments to sets, and find the keys that nodes begin or cease to need.

        Further attachments may change meanwhile.
        """
        while self._moved or self._emptied or self._changes.noted.whole:
            while self._moved:
                yield from self._move(self._moved.popitem()[0])
                yield
            emptied, self._emptied = self._emptied, {}
            for group in emptied:
                self._forget_if_empty(group)
            yield from self._changes.spread()

    def _place(self, place: Place) -> None:
        """Find the group of an attachment, and isolate it."""
        old = self._placed.get(place)
        attachment = self._accepted.get(place.node, {}).get(place.port)
        key = self._group_key(place, attachment, old)
        if attachment is None or key is None:
            self._isolate(place, None, None)
            self._tell(place, None, None)
            if old is not None:
                del self._placed[place]
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
        self._placed[place] = attachment, group
        self._isolate(place, attachment, group)
        self._tell(place, attachment, group)
        if old is not None and group is not old[1]:
            self._leave(old[1], place)

    def _tell(self, place: Place, attachment: Attachment | None, group: PodGroup | None) -> None:
        for follower in self.followers:
            follower(place, attachment, group)

    def _vacate(self, place: Place, attachment: Attachment) -> None:
        """An attachment does not have its address any more; another one may have it already."""
        if self._at.get(attachment.address) == place:
            del self._at[attachment.address]
        self._moved[attachment.address] = None

    def _enter(self, key: GroupKey, place: Place, attachment: Attachment) -> PodGroup:
        """An attachment comes into a group."""
        group = self._groups.add(key, place, attachment)
        if group.state is None:
            group.state = walks = group_walks(self._walks, group)
            for walk in walks.used:
                self._walks.enter(walk)
        if group.nodes[place.node] == 1:
            for walk in _walks_of(group).used:
                self._walks.begin(walk, place.node)
        return group

    def _leave(self, group: PodGroup, place: Place) -> None:
        """An attachment leaves a group."""
        self._groups.remove(group, place)
        if not group.attachments:
            self._emptied[group] = None
        if place.node in group.nodes:
            return
        if place.node in group.entering:
            del group.entering[place.node]
            return
        for walk in _walks_of(group).used:
            self._walks.cease(walk, place.node)

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
            self._mirror_pods_as_members or not pod.is_mirror,
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
        self._changes.need(place.node, ISOLATION.name, place.port)

    def _note_refusal(self, place: Place, attachment: Attachment | None, refusal: str) -> None:
        known = self._placed.get(place)
        if refusal and attachment is not None:
            self._refused.add(place)
            self._note(attachment.ref, refusal)
        else:
            self._refused.discard(place)
            if (gone := attachment or (known[0] if known else None)) is not None:
                self._note(gone.ref, "")

    def _move(self, address: IPAddress) -> Slices[None]:
        """Bring the sets up to date with who has an address."""
        old = self._joined.pop(address, None)
        place = self._at.get(address)
        new = self._placed[place] if place is not None else None
        before = self._peers.sets_of(old[1]) if old else {}
        after = self._peers.sets_of(new[1]) if new else {}
        if new:
            self._joined[address] = new
            for done, each in enumerate(after, 1):
                self._peers.add_member(each, new[0])
                if done % SLICE == 0:
                    yield
        if old:
            for done, each in enumerate(before, 1):
                if each not in after:
                    self._peers.remove_member(each, old[0])
                if done % SLICE == 0:
                    yield

    def _forget_if_empty(self, group: PodGroup) -> None:
        if group.attachments or group.state is None:
            return
        self._groups.drop_if_empty(group)
        for walk in _walks_of(group).used:
            self._walks.leave(walk)
        group.state = None

    # --- changes of groups ---

    def select_again(self, group: PodGroup) -> Slices[bool]:
        """Find again which selections match a group. Returns whether other policies select it."""
        before = self._peers.sets_of(group)
        joined, left = self._groups.select_again(group)
        after = self._peers.sets_of(group)
        users = (user for state in (*joined, *left) for user in state.users)
        is_concerned = any(isinstance(user, PolicyState) for user in users)
        done = 0
        for change, concerned in (
            (self._peers.add_member, after.keys() - before.keys()),
            (self._peers.remove_member, before.keys() - after.keys()),
        ):
            for each in concerned:
                for place, attachment in list(group.attachments.items()):
                    done += 1
                    if done % SLICE == 0:
                        yield
                    if group.attachments.get(place) is attachment:
                        change(each, attachment)
        return is_concerned

    def walk_again(self, group: PodGroup) -> Slices[None]:
        """Find again what the attachments of a group go through."""
        yield
        if group.state is None:
            return
        old, new = _walks_of(group), group_walks(self._walks, group)
        if old == new:
            return
        nodes = list(group.nodes)
        group.state, group.entering = new, dict.fromkeys(nodes)
        yield from self._enter_walks(group, new)
        same = old._replace(used=()) == new._replace(used=())
        places = [] if same else list(group.attachments.items())
        for number, (place, attachment) in enumerate(places):
            if number % SLICE == SLICE - 1:
                yield
            if group.attachments.get(place) is attachment:
                self._isolate(place, attachment, group)
        yield from self._leave_walks(nodes, old)

    def _enter_walks(self, group: PodGroup, new: GroupWalks) -> Slices[None]:
        for walk in new.used:
            self._walks.enter(walk)
        done = 0
        while group.entering:
            node = group.entering.popitem()[0]
            done += sum(self._walks.begin(walk, node) for walk in new.used)
            if done >= SLICE:
                done = 0
                yield
        group.entering = NOWHERE

    def _leave_walks(self, nodes: Iterable[str], old: GroupWalks) -> Slices[None]:
        done = 0
        for node in nodes:
            done += sum(self._walks.cease(walk, node) for walk in old.used)
            if done >= SLICE:
                done = 0
                yield
        for walk in old.used:
            self._walks.leave(walk)


def _walks_of(group: PodGroup) -> GroupWalks:
    state = group.state
    return state if isinstance(state, GroupWalks) else NO_WALKS
