"""What every command has to do before it begins: to load little."""

import subprocess
import sys

import pytest

HEAVY = ("aiohttp", "kubernetes", "cryptography", "os_ken", "prometheus_client")


@pytest.mark.parametrize("words", ["--help", "status --help", "check --help", "capture --help"])
def test_command_loads_no_package_that_it_does_not_need(words: str) -> None:
    program = (
        "import sys; from cli.main import main;"
        f"main({words.split()!r}, standalone_mode=False);"
        f"sys.exit(' '.join(set({HEAVY!r}) & set(sys.modules)) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage: " in ended.stdout
