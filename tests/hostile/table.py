"""The figures of all attacks of a run: one table, and build/hostile.json.

A pytest plugin: each test's report carries its rows, so they arrive from other processes, too.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from tests.hostile.harness import Measured, Row

PROPERTY = "hostile"
"""Under which a test's report carries its rows."""
RESULT = Path(__file__).parents[2] / "build" / "hostile.json"
MEMORY = ("controller", "agent", "ovs-vswitchd")


def write(rows: Iterable[Row], path: Path = RESULT) -> None:
    """Bring the file up to date: rows of attacks that were not in this run stay as they are."""
    path.parent.mkdir(exist_ok=True)
    kept = {(row.attacker, row.attack): row for row in read(path)}
    kept |= {(row.attacker, row.attack): row for row in rows}
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps([msgspec.to_builtins(row) for row in kept.values()], indent=1))
    part.rename(path)


def read(path: Path = RESULT) -> list[Row]:
    """The rows of the file; none where it is missing or of another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Row])
    except (OSError, msgspec.MsgspecError):
        return []


COLUMNS = (
    "ATTACKER", "ATTACK", "CONN/S SAME NODE", "OTHER NODE", "PING LOST", "ADD ms", "HEALTHZ ms",
    *(f"{name.upper()} MB" for name in MEMORY),
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """Each figure as before → during → after; a rate during the attack as a ratio, too."""
    moments = (row.before, row.during, row.after)
    return [
        row.attacker,
        row.attack,
        _rates(row, "same_node_rate"),
        _rates(row, "other_node_rate"),
        _arrows([each and str(each.ping_lost) for each in moments]),
        _arrows([each and _milliseconds(each.add) for each in moments]),
        _arrows([each and _milliseconds(each.healthz) for each in moments]),
        *(_arrows([each and _memory(each, name) for each in moments]) for name in MEMORY),
    ]


def markdown(rows: Iterable[Row]) -> str:
    """The table for docs/security.md."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text(rows: Iterable[Row]) -> str:
    """The table for a terminal, as wide as it needs to be: nothing is cut."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*cells(row))
    console = Console(width=10_000, color_system=None)
    width = Measurement.get(console, console.options, table).maximum
    with console.capture() as captured:
        console.print(table, width=width)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _rates(row: Row, name: str) -> str:
    before, during, after = (
        each and getattr(each, name) for each in (row.before, row.during, row.after)
    )
    ratio = f" ({during / before:.2f})" if during is not None and before else ""
    shown = [None if rate is None else f"{rate:.0f}" for rate in (before, during, after)]
    if shown[1] is not None:
        shown[1] += ratio
    return _arrows(shown)


def _arrows(moments: list[str | None]) -> str:
    return " → ".join("-" if each is None else each for each in moments)


def _milliseconds(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{1000 * seconds:.0f}"


def _memory(measured: Measured, name: str) -> str:
    return f"{measured.memory[name]:.0f}" if name in measured.memory else "-"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what attacks cost their victims, if any were measured, and write it down."""
    rows = [
        msgspec.convert(value, Row)
        for reports in terminalreporter.stats.values()
        for report in reports
        for kind, value in getattr(report, "user_properties", ())
        if kind == PROPERTY and report.when == "call"
    ]
    if rows:
        terminalreporter.section("attacks: before → during (ratio) → after")
        terminalreporter.write(text(rows))
        write(rows)
