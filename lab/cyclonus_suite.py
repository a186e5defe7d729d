"""Cyclonus (github.com/mattfenwick/cyclonus): generated NetworkPolicies, checked by truth tables.

`python -m lab.cyclonus_suite`, or `make cyclonus`. Each test case changes policies, labels or Pods,
tries every connection between nine Pods, and compares the results with Cyclonus' own evaluation. If
they differ, Cyclonus tries all connections once more. The program is cyclonus/main.go in this
directory.
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from lab import Lab, LabError
from lab.commands import complete
from lab.conformance import need_kubelets
from lab.interrupt import one_interrupt
from lab.upstream import Ended, Result, built, end_of, running

REPORTS = Path(__file__).parents[1] / "build" / "cyclonus"
OPTIONS: Final = (
    "-exclude=sctp",  # the lab's kernel has no SCTP sockets
    "-wait=1",
)
_LIMIT_HOURS = 6


@click.command()
@click.option("--name", default="cluster", show_default=True, help="The lab, which must be up.")
@click.option("--include", multiple=True, metavar="TAG", help="Only cases with one of these tags.")
@click.option(
    "--first", default=1, show_default=True, type=click.IntRange(min=1), help="The first case."
)
@click.option("--list", "listing", is_flag=True, help="Print the cases' names, and run none.")
def main(name: str, include: Sequence[str], first: int, listing: bool) -> None:
    """Run the test cases of Cyclonus against a lab of kubelets."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        with one_interrupt():
            program = built("cyclonus")
            selection = [f"-include={','.join(include)}", f"-first={first}"]
            cases = known_cases(program, selection)
            if listing:
                console.print("\n".join(cases))
                return
            lab = Lab(name)
            need_kubelets(lab)
            began = time.monotonic()
            results = run(lab, program, selection, REPORTS, printer(console, len(cases)))
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(130)
    counts = Counter(result.state for result in results)
    passed = counts["passed"] + counts["repeated"]
    took = time.monotonic() - began
    console.print(
        f"{passed} of {len(cases)} passed, {counts['repeated']} of them at the second try, in"
        f" {took:.0f} s. Reports: {REPORTS}"
    )
    sys.exit(0 if passed == len(cases) else 1)


def printer(console: Console, total: int) -> Ended:
    """Return a function that prints each case that ended."""
    count = 0

    def ended(name: str, state: str, seconds: float) -> None:
        nonlocal count
        count += 1
        console.print(f"{count:3} of {total}  {state} {seconds:6.1f} s  {name}")

    return ended


def known_cases(program: Path, selection: Sequence[str] = ()) -> list[str]:
    """Return the names of the cases, in order; `selection` are options. Raises `LabError`."""
    listed = complete([str(program), *OPTIONS, *selection, "-list"])
    cases = listed.stdout.splitlines()
    if not cases:
        raise LabError(f"{program} has no such cases: {listed.stderr.strip()}")
    return cases


def run(
    lab: Lab, program: Path, selection: Sequence[str], reports: Path, ended: Ended
) -> list[Result]:
    """Run the cases one after the other; return their results in this order.

    `reports` is emptied first; afterwards it contains Cyclonus' output (cyclonus.log), with the
    truth tables of each case, and a JUnit report (junit.xml). Raises `LabError` if Cyclonus stops
    before its last case.
    """
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    log, junit = reports / "cyclonus.log", reports / "junit.xml"
    cases = known_cases(program, selection)
    command = [str(program), *OPTIONS, *selection, f"-junit={junit}"]
    with running(lab, command, log, _LIMIT_HOURS * 3600) as lines:
        results = _results(lines, ended)
    if len(results) < len(cases):
        raise LabError(f"stopped after {len(results)} of {len(cases)} cases; {end_of(log)}")
    return results


def _results(lines: Iterable[str], ended: Ended) -> list[Result]:
    """Read Cyclonus' output. It prints the tables of a case when the case has ended."""
    results: list[Result] = []
    name, tables, began = "", [""], time.monotonic()
    for line in lines:
        if line.startswith("CASE "):
            name, tables, began = line[5:].strip(), [line], time.monotonic()
        elif line.startswith("RESULT "):
            state, seconds = line[7:].strip(), time.monotonic() - began
            results.append(Result(state, seconds, "" if state == "passed" else "".join(tables)))
            ended(name, state, seconds)
        else:
            tables.append(line)
    return results


if __name__ == "__main__":
    main()
