"""How commands ask a controller, of a lab or of this machine, by its unix socket."""

import http.client
import socket as sockets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click
import msgspec

from lab.layout import LabLayout

LONGEST_WAIT: Final = 60.0
"""Seconds without a byte of an answer. A controller that starts may be busy for a while."""


class RequestError(click.ClickException):
    """A controller does not answer, or refuses; the command ends with this one line."""


def controller_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--name` and `--socket`: the controller of a lab, or the one at a socket."""
    command = click.option(
        "--socket",
        type=click.Path(path_type=Path),
        help="Ask the controller with this apiSocket, and not a lab's.",
    )(command)
    return click.option("--name", default="lab", show_default=True, help="Which lab.")(command)


def ask(name: str, socket: Path | None, path: str, query: Mapping[str, str]) -> Any:
    """Ask a lab's controller, or the one at `socket`, for JSON. Raises `RequestError`."""
    return msgspec.json.decode(_ask(name, socket, path, query))


def ask_lines(name: str, socket: Path | None, path: str) -> list[bytes]:
    """Ask for lines of JSON. Raises `RequestError`."""
    return _ask(name, socket, path, {}).splitlines()


def _ask(name: str, socket: Path | None, path: str, query: Mapping[str, str]) -> bytes:
    if socket is None:
        try:
            socket = LabLayout(name).api_socket
        except ValueError as error:
            raise RequestError(str(error)) from None
        if not socket.exists():
            raise RequestError(f"no lab {name} is up; start one with: sluice lab up --name {name}")
    connection = _Connection(socket)
    try:
        connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(f"no controller answers on {socket}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise RequestError(_sentence(content) or f"{response.status} {response.reason}")
    return content


def _sentence(content: bytes) -> str:
    """What a controller says that is wrong."""
    try:
        return str(msgspec.json.decode(content)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket. By the standard library, because aiohttp takes long to load."""

    def __init__(self, path: Path) -> None:
        super().__init__("controller", timeout=LONGEST_WAIT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = sockets.socket(sockets.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
