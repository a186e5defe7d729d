"""What people may ask about the way of a packet."""

from collections.abc import Callable
from ipaddress import IPv4Address

import msgspec
from aiohttp import web

from controller.policy_reports.ends import QuestionError
from controller.policy_reports.verdict import PROTOCOL_WORDS
from controller.questions import NoAnswerError, Questions
from controller.reconciler import Reconciler
from controller.tracing.follow import Tracer
from controller.tracing.start import Asked
from settings import ClusterSettings
from wire.documents import Refusal, encode


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
            return _error(503, "the controller has not read the cluster yet")
        try:
            asked = _asked(request.query.get)
            reply = "reply" in request.query
            report = await self._tracer.trace(asked, reply=reply, node_dns=self._node_dns)
        except QuestionError as error:
            return _error(404, str(error))
        except NoAnswerError as error:
            return _error(504, str(error))
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")


def _asked(query: Callable[[str, str], str]) -> Asked:
    """Raises `QuestionError`."""
    for word in ("from", "to"):
        if not query(word, ""):
            raise QuestionError(f"{word}: give this")
    protocol = query("protocol", "TCP").upper()
    if protocol not in PROTOCOL_WORDS:
        raise QuestionError(f"protocol: none of {', '.join(PROTOCOL_WORDS)}")
    endpoint: tuple[IPv4Address, int] | None = None
    if text := query("endpoint", ""):
        host, _, port = text.rpartition(":")
        try:
            endpoint = IPv4Address(host), _port(port, "endpoint")
        except ValueError:
            raise QuestionError(f"endpoint: {text!r} is not ADDRESS:PORT") from None
    source_port = query("sourcePort", "")
    return Asked(
        source=query("from", ""),
        destination=query("to", ""),
        port=query("port", ""),
        protocol=PROTOCOL_WORDS[protocol],
        source_port=_port(source_port, "sourcePort") if source_port else None,
        node=query("node", ""),
        endpoint=endpoint,
    )


def _port(text: str, field: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise QuestionError(f"{field}: {text!r} is not from 1 to 65535")
    return int(text)


def _error(status: int, sentence: str) -> web.Response:
    body = encode(Refusal(sentence))
    return web.Response(status=status, body=body, content_type="application/json")
