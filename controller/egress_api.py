"""Egress addresses: what gateways tell of their use, and what people want to see."""

from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.egress import report
from controller.rates import Rates
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire import paths
from wire.documents import egress_use

BYTES_PER_SECOND: Final = 250_000.0
"""Of the reports of one node. An agent sends a document in 5 s, and the longest has a megabyte."""
BYTES_BURST: Final = 1 << 21


class EgressApi:
    """Routes and answers."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._bytes = Rates(BYTES_PER_SECOND, BYTES_BURST)

    def agent_routes(self, reporter: Callable[[web.Request], str]) -> list[web.RouteDef]:
        """For agents, each for its own node, which `reporter` finds."""

        async def take(request: web.Request) -> web.Response:
            node = reporter(request)
            body = await request.read()
            if not self._bytes.allows(node, len(body)):
                return refusal(429, f"Node {node}: too long reports")
            try:
                given = await in_turns(egress_use(body))
            except msgspec.MsgspecError as error:
                return refusal(400, f"not the use of egress addresses: {error}")
            self._reconciler.inventory.egress_ledger.take(node, given)
            return web.Response(status=204)

        return [web.post(paths.EGRESS, take)]

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/egress", self._report)]

    async def _report(self, _: web.Request) -> web.Response:
        """Every EgressAddress, and who uses its source ports."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        return await answer(await in_turns(report.listed(self._reconciler.inventory)))
