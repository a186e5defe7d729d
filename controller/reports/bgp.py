"""The answer of `sluice bgp`."""

import msgspec

from controller.reports.report import Report


class ReasonRow(msgspec.Struct, frozen=True, rename="camel"):
    """An object that a route exists for."""

    kind: str
    namespace: str
    name: str


class RouteRow(msgspec.Struct, frozen=True, rename="camel"):
    """A route that a peer is told."""

    prefix: str
    kind: str
    """`PodRanges`, `LoadBalancerAddresses`, `ClusterIPs`, `ExternalIPs` or `EgressAddresses`."""
    nodes: tuple[str, ...]
    """The next hops. A peer that takes only one gets the first."""
    next_hops: tuple[str, ...]
    """The addresses of these nodes."""
    reasons: tuple[ReasonRow, ...]
    note: str
    """What else explains it; empty: nothing."""


class SessionRow(msgspec.Struct, frozen=True, rename="camel"):
    """One session with a peer."""

    node: str
    """Whose speaker it is; empty: that of the controller that answers."""
    state: str
    """As RFC 4271 names it: `Established`, `OpenSent`, `Connect`..."""
    since: float
    """When it was established or ended, or the speaker began to try (Unix time)."""
    add_path: bool | None
    """Whether the peer takes several next hops of one prefix; null: it has not said."""
    told: int
    """Paths that it was told: pairs of a prefix and a next hop."""
    received: int
    """Prefixes that it announced in this session. None is used."""
    ended: int
    """Sessions that ended in the last ten minutes."""
    reason: str
    """Why there is no session; empty: there is one, or the peer has not answered."""


class PeerRow(msgspec.Struct, frozen=True, rename="camel"):
    """A BGPPeer."""

    name: str
    used: bool
    """Whether anything is announced to it; `problem` says why not."""
    problem: str
    """Empty: none."""
    address: str
    port: int
    asn: int
    local_asn: int = msgspec.field(name="localASN")
    source: str = msgspec.field(name="from")
    """`Controllers` or `Nodes`."""
    announce: tuple[str, ...]
    sessions: tuple[SessionRow, ...]
    routes: tuple[RouteRow, ...]
    """What all its sessions together tell it; empty unless the report is about one peer."""
    route_count: int
    left_out: int
    """Routes that are too many."""


class BGPReport(Report, frozen=True, kw_only=True):
    """Peers, sessions and announced routes."""

    controller: str
    """The host of the controller that answers. Every other one has sessions of its own."""
    peers: tuple[PeerRow, ...]
    """By name."""
