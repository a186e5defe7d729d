"""The answer of `sluice trace`."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class FlowRow(msgspec.Struct, frozen=True, rename="camel"):
    """A flow that the packet met."""

    table: str
    cookie: str
    priority: int
    objects: tuple[Reference, ...]
    reason: str
    depth: int = 0
    """More than 0: in a resubmit, after which the flow before goes on."""


class Hop(msgspec.Struct, frozen=True, rename="camel"):
    """One thing that happens to the packet."""

    node: str
    """Empty: outside the nodes."""
    place: str
    """`switch`, `host` or `network`."""
    text: str
    table: str = ""
    """Of the flow that decides; empty: none does."""
    cookie: str = ""
    objects: tuple[Reference, ...] = ()
    packet: str = ""
    """The packet after this hop."""
    flows: tuple[FlowRow, ...] = ()
    """All flows that it met since the hop before."""


class Way(msgspec.Struct, frozen=True, rename="camel"):
    """The way of a packet in one direction."""

    packet: str
    hops: tuple[Hop, ...]
    delivered: bool
    end: str
    """`delivered to ...`, or who dropped it and why."""
    cure: str = ""
    """If it is not delivered: what would have to differ."""


class TraceReport(Report, frozen=True, kw_only=True):
    """Where a packet goes, and its reply."""

    source: str
    """As asked for."""
    destination: str
    protocol: str
    there: Way
    back: Way | None = None
    """The reply, if it was asked for and the packet was delivered."""
    notes: tuple[str, ...] = ()

    @property
    def delivered(self) -> bool:
        """Whether the packet, and its reply if that was asked for, arrive."""
        return self.there.delivered and (self.back is None or self.back.delivered)
