"""Serves `controller.metrics` to Prometheus."""

from functools import partial

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller import metrics
from controller.problems import ReporterKind
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire.viewing import NODE_METRICS


class MetricsApi:
    """Routes for scrapers; what can be counted at any time is counted when they ask."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._proofs = reconciler.proofs
        view, problems = reconciler.inventory.view, reconciler.problems
        sessions = reconciler.sessions
        metrics.NODES.set_function(lambda: len(view.nodes))
        metrics.ATTACHMENTS.set_function(lambda: sum(map(len, view.attachments.values())))
        metrics.SERVICES.set_function(lambda: len(view.services))
        for kind in ReporterKind:
            count = partial(problems.count, kind)
            metrics.PROBLEMS.labels(kind.name.lower()).set_function(count)
        metrics.IN_SYNC.set_function(lambda: sum(each.in_sync for each in sessions.values()))
        metrics.FOREIGN.set_function(lambda: sum(s.audit.foreign for s in sessions.values()))
        metrics.PROVEN_AGE_MAX.set_function(lambda: reconciler.proofs.oldest)
        metrics.CLUSTER_READ.set_function(lambda: reconciler.desired.source_complete)

    @staticmethod
    def open_routes() -> list[web.RouteDef]:
        """Metrics without names, for everybody."""
        return [web.get("/metrics", _numbers)]

    def routes(self) -> list[web.RouteDef]:
        """Metrics of single nodes; see `controller.viewers` for who may ask."""
        return [web.get(NODE_METRICS, self._of_nodes)]

    async def _of_nodes(self, _: web.Request) -> web.Response:
        ages = await in_turns(self._proofs.ages())
        return _answer(await in_turns(metrics.PROVEN_AGE.text(ages)))


async def _numbers(_: web.Request) -> web.Response:
    return _answer(generate_latest())


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
