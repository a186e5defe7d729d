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
_BREAK: Final = r"\n"
"""The end of a line, as JSON has it."""
_VERSION: Final = re.compile(r"\(Open vSwitch\) ([0-9A-Za-z.+~-]{1,32})")


class AppctlError(NodeFault):
    """ovs-vswitchd does not answer, or refuses a command; the text says which."""


async def call(run: Path, command: str, *arguments: str, having: str = "") -> str:
    """What ovs-vswitchd answers. `run` is the directory of its sockets.

    With `having`, only the lines that have this text, which JSON must not need to escape: of an
    answer of any length, only these are held. The answer must be plain text without quotes.

    The protocol is JSON-RPC 1.0. Raises `AppctlError`, also after `PATIENCE`.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            reply = await _call(run, command, arguments, _Lines(having) if having else None)
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


class _Lines:
    """Passes on the lines of an answer that have a text, while it is still JSON."""

    def __init__(self, having: str) -> None:
        self._having = having
        self._begun = ""
        """A line of which the end has not come yet."""
        self._is_inside = False
        """Whether this is between the first line, which JSON begins with, and the last one."""
        self._has_ended = False

    def of(self, text: str) -> str:
        """What of the next piece is to be kept."""
        first = ""
        if not self._is_inside:
            if self._has_ended or _BREAK not in text:
                return text
            self._is_inside = True
            first, _, text = text.partition(_BREAK)
            first += _BREAK
        *lines, self._begun = (self._begun + text).split(_BREAK)
        kept = first + "".join(line + _BREAK for line in lines if self._having in line)
        if '"' in self._begun:
            kept += self._begun
            self._is_inside, self._has_ended = False, True
        return kept


async def _call(
    run: Path, command: str, arguments: tuple[str, ...], lines: _Lines | None
) -> object:
    reader, writer = await asyncio.open_unix_connection(run / f"ovs-vswitchd.{pid(run)}.ctl")
    try:
        request = {"id": 0, "method": command, "params": arguments}
        writer.write(json.dumps(request).encode())
        parser = Parser()
        while not parser.is_done():
            chunk = await reader.read(_CHUNK)
            if not chunk:
                raise ConnectionError("ovs-vswitchd has closed the connection")
            text = chunk.decode("utf-8", "replace")
            parser.feed(lines.of(text) if lines is not None else text)
        return parser.finish()
    finally:
        writer.close()
