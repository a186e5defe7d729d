"""Controllers whose clock somebody sets."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from lab import Lab

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where libfaketime keeps what it shares


@contextmanager
def faked_clock(lab: Lab, path: Path, step: str, where: str = "control") -> Iterator[None]:
    """A controller started anew with a clock that the file steps, for example by `+1d`.

    The monotonic clock is left alone: whoever sets a machine's clock does not touch it either.
    """
    assert FAKETIME, "libfaketime is not installed; scripts/setup sees to it"
    shared = set(SHARED_MEMORY.glob("*faketime*"))
    path.write_text(f"{step}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(FAKETIME))
        environment.setenv("FAKETIME_TIMESTAMP_FILE", str(path))
        environment.setenv("FAKETIME_NO_CACHE", "1")
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        restart_controller(lab, where)
    try:
        yield
    finally:
        restart_controller(lab, where)
        # It leaves these behind in every program that is replaced by another, or killed.
        for left in set(SHARED_MEMORY.glob("*faketime*")) - shared:
            left.unlink(missing_ok=True)


def restart_controller(lab: Lab, where: str) -> None:
    lab.kill_daemon(where, "controller")
    lab.up()


def days_ahead(lab: Lab, where: str = "control") -> int:
    """How far a controller's clock is ahead of ours, as its HTTP server has it."""
    connection = http.client.HTTPConnection("controller", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    try:
        connection.sock.connect(lab.status()["controllers"][where]["api_socket"])
        connection.request("GET", "/healthz")
        date = parsedate_to_datetime(connection.getresponse().headers["Date"])
    finally:
        connection.close()
    return round((date - datetime.now(UTC)) / timedelta(days=1))
