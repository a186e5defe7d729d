"""The datapath's cache of flows, of which the switch says something by its control socket."""

import re
from pathlib import Path
from typing import Final

from node_agent import appctl

FEWEST: Final = 1_024
"""The smallest number that is told: the number changes all the time while there are few."""

_CURRENT: Final = re.compile(r"flows\s+: \(current (\d+)\)")


async def cached_flows(run: Path) -> int:
    """The number of flows in the cache, rounded up to a power of two; 0: the switch does not say.

    `run` is the directory of ovs-vswitchd's sockets. Raises `appctl.AppctlError`.
    """
    return rounded(await appctl.call(run, "upcall/show"))


def rounded(shown: str) -> int:
    """`cached_flows` from the text that `upcall/show` prints."""
    found = _CURRENT.search(shown)
    if found is None:
        return 0
    return max(FEWEST, 1 << (int(found[1]) - 1).bit_length()) if int(found[1]) else FEWEST
