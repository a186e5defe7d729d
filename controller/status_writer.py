"""What the controller writes to the API server: conditions of Nodes, and Events.

A loop beside the reconciler, which never waits for it. Every look determines from the current state
what is due, so nothing is lost while the API server is unavailable or refuses a write.
"""

import asyncio
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import structlog
from kubernetes.aio import client

from controller import metrics
from controller.conditions import Conditions
from controller.events import Account, notices_of
from controller.kubernetes_api import UNREACHABLE, ApiError, Write, ask, connect
from controller.reconciler import Reconciler
from settings import SettingsError

LOOK: Final = 2.0
"""Seconds between two looks."""
PACE: Final = 0.02
"""Seconds between two requests: no more than 50 a second, whatever goes wrong."""
AT_ONCE: Final = 200
"""Requests of one look. After them a new look follows, because problems may have ended."""
BACKOFF: Final = (2.0, 60.0)
"""Seconds after the first failure, and at most."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=10)

log = structlog.get_logger()


class StatusWriter:
    """Writes conditions and Events to the API server."""

    def __init__(
        self,
        reconciler: Reconciler,
        kubeconfig: Path | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kubeconfig` as `kubernetes_api.connect` has it."""
        self._reconciler = reconciler
        self._kubeconfig = kubeconfig
        self._monotonic = monotonic
        self._account = Account()
        self._conditions = Conditions(reconciler)
        metrics.EVENTS_WAITING.set_function(lambda: self._account.untold)

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.listed.wait()
        delay, trouble = BACKOFF[0], ""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._tell()
            except (ApiError, SettingsError, *UNREACHABLE) as error:
                problem = str(error) or repr(error)
                if problem != trouble:
                    log.warning("conditions and Events are not written", problem=problem)
                asked = error.wait if isinstance(error, ApiError) else 0.0
                # Not for security: it spreads the load.
                await asyncio.sleep(max(asked, delay * random.uniform(0.5, 1)))  # noqa: S311
                delay, trouble = min(delay * 2, BACKOFF[1]), problem
            else:
                delay, trouble = BACKOFF[0], ""

    async def _tell(self) -> None:
        """Send what is due. Raises if nothing more can be sent for now."""
        inventory = self._reconciler.inventory
        now = self._monotonic()
        patches = self._conditions.due(now)[: AT_ONCE // 2]
        notices = notices_of(inventory, inventory.problems)
        tellings = self._account.look(notices, inventory, now)[: AT_ONCE - len(patches)]
        if not patches and not tellings:
            return
        async with await connect(self._kubeconfig) as api:
            for patch in patches:
                await self._send(api, patch.write)
                self._conditions.patched(patch, self._monotonic())
            for telling in tellings:
                code = await self._send(api, telling.write(socket.gethostname()))
                if code == 404 and telling.times > 1:
                    self._account.lost(telling)
                    continue
                metrics.EVENTS.labels("refused" if code else "told").inc()
                self._account.told(telling, self._monotonic())

    async def _send(self, api: client.ApiClient, write: Write) -> int:
        """Zero, or the HTTP status with which only this write was refused.

        Raises `ApiError` if any other write would fail too, and `UNREACHABLE`.
        """
        await asyncio.sleep(PACE)
        try:
            response = await ask(
                api,
                write.method,
                write.path,
                _TIMEOUT,
                body=write.body,
                content_type=write.content_type,
            )
        except ApiError as error:
            if error.may_pass:
                raise
            log.info("refused by the API server", path=write.path, problem=str(error))
            return error.code
        response.release()
        return 0
