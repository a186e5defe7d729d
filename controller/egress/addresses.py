"""All EgressAddresses: their pods, the nodes that may be their gateways, and the gateways.

Objects, Nodes and groups of pods are only noted; `settle` brings the view up to date, in slices. A
pod that starts is decided at once, before it is connected: it must not leave from its node's
address for a moment. The result depends on the objects, attachments and owners alone, never on the
order in which they came.
"""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from controller.address_owners import AddressOwners, Claim
from controller.egress.candidates import Candidates
from controller.egress.drafts import Draft, Range, read
from controller.egress.findings import problems_of, taken
from controller.egress.rules import NOWHERE, Rule
from controller.policies.pod_groups import Place, PodGroup, PodGroups
from controller.policies.slices import SLICE, Slices
from controller.problems import Note
from controller.sources.routed_objects import EgressAddressObject
from controller.work_budget import WorkBudget
from flows.family import IPAddress
from flows.kinds import EGRESS, EGRESS_GATEWAY, EGRESS_HERE, EGRESS_MEMBER, EGRESS_POD
from flows.refs import ObjectRef
from flows.view import (
    CLUSTER_SCOPE,
    SOME_SCOPE,
    Attachment,
    EgressAddress,
    EgressMember,
    EgressPod,
    Key,
    egress_number,
)

if TYPE_CHECKING:
    from controller.inventory.kept import KeptKind
    from controller.inventory.nodes import Nodes

MAX_EGRESS_ADDRESSES: Final = 1_024
"""The oldest ones are used. Each is some flows on every node."""
SOURCE: Final = "egress"
"""Of the claims at `AddressOwners`."""
SLICE_COST: Final = 20
"""Of one slice of work, as `work_budget.MAX_COST` counts."""


