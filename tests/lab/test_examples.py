"""The documentation shows what the commands print."""

import subprocess
import sys

from lab.patience import PATIENCE


def test_commands_print_what_the_documentation_shows(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab.examples", "--check", "--name", name],
        capture_output=True, text=True, check=False, timeout=240 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
