"""The table of attacks: nothing of it is cut, and a partial run keeps the other rows."""

from pathlib import Path

from tests.hostile.harness import Measured, Row, worst
from tests.hostile.table import cells, markdown, read, text, write

QUIET = Measured(1000, 900, 0, 0.05, 0.002, {"controller": 90, "agent": 60, "ovs-vswitchd": 50})
BUSY = Measured(400, 890, 3, 0.5, None, {"controller": 95, "agent": 61, "ovs-vswitchd": 70})


def row(attack: str, during: Measured | None = BUSY) -> Row:
    return Row("pod", attack, QUIET, during, QUIET)


def test_figures_are_before_during_and_after() -> None:
    shown = cells(row("flood"))
    assert shown[2] == "1000 → 400 (0.40) → 1000"
    assert shown[4:8] == ["0 → 3 → 0", "50 → 500 → 50", "2 → failed → 2", "90 → 95 → 90"]


def test_an_attack_that_is_over_at_once_has_no_figures_during_it() -> None:
    assert cells(row("one packet", None))[2] == "1000 → - → 1000"


def test_no_cell_is_cut() -> None:
    long = "an attack with a name of two hundred characters " * 4
    (line,) = text([row(long.strip())]).splitlines()[1:]
    assert long.strip() in line
    assert line.endswith("50 → 70 → 50")
    assert long.strip() in markdown([row(long.strip())])


def test_rows_of_other_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "hostile.json"
    write([row("one"), row("two")], path)
    write([row("two", None)], path)
    assert read(path) == [row("one"), row("two", None)]


def test_the_worst_of_each_figure_counts() -> None:
    assert worst([QUIET, BUSY]) == Measured(
        400, 890, 3, 0.5, None, {"agent": 61, "controller": 95, "ovs-vswitchd": 70}
    )
    assert worst([]) is None
