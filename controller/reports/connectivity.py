"""The answer of `sluice connectivity`, which the command makes itself."""

import msgspec

from controller.reports.report import Report


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """What became of one kind of traffic between two places."""

    kind: str
    source: str
    """Pod and node."""
    destination: str
    passed: bool
    said: str
    """What the client got, if it is not what it should have."""
    trace: str = ""
    """Where the packet ends, if it did not pass."""


class Connectivity(Report, frozen=True, kw_only=True):
    """What became of each kind of traffic."""

    rows: tuple[Row, ...]
