"""What people may ask about the way of a packet."""

import asyncio
from typing import Final

from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.policy_reports.ends import QuestionError
from controller.questions import NoAnswerError, Questions
from controller.reconciler import Reconciler
from controller.tracing.follow import Tracer
from controller.tracing.start import asked_of
from settings import ClusterSettings

LONGEST: Final = 45.0
"""Seconds for a trace and its reply, on all the nodes that they come to."""


class TraceApi:
    """Routes and answers; see `routes`."""

    def __init__(
        self, reconciler: Reconciler, questions: Questions, cluster: ClusterSettings
    ) -> None:
        self._reconciler = reconciler
        self._node_dns = cluster.policy.node_local_dns
        self._tracer = Tracer(
            reconciler.inventory, questions, reconciler.desired.flow, cluster.tunnel_id
        )

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/trace", self._trace)]

    async def _trace(self, request: web.Request) -> web.Response:
        """With `?from=&to=&port=&protocol=&reply=`, see `sluice trace --help`."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        try:
            asked = asked_of(request.query.get)
            reply = "reply" in request.query
            async with asyncio.timeout(LONGEST):
                report = await self._tracer.trace(asked, reply=reply, node_dns=self._node_dns)
        except QuestionError as error:
            return refusal(404, str(error))
        except NoAnswerError as error:
            return refusal(504, str(error))
        except TimeoutError:
            return refusal(504, f"agents have not traced the packet in {LONGEST:g} s")
        return await answer(report)
