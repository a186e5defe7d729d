"""One version for the package, the chart and what agents tell."""

import tomllib
from pathlib import Path

import yaml

from wire.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / "deploy/chart/Chart.yaml").read_text())
    assert {project["version"], str(chart["appVersion"])} == {VERSION}
