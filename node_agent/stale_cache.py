"""Empties the datapath's cache of flows after a change, where Open vSwitch may keep a wrong one.

Cached flows may overlap as long as they do the same. When the tables change, the userspace datapath
finds the cached flow that has to change by the first packet that it was made for, and not by its
id. So it may change another one that overlaps, and the right one keeps its old verdict as long as
packets use it. Open vSwitch mended that in the course of its releases 2.17 to 3.2 ("dpif-netdev:
fix dpif_netdev_flow_put"); from 3.3 on every release has it. The kernel's datapath uses the id.
"""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import structlog

from node_agent import appctl
from node_agent.appctl import AppctlError

INTERVAL: Final = 0.2
"""Seconds between two looks at whether the tables have changed."""
ROUND: Final = 0.6
"""Seconds in which Open vSwitch has looked at all cached flows after a change: a round is 0.5 s."""
SHARE: Final = 20
"""A pause is at least so many times as long as it took to empty the cache before it."""
LONGEST_PAUSE: Final = 10.0
"""Seconds. A switch that did not answer for a moment has its next look soon."""
MENDED_IN: Final = (3, 3)

_VERSION: Final = re.compile(r"\(Open vSwitch\) (\d+)\.(\d+)")
_CHANGES: Final = re.compile(r"^rev_(?:flow_table|reconfigure)\b.*total: (\d+)", re.MULTILINE)

log = structlog.get_logger()


class StaleCache:
    """Empties the cache of a userspace datapath at once after a change, and when it has settled."""

    def __init__(self, run: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`run` is the directory of ovs-vswitchd's sockets."""
        self._run = run
        self._monotonic = monotonic
        self._seen: tuple[str, ...] | None = None
        """The counts of changes at the last look; None: there was none yet."""
        self._changed_at: float | None = None
        """When the last change was seen that has not settled yet."""
        self._problem = ""

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            before, emptied = self._monotonic(), False
            try:
                emptied = await self.look()
                self._problem = ""
            except (AppctlError, OSError) as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.warning("cached flows are not checked now", reason=self._problem)
            await asyncio.sleep(pause_after(self._monotonic() - before if emptied else 0.0))

    async def look(self) -> bool:
        """Empty the cache if that is needed now; returns whether it was. Raises `AppctlError`."""
        changes = tuple(_CHANGES.findall(await appctl.call(self._run, "coverage/show")))
        now = self._monotonic()
        if changes != self._seen:
            self._seen, self._changed_at = changes, now
        elif self._changed_at is None or now - self._changed_at < ROUND:
            return False
        else:
            self._changed_at = None
        if is_mended(await appctl.call(self._run, "version")):
            self._changed_at = None
            return False
        await appctl.call(self._run, "revalidator/purge")
        return True


def pause_after(took: float) -> float:
    """Seconds until the next look; `took` seconds to empty the cache, 0: it was not emptied."""
    return min(max(INTERVAL, SHARE * took), LONGEST_PAUSE)


def is_mended(version: str) -> bool:
    """Whether this Open vSwitch changes the right cached flow, by what its `version` prints.

    One that is not understood is taken for an old one.
    """
    found = _VERSION.search(version)
    return found is not None and (int(found[1]), int(found[2])) >= MENDED_IN
