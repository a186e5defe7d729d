"""What a policy says, checked and in a canonical form; both kinds of policies become this."""

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from controller.policies.blocks import SLICE
from controller.policies.port_sets import NamedPort, Ports
from controller.policies.selectors import Selection
from controller.policies.slices import Slices
from controller.policies.texts import short_name
from flows.policy import Direction, PeerBlock, PolicyAction
from flows.refs import ObjectRef


class Tier(IntEnum):
    """The tiers in the order in which they decide."""

    ADMIN = 0
    POLICY = 1
    """NetworkPolicy."""
    BASELINE = 2


class Peers(NamedTuple):
    """The peers of a rule: the union of all of these."""

    selections: tuple[Selection, ...] = ()
    """Sorted by their text, each once."""
    blocks: tuple[PeerBlock, ...] = ()

    @property
    def has_all_pods(self) -> bool:
        """Whether every pod is a peer."""
        return any(each.is_everything for each in self.selections)

    def __bool__(self) -> bool:
        return bool(self.selections or self.blocks)


class Rule(NamedTuple):
    """One rule of a policy."""

    number: int
    """Its place in the object."""
    action: PolicyAction
    peers: Peers | None
    """None: everybody."""
    ports: Ports | None
    """None: all protocols and ports."""


class PolicyDraft(NamedTuple):
    """A policy."""

    ref: ObjectRef
    tier: Tier
    priority: int
    """Lower ones come first."""
    subject: Selection
    """The pods that it is for."""
    from_pod: tuple[Rule, ...] | None
    """None: it says nothing about this direction."""
    to_pod: tuple[Rule, ...] | None
    problems: tuple[str, ...] = ()

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """Its rules for a direction."""
        return self.from_pod if direction is Direction.FROM_POD else self.to_pod

    @property
    def order(self) -> tuple[int, str, str]:
        """Sorts the policies of a tier in the order in which they are tried."""
        return self.priority, self.ref.namespace, self.ref.name


def peers_of(selections: Iterable[Selection], blocks: tuple[PeerBlock, ...]) -> Peers:
    """Peers in their canonical form."""
    unique = set(selections)
    return Peers(tuple(sorted(unique, key=str) if len(unique) > 1 else unique), blocks)


def name_of_peers(
    peers: Peers | None, direction: Direction, named: tuple[NamedPort, int] | None
) -> Slices[str]:
    """A text that is equal for equal peers, and for no others.

    `named`: only those pods whose port of this name has this number.
    """
    parts = [direction.value]
    if named is not None:
        parts.append(f"{named[0]}={named[1]}")
    if peers is None:
        parts.append("everybody")
    else:
        parts += map(str, peers.selections)
        for done, block in enumerate(peers.blocks):
            if done % SLICE == SLICE - 1:
                yield
            parts.append(f"{'' if block.is_member else '!'}{block.network}")
    return short_name("|".join(parts))
