"""Egress addresses: what gateways tell of their use, and what people want to see."""

from collections.abc import Callable

import msgspec
from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.egress import report
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire import paths
from wire.documents import decode_egress_use


class EgressApi:
    """Routes and answers."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def agent_routes(self, reporter: Callable[[web.Request], str]) -> list[web.RouteDef]:
        """For agents, each for its own node, which `reporter` finds."""

        async def take(request: web.Request) -> web.Response:
            node = reporter(request)
            try:
                given = decode_egress_use(await request.read())
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
