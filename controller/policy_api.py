"""What local users may ask about policies, and the copy of the cluster that they compute with."""

from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.offline.cluster_copy import copy_of
from controller.policy_reports.ends import QuestionError
from controller.policy_reports.pods import pod_policies
from controller.policy_reports.verdict import PROTOCOL_WORDS, verdict
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from settings import ClusterSettings


class PolicyApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler, cluster: ClusterSettings) -> None:
        self._reconciler = reconciler
        self._cluster = cluster

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/policy", self._policy), web.get("/v1/cluster", self._copy)]

    async def _policy(self, request: web.Request) -> web.Response:
        """With `?pod=POD` its policies; with `?from=&to=&port=&protocol=` a verdict."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        inventory, query = self._reconciler.inventory, request.query
        if (pod := query.get("pod")) is not None:
            found = await in_turns(pod_policies(inventory, pod))
            return refusal(404, found) if isinstance(found, str) else await answer(found)
        missing = [word for word in ("from", "to") if not query.get(word)]
        if missing:
            return refusal(400, f"{missing[0]}: give this, or pod")
        protocol = query.get("protocol", "TCP").upper()
        if protocol not in PROTOCOL_WORDS:
            return refusal(400, f"protocol: none of {', '.join(PROTOCOL_WORDS)}")
        try:
            work = verdict(
                inventory,
                (query["from"], query["to"]),
                query.get("port", ""),
                protocol,
                node_dns=self._cluster.policy.node_local_dns,
            )
            return await answer(await in_turns(work))
        except QuestionError as error:
            return refusal(404, str(error))

    async def _copy(self, request: web.Request) -> web.StreamResponse:
        """What policies depend on, as lines of JSON: see `controller.offline.cluster_copy`.

        With `services` in the query, what else flows depend on.
        """
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        services = "services" in request.query
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for line in copy_of(self._reconciler.inventory, services=services):
            await response.write(line)
        await response.write_eof()
        return response
