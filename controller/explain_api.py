"""What people may ask to have explained, as `sluice explain` does."""

from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.explanations import explain
from controller.object_names import UnknownObject
from controller.reconciler import Reconciler
from controller.work_budget import in_turns


class ExplainApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/explain", self._explain)]

    async def _explain(self, request: web.Request) -> web.Response:
        """With `what`: a cookie, a line of a dump, an object or an address; perhaps `node`."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        query, reconciler = request.query, self._reconciler
        try:
            work = explain(
                reconciler.inventory, reconciler.desired, query.get("what", ""), query.get("node")
            )
            return await answer(await in_turns(work))
        except UnknownObject as error:
            return refusal(404, str(error))
