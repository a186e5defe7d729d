"""The walks of policies, and which of them each group of attachments goes through."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from controller.policies.drafts import PolicyDraft, Rule, Tier
from controller.policies.ids import Ids
from controller.policies.named_ports import PortNumbers
from controller.policies.needs import Changes, Needed
from controller.policies.peer_sets import PeerSetState
from controller.policies.pod_groups import PodGroup, SelectionState
from controller.policies.port_sets import NamedPort, PortSets, PortSetState, merged
from controller.policies.slices import NOWHERE, SLICE, Slices, complete
from flows.features.policy import MOST_RESUBMITS, resubmits
from flows.kinds import WALK
from flows.policy import (
    EVERY_PORT,
    Direction,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    PortRange,
    Walks,
)
from flows.refs import ObjectRef

Resolution = tuple[tuple[NamedPort, tuple[PortRange, ...]], ...]
"""Each named port of a policy's rules to the pod, with its numbers on the pods of a group."""


class WalkState(Needed):
    """One walk of a policy: for the groups on which its named ports have the same numbers."""

    __slots__ = (
        "behind",
        "cost",
        "direction",
        "groups",
        "policy",
        "port_sets",
        "refused_rules",
        "resolution",
        "sets",
        "sets_before",
        "steps",
    )

    def __init__(
        self,
        name: str,
        number: int,
        policy: "PolicyState",
        direction: Direction,
        resolution: Resolution,
    ) -> None:
        super().__init__(name, number)
        self.policy = policy
        self.direction = direction
        self.resolution = resolution
        self.is_empty = True  # until it has steps
        self.groups = 0
        """How many groups go through it."""
        self.steps: tuple[PolicyStep, ...] = ()
        self.sets: tuple[Needed, ...] = ()
        """The sets of its steps, each once."""
        self.behind = NOWHERE
        """Nodes that still need `sets_before` instead, while its steps change."""
        self.sets_before: tuple[Needed, ...] = ()
        self.port_sets: tuple[PortSetState, ...] = ()
        """The sets of ports that it uses, with those of steps that are left out."""
        self.refused_rules: frozenset[int] = frozenset()
        """The rules of which a set is refused."""
        self.cost = 0
        """Resubmits of a packet that no step decides."""

    def fragments(self) -> Iterator[tuple[str, str]]:
        if not self.is_empty:
            yield WALK.name, self.key


class RuleState(NamedTuple):
    """A rule with its sets."""

    rule: Rule
    id: int
    peers: PeerSetState | None
    """None: everybody, or nobody where `rule.peers` is empty."""
    numbers: tuple[PortNumbers, ...] = ()
    """From the pod: the numbers of each named port."""
    named: tuple[tuple[PeerSetState, PortRange], ...] = ()
    """From the pod: for each number of a named port, the peers that have it."""
    has_too_many: bool = False
    """Whether a named port has more numbers than there are steps for."""


class PolicyState:
    """A policy that is in force."""

    __slots__ = (
        "draft", "is_current", "named_sets", "named_to_pod", "peer_sets", "rules", "subject",
        "walks",
    )  # fmt: skip

    def __init__(self, draft: PolicyDraft) -> None:
        self.draft = draft
        self.is_current = False
        """Whether it is in force: not yet before all of its sets are complete."""
        self.subject: SelectionState | None = None
        self.rules: dict[Direction, tuple[RuleState, ...]] = {}
        """The directions that it says something about."""
        self.walks: dict[tuple[Direction, Resolution], WalkState] = {}
        self.peer_sets: dict[PeerSetState, None] = {}
        self.named_sets: list[PeerSetState] = []
        """The sets of `RuleState.named`."""
        named = {
            port
            for rule in draft.to_pod or ()
            if rule.ports is not None
            for port in rule.ports.named
        }
        self.named_to_pod = tuple(sorted(named, key=str))
        """The named ports of its rules to the pod: their numbers depend on the pod itself."""

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return self.draft.ref

    def resolution(self, direction: Direction, group: PodGroup) -> Resolution:
        """The numbers of its named ports on the pods of a group."""
        if direction is Direction.FROM_POD:
            return ()
        return tuple([(port, group.numbers(port)) for port in self.named_to_pod])


