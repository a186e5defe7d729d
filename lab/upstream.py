"""Test programs of other projects that run against a lab: how they run, and their results."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO

from lab.commands import LabError, complete
from lab.lab import Lab
from lab.patience import BUILD_TIMEOUT
from lab.processes import Process, kill

BUILD_SCRIPT = Path(__file__).parents[1] / "scripts" / "go-tool"
_GRACE = 30.0
"""Seconds in which an interrupted program may remove what it made."""


class Result(NamedTuple):
    """How a test went."""

    state: str
    """In ginkgo's words: passed, failed, skipped (by itself), timedout, panicked, ..."""
    seconds: float
    message: str
    """The reason, unless it passed."""

    @property
    def passed(self) -> bool:
        return self.state == "passed"


class Ended(Protocol):
    """Called for each test that ended: its name, its state, and the seconds that it took."""

    def __call__(self, name: str, state: str, seconds: float) -> None: ...


def built(tool: str) -> Path:
    """Return the path of a program that `scripts/go-tool` builds. Raises `LabError`."""
    command = [str(BUILD_SCRIPT), tool]
    done = complete(command, timeout=BUILD_TIMEOUT, show_errors=True)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed; see above")
    return Path(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running(
    lab: Lab, command: Sequence[str | Path], log: Path, seconds: float
) -> Iterator[Iterable[str]]:
    """Run a program where `kubectl` finds the API server; yield its output by lines.

    The output, both streams, is also written to `log`. At the end the program and its children
    are stopped, if they still run. Raises `LabError` if it runs longer than `seconds`.
    """
    argv = lab.command("control", [str(part) for part in command])
    with scratch_environment() as environment, log.open("w", buffering=1) as copy:
        popen = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that one signal reaches it and its children
        )
        process = Process(popen)
        try:
            yield _copied(process.lines(seconds), copy)
            process.wait(_GRACE)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise LabError(f"{argv[0]} does not end; see {log}") from None
        finally:
            _end(process)


def end_of(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join([f"the end of {log}:", *log.read_text().splitlines()[-lines:]])


@contextlib.contextmanager
def scratch_environment() -> Iterator[Mapping[str, str]]:
    """Yield an environment for test programs.

    Its directory for temporary files is removed afterwards; no proxy is used.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-e2e-") as scratch:
        yield os.environ | {"TMPDIR": scratch, "NO_PROXY": "*"}


def _copied(lines: Iterable[str], copy: TextIO) -> Iterator[str]:
    for line in lines:
        copy.write(line)
        yield line


def _end(process: Process) -> None:
    """End a program and its children, if they run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            process.rest(_GRACE)  # it ends only if somebody reads its output
        os.killpg(process.popen.pid, signal.SIGKILL)
    kill(process.popen)
