"""`make mutants`: plant each fault in a copy of the tree, and see whether its tests notice.

Prints each fault that no test notices, with the reason where one is known, and ends with 1 if there
is one without a reason, or an entry that no longer fits the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import click

from tests.mutants.fault import ROOT, Fault
from tests.mutants.faults import FAULTS
from tests.mutants.survivors import SURVIVORS

LIMIT = 300.0
"""Seconds for the tests of one fault; a fault that stops them from ending is noticed, too."""
FAILED = 1
"""pytest's exit code when a test has failed; others mean that it could not run them."""


class Copy:
    """A copy of the working tree, in which faults are planted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, timeout=LIMIT,
        ).stdout.decode()  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)

    def run(self, tests: Iterable[str]) -> tuple[int, str]:
        """pytest's exit code and output; `FAILED` if it does not end."""
        command = [
            sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p",
            "no:randomly", *tests,
        ]  # fmt: skip
        # Before the installed packages, which are those of the working tree itself.
        environment = os.environ | {"PYTHONPATH": str(self.directory)}
        try:
            done = subprocess.run(
                command, cwd=self.directory, env=environment, capture_output=True, text=True,
                timeout=LIMIT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return FAILED, f"not ended after {LIMIT:.0f} s"
        return done.returncode, done.stdout + done.stderr

    def try_out(self, fault: Fault) -> tuple[int, str]:
        """The same with a fault in place."""
        before = fault.plant(self.directory)
        try:
            return self.run(fault.tests)
        finally:
            (self.directory / fault.file).write_text(before)


def verdict(code: int, said: str) -> str:
    """`noticed`, `survived`, or what went wrong."""
    if code == FAILED:
        return "noticed"
    return "survived" if code == 0 else f"pytest ended with {code}: {said.strip()[-500:]}"


@click.command()
@click.option("--only", multiple=True, help="Faults whose name or file has this; more than once.")
@click.option("--jobs", default=2, show_default=True, help="How many at the same time.")
@click.option("--list", "listing", is_flag=True, help="Name the faults, and try none.")
def main(only: Sequence[str], jobs: int, listing: bool) -> None:
    """Plant faults, one at a time, and report those that no test notices."""
    chosen = [f for f in FAULTS if not only or any(o in f.name or o in f.file for o in only)]
    if listing:
        click.echo("\n".join(f"{fault.file}: {fault.name}" for fault in chosen))
        return
    began = time.monotonic()
    results = try_all(chosen, jobs)
    noticed = sum(found == "noticed" for found in results.values())
    click.echo(f"{noticed} of {len(results)} were noticed, in {time.monotonic() - began:.0f} s")
    if wrong := list(judge(results)):
        sys.exit("\n".join(wrong))


def try_all(faults: Sequence[Fault], jobs: int) -> dict[Fault, str]:
    """The verdict on each fault; ends the program if the tests fail without any."""
    with tempfile.TemporaryDirectory(prefix="sluice-mutants-") as scratch:
        copies: Queue[Copy] = Queue()
        for number in range(jobs):
            copies.put(Copy(Path(scratch, str(number))))
        code, said = copies.queue[0].run(sorted({test for f in faults for test in f.tests}))
        if code != 0:
            sys.exit(f"the tests fail without a fault:\n{said}")

        def one(fault: Fault) -> str:
            copy = copies.get(timeout=LIMIT * jobs)
            try:
                found = verdict(*copy.try_out(fault))
            except ValueError as error:
                found = str(error)
            finally:
                copies.put(copy)
            click.echo(f"{found.splitlines()[0]:9} {fault.file}: {fault.name}")
            return found

        with ThreadPoolExecutor(jobs) as pool:
            return dict(zip(faults, pool.map(one, faults), strict=True))


def judge(results: Mapping[Fault, str]) -> Iterator[str]:
    """What is wrong: a survivor without a reason, a stale entry, a reason without a survivor."""
    for fault, found in results.items():
        reason = SURVIVORS.get(fault.name)
        if found == "survived" and reason:
            click.echo(f"explained: {fault.name}: {reason}")
        elif found != "noticed":
            yield f"{fault.file}: {fault.name}: {found}"
        elif reason:
            yield f"{fault.name}: it is noticed, and still among the survivors"


if __name__ == "__main__":
    main()