class GroupWalks(NamedTuple):
    """What the attachments of a group go through."""

    from_pod: Walks | None
    to_pod: Walks | None
    used: tuple[WalkState, ...]
    """All walks, also those without steps."""
    refusal: str = ""
    """Why nothing may pass; empty: its policies decide."""


NO_WALKS: Final = GroupWalks(None, None, ())


class AllWalks:
    """Builds the walks of policies, and keeps account of who needs them."""

    def __init__(self, ports: PortSets, changes: Changes) -> None:
        self.view: Final[dict[str, PolicyWalk]] = {}
        """See `ClusterView.walks`."""
        self.states: Final[dict[str, WalkState]] = {}
        """By id, those that are not refused."""
        self.unused: dict[WalkState, None] = {}
        """Walks that no group went through for a moment."""
        self.changed: Callable[[PolicyState], None] = lambda _: None
        """Called with a policy whose groups have to go through other walks, or longer ones."""
        self.variants_changed: Callable[[PolicyState], None] = lambda _: None
        """Called with a policy that has other walks now."""
        self._ports = ports
        self._changes = changes
        self._ids: Ids[WalkState] = Ids()

    def __len__(self) -> int:
        return len(self._ids)

    # --- steps ---

    def build(self, walk: WalkState, *, is_new: bool = False) -> Slices[None]:
        """Build the steps of a walk, or build them again."""
        policy = walk.policy
        steps: dict[tuple[PolicyAction, int | None, int], PolicyStep] = {}
        used: dict[Needed, None] = {}
        port_sets: list[PortSetState] = []
        numbers = dict(walk.resolution)
        refused: set[int] = set()
        for state in policy.rules.get(walk.direction, ()):
            if state.has_too_many and state.rule.action is not PolicyAction.ACCEPT:
                step = PolicyStep(state.id, PolicyAction.DENY, None)
                steps.setdefault(step[1:], step)
                continue
            for peers, ports in self._pairs(state, numbers, policy.ref, port_sets):
                involved: list[Needed] = [each for each in (peers, ports) if each is not None]
                if not any(each.is_refused for each in involved):
                    step = PolicyStep(
                        state.id,
                        state.rule.action,
                        peers.number if peers is not None else None,
                        ports.number if ports is not None else EVERY_PORT,
                    )
                else:
                    refused.add(state.rule.number)
                    if state.rule.action is PolicyAction.ACCEPT:
                        continue
                    step, involved = PolicyStep(state.id, PolicyAction.DENY, None), []
                if steps.setdefault(step[1:], step) is step:
                    used.update(dict.fromkeys(involved))
        walk.refused_rules = frozenset(refused)
        cost = walk.cost
        yield from self._switch(walk, tuple(steps.values()), tuple(used))
        if walk.cost != cost and not is_new:
            self.changed(policy)
        old, walk.port_sets = walk.port_sets, tuple(port_sets)
        for each in old:
            self._ports.release(each, policy.ref)

    def _pairs(
        self,
        state: RuleState,
        numbers: Mapping[NamedPort, tuple[PortRange, ...]],
        ref: ObjectRef,
        port_sets: list[PortSetState],
    ) -> Iterator[tuple[PeerSetState | None, PortSetState | None]]:
        """The pairs of peers and ports that a rule matches; None: all of them."""
        rule = state.rule
        if rule.peers is None or rule.peers:
            if rule.ports is None:
                yield state.peers, None
            else:
                ranges = rule.ports.ranges
                if numbers and rule.ports.named:
                    named = (each for port in rule.ports.named for each in numbers.get(port, ()))
                    ranges = merged((*ranges, *named))
                if ranges:
                    port_sets.append(self._ports.use(ranges, ref))
                    yield state.peers, port_sets[-1]
        for peers, port in state.named:
            port_sets.append(self._ports.use((port,), ref))
            yield peers, port_sets[-1]

    def _switch(
        self, walk: WalkState, steps: tuple[PolicyStep, ...], sets: tuple[Needed, ...]
    ) -> Slices[None]:
        """Give a walk other steps. Each of its nodes needs the new sets then, and not the others.

        Nodes may begin and cease to need the walk meanwhile.
        """
        walk.steps, walk.is_empty = steps, not steps
        walk.cost = resubmits(_shown(walk)) if steps else 0
        self._show(walk)
        walk.sets_before, walk.sets = walk.sets, sets
        new = set(sets).difference(walk.sets_before)
        old = set(walk.sets_before).difference(sets)
        walk.behind = dict.fromkeys(walk.nodes) if new or old else NOWHERE
        done = 0
        while walk.behind:
            node = walk.behind.popitem()[0]
            for each in new:
                each.begin(node, self._changes)
            for each in old:
                each.cease(node, self._changes)
            done += len(new) + len(old)
            if done >= SLICE:
                done = 0
                yield
        walk.behind, walk.sets_before = NOWHERE, ()

    def _show(self, walk: WalkState) -> None:
        """What the view says about a walk has changed."""
        if self.states.get(walk.key) is not walk:
            return
        old, new = self.view.get(walk.key), _shown(walk) if walk.steps else None
        if old == new:
            return
        if new is None:
            del self.view[walk.key]
        else:
            self.view[walk.key] = new
        self._changes.content(WALK.name, walk.key)
        if old is None or new is None:
            for node in walk.nodes:
                self._changes.need(node, WALK.name, walk.key)

    # --- walks of groups ---

    def of(self, policy: PolicyState, direction: Direction, group: PodGroup) -> WalkState:
        """The walk of a policy for a group."""
        resolution = policy.resolution(direction, group)
        walk = policy.walks.get((direction, resolution))
        if walk is None:
            name = name_of_walk(policy.ref, direction, resolution)
            walk = WalkState(name, self._ids.number(name), policy, direction, resolution)
            policy.walks[direction, resolution] = walk
            # Until a group goes through it.
            self.unused[walk] = None
            self.variants_changed(policy)
            self._judged(self._ids.claim(walk))
            if not walk.is_refused:
                self.states[walk.key] = walk
            complete(self.build(walk, is_new=True))  # no node needs it yet
        return walk

    def enter(self, walk: WalkState) -> None:
        """A group goes through a walk now; `begin` has to follow for each of its nodes."""
        walk.groups += 1

    def leave(self, walk: WalkState) -> None:
        """A group does not go through a walk any more, after `cease` for each of its nodes."""
        walk.groups -= 1
        if not walk.groups:
            self.unused[walk] = None

    def begin(self, walk: WalkState, node: str) -> int:
        """A group that goes through a walk has attachments on a node now. Returns the cost."""
        if not walk.begin(node, self._changes):
            return 1
        for each in walk.sets:
            each.begin(node, self._changes)
        return 1 + len(walk.sets)

    def cease(self, walk: WalkState, node: str) -> int:
        """A group that goes through a walk has none on a node any more. Returns the cost."""
        if not walk.cease(node, self._changes):
            return 1
        sets = walk.sets
        if node in walk.behind:
            del walk.behind[node]
            sets = walk.sets_before
        for each in sets:
            each.cease(node, self._changes)
        return 1 + len(sets)

    def drop_unused(self) -> Slices[None]:
        """Forget the walks that no group goes through."""
        unused, self.unused = self.unused, {}
        for walk in unused:
            yield
            key = walk.direction, walk.resolution
            if not walk.groups and walk.policy.walks.get(key) is walk:
                self._drop(walk)

    def _drop(self, walk: WalkState) -> None:
        del walk.policy.walks[walk.direction, walk.resolution]
        self.variants_changed(walk.policy)
        for each in walk.port_sets:
            self._ports.release(each, walk.policy.ref)
        if not walk.is_refused:
            walk.touch(self._changes, walk.fragments())
            del self.states[walk.key]
            self.view.pop(walk.key, None)
        self._judged(self._ids.release(walk))

    def _judged(self, changed: Iterable[WalkState]) -> None:
        """Of these, `is_refused` has changed."""
        for each in sorted(changed, key=lambda each: not each.is_refused):
            if each.is_refused:
                del self.states[each.key]
                self.view.pop(each.key, None)
            else:
                self.states[each.key] = each
                self._show(each)
            for node in each.nodes:
                self._changes.need(node, WALK.name, each.key)
            self.changed(each.policy)


