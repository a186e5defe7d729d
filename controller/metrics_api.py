"""Serves `controller.metrics` to Prometheus."""

import time
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller import metrics
from controller.problems import ReporterKind
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire.viewing import NODE_METRICS

FRESH: Final = 1.0
"""Seconds for which an answer is given again: everybody may ask, and as often as they like."""


class MetricsApi:
    """Routes for scrapers; what can be counted at any time is counted when they ask."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._proofs = reconciler.proofs
        self._problems = reconciler.problems
        self._numbers = b""
        self._made = 0.0
        """When `_numbers` was made."""
        view, sessions = reconciler.inventory.view, reconciler.sessions
        metrics.NODES.set_function(lambda: len(view.nodes))
        metrics.ATTACHMENTS.set_function(lambda: sum(map(len, view.attachments.values())))
        metrics.SERVICES.set_function(lambda: len(view.services))
        metrics.IN_SYNC.set_function(lambda: sum(each.in_sync for each in sessions.values()))
        metrics.FOREIGN.set_function(lambda: sum(s.audit.foreign for s in sessions.values()))
        metrics.PROVEN_AGE_MAX.set_function(lambda: reconciler.proofs.oldest)
        self._ledger = reconciler.inventory.egress_ledger
        metrics.EGRESS_USED_MAX.set_function(self._ledger.most_used)
        self._balancers = reconciler.inventory.load_balancers
        owners = reconciler.inventory.address_owners
        owners.on_move = metrics.ADDRESS_MOVES.inc
        metrics.ADDRESSES.set_function(lambda: len(owners.grants.addresses))
        metrics.ADDRESSES_OWNED.set_function(lambda: len(owners.owners))
        metrics.POOL_FREE_MIN.set_function(self._balancers.least_free)
        metrics.WAITING_FOR_ADDRESS.set_function(lambda: len(self._balancers.allocation.problems))
        leadership = reconciler.leadership
        metrics.LEADER.set_function(leadership.holds)
        metrics.GENERATION.set_function(lambda: leadership.generation)
        metrics.CLUSTER_READ.set_function(lambda: reconciler.desired.source_complete)

    def open_routes(self) -> list[web.RouteDef]:
        """Metrics without names, for everybody."""
        return [web.get("/metrics", self._of_all)]

    def routes(self) -> list[web.RouteDef]:
        """Metrics of single nodes, and those without names for who reaches only the reports.

        See `controller.viewers` for who may ask.
        """
        return [web.get(NODE_METRICS, self._of_nodes), web.get("/v1/metrics", self._of_all)]

    async def _of_all(self, _: web.Request) -> web.Response:
        now = time.monotonic()
        if not self._numbers or now - self._made >= FRESH:
            counts = self._problems.counts()
            for kind in ReporterKind:
                metrics.PROBLEMS.labels(kind.name.lower()).set(counts[kind])
            self._numbers, self._made = generate_latest(), now
        return _answer(self._numbers)

    async def _of_nodes(self, _: web.Request) -> web.Response:
        ages = await in_turns(self._proofs.ages())
        free = {pool.name: float(number) for pool, number in self._balancers.free().items()}
        sizes = {pool.name: float(pool.size) for pool in self._balancers.pools.all}
        texts = [
            await in_turns(metric.text(values))
            for metric, values in (
                (metrics.PROVEN_AGE, ages),
                (metrics.POOL_FREE, free),
                (metrics.POOL_SIZE, sizes),
                (metrics.EGRESS_USED, self._ledger.used()),
                (metrics.EGRESS_CONNECTIONS, self._ledger.connections()),
            )
        ]
        return _answer(b"".join(texts))


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
