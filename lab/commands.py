"""Programs run in a network namespace, and what is said when one fails."""

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lab.layout import NAMESPACES
from lab.patience import BUILD_TIMEOUT, PATIENCE, PROGRAM_TIMEOUT


class LabError(Exception):
    """Something about the lab that its user can understand; the text is one clear message."""


def inside(netns: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a namespace.

    By `nsenter` rather than `ip netns exec`, which mounts a new /sys and so hides the cgroups
    from whatever containers are started there.
    """
    return ["nsenter", f"--net={NAMESPACES / netns}", *argv]


def complete(
    argv: Sequence[str],
    *,
    timeout: float = PROGRAM_TIMEOUT,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    show_errors: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with its output; what its exit code means is left to the caller.

    With `show_errors`, what it writes to stderr is seen at once instead. Raises `LabError` if it is
    not installed or takes more than `timeout` s.
    """
    try:
        return subprocess.run(
            argv,
            input=stdin,
            env=None if environment is None else os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=None if show_errors else subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed (`make setup` installs it)") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"`{shlex.join(argv)}` has not ended after {timeout:.0f} s") from None


def run(
    argv: Sequence[str], *, netns: str | None = None, stdin: str = "", timeout: float = 30
) -> str:
    """Run a program to its end; its output. Raises `LabError` with what it printed as an error."""
    command = inside(netns, argv) if netns else list(argv)
    done = complete(command, stdin=stdin, timeout=timeout * PATIENCE)
    if done.returncode:
        where = f" in {netns}" if netns else ""
        complaint = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise LabError(f"`{shlex.join(argv)}`{where}: {complaint}")
    return done.stdout


def lock_file(file: IO[str], kind: int, timeout: float = BUILD_TIMEOUT) -> None:
    """Lock a file by flock(2), `kind` as there. Raises `LabError` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LabError(f"{file.name} is still locked after {timeout:.0f} s") from None
            time.sleep(0.05)


def replace_file(path: Path, text: str) -> None:
    """Write a file by rename, so that nobody ever reads half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)
