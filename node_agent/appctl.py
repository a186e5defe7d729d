"""Commands to ovs-vswitchd by its control socket, as `ovs-appctl` gives them (ovs-appctl(8))."""

import asyncio
import json
import re
from pathlib import Path
from typing import Final

from node_agent.faults import NodeFault
from node_agent.json_stream import Parser

PATIENCE: Final = 20.0
"""Seconds for an answer."""
_CHUNK: Final = 1 << 18
_VERSION: Final = re.compile(r"\(Open vSwitch\) ([0-9A-Za-z.+~-]{1,32})")


class AppctlError(NodeFault):
    """ovs-vswitchd does not answer, or refuses a command; the text says which."""


async def call(run: Path, command: str, *arguments: str) -> str:
    """What ovs-vswitchd answers. `run` is the directory of its sockets.

    The protocol is JSON-RPC 1.0. Raises `AppctlError`, also after `PATIENCE`.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            reply = await _call(run, command, arguments)
    except TimeoutError:
        raise AppctlError(f"{command}: no answer from ovs-vswitchd in {PATIENCE:g} s") from None
    except (OSError, ValueError) as error:
        raise AppctlError(f"{command}: {error}") from error
    if not isinstance(reply, dict) or reply.get("error") is not None:
        said = reply["error"] if isinstance(reply, dict) else reply
        raise AppctlError(f"{command}: {' '.join(str(said).split())}")
    return str(reply.get("result", ""))


async def version(run: Path) -> str:
    """The version of the Open vSwitch that runs, for example `3.1.0`; empty: it does not say."""
    try:
        said = await call(run, "version")
    except AppctlError:
        return ""
    found = _VERSION.search(said)
    return found[1] if found else ""


def pid(run: Path) -> int:
    """The process that is ovs-vswitchd, or was: the file stays. Raises `OSError`, `ValueError`."""
    return int((run / "ovs-vswitchd.pid").read_text())


async def _call(run: Path, command: str, arguments: tuple[str, ...]) -> object:
    reader, writer = await asyncio.open_unix_connection(run / f"ovs-vswitchd.{pid(run)}.ctl")
    try:
        request = {"id": 0, "method": command, "params": arguments}
        writer.write(json.dumps(request).encode())
        parser = Parser()
        while not parser.is_done():
            chunk = await reader.read(_CHUNK)
            if not chunk:
                raise ConnectionError("ovs-vswitchd has closed the connection")
            parser.feed(chunk.decode("utf-8", "replace"))
        return parser.finish()
    finally:
        writer.close()
