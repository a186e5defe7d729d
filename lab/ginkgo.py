"""Kubernetes' own tests, e2e.test, as ginkgo runs them against a lab of kubelets.

What is relied on here of both is in their sources: github.com/onsi/ginkgo/v2/reporters for what
they print and report, and k8s.io/kubernetes/test/e2e/framework/test_context.go for the options.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lab.commands import LabError, complete
from lab.control import BUILD_SCRIPT
from lab.lab import Lab
from lab.patience import BUILD_TIMEOUT
from lab.processes import Process, kill

_LIMIT_HOURS = 6
"""Far more than it takes: what ginkgo interrupts, it counts as failed."""
_GRACE = 30.0
"""Seconds in which interrupted tests remove what they have made."""


class Result(NamedTuple):
    """How a test went."""

    state: str
    """In ginkgo's words: passed, failed, skipped (by itself), timedout, panicked, ..."""
    seconds: float
    message: str
    """Why, unless it has passed."""

    @property
    def passed(self) -> bool:
        return self.state == "passed"


class Ended(Protocol):
    """Is told of each test that has ended: its name, how, and the seconds that it took."""

    def __call__(self, name: str, state: str, seconds: float) -> None: ...


def programs() -> Path:
    """The directory of e2e.test and ginkgo; builds them where need be. Raises `LabError`."""
    command = [str(BUILD_SCRIPT), "--e2e"]
    built = complete(command, timeout=BUILD_TIMEOUT, show_errors=True)
    if built.returncode:
        raise LabError(f"{' '.join(command)} gave no tests; see above")
    return Path(built.stdout.splitlines()[-1])


def known_tests(programs: Path) -> list[str]:
    """The names of all tests of this Kubernetes, in order. Raises `LabError`."""
    command = [str(programs / "e2e.test"), "--list-tests"]
    with _environment() as environment:
        listed = complete(command, environment=environment)
    found = re.findall(r"^ +\S+\.go:\d+: (.+)$", listed.stdout, re.MULTILINE)
    if not found:
        raise LabError(f"{programs / 'e2e.test'} lists no tests: {listed.stderr.strip()}")
    return sorted(found)


def run(
    lab: Lab, programs: Path, tests: Sequence[str], procs: int, reports: Path, ended: Ended
) -> dict[str, Result]:
    """Run tests, `procs` at a time; how they went, by name.

    `reports` is emptied, and then has what ginkgo printed (ginkgo.log) and JUnit's report
    (junit_01.xml). Raises `LabError` if the tests could not be run.
    """
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    log, report = reports / "ginkgo.log", reports / "ginkgo.json"
    command = [
        *(str(programs / "ginkgo"), "run", f"--procs={procs}", f"--timeout={_LIMIT_HOURS}h"),
        *("--no-color", "--v", "--silence-skips"),
        *(f"--output-dir={reports}", f"--json-report={report.name}"),
        f"--focus=(?:{'|'.join(map(_escaped, tests))})$",
        *(str(programs / "e2e.test"), "--"),
        *("--provider=skeleton", f"--report-dir={reports}", "--disable-log-dump"),
        # Only the first of its processes counts the nodes itself.
        f"--num-nodes={len(lab.status()['nodes'])}",
    ]
    with _environment() as environment, log.open("w") as output:
        popen = subprocess.Popen(
            lab.command("control", command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that one signal ends it and its children
        )
        process = Process(popen)
        try:
            # ginkgo's own limit, and some more for what it does after the last test.
            _follow(process.lines(_LIMIT_HOURS * 3600 + 600), output.write, ended)
            process.wait(_GRACE)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise LabError(f"ginkgo has not ended; see {log}") from None
        finally:
            _end(process)
    try:
        results = _results(json.loads(report.read_bytes()), set(tests))
    except (OSError, ValueError) as error:
        end = "\n".join(log.read_text().splitlines()[-15:])
        raise LabError(f"ginkgo has left no report ({error}); the end of {log}:\n{end}") from error
    if missing := set(tests) - results.keys():
        raise LabError(f"not run, see {log}: {', '.join(sorted(missing))}")
    return results


def _results(reported: Any, tests: set[str]) -> dict[str, Result]:
    """`reported` is a list of suites; every test that there is is in it, most as skipped.

    Raises `LabError` if what comes before or after the tests has failed.
    """
    results = {}
    for spec in (spec for suite in reported for spec in suite["SpecReports"] or []):
        name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
        failure = spec.get("Failure") or {}
        if spec["LeafNodeType"] != "It" and spec["State"] != "passed":
            raise LabError(f"{spec['LeafNodeType']}: {failure.get('Message', spec['State'])}")
        if name in tests:
            seconds = spec["RunTime"] / 1e9
            results[name] = Result(spec["State"], seconds, failure.get("Message", ""))
    return results


def _follow(lines: Iterable[str], keep: Callable[[str], object], ended: Ended) -> None:
    """Read what ginkgo prints to its end."""
    found = None
    for line in lines:
        keep(line)
        if found:
            # The failed part and the labels do not belong to the name.
            name = re.sub(r" \[(It|(Before|After)Each)\] ", " ", line.strip())
            name = re.sub(r" \[[^\[\]]*\]$", "", name)
            ended(name, (found[1] or "passed").lower(), float(found[2]))
        found = re.match(r"• (?:\[([A-Z ]+)\] )?\[(\d+\.\d+) seconds\]", line)


def _end(process: Process) -> None:
    """End ginkgo and its tests, if they run; and what they have left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            process.rest(_GRACE)  # it ends only if somebody reads what it prints
        os.killpg(process.popen.pid, signal.SIGKILL)
    kill(process.popen)


@contextlib.contextmanager
def _environment() -> Iterator[Mapping[str, str]]:
    """One in which what the tests leave behind is removed, and no proxy stands in their way."""
    with tempfile.TemporaryDirectory(prefix="sluice-e2e-") as scratch:
        yield os.environ | {"TMPDIR": scratch, "NO_PROXY": "*"}


def _escaped(name: str) -> str:
    """As a regular expression of Go's, whose syntax has no escapes but of punctuation."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", name)
