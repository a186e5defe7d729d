"""The answer of `sluice flows`."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class FlowRow(msgspec.Struct, frozen=True, rename="camel"):
    """A flow of a switch, or one that it should have."""

    table: str
    table_number: int
    priority: int
    cookie: str
    """Hexadecimal, with 16 digits."""
    packets: int
    bytes: int
    state: str
    """`installed`, `altered` (somebody changed it on the switch), `missing`, `stale` (no object
    needs it any more), `learned` (the switch made it) or `foreign` (not managed by Sluice); without
    a switch to look at `desired`."""
    feature: str = ""
    """What wrote it, the first byte of the cookie; empty: foreign or stale."""
    object: str = ""
    """The owners, for people."""
    owners: tuple[Reference, ...] = ()
    """The objects that it exists for."""
    reason: str = ""
    match: str = ""
    """As Open vSwitch prints it, or with names for register fields and ofports."""
    actions: str = ""
    groups: tuple[int, ...] = ()
    """Ids of the groups that it leads to."""


class BucketRow(msgspec.Struct, frozen=True, rename="camel"):
    """A bucket of a group."""

    id: int
    weight: int
    endpoint: str
    """The `ADDRESS:PORT` that it sends to; empty: none."""
    group: int | None
    """The group that it leads to, for choices that one group cannot hold."""
    actions: str


class GroupRow(msgspec.Struct, frozen=True, rename="camel"):
    """A group of a switch, or one that it should have."""

    id: int
    state: str
    """As that of a flow."""
    object: str
    owners: tuple[Reference, ...]
    reason: str
    """That of the flow that leads to it."""
    buckets: tuple[BucketRow, ...]


class FlowReport(Report, frozen=True, kw_only=True):
    """What the switch of a node holds at this moment, and what it lacks."""

    node: str
    flows: tuple[FlowRow, ...]
    """By table, then from high priority to low."""
    groups: tuple[GroupRow, ...]
