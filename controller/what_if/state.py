"""What policies allow in one state of the cluster, for all ends at once."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from controller.what_if.ends import Ends, set_members
from controller.what_if.ports import Signature
from flows.policy import (
    EVERY_PORT,
    Direction,
    PeerMember,
    PeerSet,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    PortRange,
    PortSet,
    Walks,
)
from flows.refs import ObjectRef
from flows.view import ClusterView


class Reason(Enum):
    """What decides about a connection in one direction."""

    OPEN = "no policy selects it"
    RULE = "a rule"
    ISOLATED = "isolated, and no rule accepts it"
    REFUSED = "its policies do not fit into the switch"


class Decider(NamedTuple):
    """What decides about a connection in one direction, and how."""

    direction: Direction
    reason: Reason
    accepts: bool
    policy: ObjectRef | None = None
    """Of a rule: its policy."""
    rule: int = 0
    """Of a rule: its id."""
    isolation: Walks | None = None
    """If no rule accepts: the policies that were tried."""


@dataclass(frozen=True)
class State:
    """The parts of a view that policies are made of, as they are at one moment."""

    isolations: Mapping[str, tuple[Walks | None, Walks | None]]
    """By pod (or port name), from the pod and to the pod."""
    walks: Mapping[int, PolicyWalk]
    """By id. So are the sets."""
    peer_sets: Mapping[int, PeerSet]
    peer_members: Mapping[int, Mapping[str, PeerMember]]
    port_sets: Mapping[int, PortSet]

    @classmethod
    def of(cls, view: ClusterView) -> "State":
        """What the view holds now. The values are frozen, so they are shared and not copied."""
        return cls(
            {
                each.attachment.pod or each.attachment.port: (each.from_pod, each.to_pod)
                for node in view.isolations.values()
                for each in node.values()
            },
            {int(name, 16): walk for name, walk in view.walks.items()},
            _whole(view.peer_sets.values()),
            {int(name, 16): dict(found) for name, found in view.peer_members.items()},
            {int(name, 16): found for name, found in view.port_sets.items()},
        )

    def ranges(self, number: int) -> tuple[PortRange, ...] | None:
        """The ports of a set; None if there is no such set."""
        found = self.port_sets.get(number)
        return found.ranges if found else None

    def known_walks(self, walks: Walks | None) -> Iterator[PolicyWalk]:
        """The walks of an end in one direction."""
        if walks is not None:
            for number in (*walks.admin, *walks.policies, *walks.baseline):
                if (found := self.walks.get(number)) is not None:
                    yield found


def _whole(pages: Iterable[PeerSet]) -> dict[int, PeerSet]:
    """Each set with all of its blocks; the view has the blocks of a large one in pages."""
    found: dict[int, PeerSet] = {}
    for page in pages:
        known = found.get(page.id)
        if known is None:
            found[page.id] = page
            continue
        has_outsiders = known if known.outsiders is not None else page
        found[page.id] = has_outsiders._replace(blocks=(*known.blocks, *page.blocks))
    return found


Decisions = tuple[tuple[Decider, int], ...]
"""Who decides about which ends on the other side. Each end is in exactly one of these sets."""


@dataclass
class Evaluator:
    """Answers for one state."""

    state: State
    ends: Ends
    view: ClusterView
    """Only for what policies do not change."""
    before: "Evaluator | None" = None
    """Of the state before this one."""
    touched: AbstractSet[int] = frozenset()
    """The peer sets that are not as they were before."""
    _sets: dict[int, int] = field(default_factory=dict)

    def is_untouched(self, number: int | None) -> bool:
        """Whether a peer set is as it was before, as far as that is known."""
        return self.before is not None and number not in self.touched

    def peers(self, number: int | None) -> int:
        """The ends in a peer set."""
        if number is None:
            return self.ends.all
        if self.before is not None and self.is_untouched(number):
            return self.before.peers(number)
        found = self._sets.get(number)
        if found is None:
            members = self.state.peer_members.get(number, {}).values()
            found = self._sets[number] = set_members(
                self.ends,
                self.state.peer_sets.get(number),
                (member.address for member in members),
                self.view.cluster.pod_range,
            )
        return found

    def decisions(
        self, walks: Walks | None, direction: Direction, signature: Signature
    ) -> Decisions:
        """What an end with these walks does with each end on the other side, at some ports."""
        decided = self._decide(walks, direction, signature)
        return tuple((decider, bits) for decider, bits in decided if bits)

    def _decide(
        self, walks: Walks | None, direction: Direction, signature: Signature
    ) -> Iterator[tuple[Decider, int]]:
        undecided = self.ends.all
        if walks is None:
            yield Decider(direction, Reason.OPEN, True), undecided
            return
        refused = Decider(direction, Reason.REFUSED, False, isolation=walks)
        if walks.refused:
            yield refused, undecided
            return
        # As the switch does it, in the tables IsolationFromPod and PolicyWalk of flows.pipeline.
        for tier in (walks.admin, walks.policies if walks.isolated else walks.baseline):
            passed = 0
            for number in tier:
                walk = self.state.walks.get(number)
                if walk is None:
                    yield refused, undecided
                    return
                for step, hit in self._hits(walk, undecided, signature):
                    undecided &= ~hit
                    if step.action is PolicyAction.PASS:
                        passed |= hit
                        continue
                    accepts = step.action is PolicyAction.ACCEPT
                    yield Decider(direction, Reason.RULE, accepts, walk.policy, step.rule), hit
            undecided |= passed
        if walks.isolated:
            yield Decider(direction, Reason.ISOLATED, False, isolation=walks), undecided
        else:
            yield Decider(direction, Reason.OPEN, True), undecided

    def _hits(
        self, walk: PolicyWalk, undecided: int, signature: Signature
    ) -> Iterator[tuple[PolicyStep, int]]:
        """The steps that decide about any of these ends, and about which."""
        for step in walk.steps:
            if step.ports != EVERY_PORT and step.ports not in signature:
                continue
            if hit := undecided & self.peers(step.peers):
                undecided &= ~hit
                yield step, hit


def accepted(decisions: Decisions) -> int:
    """The ends on the other side that are accepted."""
    found = 0
    for decider, bits in decisions:
        if decider.accepts:
            found |= bits
    return found
