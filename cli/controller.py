"""How commands ask a controller, of a lab or of this machine, by its unix socket."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec

from lab.layout import LabLayout


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
    return asyncio.run(_get(socket, path, query))


async def _get(socket: Path, path: str, query: Mapping[str, str]) -> bytes:
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://controller{path}", params=query) as response,
        ):
            content = await response.read()
            if response.status != 200:
                raise RequestError(msgspec.json.decode(content)["error"])
            return content
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RequestError(f"no controller answers on {socket}: {error}") from error
