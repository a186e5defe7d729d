"""Run upstream's network tests against a lab that is a whole Kubernetes.

`python -m lab.conformance`, or `make conformance`. They are Kubernetes' own tests, and the
conformance suite of ClusterNetworkPolicy. conformance.yaml in this directory lists which of them
run, and which do not and why.
"""

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import yaml
from rich.console import Console
from rich.table import Table

from lab import Lab, LabError, ginkgo, policy_api_suite
from lab.display import print_table
from lab.interrupt import one_interrupt
from lab.upstream import Result

PLAN = Path(__file__).with_suffix(".yaml")
REPORTS = Path(__file__).parents[1] / "build" / "conformance"


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tests that are not run, by their whole names, and why."""

    reason: str
    tests: tuple[str, ...]


class ConformancePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """conformance.yaml: the suites, each a regular expression of names, and what is left out."""

    suites: dict[str, str]
    skipped: tuple[Skipped, ...]

    def suite_of(self, test: str) -> str | None:
        """The first that a test is in, if any."""
        return next((title for title, of in self.suites.items() if re.search(of, test)), None)

    @property
    def left_out(self) -> list[str]:
        return [name for group in self.skipped for name in group.tests]


class Programs(NamedTuple):
    """Where the test programs are."""

    kubernetes: Path
    """The directory of e2e.test and ginkgo."""
    policy_api: Path

    def known_tests(self) -> list[str]:
        """Return the names of all tests that there are. Raises `LabError`."""
        of_policy_api = policy_api_suite.known_tests(self.policy_api)
        return [*ginkgo.known_tests(self.kubernetes), *of_policy_api]


@click.command()
@click.option("--name", default="cluster", show_default=True, help="The lab, which is up.")
@click.option(
    "--procs", default=2, show_default=True, type=click.IntRange(min=1), help="Tests at a time."
)
@click.option("--focus", default="", metavar="REGEX", help="Only tests in whose names this is.")
@click.option("--skipped", is_flag=True, help="Those that are skipped otherwise, and no other.")
@click.option("--list", "listing", is_flag=True, help="Print the tests' names, and run none.")
def main(name: str, procs: int, focus: str, skipped: bool, listing: bool) -> None:
    """Run upstream's tests of a cluster's network against a lab of kubelets."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        with one_interrupt():
            plan, lab = read_plan(PLAN), Lab(name)
            if not listing:
                need_kubelets(lab)
            programs = Programs(ginkgo.programs(), policy_api_suite.program())
            known = programs.known_tests()
            tests = chosen(plan, known, focus, skipped=skipped)
            if listing:
                console.print("\n".join(tests))
                return
            began = time.monotonic()
            results = run(lab, programs, tests, procs, console)
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(130)
    show(console, plan, known, results)
    passed = sum(result.passed for result in results.values())
    took = time.monotonic() - began
    console.print(f"{passed} of {len(tests)} passed, in {took:.0f} s. Reports: {REPORTS}")
    sys.exit(0 if passed == len(tests) else 1)


def read_plan(path: Path) -> ConformancePlan:
    """Read what there is to run. Raises `LabError`."""
    try:
        plan = msgspec.convert(yaml.safe_load(path.read_text()), ConformancePlan)
        for pattern in plan.suites.values():
            re.compile(pattern)
    except (OSError, yaml.YAMLError, msgspec.ValidationError, re.error) as error:
        raise LabError(f"{path}: {error}") from error
    return plan


def chosen(
    plan: ConformancePlan, known: Sequence[str], focus: str = "", *, skipped: bool = False
) -> list[str]:
    """The tests to run, out of all that are known; with `skipped`, of those that otherwise are.

    Raises `LabError` if none is left, or where the plan is not in line with what is known.
    """
    left_out = plan.left_out
    for name in left_out:
        if left_out.count(name) > 1:
            raise LabError(f"{PLAN.name}: skipped twice: {name}")
        if name not in known:
            raise LabError(f"{PLAN.name}: skipped, but there is no such test: {name}")
        if not plan.suite_of(name):
            raise LabError(f"{PLAN.name}: skipped, but in no suite: {name}")
    for title, pattern in plan.suites.items():
        if title not in map(plan.suite_of, known):
            raise LabError(f"{PLAN.name}: no test is in suite {title}: {pattern}")
    try:
        tests = [name for name in known if plan.suite_of(name) and re.search(focus, name)]
    except re.error as error:
        raise LabError(f"focus {focus!r} is no regular expression: {error}") from error
    if not tests:
        raise LabError(f"no test of the suites has {focus!r} in its name")
    tests = [name for name in tests if (name in left_out) == skipped]
    if not tests:
        others = "is not skipped" if skipped else f"is skipped, see {PLAN}"
        raise LabError(f"every test that has {focus!r} in its name {others}")
    return tests


def need_kubelets(lab: Lab) -> None:
    """Raises `LabError` unless the lab is up and runs pods."""
    if not lab.status()["kubelets"]:
        raise LabError(f"lab {lab.name} has no kubelets, and so runs no pods")


def run(
    lab: Lab, programs: Programs, tests: Sequence[str], procs: int, console: Console
) -> dict[str, Result]:
    """Run tests, and print each that has ended. Raises `LabError`."""
    count = 0

    def ended(name: str, state: str, seconds: float) -> None:
        nonlocal count
        count += 1
        console.print(f"{count:3} of {len(tests)}  {state} {seconds:6.1f} s  {name}")

    of_policy_api = [name for name in tests if name.startswith(policy_api_suite.PREFIX)]
    of_kubernetes = [name for name in tests if name not in of_policy_api]
    shutil.rmtree(REPORTS, ignore_errors=True)
    results: dict[str, Result] = {}
    if of_kubernetes:
        console.print(f"{len(of_kubernetes)} tests of Kubernetes, {procs} at a time")
        reports = REPORTS / "kubernetes"
        results |= ginkgo.run(lab, programs.kubernetes, of_kubernetes, procs, reports, ended)
    if of_policy_api:
        console.print(f"{len(of_policy_api)} tests of network-policy-api, one at a time")
        policy_api_suite.install_crd(lab, programs.policy_api)
        reports = REPORTS / "network-policy-api"
        results |= policy_api_suite.run(lab, programs.policy_api, of_policy_api, reports, ended)
    return results


def show(
    console: Console, plan: ConformancePlan, known: Sequence[str], results: Mapping[str, Result]
) -> None:
    """The tally, what was not run, and what has not passed."""
    table = Table("suite", *("tests", "passed", "failed", "skipped"), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for title in plan.suites:
        of_suite = [name for name in known if plan.suite_of(name) == title]
        ran = [results[name].passed for name in of_suite if name in results]
        left_out = sum(name in plan.left_out and name not in results for name in of_suite)
        counts = (len(of_suite), sum(ran), len(ran) - sum(ran), left_out)
        table.add_row(title, *map(str, counts))
    console.print()
    print_table(console, table)
    console.print(f"\nskipped, for these reasons ({PLAN}):")
    for group in plan.skipped:
        console.print(f"{sum(name not in results for name in group.tests):4}  {group.reason}")
    for name, result in results.items():
        if not result.passed:
            console.print(f"\n{result.state}: {name}\n{result.message.strip()}")
    console.print()


if __name__ == "__main__":
    main()
