"""A state of the model of the election (`tests.model.model`), as values."""

from enum import Enum
from typing import Final, NamedTuple

from openflow.messages import Role
from tests.model import elections
from tests.model.elections import CURRENT, Copy, Elected
from tests.model.switch import Switch


class Confirmed(Enum):
    """After what a renewal must begin that shows a leader that it may write on a connection."""

    REPLY = "the switch's reply to MASTER"
    CONNECTION = "the connection was made"
    NOTHING = "nothing: no renewal is needed"


class Rules(NamedTuple):
    """What replicas and agents do. The values by default are what is shipped."""

    confirmed: Confirmed = Confirmed.REPLY
    """A leader writes only after a renewal of its Lease that began after this. With CONNECTION, it
    also sends MASTER only then."""
    replied: bool = True
    """A leader writes only after the switch's reply to MASTER."""
    compared: bool = True
    """A leader compares the stored generation with its own before it writes."""
    restored: bool = True
    """The agent gives a restarted switch the newest generation that it has seen."""
    in_term: bool = True
    """A leader writes only before its term is over."""
    raised: bool = True
    """A leader whose generation a switch refuses begins a new term, of a newer one."""


class Faults(NamedTuple):
    """How often each may happen."""

    takeovers: int = 0
    """Of a Lease whose holder lives: it was late."""
    suspicions: int = 0
    """Of a holder that lives: it is taken for dead."""
    restarts: int = 0
    """Of the switch."""
    breaks: int = 0
    """Of a connection."""
    timeouts: int = 0
    """Of PUTs, whose request or answer is late or lost."""
    kills: int = 0
    """Of replicas."""
    deletions: int = 0
    """Of the Lease, by an administrator."""


class Put(NamedTuple):
    """A request to the API server."""

    lease: Copy
    confirms: bool
    """Whether it began after what `Rules.confirmed` says."""
    is_recent: bool = True
    """Whether it began within the term that it asks for."""


class Answer(NamedTuple):
    """Of the API server to a PUT."""

    put: Put
    done: bool
    term: int


class Replica(NamedTuple):
    election: Elected
    put: Put | None = None
    answer: Answer | None = None
    late: Put | None = None
    """A PUT that the replica does not wait for any more, and that will be executed."""
    term: int = 0
    """Which term of all, in the order of the API server. It tells terms of one generation apart,
    and nobody decides by it."""
    refused_by: int = 0
    """The newest generation that a switch has refused ours for."""


class Kind(Enum):
    """Of a request or its reply."""

    __hash__ = object.__hash__

    MASTER = "MASTER"
    SLAVE = "SLAVE"
    READ = "the stored generation"
    WRITE = "a write"
    STALE = "a role: it is stale"
    IS_SLAVE = "a write: it is SLAVE"


class Message(NamedTuple):
    kind: Kind
    generation: int
    term: int = 0


class Stage(Enum):
    """Of a connection, as its replica sees it."""

    __hash__ = object.__hash__

    NEW = "no role was asked for"
    FOLLOWS = "SLAVE was sent"
    ASKED = "MASTER was sent"
    GRANTED = "MASTER was granted, and the stored generation is not known"
    READ = "MASTER was granted, and the stored generation is known"


class Connection(NamedTuple):
    requests: tuple[Message, ...] = ()
    replies: tuple[Message, ...] = ()
    stage: Stage = Stage.NEW
    is_confirmed: bool = False
    """Whether a renewal has succeeded that began after what `Rules.confirmed` says."""
    generation: int = 0
    """As which MASTER was sent."""


class World(NamedTuple):
    """A state of everything."""

    lease: Copy | None
    term: int
    """Of the holder."""
    terms: int
    """Begun so far."""
    replicas: tuple[Replica, ...]
    connections: tuple[Connection | None, ...]
    switch: Switch
    seen: int
    """The newest stored generation that the agent has on disk."""
    newest_term: int
    """The newest term of which the switch has accepted a write."""
    is_stale: bool
    """Whether the last step was a write of an older term."""
    faults: Faults


NAMES: Final = "AB"


def start(faults: Faults, *, is_connected: bool = False, newest: int | None = None) -> World:
    """A leads, B has just started, and neither has asked the switch for a role.

    `newest`: the generation that the switch knows from before.
    """
    first, second = (Replica(elections.new(name)) for name in NAMES)
    wanted, _ = first.election.seen(None).due()
    assert wanted is not None
    lease = wanted._replace(version=CURRENT)
    first = first._replace(election=first.election.written(lease, True), term=1)
    switch = Switch((Role.EQUAL if is_connected else None,) * 2, newest, newest or 0)
    connections = (Connection() if is_connected else None,) * 2
    return World(lease, 1, 1, (first, second), connections, switch, 0, 0, False, faults)


def is_stale(world: World) -> bool:
    """The property is broken: a write was accepted after one of a later term."""
    return world.is_stale
