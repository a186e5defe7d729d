"""Log lines: bounded by event and node, so that one node cannot fill the disk or hide others."""

import json
import logging
from contextlib import suppress

import pytest
import structlog

from settings import logs
from settings.logs import BURST, Limit


def written(limit: Limit, count: int, **line: str) -> list[dict[str, object]]:
    found = []
    for _ in range(count):
        with suppress(structlog.DropEvent):
            found.append(dict(limit(None, "info", dict(line))))
    return found


def test_lines_of_one_node_are_limited_and_the_next_says_how_many_were_dropped() -> None:
    now = 0.0
    limit = Limit(monotonic=lambda: now)
    assert len(written(limit, 22_000, event="problem", node="stolen")) == BURST
    assert written(limit, 1, event="problem", node="other") == [
        {"event": "problem", "node": "other"}
    ]
    assert written(limit, 1, event="drift", node="stolen") == [{"event": "drift", "node": "stolen"}]
    now = 5.0
    lines = written(limit, 100, event="problem", node="stolen")
    assert len(lines) == 5
    assert lines[0]["dropped_before"] == 22_000 - BURST
    assert "dropped_before" not in lines[1]


def test_group_of_a_line_is_not_written() -> None:
    limit = Limit()
    for tenant in ("a", "b"):
        lines = written(limit, 2 * BURST, event="problem", limit_by=tenant)
        assert lines == [{"event": "problem"}] * BURST


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_GROUPS", 10)
    limit = Limit()
    for number in range(1_000):
        written(limit, 1, event="x", node=f"n{number}")
    assert len(limit._groups) == 10


def test_lines_of_libraries_are_limited_by_their_place_in_the_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure("info")
    try:
        for number in range(5 * BURST):
            logging.getLogger("asyncio").error("accept failed: %d", number)
        logging.getLogger("asyncio").error("something else")
        for _ in range(5 * BURST):
            structlog.get_logger().warning("problem", limit_by="n1")
    finally:
        structlog.reset_defaults()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    lines = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 * BURST + 1
    assert lines[BURST] == "something else"
