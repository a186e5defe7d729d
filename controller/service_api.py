"""What people may ask about Services, as `sluice services` does."""

from aiohttp import web

from controller import service_report
from controller.answers import NOT_READ, answer, refusal
from controller.load_balancers import report as pool_report
from controller.reconciler import Reconciler
from controller.work_budget import in_turns


class ServiceApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [
            web.get("/v1/pools", self._pools),
            web.get("/v1/services", self._all),
            web.get("/v1/services/{namespace}/{name}", self._one),
        ]

    async def _all(self, _: web.Request) -> web.Response:
        """Every Service in short."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        return await answer(await in_turns(service_report.listed(self._reconciler.inventory)))

    async def _pools(self, _: web.Request) -> web.Response:
        """Every AddressPool, and who has its addresses."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        return await answer(await in_turns(pool_report.listed(self._reconciler.inventory)))

    async def _one(self, request: web.Request) -> web.Response:
        """One Service, and who gets which of its endpoints; with `?node=NODE`, on that one."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        name = f"{request.match_info['namespace']}/{request.match_info['name']}"
        node = request.query.get("node")
        inventory = self._reconciler.inventory
        if node is not None and node not in inventory.view.nodes:
            return refusal(404, f"Node {node}: {inventory.nodes.reason(node)}")
        report = await in_turns(service_report.detailed(inventory, name, node))
        if report is None:
            return refusal(404, f"there is no Service {name}")
        return await answer(report)
