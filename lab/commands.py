"""Programs run in a network namespace, and what is said when one fails."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.layout import NAMESPACES
from lab.patience import PATIENCE


class LabError(Exception):
    """Something about the lab that its user can understand; the text is one clear message."""


def inside(netns: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a namespace.

    By `nsenter` rather than `ip netns exec`, which mounts a new /sys and so hides the cgroups
    from whatever containers are started there.
    """
    return ["nsenter", f"--net={NAMESPACES / netns}", *argv]


def run(
    argv: Sequence[str], *, netns: str | None = None, stdin: str = "", timeout: float = 30
) -> str:
    """Run a program to its end; its output. Raises `LabError` with what it complained of."""
    command = inside(netns, argv) if netns else list(argv)
    timeout *= PATIENCE
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed (`make setup` sees to it)") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"`{shlex.join(argv)}` has not ended after {timeout:.0f} s") from None
    if done.returncode:
        where = f" in {netns}" if netns else ""
        complaint = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise LabError(f"`{shlex.join(argv)}`{where}: {complaint}")
    return done.stdout


def replace_file(path: Path, text: str) -> None:
    """Write a file by rename, so that nobody ever reads half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)
