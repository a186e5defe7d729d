"""Logs of controller and agent: one JSON object a line, libraries' own lines among them."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import structlog

BURST: Final = 100
"""Lines of one event about one node (or namespace) that are written as they come."""
PER_SECOND: Final = 1.0
"""Lines of these after the burst."""
MAX_GROUPS: Final = 10_000
"""Groups of lines of which account is kept; of more, the one that was written the longest ago is
forgotten."""


class Limit:
    """Drops lines of an event that comes too often about one node, and says how many.

    A line's group is its event and its `limit_by`, or its `node` without that. So a node that
    floods the log hides its own lines alone.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._groups: OrderedDict[tuple[str, str], _Group] = OrderedDict()

    def __call__(
        self, _logger: object, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """As a processor of structlog. Raises `structlog.DropEvent`."""
        by = line.pop("limit_by", None)
        key = str(line.get("event")), str(line.get("node", "") if by is None else by)
        dropped = self._take(key)
        if dropped is None:
            raise structlog.DropEvent
        if dropped:
            line["dropped_before"] = dropped
        return line

    def allows_record(self, record: logging.LogRecord) -> bool:
        """As a filter of a `logging` handler. All lines of one place in the code are a group."""
        dropped = self._take((record.pathname, str(record.lineno)))
        if dropped:
            record.msg = f"{record.getMessage()} ({dropped} such lines were dropped before)"
            record.args = ()
        return dropped is not None

    def _take(self, key: tuple[str, str]) -> int | None:
        """How many lines of this group were dropped since the last one; None: drop this one."""
        now = self._monotonic()
        group = self._groups.setdefault(key, _Group(now))
        self._groups.move_to_end(key)
        if len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)
        if not group.take(now):
            return None
        dropped, group.dropped = group.dropped, 0
        return dropped


class _Group:
    """A token bucket."""

    __slots__ = ("_at", "_tokens", "dropped")

    def __init__(self, now: float) -> None:
        self._tokens, self._at, self.dropped = float(BURST), now, 0

    def take(self, now: float) -> bool:
        self._tokens = min(float(BURST), self._tokens + (now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self.dropped += 1
            return False
        self._tokens -= 1
        return True


def configure(level: str) -> None:
    """Write what is at least of this level (`debug`, `info`, `warning`, `error`) to stdout."""
    number = logging.getLevelNamesMapping()[level.upper()]
    limit = Limit()
    common: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        processors=[limit, *common, structlog.processors.JSONRenderer()],
    )
    lines = logging.StreamHandler(sys.stdout)
    lines.addFilter(limit.allows_record)
    lines.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Libraries log warnings and errors only; `openflow` is a part of Sluice.
    logging.basicConfig(handlers=[lines], level=logging.WARNING, force=True)
    logging.getLogger("openflow").setLevel(number)
