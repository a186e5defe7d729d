"""BGP sessions and their routes: what a speaker gets, and what it says of its sessions.

The controller has a speaker of its own, and tells agents of theirs (`paths.BGP`).
"""

from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.sentences import HIDDEN, MAX_SENTENCE

MAX_PEERS: Final = 16
"""Peers of one speaker. Each is a process of some 40 MB."""
MAX_PATHS: Final = 20_000
"""Pairs of prefix and next hop that one peer is told."""
MAX_NEXT_HOPS: Final = 64
"""Of one prefix. Routers use fewer for equal-cost routes."""
MAX_CLAIMED: Final = 5
"""Prefixes that a report names."""


class Peer(msgspec.Struct, frozen=True, rename="camel"):
    """A BGP neighbour, and how to speak with it."""

    name: str
    """Of the BGPPeer."""
    address: IPv4Address
    port: int
    asn: int
    local_asn: int
    hold_time: int
    """Seconds."""
    graceful_restart: int = 0
    """Seconds; 0: none."""
    multihop: int = 0
    """The TTL of packets; 0: 1, the peer is on the link."""
    password: str = ""
    communities: tuple[str, ...] = ()
    local_preference: int | None = None

    @property
    def connection(self) -> "Peer":
        """What a session depends on; the rest may change without a new one."""
        return msgspec.structs.replace(self, communities=(), local_preference=None)


class Route(msgspec.Struct, frozen=True, array_like=True):
    """A prefix, and the nodes that packets to it may be sent to."""

    prefix: IPv4Network
    next_hops: tuple[IPv4Address, ...]
    """The first one is for peers that take only one."""


class PeerAnnouncements(msgspec.Struct, frozen=True, rename="camel"):
    """What one peer is told."""

    peer: Peer
    routes: tuple[Route, ...]


class NodeBGP(msgspec.Struct, frozen=True, rename="camel"):
    """The peers of a node's own speaker (`paths.BGP`)."""

    node: str
    peers: tuple[PeerAnnouncements, ...]
    own_ranges: tuple[IPv4Network, ...]
    """Ranges of the cluster: what a peer announces of them is reported."""
    revision: str
    """As `NodeConfig.revision`."""


Text = Annotated[str, Meta(max_length=MAX_SENTENCE, pattern=rf"\A[^{HIDDEN}]*\Z")]
"""Of an agent, for people (`wire.sentences`)."""
Word = Annotated[str, Meta(max_length=253, pattern=r"\A[!-~]*\Z")]
"""A name, an address or a state."""
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Time = Annotated[float, Meta(ge=0, lt=1e11)]
"""Seconds since 1970."""


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """How it stands with one peer."""

    peer: Word
    """The name of the BGPPeer."""
    state: Word
    """As RFC 4271 names it: `Established`, `OpenSent`, `Connect`..."""
    since: Time
    """When the session was established or ended, or the speaker began to try."""
    add_path: bool | None = None
    """Whether the peer takes several next hops of one prefix (RFC 7911); None: it has not said."""
    told: Count = 0
    """Routes that the peer was told."""
    reason: Text = ""
    """Why the last session ended, or why there is none."""
    ended: Count = 0
    """Established sessions that ended in the last `FLAP_SECONDS`."""
    received: Count = 0
    """Prefixes that the peer announced in this session. None of them is used."""
    default_route: bool = False
    """Whether a default route is among them."""
    claimed: Annotated[tuple[Word, ...], Meta(max_length=MAX_CLAIMED)] = ()
    """Some of those that are the cluster's own and were not learned from us."""

    @property
    def is_established(self) -> bool:
        """Whether routes are exchanged."""
        return self.state == "Established"


class NodeSessions(msgspec.Struct, frozen=True, rename="camel"):
    """The sessions of a node's own speaker (`paths.BGP_SESSIONS`)."""

    sessions: Annotated[tuple[Session, ...], Meta(max_length=MAX_PEERS)]


FLAP_SECONDS: Final = 600.0
"""For how long an ended session is remembered."""
