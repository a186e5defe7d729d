"""What `sluice drops --json` prints, made of reports of counters and denials."""

import msgspec

from controller.references import Reference
from controller.reports.counters import DenialRow
from controller.reports.report import Report


class Drop(msgspec.Struct, frozen=True, rename="camel"):
    """Packets that a node's switch dropped for one reason."""

    node: str
    reason: str
    why: str
    objects: tuple[Reference, ...]
    table: str
    packets: int
    """Since the flow was added; with --follow, since the line before."""
    last: float | None
    """When the last of them came, to a second, in seconds since 1970; null: not known."""


class Dropped(Report, frozen=True, kw_only=True):
    """What `sluice drops --json` prints."""

    read: int
    of: int
    drops: tuple[Drop, ...]
    """Newest first."""
    denials: tuple[DenialRow, ...]
    """Which ends policy denied, if agents report it; newest first."""
    denials_enabled: bool
    unread: dict[str, str]