class EgressAddresses:
    """Keeps the egress part of the view."""

    def __init__(
        self,
        objects: "KeptKind[EgressAddressObject]",
        nodes: "Nodes",
        groups: PodGroups,
        owners: AddressOwners,
        ranges: Iterable[Range],
        on_hosts: Callable[[IPAddress], AbstractSet[str]],
        protected: Callable[[IPAddress], str],
        note: Note,
    ) -> None:
        """`ranges`: where no egress address may be. `on_hosts`: the nodes whose hosts have it.

        `protected`: what the cluster needs the address for, as an API server's; empty: nothing.
        """
        self.view: Final[dict[str, EgressAddress]] = {}
        self.gateways: Final[dict[str, set[str]]] = {}
        self.pods: Final[dict[str, dict[str, EgressPod]]] = {}
        self.members: Final[dict[str, EgressMember]] = {}
        """These four: see `ClusterView`."""
        self.rules: Final[dict[str, Rule]] = {}
        """By name, those that are used."""
        self.mtu: int | None = None
        """The largest MTU of pods that somebody has set (`cluster.mtu`); None: nobody has."""
        self.since: Final[dict[str, float]] = {}
        """By name, when its gateway began, in seconds since 1970, as far as this process knows."""
        self._objects = objects
        self._nodes = nodes
        self._groups = groups
        self._owners = owners
        self._ranges = tuple(ranges)
        self._on_hosts = on_hosts
        self._protected = protected
        self._note = note
        self._drafts: dict[str, Draft] = {}
        self._ages: list[tuple[str, str]] = []
        """Of all drafts, sorted."""
        self._by_address: dict[IPv4Address, str] = {}
        self._of_group: dict[PodGroup, Rule] = {}
        """The rule that the attachments of a group leave by."""
        self._hidden: dict[PodGroup, list[Rule]] = {}
        """By group, the further rules that select it."""
        self._of_place: dict[Place, Rule] = {}
        self._at: dict[str, Place] = {}
        """By member, the attachment that it is."""
        self._candidates = Candidates(nodes)
        self._claims: dict[IPv4Address, Claim] = {}
        self._have_addresses_changed = False
        self._touched: set[Key] = set()
        self._dirty_objects: dict[str, None] = {}
        self._dirty_nodes: dict[str, None] = {}
        self._dirty_groups: dict[PodGroup, None] = {}
        self._dirty_problems: dict[str, None] = {}
        self._work: Slices[None] | None = None
        objects.followers.append(self._object_changed)
        owners.followers.append(self.follow_owners)

    # --- what changes ---

    def _object_changed(self, name: str) -> None:
        self._dirty_objects[name] = None

    def follow_node(self, name: str) -> None:
        """A Node object was added, changed or removed."""
        if self._candidates.follow(name):
            self._dirty_nodes[name] = None

    def follow_accepted(self, names: Collection[str]) -> set[Key]:
        """What is accepted of Nodes changed: their addresses, or whether they take part."""
        self._dirty_nodes.update(dict.fromkeys(names))
        self._have_addresses_changed = True
        return set()  # see `settle`

    def follow_protected(self) -> None:
        """Other addresses than before are protected."""
        self._have_addresses_changed = True
        self._dirty_objects.update(dict.fromkeys(self._drafts))

    def joined(self, group: PodGroup) -> None:
        """As `Watcher.joined`."""
        self._dirty_groups[group] = None

    def left(self, group: PodGroup) -> None:
        """As `Watcher.left`."""
        self._dirty_groups[group] = None

    def placed(self, place: Place, attachment: Attachment | None, group: PodGroup | None) -> None:
        """An attachment was added, changed or removed. Its group is None if it is no pod's."""
        rule = self._rule_of(group) if group is not None and attachment is not None else None
        self._assign(place, attachment, rule)

    def follow_owners(self, changed: Collection[IPv4Address]) -> set[Key]:
        """These addresses have other owners. Returns the keys that changed."""
        for address in changed:
            if (name := self._by_address.get(address)) is not None:
                self._show(name)
        touched, self._touched = self._touched, set()
        return touched

    # --- what others ask ---

    def nodes_of(self, member: str) -> AbstractSet[str]:
        """The nodes that need the flow of a selected pod, by its address."""
        found = self.members.get(member)
        rule = self.rules.get(found.name) if found else None
        return rule.candidates if rule else NOWHERE

    def ordered(self) -> list[str]:
        """The names of all EgressAddresses, the oldest first."""
        return [name for _, name in self._ages]

    def pods_of(self, rule: Rule) -> set[str]:
        """`NAMESPACE/NAME` of the pods that leave by a rule."""
        found = (self.pods.get(place.node, {}).get(place.port) for place in rule.places)
        return {each.attachment.pod for each in found if each is not None}

    def at(self, node: str) -> set[IPv4Address]:
        """The addresses that a node may be the gateway of."""
        return {rule.address for rule in self.rules.values() if node in rule.candidates}

    def name_of(self, address: IPv4Address) -> str:
        """The EgressAddress that has an address; empty: none."""
        return self._by_address.get(address, "")

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left for `settle`."""
        return self._work is None and not self._is_dirty

    @property
    def _is_dirty(self) -> bool:
        return bool(
            self._dirty_objects or self._dirty_nodes or self._dirty_groups or self._dirty_problems
        )

    # --- the work ---

    def settle(self, budget: WorkBudget | None = None) -> set[Key]:
        """Bring the view up to date, as far as the budget reaches. Returns the keys that changed.

        Without a budget: all of it.
        """
        while not self.is_settled:
            if budget and budget.over:
                break
            if self._work is None:
                self._work = self._all()
            if next(self._work, self) is self:
                self._work = None
            if budget:
                budget.spend(SLICE_COST)
        touched, self._touched = self._touched, set()
        return touched

    def _all(self) -> Slices[None]:
        objects, self._dirty_objects = self._dirty_objects, {}
        nodes, self._dirty_nodes = self._dirty_nodes, {}
        if objects or nodes:
            yield from self._read(objects)
            yield from self._find_gateways(nodes)
            self._claim()
        while self._dirty_groups:
            yield from self._decide(self._dirty_groups.popitem()[0])
        noted, self._dirty_problems = self._dirty_problems, {}
        for name in noted:
            self._report(name)
            yield

    # --- objects ---

    def _read(self, names: Iterable[str]) -> Slices[None]:
        for name in names:
            given, old = self._objects.objects.get(name), self._drafts.pop(name, None)
            if old is not None:
                del self._ages[bisect_left(self._ages, old.age)]
            if given is None:
                self._note(ObjectRef("EgressAddress", "", name), "")
            else:
                draft = self._drafts[name] = read(given, self._ranges)
                insort(self._ages, draft.age)
            self._dirty_problems[name] = None
            yield
        if self._have_addresses_changed:
            self._have_addresses_changed = False
            self._dirty_problems.update(dict.fromkeys(self._drafts))
        wanted = self._usable()
        for name in [name for name in self.rules if name not in wanted]:
            self._retire(name)
            yield
        for name, (draft, address) in wanted.items():
            old_rule = self.rules.get(name)
            if old_rule is None:
                yield from self._begin(Rule(draft, address))
            elif old_rule.draft != draft:
                yield from self._change(old_rule, draft)

    def _usable(self) -> dict[str, tuple[Draft, IPv4Address]]:
        """The drafts that are used, and their addresses: of several with one number the oldest."""
        found: dict[str, tuple[Draft, IPv4Address]] = {}
        taken: set[int] = set()
        for _, name in self._ages[:MAX_EGRESS_ADDRESSES]:
            draft = self._drafts[name]
            if (address := draft.address) is None or address in self._nodes.addresses:
                continue
            if self._protected(address):
                continue
            number = egress_number(address)
            if number not in taken:
                taken.add(number)
                found[name] = draft, address
        return found

    def _begin(self, rule: Rule) -> Slices[None]:
        self.rules[rule.draft.name] = rule
        self._by_address[rule.address] = rule.draft.name
        rule.candidates = self._candidates.of(rule.draft.gateways)
        self._show(rule.draft.name)
        yield from self._select(rule)
        self._dirty_problems.update(dict.fromkeys(self._drafts))

    def _change(self, rule: Rule, draft: Draft) -> Slices[None]:
        old, rule.draft = rule.draft, draft
        if old.address != draft.address or old.age != draft.age:
            name = draft.name
            self._retire(name)
            if draft.address is not None:
                yield from self._begin(Rule(draft, draft.address))
            return
        if old.selection != draft.selection:
            self._release(rule, old)
            yield from self._select(rule)
        if old.gateways != draft.gateways:
            yield from self._move_candidates(rule, self._candidates.of(draft.gateways))

    def _retire(self, name: str) -> None:
        rule = self.rules.pop(name)
        self._release(rule, rule.draft)
        del self._by_address[rule.address]
        self._show(name)
        self._dirty_problems.update(dict.fromkeys(self._drafts))

    def _select(self, rule: Rule) -> Slices[None]:
        state = yield from self._groups.use(rule.draft.selection, rule)
        if rule.draft.selection != state.selection or self.rules.get(rule.draft.name) is not rule:
            return
        rule.selection = state
        state.watchers[self] = None
        self._dirty_groups.update(state.groups)

    def _release(self, rule: Rule, draft: Draft) -> None:
        state, rule.selection = rule.selection, None
        if state is not None:
            self._dirty_groups.update(state.groups)
            if not any(isinstance(user, Rule) and user is not rule for user in state.users):
                state.watchers.pop(self, None)
        self._groups.release(draft.selection, rule)

    # --- pods ---

    def _rule_of(self, group: PodGroup) -> Rule | None:
        if group in self._dirty_groups:
            self._choose(group)
        return self._of_group.get(group)

    def _choose(self, group: PodGroup) -> None:
        """Find the rule of a group: of several that select it, the oldest."""
        for rule in self._hidden.pop(group, ()):
            del rule.hidden[group]
            self._dirty_problems[rule.draft.name] = None
        self._of_group.pop(group, None)
        if not group.attachments:
            return
        found = sorted(
            (
                user
                for state in group.selected
                for user in state.users
                if isinstance(user, Rule) and user.selection is state
            ),
            key=lambda rule: rule.draft.age,
        )
        if found:
            first, *others = found
            self._of_group[group] = first
            self._hidden[group] = others
            for other in others:
                other.hidden[group] = first
                self._dirty_problems[other.draft.name] = None

    def _decide(self, group: PodGroup) -> Slices[None]:
        self._choose(group)
        rule = self._of_group.get(group)
        for number, (place, attachment) in enumerate(list(group.attachments.items())):
            if number % SLICE == SLICE - 1:
                yield
            if group.attachments.get(place) is attachment:
                self._assign(place, attachment, rule)
        yield

    def _assign(self, place: Place, attachment: Attachment | None, rule: Rule | None) -> None:
        """An attachment leaves by this rule, or by none."""
        of_node = self.pods.get(place.node, {})
        old, old_rule = of_node.get(place.port), self._of_place.pop(place, None)
        new = None
        if attachment is not None and rule is not None:
            new = EgressPod(attachment, rule.draft.name, rule.address)
            self._of_place[place] = rule
        if old_rule is not rule:
            if old_rule is not None and old_rule.remove(place):
                self._dirty_problems[old_rule.draft.name] = None
            if rule is not None and rule.add(place):
                self._dirty_problems[rule.draft.name] = None
        if old == new:
            return
        self._touched.add(Key(place.node, EGRESS_POD.name, place.port))
        if old is not None:
            self._remove_member(str(old.attachment.address), place, old_rule)
        if new is None:
            del of_node[place.port]
            if not of_node:
                del self.pods[place.node]
        else:
            self.pods.setdefault(place.node, {})[place.port] = new
            self._add_member(new, place)

    def _remove_member(self, address: str, place: Place, rule: Rule | None) -> None:
        if self._at.get(address) == place:
            del self._at[address], self.members[address]
            for node in rule.candidates if rule else ():
                self._touched.add(Key(node, EGRESS_MEMBER.name, address))

    def _add_member(self, pod: EgressPod, place: Place) -> None:
        address = str(pod.attachment.address)
        self._at[address] = place
        self.members[address] = EgressMember(
            pod.attachment.ref, pod.attachment.address, pod.name, pod.address
        )
        self._touched.add(Key(SOME_SCOPE, EGRESS_MEMBER.name, address))
        for node in self.nodes_of(address):
            self._touched.add(Key(node, EGRESS_MEMBER.name, address))

    # --- gateways ---

    def _find_gateways(self, nodes: Collection[str]) -> Slices[None]:
        used = {rule.draft.gateways for rule in self.rules.values()}
        moved = yield from self._candidates.update(nodes, used)
        for rule in list(self.rules.values()) if moved else ():
            if rule.draft.gateways in moved:
                yield from self._move_candidates(rule, self._candidates.of(rule.draft.gateways))
        for name in nodes:
            yield
            for egress in self.gateways.get(name, set()) | self._owned_by(name):
                self._show(egress)

    def _owned_by(self, node: str) -> set[str]:
        return {
            name
            for address, name in self._by_address.items()
            if self._owners.owners.get(address) == node
        }

    def _move_candidates(self, rule: Rule, new: frozenset[str]) -> Slices[None]:
        changed, rule.candidates = rule.candidates ^ new, new
        if not changed:
            return
        self._dirty_problems[rule.draft.name] = None
        for number, place in enumerate(list(rule.places)):
            if number % SLICE == SLICE - 1:
                yield
            if (pod := self.pods.get(place.node, {}).get(place.port)) is not None:
                address = str(pod.attachment.address)
                self._touched |= {Key(node, EGRESS_MEMBER.name, address) for node in changed}

    def _show(self, name: str) -> None:
        """Put an egress address, with the gateway of the moment, into the view."""
        rule, old = self.rules.get(name), self.view.get(name)
        new = None
        if rule is not None:
            owner = self._owners.owners.get(rule.address, "")
            node = self._nodes.accepted.get(owner)
            gateway = (owner, node.address) if node is not None else ("", None)
            new = EgressAddress(name, rule.address, *gateway)
        if old == new:
            return
        self._touched.add(Key(CLUSTER_SCOPE, EGRESS.name, name))
        for each, is_new in ((old, False), (new, True)):
            if each is None or not each.gateway:
                continue
            at = self.gateways.setdefault(each.gateway, set())
            (at.add if is_new else at.discard)(name)
            if not at:
                del self.gateways[each.gateway]
            self._touched |= {
                Key(each.gateway, EGRESS_HERE.name, name),
                Key(CLUSTER_SCOPE, EGRESS_GATEWAY.name, each.gateway),
            }
        if new is None:
            del self.view[name]
        else:
            self.view[name] = new
        if new is None or not new.gateway:
            self.since.pop(name, None)
        elif old is None or old.gateway != new.gateway:
            self.since[name] = time.time()

    def _claim(self) -> None:
        claims = {
            rule.address: Claim(
                rule.ref, rule.candidates, announce="Link" in rule.draft.announce, gated=True
            )
            for rule in self.rules.values()
        }
        if claims != self._claims:
            self._claims = claims
            self._owners.want(SOURCE, claims)

    # --- problems ---

    def _report(self, name: str) -> None:
        draft = self._drafts.get(name)
        if draft is None:
            return
        problems = [*draft.problems, *self._conflicts(draft)]
        if (rule := self.rules.get(name)) is not None:
            is_lowered = self.mtu is not None
            hosts = self._on_hosts(rule.address)
            problems += problems_of(rule, self._nodes.accepted, hosts, is_mtu_lowered=is_lowered)
        self._note(ObjectRef("EgressAddress", "", name), "; ".join(problems[:5]))

    def _conflicts(self, draft: Draft) -> Iterable[str]:
        address = draft.address
        if address is None or draft.name in self.rules:
            return
        if bisect_left(self._ages, draft.age) >= MAX_EGRESS_ADDRESSES:
            yield f"{MAX_EGRESS_ADDRESSES} EgressAddresses are the most of a cluster"
            return
        if (node := self._nodes.addresses.get(address)) is not None:
            yield f"spec.address: {address} is an address of Node {node.node}"
            return
        if what := self._protected(address):
            yield f"spec.address: {address} is {what}"
            return
        yield from taken(address, self.rules.values())
