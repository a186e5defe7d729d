"""Which of a lab's controllers leads, and whether the others could take over."""

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from lab.commands import LabError
from lab.lab import Lab
from lab.patience import PATIENCE

TIMEOUT = 60 * PATIENCE
"""Seconds for which is waited."""


def names(lab: Lab) -> list[str]:
    """Of all controllers, as `Lab.kill_daemon` has them."""
    return list(lab.status()["controllers"])


def leads(lab: Lab, name: str) -> bool:
    """Whether this one says that it leads."""
    said = lab.ask("/v1/leader", controller=name)
    return bool(said and said["leads"])


def leader(lab: Lab) -> str:
    """The one that leads; waits until it is exactly one. Raises `LabError`."""
    known = names(lab)
    found: list[str] = []

    def is_one() -> bool:
        found[:] = [name for name in known if leads(lab, name)]
        return len(found) == 1

    _wait(is_one, lambda: f"not one controller leads, but {found}")
    return found[0]


def wait_warm(lab: Lab) -> None:
    """Wait until every switch is connected to every controller. Raises `LabError`."""
    status = lab.status()
    sockets = {name: Path(each["api_socket"]) for name, each in status["controllers"].items()}
    switches = len(status["nodes"])
    found: dict[str, int] = {}

    def is_warm() -> bool:
        found.update({name: sessions(path) for name, path in sockets.items()})
        return set(found.values()) == {switches}

    _wait(is_warm, lambda: f"of {switches} switches these many are connected: {found}")


def sessions(api_socket: Path) -> int:
    """How many switches are connected to the controller with this socket; 0 if it is away."""
    connection = http.client.HTTPConnection("controller", timeout=15)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(15)
    text = ""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.sock.connect(str(api_socket))
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r"^sluice_switch_sessions ([0-9.]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _wait(condition: Callable[[], bool], problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"after {TIMEOUT:.0f} s {problem()}")
        time.sleep(0.02 * PATIENCE)
