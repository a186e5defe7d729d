"""Reports for viewers: people who may create a token of the ServiceAccount `sluice-viewer`.

The same reports as on the unix socket, by TLS. Scrapers, such as Prometheus, get the metrics of
nodes only; they show a token of their own ServiceAccount.

The controller's Pod is in the host network, where every process of the node reaches its loopback
address. So each request shows a token, wherever it comes from. Web browsers are kept out: a page of
theirs could have a name that resolves to the controller's address (DNS rebinding).
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from controller.rates import Rate, Rates
from controller.token_review import Account, Connect, Refused, bearer, name_of, review
from wire.documents import Refusal, encode
from wire.viewing import AUDIENCE, CAPTURE, CAPTURER, NODE_METRICS, SERVER_NAME, SERVICE_ACCOUNT

log = structlog.get_logger()

REMEMBERED: Final = 60.0
"""Seconds for which the review of a good token counts."""
MOST_REMEMBERED: Final = 256
"""Good tokens that are remembered; then the one with the oldest review is forgotten."""
REVIEWS_PER_SECOND: Final = 5.0
REVIEWS_BURST: Final = 20
"""Tokens that the API server is asked about, of all strangers together."""
REVIEWS_AT_ONCE: Final = 16
"""Of these, how many may wait for an answer of the API server."""
REQUESTS_PER_SECOND: Final = 10.0
REQUESTS_BURST: Final = 40
"""Of one token."""
MOST_AT_ONCE: Final = 4
"""Reports that are made and sent at the same time."""
OF_AGENTS: Final = frozenset(("/v1/trace", "/v1/check", CAPTURE))
"""Paths of reports that wait for agents, which may take their time, or be silent. Other reports do
not wait for these."""
MOST_OF_AGENTS: Final = 8
"""Of these reports, at the same time."""
LONGEST_TURN: Final = 10.0
"""Seconds that a request waits for its turn."""
LONGEST_REPORT: Final = 60.0
"""Seconds until a report has been made and read; then its connection ends."""

_HOSTS: Final = re.compile(rf"(localhost|{SERVER_NAME}|[0-9.]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?")
"""Hosts that no owner of a DNS name can choose."""


class Viewers:
    """Who may look: answers of the API server, the good ones remembered for a minute."""

    def __init__(self, namespace: str, connect: Connect, scrapers: Sequence[Account] = ()) -> None:
        """`namespace` has the ServiceAccount of viewers. Must be made on the event loop."""
        self._accounts = (
            (namespace, SERVICE_ACCOUNT), (namespace, CAPTURER), *scrapers
        )  # fmt: skip
        self._connect = connect
        self._reviews = Rate(REVIEWS_PER_SECOND, REVIEWS_BURST)
        self._turns = asyncio.Semaphore(REVIEWS_AT_ONCE)
        self._good: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """By the SHA-256 of a token, until when it counts, and its user."""

    async def check(self, token: str, path: str) -> str:
        """Return a name for the token, which does not tell the token. Raises `Refused`."""
        digest = hashlib.sha256(token.encode()).digest()
        now = asyncio.get_running_loop().time()
        until, user = self._good.get(digest, (now, ""))
        if now >= until:
            if self._turns.locked() or not self._reviews.allows():
                raise Refused(429, "too many tokens are shown to the controller; try again")
            self._good.pop(digest, None)
            async with self._turns:
                user = (await review(self._connect, token, AUDIENCE, self._accounts)).username
            self._good[digest] = now + REMEMBERED, user
            if len(self._good) > MOST_REMEMBERED:
                self._good.popitem(last=False)
        viewer, capturer = map(name_of, self._accounts[:2])
        if user == viewer and path == CAPTURE:
            raise Refused(403, f"captures are for {capturer}, and the token is {user}'s")
        if user == capturer and path != CAPTURE:
            raise Refused(403, f"{user} may capture packets ({CAPTURE}) and nothing else")
        if user not in (viewer, capturer) and path != NODE_METRICS:
            raise Refused(403, f"{user} may read {NODE_METRICS} and nothing else")
        return digest.hex()


def application(routes: list[web.RouteDef], viewers: Viewers) -> web.Application:
    """The routes, for viewers alone. Must be made on the event loop."""
    made = web.Application(middlewares=[_gate(viewers)])
    made.add_routes(routes)
    return made


def _gate(viewers: Viewers) -> Middleware:
    rates = Rates(REQUESTS_PER_SECOND, REQUESTS_BURST)
    own, of_agents = asyncio.Semaphore(MOST_AT_ONCE), asyncio.Semaphore(MOST_OF_AGENTS)

    async def admit(request: web.Request) -> asyncio.Semaphore:
        """Where it has its turn, which has to be given back. Raises `Refused`."""
        _check_form(request)
        if not rates.allows(await viewers.check(bearer(request), request.path)):
            raise Refused(429, "too many requests with this token; try again")
        turns = of_agents if request.path in OF_AGENTS else own
        try:
            async with asyncio.timeout(LONGEST_TURN):
                await turns.acquire()
        except TimeoutError:
            raise Refused(429, "too many reports are being made; try again") from None
        return turns

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            turns = await admit(request)
        except Refused as refusal:
            log.info("a viewer is refused", peer=request.remote, reason=str(refusal),
                     limit_by=str(request.remote))  # fmt: skip
            return _refusal(refusal)
        response: web.StreamResponse = web.Response(status=503)
        try:
            async with asyncio.timeout(LONGEST_REPORT):
                response = await handler(request)
                # In this turn, until the viewer has read it: it is in memory as long.
                await response.prepare(request)
                await response.write_eof()
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            turns.release()
        return response

    return gate


def _check_form(request: web.Request) -> None:
    """Raise `Refused` unless this may be the request of a command line."""
    if request.method != hdrs.METH_GET:
        raise Refused(405, "only GET is served here")
    if request.can_read_body:
        raise Refused(400, "a request for a report has no body")
    if hdrs.ORIGIN in request.headers:
        raise Refused(403, "no reports for web pages (Origin)")
    if not _HOSTS.fullmatch(request.headers.get(hdrs.HOST, "")):
        raise Refused(403, f"Host: neither an address nor localhost nor {SERVER_NAME}")


def _refusal(refusal: Refused) -> web.Response:
    body = encode(Refusal(str(refusal)))
    response = web.Response(status=refusal.status, body=body, content_type="application/json")
    # Whatever follows on this connection is not read.
    response.force_close()
    return response
