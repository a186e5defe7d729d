"""Helm and other programs that are built for tests; what the chart renders to."""

import subprocess
from pathlib import Path

from lab.patience import BUILD_TIMEOUT, PROGRAM_TIMEOUT

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
VALUES = Path(__file__).parent / "values"
"""Files of values for the chart."""
NAMESPACE = "sluice-system"


def built(tool: str) -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "go-tool", tool],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=BUILD_TIMEOUT,
    )
    return Path(done.stdout.splitlines()[-1])


def run(helm: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )


def template(helm: Path, *arguments: str | Path) -> str:
    options = ("--include-crds", "--namespace", NAMESPACE)
    done = run(helm, "template", "sluice", CHART, *options, *arguments)
    assert not done.returncode, done.stderr
    return done.stdout
