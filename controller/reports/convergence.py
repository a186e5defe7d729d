"""The answer of `sluice wait`."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class LackingRow(msgspec.Struct, frozen=True, rename="camel"):
    """A node whose switch is not proven to hold an object's flows."""

    node: str
    why: str


class LastRow(msgspec.Struct, frozen=True, rename="camel"):
    """The switch that was the last to hold an object's flows."""

    node: str
    at: float
    """When it acknowledged them, in seconds since 1970."""
    exact: bool
    """False: it acknowledged a later change at that time, and may have held them before."""


class Convergence(Report, frozen=True, kw_only=True):
    """Which switches are proven to hold the flows of an object, by their acknowledgement.

    The proof is the switch's answer: it has committed the bundle, or answered the barrier behind
    it. The flows are those that the object had when it was first asked about with this `id`.
    """

    object: Reference | None
    """Null: there is none yet."""
    id: str
    """Ask again with this, and the same state of the object is meant."""
    gone: bool = False
    """Whether the object is gone: then a switch that holds its absence is counted."""
    pending: str = ""
    """Why it is not known yet which switches need it; empty: it is known."""
    hold: int = 0
    """Switches that hold it."""
    need: int = 0
    """Switches that should. 0: no switch has flows for it."""
    last: LastRow | None = None
    """Of those that hold it."""
    in_force_at: float | None = None
    """When also the caches of these switches' datapaths follow, in seconds since 1970."""
    in_force: bool = False
    """Whether all hold it, and that time is over."""
    lacking: tuple[LackingRow, ...] = ()
    """The first of those that do not hold it."""
