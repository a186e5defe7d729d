"""Programs that run beside their caller: every wait for one has a bound."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from lab.patience import PATIENCE

LIMIT: Final = 60.0
"""Seconds (times `PATIENCE`) that a program gets to print a line or to end."""


@dataclass
class Process:
    """A program that runs; what it prints is read line by line."""

    popen: subprocess.Popen[bytes]
    _read: bytes = b""

    def line(self, seconds: float = LIMIT) -> str:
        """The next line, without its end; empty if the program has ended.

        Raises `TimeoutError` if there is none in time.
        """
        deadline = time.monotonic() + seconds * PATIENCE
        while b"\n" not in self._read and self._read_more(deadline):
            pass
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def rest(self, seconds: float = LIMIT) -> str:
        """All that it prints from now until it closes its output. Raises `TimeoutError`."""
        deadline = time.monotonic() + seconds * PATIENCE
        while self._read_more(deadline):
            pass
        said, self._read = self._read, b""
        return said.decode()

    def lines(self, seconds: float) -> Iterator[str]:
        """All lines until it closes its output, each with its end. Raises `TimeoutError`."""
        deadline = time.monotonic() + seconds * PATIENCE
        while b"\n" in self._read or self._read_more(deadline):
            while b"\n" in self._read:
                line, _, self._read = self._read.partition(b"\n")
                yield f"{line.decode(errors='replace')}\n"

    def say(self, text: str) -> None:
        """Write to its stdin at once."""
        assert self.popen.stdin  # noqa: S101  it was opened with one
        self.popen.stdin.write(text.encode())
        self.popen.stdin.flush()

    def close_input(self) -> None:
        """Close its stdin, so that it ends if it reads on."""
        assert self.popen.stdin  # noqa: S101  it was opened with one
        with contextlib.suppress(OSError):  # it has ended
            self.popen.stdin.close()

    def ask(self, line: str) -> str:
        """Write a line; the next line that it prints."""
        self.say(f"{line}\n")
        return self.line()

    def end(self, number: int = signal.SIGINT, seconds: float = LIMIT) -> str:
        """Ask it to end by a signal; the rest of what it prints. Raises `TimeoutError`."""
        self.popen.send_signal(number)
        said = self.rest(seconds)
        self.wait(seconds)
        return said

    def wait(self, seconds: float = LIMIT) -> int:
        """Its exit code, once it ends. Raises `subprocess.TimeoutExpired`."""
        return self.popen.wait(seconds * PATIENCE)

    def _read_more(self, deadline: float) -> bool:
        """Whether there was more; False at the end. Raises `TimeoutError`."""
        assert self.popen.stdout  # noqa: S101  it was opened with one
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.popen.stdout], [], [], left)[0]:
            raise TimeoutError(f"{self.popen.args!r} prints nothing more after {self._read!r}")
        more = os.read(self.popen.stdout.fileno(), 1 << 16)
        self._read += more
        return bool(more)


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[Process]:
    """A program for as long as the context lasts; then it is killed. `options` are Popen's."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    popen: subprocess.Popen[bytes] = subprocess.Popen(command, **(pipes | options))
    try:
        yield Process(popen)
    finally:
        kill(popen)


def kill(popen: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Kill a child, wait until it has ended, and close what leads to it.

    Raises `subprocess.TimeoutExpired` if it does not end.
    """
    popen.kill()
    for stream in (popen.stdin, popen.stdout, popen.stderr):
        if stream:
            with contextlib.suppress(OSError):  # it does not take what was left to write
                stream.close()
    popen.wait(LIMIT)
