"""The lab's output in a terminal: progress, status, and which pods reach which."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

MAX_WIDTH = 10_000
"""Columns of a table, at most."""


class Steps:
    """A `lab.lab.Report`: one line for each part in a terminal, plain lines anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("[bold]{task.fields[part]:<10}[/]"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, part: str, doing: str, *, done: bool = False) -> None:
        if not self._console.is_terminal:
            passed = time.monotonic() - self._began
            self._console.print(f"{passed:6.1f} s  {part}: {doing}", markup=False, highlight=False)
            return
        task = self._tasks.get(part)
        if task is None:
            task = self._tasks[part] = self._progress.add_task("", total=1, part=escape(part))
        completed = 1 if done else 0
        self._progress.update(task, description=escape(doing), completed=completed)


def show_status(console: Console, status: Mapping[str, Any]) -> None:
    """`sluice lab status` for people."""
    controller = status["controller"]
    where = "an API server" if status["source"] == "kube" else "manifests in a directory"
    console.print(f"Lab [bold]{status['name']}[/]: {status['tunnel']}, its cluster from {where}")
    if not status["ready"]:
        console.print("[yellow]It is not complete: it is being started, or a daemon has ended.[/]")
    _print(
        console,
        ("PART", "PROCESS", "PID", "ADDRESS", "NAMESPACE"),
        [
            (
                name,
                f"controller{' (leads)' if each['leads'] else ''}",
                _pid(each["pid"]),
                each["address"],
                each["namespace"],
            )
            for name, each in status["controllers"].items()
        ]
        + [
            ("control", name, _pid(pid), controller["address"], controller["namespace"])
            for name, pid in status["control"]["pids"].items()
            if name != "controller"
        ]
        + [
            (name, process, _pid(pid), node["address"], node["namespace"])
            for name, node in status["nodes"].items()
            for process, pid in node["pids"].items()
        ]
        + [
            (part, "", "", status[part]["address"], status[part]["namespace"])
            for part in ("fabric", "outside")
        ],
    )
    if status["pods"]:
        _print(
            console,
            ("POD", "NODE", "ADDRESS", "MAC", "PORT", "NAMESPACE"),
            [
                (name, pod["node"], *(pod[key] or "-" for key in ("address", "mac", "port")),
                 pod["namespace"])
                for name, pod in status["pods"].items()
            ],
        )  # fmt: skip
    for subject, problem in status["problems"].items():
        console.print(f"[yellow]{escape(subject)}: {escape(problem)}[/]", soft_wrap=True)
    console.print(f"State and logs: {status['directory']}", highlight=False, soft_wrap=True)


def show_matrix(
    console: Console,
    rows: Sequence[str],
    columns: Sequence[str],
    milliseconds: Mapping[tuple[str, str], float | None],
) -> None:
    """Round-trip times by (from, to); None where nothing came back."""
    table = Table("from \\ to", *columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        cells = []
        for column in columns:
            if (row, column) not in milliseconds:
                cells.append("[dim]·[/]")
            elif (value := milliseconds[row, column]) is None:
                cells.append("[bold red]lost[/]")
            else:
                cells.append(f"[green]{value:.2f}[/]")
        table.add_row(f"[bold]{row}[/]", *cells)
    print_table(console, table)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it needs to be: a cut name cannot be copied, nor found by grep."""
    for column in table.columns:
        column.no_wrap = True
    # A console clamps what it prints to its own width: 80 columns where there is no terminal.
    before = console.width
    console.width = MAX_WIDTH
    console.width = Measurement.get(console, console.options, table).maximum
    try:
        console.print(table, crop=False)
    finally:
        console.width = before


def _print(console: Console, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*heading, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    print_table(console, table)
    console.print()


def _pid(pid: int | None) -> str:
    return "[red]dead[/]" if pid is None else str(pid)
