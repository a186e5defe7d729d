"""Kubernetes' own tests, e2e.test, as ginkgo runs them against a lab of kubelets.

What is relied on here of both is in their sources: github.com/onsi/ginkgo/v2/reporters for what
they print and report, and k8s.io/kubernetes/test/e2e/framework/test_context.go for the options.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.commands import LabError, complete
from lab.control import BUILD_SCRIPT
from lab.lab import Lab
from lab.patience import BUILD_TIMEOUT
from lab.upstream import Ended, Result, end_of, running, scratch_environment

_LIMIT_HOURS = 6
"""Far more than it takes: what ginkgo interrupts, it counts as failed."""


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
    with scratch_environment() as environment:
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
    # ginkgo's own limit, and some more for what it does after the last test.
    with running(lab, command, log, _LIMIT_HOURS * 3600 + 600) as lines:
        _follow(lines, ended)
    try:
        results = _results(json.loads(report.read_bytes()), set(tests))
    except (OSError, ValueError) as error:
        raise LabError(f"ginkgo has left no report ({error}); {end_of(log)}") from error
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


def _follow(lines: Iterable[str], ended: Ended) -> None:
    """Read what ginkgo prints to its end."""
    found = None
    for line in lines:
        if found:
            # The failed part and the labels do not belong to the name.
            name = re.sub(r" \[(It|(Before|After)Each)\] ", " ", line.strip())
            name = re.sub(r" \[[^\[\]]*\]$", "", name)
            ended(name, (found[1] or "passed").lower(), float(found[2]))
        found = re.match(r"• (?:\[([A-Z ]+)\] )?\[(\d+\.\d+) seconds\]", line)


def _escaped(name: str) -> str:
    """As a regular expression of Go's, whose syntax has no escapes but of punctuation."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", name)
