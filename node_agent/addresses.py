"""The host's real addresses, told to the controllers: Services may be at one of them.

`Node.status` has those that kubelet knew when it started. kube-vip or keepalived moves others from
node to node.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, NoReturn

from node_agent.controllers import TAKEN_OR_UNKNOWN, ControllerApi, Controllers, Told
from wire import paths
from wire.documents import NodeAddresses

_LOOK: Final = 1.0
"""Seconds between two looks at whether they have changed."""
_REPEAT: Final = 60.0
"""Seconds after which they are told again, whatever became of the first report."""


async def report_loop(
    controllers: Controllers, current: Callable[[], NodeAddresses | None]
) -> None:
    """Tell each controller whenever something has changed. Never ends.

    `current` is None before it is known.
    """
    async with asyncio.TaskGroup() as tasks:
        for controller in controllers.each:
            tasks.create_task(_report_to(controller, current))


async def _report_to(
    controller: ControllerApi, current: Callable[[], NodeAddresses | None]
) -> NoReturn:
    told = Told(controller, paths.ADDRESSES, TAKEN_OR_UNKNOWN, _REPEAT)
    while True:
        # At random, so that a thousand agents do not come at one moment.
        await asyncio.sleep(_LOOK * random.uniform(0.8, 1.2))  # noqa: S311
        if (now := current()) is not None:
            await told.update(now)
