"""What is measured: a name, samples and an aim; how it is shown, and how it is written down."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.display import print_table


@dataclass(frozen=True)
class Figure:
    """Samples of one quantity; its value is their median."""

    name: str
    unit: str
    samples: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def aim(self) -> str:
        """For people; empty for what only explains another figure."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else ""

    @property
    def met(self) -> bool:
        """Whether the value is what was aimed at."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


def versus(
    name: str,
    unit: str,
    ours: Sequence[float],
    rival: tuple[str, Sequence[float]],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> list[Figure]:
    """Ours over the rival's, sample by sample, each pair measured one right after the other.

    Both sides follow as figures of their own.
    """
    whose, theirs = rival
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return [
        Figure(name, "ratio", ratios, at_least, at_most),
        Figure(f"{name}.sluice", unit, ours),
        Figure(f"{name}.{whose}", unit, theirs),
    ]


UNSURE = 0.05
"""A median that may be off by more than this part is worth more rounds."""


MOST_ROUNDS = 4
"""Times the rounds that are asked for."""


def steady_rounds(ratios: Sequence[float], least: int) -> Iterator[int]:
    """Numbers of rounds, from 0: `least`, and up to `MOST_ROUNDS` times that while it is unsure.

    Each round adds to `ratios`, whose median is what is to be sure of.
    """
    for number in range(MOST_ROUNDS * least):
        if number >= least and unsure(ratios) <= UNSURE:
            return
        yield number


def unsure(samples: Sequence[float]) -> float:
    """By which part the median may be off, with a confidence of 95 %; any distribution.

    So many samples at either end may lie on the wrong side of the true median (normal
    approximation of the binomial distribution).
    """
    ordered = sorted(samples)
    count = len(ordered)
    outside = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    widest = ordered[count - 1 - outside] - ordered[outside]
    return widest / 2 / statistics.median(ordered)


def percentile(samples: Iterable[float], part: float) -> float:
    """The smallest sample that at least this part of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)]


def show(console: Console, figures: Iterable[Figure]) -> None:
    """A table for people. ± is by how much the median may be off: see `unsure`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("FIGURE", no_wrap=True)
    for heading in ("MEDIAN", "±", "LEAST", "MOST", "SAMPLES"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("UNIT", no_wrap=True)
    table.add_column("AIM", no_wrap=True)
    for figure in figures:
        indented = figure.name if figure.aim else f"  {figure.name}"
        verdict = "" if not figure.aim else " [green]met[/]" if figure.met else " [red]missed[/]"
        numbers = (figure.value, min(figure.samples), max(figure.samples))
        median, *ends = (f"{n:,.3g}" if abs(n) < 1000 else f"{n:,.0f}" for n in numbers)
        spread = f"{unsure(figure.samples):.0%}" if figure.value else ""
        table.add_row(
            indented,
            *(median, spread, *ends),
            str(len(figure.samples)),
            figure.unit,
            figure.aim + verdict,
        )
    print_table(console, table)


def write(path: Path, figures: Iterable[Figure]) -> None:
    """All of it as JSON."""
    content = {
        figure.name: {
            "value": figure.value,
            "unit": figure.unit,
            "samples": list(figure.samples),
        }
        for figure in figures
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": content}, indent=1) + "\n")