def _shown(walk: WalkState) -> PolicyWalk:
    return PolicyWalk(walk.number, walk.direction, walk.policy.ref, walk.steps)


def name_of_walk(ref: ObjectRef, direction: Direction, resolution: Resolution) -> str:
    """What the id of a walk is a digest of."""
    numbers = (
        f"{port}={','.join(f'{each.protocol}:{each.first}' for each in found)}"
        for port, found in resolution
    )
    return " ".join(("walk", str(ref), direction.value, *numbers))


def name_of_rule(ref: ObjectRef, direction: Direction, number: int) -> str:
    """What the id of a rule is a digest of."""
    return f"{ref} {direction.value} {number}"


def selecting(group: PodGroup) -> list[PolicyState]:
    """The policies that select the attachments of a group, in the order of their tiers."""
    found = (user for state in group.selected for user in state.users)
    current = [user for user in found if isinstance(user, PolicyState) and user.is_current]
    return sorted(current, key=lambda policy: (policy.draft.tier, policy.draft.order))


def group_walks(walks: AllWalks, group: PodGroup) -> GroupWalks:
    """What the attachments of a group go through now."""
    policies = selecting(group)
    if not policies:
        return NO_WALKS
    used: list[WalkState] = []
    from_pod, why_from = _of_direction(walks, group, policies, Direction.FROM_POD, used)
    to_pod, why_to = _of_direction(walks, group, policies, Direction.TO_POD, used)
    refusals = (f"{why}; nothing may pass" for why in (why_from, why_to) if why)
    return GroupWalks(from_pod, to_pod, tuple(used), "; ".join(refusals))


