"""The conformance suite of ClusterNetworkPolicy (sigs.k8s.io/network-policy-api), against a lab.

The program is network_policy_api/suite_test.go in this directory. It prints as Go's package
`testing` does.
"""

import re
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from lab.commands import LabError, complete
from lab.lab import Lab
from lab.upstream import Ended, Result, built, end_of, running

CRD: Final = "clusternetworkpolicies.policy.networking.k8s.io"
PREFIX: Final = "[network-policy-api] "
"""Before the names of its tests, so that they differ from those of other suites."""
_LIMIT_HOURS = 3
LONGEST_WAIT: Final = 60.0
"""Seconds until the API server has looked at a new CRD."""
_KEPT_LINES: Final = 30
"""Lines of a failed test's output that become its message."""
_MARK = re.compile(
    r"^\x16?\s*(?:=== (?:RUN|CONT|NAME) +|--- (PASS|FAIL|SKIP): )(\S+)(?: \((.+)s\))?"
)
_STATES: Final = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}


def program() -> Path:
    """Return the path of the program; build it first if necessary. Raises `LabError`."""
    return built("network_policy_api")


def known_tests(program: Path) -> list[str]:
    """Return the names of all tests, in order. Raises `LabError`."""
    listed = complete([str(program), "-list-tests"])
    if listed.returncode or not listed.stdout:
        raise LabError(f"{program} lists no tests: {listed.stderr.strip()}")
    return sorted(f"{PREFIX}{name}" for name in listed.stdout.splitlines())


def install_crd(lab: Lab, program: Path) -> None:
    """Install the CRD and wait until the API server serves it. Raises `LabError`."""
    apply = ["apply", "--server-side", "-f", str(program.with_name("crd.yaml"))]
    wait = ["wait", "--for=condition=Established", "--timeout=60s", f"crd/{CRD}"]
    lab.exec("control", ["kubectl", *apply])
    end = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            lab.exec("control", ["kubectl", *wait], timeout=90)
        except LabError:
            # `kubectl wait` fails at once as long as the new CRD has no conditions at all.
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


def run(
    lab: Lab, program: Path, tests: Sequence[str], reports: Path, ended: Ended
) -> dict[str, Result]:
    """Run tests one after the other; return their results by name.

    `reports` is emptied first; afterwards it contains the program's output (suite.log). Raises
    `LabError` if a test did not run.
    """
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    names = "|".join(name.removeprefix(PREFIX) for name in tests)
    command = [
        *(str(program), "-all-features", "-test.v=test2json", f"-test.timeout={_LIMIT_HOURS}h"),
        f"-test.run=^TestConformance$/^({names})$",
    ]
    log = reports / "suite.log"
    with running(lab, command, log, _LIMIT_HOURS * 3600 + 60) as lines:
        results = _results(lines, ended)
    if missing := set(tests) - results.keys():
        raise LabError(f"not run: {', '.join(sorted(missing))}; {end_of(log)}")
    return results


def _results(lines: Iterable[str], ended: Ended) -> dict[str, Result]:
    """Read the program's output. A test's result comes after the results of its parts."""
    results: dict[str, Result] = {}
    output: dict[str, list[str]] = {}
    current = ""
    for line in lines:
        mark = _MARK.match(line)
        if mark:
            current = mark[2].split("/")[1] if "/" in mark[2] else ""
        if not current:
            continue
        output.setdefault(current, []).append(line.lstrip("\x16"))
        if mark and mark[1] and mark[2].count("/") == 1:
            name, state = f"{PREFIX}{current}", _STATES[mark[1]]
            kept = output.pop(current)[-_KEPT_LINES:]
            message = "" if state == "passed" else "".join(kept)
            results[name] = Result(state, float(mark[3]), message)
            ended(name, state, float(mark[3]))
            current = ""
    return results
