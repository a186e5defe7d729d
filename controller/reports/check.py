"""The answer of `sluice check`."""

from controller.reports.report import Report
from wire.findings import NodeFindings


class CheckReport(Report, frozen=True, kw_only=True):
    """What is wrong with some nodes, as their agents found it."""

    nodes: tuple[NodeFindings, ...]
    unanswered: dict[str, str]
    """By name, the nodes that were not checked, and why."""
