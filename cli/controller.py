"""What commands ask a controller, a lab's or another's, by its unix socket."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import click

from lab import Lab, LabError


def controller_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--name` of a lab and `--socket`, one of which says which controller."""
    command = click.option(
        "--socket",
        type=click.Path(path_type=Path),
        help="Not of a lab: ask the controller whose apiSocket this is.",
    )(command)
    return click.option("--name", default="lab", show_default=True, help="Which lab.")(command)


def ask(name: str, socket: Path | None, path: str, query: Mapping[str, str]) -> Any:
    """Ask a lab's controller, or the one at `socket`.

    Raises `LabError` with the controller's own sentence.
    """
    if socket is None:
        socket = Lab(name).layout.api_socket
        if not socket.exists():
            raise LabError(f"no lab {name} is up; start one with: sluice lab up --name {name}")
    return asyncio.run(_get(socket, path, query))


async def _get(socket: Path, path: str, query: Mapping[str, str]) -> Any:
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://controller{path}", params=query) as response,
        ):
            content = await response.json()
            if response.status != 200:
                raise LabError(content["error"])
            return content
    except aiohttp.ClientError as error:
        raise LabError(f"no controller answers on {socket}: {error}") from error
