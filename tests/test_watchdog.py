"""The plugins of the suite: a stuck test does not hold the run, and a broken lab is replaced."""

import subprocess
import sys
from pathlib import Path

from lab.patience import PROGRAM_TIMEOUT

ROOT = Path(__file__).parents[1]
INI = "[pytest]\naddopts =\n"


def outcome(directory: Path, plugin: str, source: str, *options: str) -> str:
    """The last lines that pytest prints about a file of tests, run with one of our plugins."""
    (directory / "pytest.ini").write_text(INI)
    (directory / "test_inner.py").write_text(source)
    command = [
        sys.executable, "-P", "-m", "pytest", "-q", "-c", str(directory / "pytest.ini"),
        "-p", plugin, "-p", "no:cacheprovider", *options, str(directory / "test_inner.py"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, timeout=PROGRAM_TIMEOUT, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


WAITS_FOR_A_CHILD = """
import subprocess, time

def test_stuck():
    child = subprocess.Popen(["sleep", "1000"])
    try:
        time.sleep(1000)
    finally:
        child.wait()

def test_next():
    pass
"""
WAITS_FOR_NOTHING = """
import threading, time

def test_stuck():
    try:
        time.sleep(1000)
    finally:
        threading.Event().wait()

def test_next():
    pass
"""
LIMITS = ("-o", "timeout=1", "-o", "watchdog_grace=0.5")


def test_a_wait_for_a_child_ends_with_the_child(tmp_path: Path) -> None:
    said = outcome(tmp_path, "tests.watchdog", WAITS_FOR_A_CHILD, *LIMITS)
    assert "1 failed, 1 passed" in said, said
    assert "Kill all processes that it has started" in said


def test_a_wait_for_nothing_ends_the_process_and_not_the_run(tmp_path: Path) -> None:
    said = outcome(tmp_path, "tests.watchdog", WAITS_FOR_NOTHING, *LIMITS, "-n", "1")
    assert "1 failed, 1 passed" in said, said
    assert "crashed while running" in said
    assert 'test_inner.py", line 8 in test_stuck' in said


SHARED_LAB = """
import pytest
made = []

@pytest.fixture(scope="module")
def lab():
    made.append("lab")
    if len(made) == 3:
        raise RuntimeError("it does not come up")
    yield len(made)

def test_first(lab):
    assert lab == 1

def test_fails(lab):
    assert lab == 0

def test_gets_a_new_one(lab):
    assert lab == 2

def test_shares_it(lab):
    assert lab == 2

def test_fails_too(lab):
    assert lab == 0

def test_has_none(lab):
    pass

def test_the_next_comes_up(lab):
    assert lab == 4
"""


def test_a_lab_whose_test_failed_is_replaced_for_the_next_test(tmp_path: Path) -> None:
    said = outcome(tmp_path, "tests.labs", SHARED_LAB)
    assert "2 failed, 4 passed, 1 error" in said, said
