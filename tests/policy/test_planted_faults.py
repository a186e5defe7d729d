"""Faults planted in the compiler of policy: random clusters find each of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.__main__ import Copy
from tests.mutants.fault import Fault
from tests.mutants.policy import POLICY

CLUSTERS = 300
"""Random clusters that have to show a fault."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    return Copy(tmp_path_factory.mktemp("planted"))


def fuzzed(directory: Path) -> tuple[int, str]:
    """The exit code and the output of fuzzing the tree in this directory."""
    done = subprocess.run(
        [
            sys.executable, "-B", "-m", "tests.policy", "--clusters", str(CLUSTERS), "--seed", "0",
            "--traces", "0", "--whole",
        ],
        cwd=directory, env=os.environ | {"PYTHONPATH": str(directory)}, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_there_are_at_least_ten() -> None:
    assert len(POLICY) >= 10


@pytest.mark.parametrize("fault", POLICY, ids=lambda fault: fault.name)
def test_fault_is_found(copy: Copy, fault: Fault) -> None:
    before = fault.plant(copy.directory)
    try:
        code, said = fuzzed(copy.directory)
    finally:
        (copy.directory / fault.file).write_text(before)
    assert code == 1, said
    assert "the evaluator" in said or "AmbiguityError" in said, said
