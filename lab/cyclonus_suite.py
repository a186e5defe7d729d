"""Cyclonus (github.com/mattfenwick/cyclonus): generated NetworkPolicies, checked by truth tables.

`python -m lab.cyclonus_suite`, or `make cyclonus`. Each test case changes policies, labels or Pods,
tries every connection between nine Pods, and compares the results with Cyclonus' own evaluation.
What this module reads of its output is in its pkg/cli/generate.go and pkg/connectivity/printer.go.
"""

import re
import shutil
import sys
import time
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
LEFT_OUT: Final = ("sctp",)
"""Tags of cases that are not run: the lab's kernel has no SCTP."""
_LIMIT_HOURS = 6
OPTIONS: Final = (
    "generate",
    f"--exclude={','.join(LEFT_OUT)}",
    "--server-protocol=TCP,UDP",
    # Seconds from a change until it must be in force; the default is 5.
    "--perturbation-wait-seconds=1",
    # Seconds after which a connection counts as denied; the default is 10.
    "--job-timeout-seconds=2",
    "--pod-creation-timeout-seconds=180",
    "--cleanup-namespaces",
)


@click.command()
@click.option("--name", default="cluster", show_default=True, help="The lab, which must be up.")
@click.option("--include", multiple=True, metavar="TAG", help="Only cases with one of these tags.")
@click.option("--list", "listing", is_flag=True, help="Print the cases' names, and run none.")
def main(name: str, include: Sequence[str], listing: bool) -> None:
    """Run the test cases of Cyclonus against a lab of kubelets."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        with one_interrupt():
            program = built("cyclonus")
            cases = known_cases(program, include)
            if listing:
                console.print("\n".join(cases))
                return
            lab = Lab(name)
            need_kubelets(lab)
            began = time.monotonic()
            results = run(lab, program, include, REPORTS, printer(console, len(cases)))
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(130)
    passed = sum(result.passed for result in results)
    for result in results:
        if not result.passed:
            console.print(f"\n{result.message}")
    took = time.monotonic() - began
    console.print(f"{passed} of {len(cases)} passed, in {took:.0f} s. Report: {REPORTS}")
    sys.exit(0 if passed == len(cases) else 1)


def printer(console: Console, total: int) -> Ended:
    """Return a function that prints each case that ended."""
    count = 0

    def ended(name: str, state: str, seconds: float) -> None:
        nonlocal count
        count += 1
        console.print(f"{count:3} of {total}  {state} {seconds:6.1f} s  {name}")

    return ended


def known_cases(program: Path, include: Sequence[str] = ()) -> list[str]:
    """Return the names of the cases, in order. Raises `LabError`."""
    listed = complete([str(program), *OPTIONS, *_included(include), "--mock", "--dry-run"])
    cases = re.findall(r"^test #\d+: (.*)$", listed.stdout, re.MULTILINE)
    if not cases:
        raise LabError(f"{program} has no such cases: {listed.stderr.strip()}")
    return cases


def run(
    lab: Lab, program: Path, include: Sequence[str], reports: Path, ended: Ended
) -> list[Result]:
    """Run the cases one after the other; return their results in this order.

    `reports` is emptied first; afterwards it contains Cyclonus' output (cyclonus.log), with the
    truth tables of each case, and a JUnit report (junit.xml). Raises `LabError` if Cyclonus stops
    before its last case.
    """
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    log, junit = reports / "cyclonus.log", reports / "junit.xml"
    cases = known_cases(program, include)
    command = [str(program), *OPTIONS, *_included(include), f"--junit-results-file={junit}"]
    with running(lab, command, log, _LIMIT_HOURS * 3600) as lines:
        results = _results(lines, ended)
    if len(results) < len(cases):
        raise LabError(f"stopped after {len(results)} of {len(cases)} cases; {end_of(log)}")
    return results


def _included(tags: Sequence[str]) -> list[str]:
    return [f"--include={','.join(tags)}"] if tags else []


def _results(lines: Iterable[str], ended: Ended) -> list[Result]:
    """Read Cyclonus' output. It prints the tables of a case when the case has ended."""
    results: list[Result] = []
    name, tables, failed, began = "", [""], False, time.monotonic()
    for line in lines:
        if line.startswith("starting test case #"):
            name, tables, failed, began = "", [], False, time.monotonic()
        elif found := re.match(r"evaluating test case: (.*)", line):
            name, tables = found[1], [line]
        elif line.startswith("finished policy #"):
            state, seconds = ("failed" if failed else "passed"), time.monotonic() - began
            results.append(Result(state, seconds, "".join(tables) if failed else ""))
            ended(name, state, seconds)
        else:
            tables.append(line)
            failed |= line.startswith("Discrepancy found:")
    return results


if __name__ == "__main__":
    main()
