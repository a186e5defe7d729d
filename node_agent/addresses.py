"""The host's real addresses, told to the controller: Services may be at one of them.

`Node.status` has those that kubelet knew when it started. kube-vip or keepalived moves others from
node to node.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from node_agent.controllers import TAKEN_OR_UNKNOWN, Controllers
from settings import Agent
from wire import paths
from wire.documents import NodeAddresses

_LOOK: Final = 1.0
"""Seconds between two looks at whether they have changed."""
_REPEAT: Final = 60.0
"""Seconds after which they are told again: the controller may be a new one."""


async def report_loop(agent: Agent, current: Callable[[], NodeAddresses | None]) -> None:
    """Tell the controller whenever something has changed; `current` is None before it is known."""
    told: NodeAddresses | None = None
    told_at = float("-inf")
    async with Controllers(agent) as controllers:
        while True:
            # At random, so that a thousand agents do not come at one moment.
            await asyncio.sleep(_LOOK * random.uniform(0.8, 1.2))  # noqa: S311
            now = current()
            if now is None or (now == told and time.monotonic() - told_at < _REPEAT):
                continue
            if await controllers.tell(paths.ADDRESSES, now, TAKEN_OR_UNKNOWN):
                told, told_at = now, time.monotonic()
