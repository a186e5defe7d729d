"""What the controller writes to the API server: conditions and addresses of Nodes, and Events.

A loop beside the reconciler, which never waits for it. Every look determines from the current state
what is due, so nothing is lost while the API server is unavailable or refuses a write.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from controller import metrics
from controller.address_annotations import AddressAnnotations
from controller.api_writes import keep_writing, send, send_event
from controller.conditions import Conditions
from controller.events import Account, notices_of
from controller.kubernetes_api import connect
from controller.reconciler import Reconciler

AT_ONCE: Final = 200
"""Requests of one look. After them a new look follows, because problems may have ended."""


class StatusWriter:
    """Writes conditions and annotations of Nodes, and Events, to the API server."""

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
        self._annotations = AddressAnnotations(reconciler.inventory.nodes)
        metrics.EVENTS_WAITING.set_function(lambda: self._account.untold)

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.listed.wait()
        await keep_writing(
            self._tell, "conditions and Events are not written", self._reconciler.leadership
        )

    async def _tell(self) -> None:
        """Send what is due. Raises if nothing more can be sent for now."""
        inventory = self._reconciler.inventory
        now = self._monotonic()
        patches = self._conditions.due(now)[: AT_ONCE // 4]
        annotations = self._annotations.due(now)[: AT_ONCE // 4]
        notices = notices_of(inventory, inventory.problems)
        tellings = self._account.look(notices, inventory, now)[: AT_ONCE // 2]
        if not (patches or annotations or tellings):
            return
        leads = self._reconciler.leadership.holds
        async with await connect(self._kubeconfig) as api:
            for patch in patches:
                if not leads():
                    return
                await send(api, patch.write)
                self._conditions.patched(patch, self._monotonic())
            for annotating in annotations:
                if not leads():
                    return
                await send(api, annotating.write)
                self._annotations.patched(annotating, self._monotonic())
            for telling in tellings:
                if not leads():
                    return
                if await send_event(api, telling, metrics.EVENTS):
                    self._account.told(telling, self._monotonic())
                else:
                    self._account.lost(telling)
