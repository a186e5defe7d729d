"""The newest generation of a controller that this node's switch has ever said.

Of several controllers only one may write, and it has the newest generation. The switch refuses an
older one, but forgets all generations when it restarts. A flow says the newest one, too
(`flows.features.state`), and a restarted switch has no flows. So the agent keeps the number, in
memory and on disk, and gives the switch that flow back before the switch connects to a controller.

The number never becomes less. If a program of the node has set the flow to a number that no
controller has, the agent keeps that: docs/operations.md says how to make it forget.
"""

import asyncio
import re
from pathlib import Path
from typing import Final, NoReturn

import structlog

from flows.features.state import MOST_GENERATIONS, TABLE, generation_of
from flows.pipeline import Feature
from node_agent import install
from openflow.batch import Batch, GenerationSet
from openflow.messages import FlowUpdate
from openflow.switch import Switch
from settings import Agent

_COOKIE: Final = int(Feature.GENERATION) << 56
_MASK: Final = 0xFF << 56
_TEXT: Final = re.compile(rb"(\d{1,17})\n")
_LONGEST: Final = 18
"""Bytes of the file."""
_SPACING: Final = 0.2
"""Seconds between two writes, however often the number grows."""
_RETRY: Final = 5.0
"""Seconds until the next try, after a write that failed."""

log = structlog.get_logger()


class NewestGeneration:
    """Follows the flow, and keeps its highest number."""

    def __init__(self, path: Path) -> None:
        """Read the file. One that cannot be read counts as none; a log line says so."""
        self._path = path
        self._number = _read(path)
        self._grown = asyncio.Event()

    @property
    def number(self) -> int | None:
        """The newest generation; None: none is known."""
        return self._number

    def see(self, update: FlowUpdate) -> None:
        """A flow of the table `State` is on the switch, or is gone."""
        if not update.gone:
            self._see(update.table, update.cookie)

    async def put_back(self, switch: Switch) -> None:
        """Set the flow, if it is missing or says an older generation.

        Raises `ConnectionLost`, `RequestRejected` and `Rejected`.
        """
        held = await switch.dump_flows(TABLE, _COOKIE, _MASK)
        for flow in held:
            self._see(flow.table, flow.cookie)
        said = [generation_of(flow.table, flow.cookie) for flow in held]
        if self._number is not None and self._number not in said:
            await switch.apply(Batch.of(first=[GenerationSet(self._number)]))
            log.warning("the switch is told the newest generation again", generation=self._number)

    async def save_loop(self) -> NoReturn:
        """Write the number to disk whenever it has grown. Never ends."""
        problem = ""
        while True:
            await self._grown.wait()
            self._grown.clear()
            pause = _SPACING
            try:
                await asyncio.to_thread(_write, self._path, self._number)
                problem = ""
            except OSError as error:
                self._grown.set()
                pause = _RETRY
                if str(error) != problem:
                    problem = str(error)
                    log.warning("the newest generation is not saved", reason=problem)
            await asyncio.sleep(pause)

    def _see(self, table: int, cookie: int) -> None:
        said = generation_of(table, cookie)
        if said is not None and (self._number is None or said > self._number):
            self._number = said
            self._grown.set()


def file_of(agent: Agent) -> Path:
    """Where a node keeps it."""
    return agent.state / "generation"


def _read(path: Path) -> int | None:
    try:
        found = _TEXT.fullmatch(install.read(path, _LONGEST))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the newest generation cannot be read, so none is known", reason=str(error))
        return None
    number = int(found[1]) if found else MOST_GENERATIONS + 1
    if number > MOST_GENERATIONS:
        log.warning("the file of the newest generation is corrupt, so none is known", file=path)
        return None
    return number


def _write(path: Path, number: int | None) -> None:
    """Raises `OSError`."""
    install.replace(path, f"{number}\n".encode(), 0o600)  # on disk when it returns, and whole