def _of_direction(
    walks: AllWalks,
    group: PodGroup,
    policies: Iterable[PolicyState],
    direction: Direction,
    used: list[WalkState],
) -> tuple[Walks | None, str]:
    """The walks of a group in one direction, and why it is refused; adds all walks to `used`."""
    tiers: tuple[list[int], list[int], list[int]] = [], [], []
    isolated = False
    cost = 0
    found: list[WalkState] = []
    refusal = ""
    for policy in policies:
        tier = policy.draft.tier
        if direction not in policy.rules or (tier is Tier.BASELINE and isolated):
            continue
        isolated |= tier is Tier.POLICY
        if not policy.rules[direction]:
            continue
        walk = walks.of(policy, direction, group)
        found.append(walk)
        if walk.is_refused:
            refusal = f"{policy.ref} has the id of another policy"
        elif walk.steps:
            tiers[tier].append(walk.number)
            cost += walk.cost
        if cost > MOST_RESUBMITS:
            return Walks(refused=True), (
                f"its policies {_WORDS[direction]} would take more than {MOST_RESUBMITS} look-ups"
                " of the switch for one packet"
            )
    used += found
    if refusal:
        return Walks(refused=True), refusal
    admin, named, baseline = tiers
    made = Walks(tuple(admin), isolated, tuple(named), tuple(baseline))
    return (None if made == Walks() else made), ""


_WORDS: Final = {Direction.FROM_POD: "from the pod", Direction.TO_POD: "to the pod"}
