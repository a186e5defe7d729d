"""The end of what a switch remembers of clients for longer than a flow can be idle.

Controllers of earlier versions let a switch learn flows without a timeout for Services that keep a
client's endpoint for longer than 65,535 seconds. Their cookies say for how long they may be idle;
the agent deletes them then.
"""

from collections.abc import Iterable
from typing import Final

import structlog

from flows.diff import is_learned
from flows.features.endpoints import MAX_IDLE
from flows.pipeline import Feature
from openflow.batch import Batch, InstalledRemove
from openflow.messages import InstalledFlow, idle_seconds
from openflow.switch import Rejected, Switch

COOKIE: Final = int(Feature.LEARNED) << 56 | MAX_IDLE + 1
COOKIE_MASK: Final = 0xFF << 56 | MAX_IDLE + 1
"""What such cookies have in common: more seconds than `MAX_IDLE`, and none has twice as many."""
_SECONDS: Final = 0xFFFF_FFFF
"""Of a learned flow's cookie, the bits that say for how many seconds it is remembered."""

log = structlog.get_logger()


async def forget_idle(
    switch: Switch, flows: Iterable[InstalledFlow], longest: int = MAX_IDLE
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
