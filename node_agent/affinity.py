"""The end of what a switch remembers of clients for longer than a flow can be idle.

A Service may keep a client's endpoint for a day, and a flow's idle timeout has 16 bits. So a flow
that is learned for longer has none; its cookie says for how long it is to be idle, and whoever
dumps the switch anyway takes it away.
"""

from collections.abc import Iterable
from typing import Final

import structlog

from flows.diff import is_learned
from flows.features.services import LONGEST_IDLE
from openflow.batch import Batch, InstalledRemove
from openflow.messages import InstalledFlow, idle_seconds
from openflow.switch import Rejected, Switch

_SECONDS: Final = 0xFFFF_FFFF
"""Of a learned flow's cookie, the bits that say for how many seconds it is remembered."""

log = structlog.get_logger()


async def forget_idle(
    switch: Switch, flows: Iterable[InstalledFlow], longest: int = LONGEST_IDLE
) -> int:
    """Delete those of a dump's learned flows that have been idle long enough; how many.

    What is remembered for at most `longest` seconds has a timeout of its own, and is left alone.
    A client that comes between the dump and this may get another endpoint. Raises
    `ConnectionLost`.
    """
    over = [
        flow
        for flow in flows
        if is_learned(flow.cookie)
        and (seconds := flow.cookie & _SECONDS) > longest
        and (idle := idle_seconds(flow)) is not None
        and idle >= seconds
    ]
    if over:
        try:
            await switch.apply(Batch.of(first=map(InstalledRemove, over)))
        except Rejected as error:
            log.warning("clients' endpoints not forgotten", reason=str(error))
            return 0
        log.info("clients' endpoints forgotten", flows=len(over))
    return len(over)
