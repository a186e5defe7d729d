"""Deletes idle learned flows whose affinity timeout is longer than an OpenFlow idle timeout.

An idle timeout has 16 bits: 65,535 seconds at most. For Services with a longer `timeoutSeconds`,
controllers of earlier versions let the switch learn flows without an idle timeout. The cookie of
such a flow holds its timeout in seconds; the agent deletes the flow when it was idle for so long.
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
"""Selects the cookies of such flows. Their seconds are between `MAX_IDLE` + 1 and twice that, so
one bit tells them from learned flows with an idle timeout."""
_SECONDS: Final = 0xFFFF_FFFF
"""The bits of a learned flow's cookie that hold its timeout in seconds."""

log = structlog.get_logger()


async def forget_idle(
    switch: Switch, flows: Iterable[InstalledFlow], longest: int = MAX_IDLE
) -> int:
    """Delete the learned flows of a dump that were idle for their timeout; return their number.

    Flows whose timeout is at most `longest` seconds have an OpenFlow idle timeout and are left
    alone. A client that sends a packet between the dump and the deletion may get another endpoint.
    Raises `ConnectionLost`.
    """
    expired = [
        flow
        for flow in flows
        if is_learned(flow.cookie)
        and (seconds := flow.cookie & _SECONDS) > longest
        and (idle := idle_seconds(flow)) is not None
        and idle >= seconds
    ]
    if expired:
        try:
            await switch.apply(Batch.of(first=map(InstalledRemove, expired)))
        except Rejected as error:
            log.warning("expired learned flows not deleted", reason=str(error))
            return 0
        log.info("expired learned flows deleted", flows=len(expired))
    return len(expired)
