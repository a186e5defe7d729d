"""Lines of a log that anybody can cause: few, and a count of the rest."""

import logging
from typing import Final

LINES: Final = 10
"""Lines that pass in one period."""
PERIOD: Final = 10.0
"""Seconds."""


class LogLimit(logging.Filter):
    """Let `LINES` records of a logger pass in each period.

    The first record after that says how many were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since = float("-inf")
        self._passed = 0
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is logged."""
        if record.created - self._since >= PERIOD:
            self._since, self._passed = record.created, 0
        if self._passed >= LINES:
            self._dropped += 1
            return False
        self._passed += 1
        if self._dropped:
            record.msg = f"{record.getMessage()} ({self._dropped} more lines were left out)"
            record.args = ()
            self._dropped = 0
        return True
