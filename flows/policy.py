"""Policy as features see it: walks, sets and the isolation of attachments, as frozen values.

A policy selects pods and has rules. A rule becomes one or more steps of a walk: a set of peers, a
set of ports, an action. An isolated attachment goes through the walks of all policies that select
it. Sets are shared by all steps that name the same peers, or the same ports.

Ids of walks and sets are 64 bits of a digest of what they are *for* (a policy and a direction, a
list of selectors, a list of ports), never of their members. `controller.policies` finds collisions.
"""

from enum import Enum, IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from flows.family import IPAddress, IPNetwork
from flows.refs import ObjectRef
from flows.view import Attachment

EVERY_PORT: Final = 0
"""The id of the port set with all ports of all protocols."""


class Direction(Enum):
    """The direction of policy. Kubernetes says Egress and Ingress."""

    FROM_POD = "from-pod"
    TO_POD = "to-pod"

    # There is one object of each. `Enum` would hash its name, each time.
    __hash__ = object.__hash__


DIRECTIONS: Final = tuple(Direction)
"""Both. To go through an `Enum` takes longer."""


class PolicyAction(IntEnum):
    """What a step does with the packets that it matches: values of the register field `Verdict`.

    `Verdict` is 0 while no step has matched.
    """

    ACCEPT = 1
    DENY = 2
    PASS = 3
    """Skip the rest of this tier."""

    __hash__ = int.__hash__  # `Enum` would hash its name, each time


class PolicyStep(NamedTuple):
    """One step of a walk: packets of these peers and these ports get this action."""

    rule: int
    """The id of its rule, 32 bits, not 0; see `rule_id`. Several steps may belong to one rule."""
    action: PolicyAction
    peers: int | None
    """The id of a `PeerSet`; None: everybody."""
    ports: int = EVERY_PORT
    """The id of a `PortSet`."""


class PolicyWalk(NamedTuple):
    """The rules of one policy in one direction, in order. The first step that matches decides."""

    id: int
    direction: Direction
    policy: ObjectRef
    steps: tuple[PolicyStep, ...]


class PeerBlock(NamedTuple):
    """A range of addresses that is in a peer set, or is not (an `except`).

    Of all blocks that contain an address, the longest decides.
    """

    network: IPNetwork
    is_member: bool


class PeerSet(NamedTuple):
    """The peers of a rule, but for pods that are members by their labels: those are `PeerMember`.

    A member always counts, whatever the blocks say about its address.
    """

    id: int
    direction: Direction
    blocks: tuple[PeerBlock, ...] = ()
    """At most one for each network."""
    outsiders: tuple[IPNetwork, ...] | None = None
    """Not None: every address of the pod range is a member but for these: gateway addresses."""
    outsiders_mask: int | None = None
    """If given, it goes for `outsiders`, which then has one network: the addresses that agree with
    it in the bits of this mask are no members. So that thousands of nodes need one flow."""
    users: tuple[ObjectRef, ...] = ()
    """The policies that use it, at most `flows.kinds.MOST_OWNERS`."""


class PeerMember(NamedTuple):
    """One address that is a member of a peer set: a pod's, or the gateway address of a node."""

    peer_set: int
    direction: Direction
    address: IPAddress
    owner: ObjectRef


class PortRange(NamedTuple):
    """Ports of one protocol; all of them if `first` is None."""

    protocol: int
    """IANA's number: 6, 17 or 132."""
    first: int | None = None
    last: int | None = None
    """Inclusive."""


class PortSet(NamedTuple):
    """The ports of a rule."""

    id: int
    ranges: tuple[PortRange, ...]
    users: tuple[ObjectRef, ...] = ()
    """As `PeerSet.users`."""


class Walks(NamedTuple):
    """The walks of one attachment in one direction, by tier, each in the order of its rules."""

    admin: tuple[int, ...] = ()
    isolated: bool = False
    """Whether a NetworkPolicy selects it: then only what a rule accepts may pass."""
    policies: tuple[int, ...] = ()
    """The walks of these NetworkPolicies; policies without rules have none."""
    baseline: tuple[int, ...] = ()
    """Tried only if no NetworkPolicy selects it."""
    refused: bool = False
    """Its policies do not fit into the switch: nothing may pass."""


class Isolation(NamedTuple):
    """An attachment that a policy selects. None: no policy selects it in that direction."""

    attachment: Attachment
    from_pod: Walks | None = None
    to_pod: Walks | None = None


def policy_digest(text: str) -> int:
    """64 bits of a digest, not 0: the id of a walk or a set."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def blocks_id(peer_set: int) -> int:
    """The id under which a set that has the pod range, too, looks up its blocks."""
    return policy_digest(f"blocks of {peer_set:016x}")


def rule_id(text: str) -> int:
    """32 bits of a digest, not 0: the id of a rule, as `ct_label` holds it."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") or 1


SET_REFS: Final = frozenset({"PeerSet", "PortSet"})
"""The kinds of references to sets."""


@lru_cache(16_384)
def set_ref(kind: str, number: int) -> ObjectRef:
    """`PeerSet 0123456789abcdef`: the reference to a set; `kind` is PeerSet or PortSet."""
    return ObjectRef(kind, "", f"{number:016x}")
