"""Writes Events about connections that policy denied.

A loop of its own: what is wrong with the cluster never waits for these.
"""

from pathlib import Path

from controller import metrics
from controller.api_writes import keep_writing, send_event
from controller.denials import Denials
from controller.kubernetes_api import connect
from controller.leadership import Leadership


class DenialWriter:
    """Writes the Events that are due to the API server."""

    def __init__(
        self, denials: Denials, kubeconfig: Path | None, leadership: Leadership | None = None
    ) -> None:
        """`kubeconfig` as `kubernetes_api.connect` has it."""
        self._denials = denials
        self._kubeconfig = kubeconfig
        self._leadership = leadership or Leadership()

    async def run(self) -> None:
        """Until cancelled."""
        await keep_writing(
            self._tell, "Events about denied connections are not written", self._leadership
        )

    async def _tell(self) -> None:
        """Send what is due. Raises if nothing more can be sent for now."""
        due = self._denials.due()
        if not due:
            return
        async with await connect(self._kubeconfig) as api:
            for pair in due:
                telling = self._denials.telling(pair)
                if not self._leadership.holds():
                    return
                if telling is None:
                    continue
                if await send_event(api, telling, metrics.DENIALS):
                    self._denials.told(pair, telling)
                else:
                    self._denials.lost(pair)
