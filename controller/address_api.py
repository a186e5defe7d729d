"""Addresses that one node at a time has: what agents ask, and what people want to see."""

from typing import Final

import msgspec
from aiohttp import web

from controller.address_owners import report
from controller.agent_requests import only_own_node, refused, seconds_to_wait
from controller.answers import NOT_READ, answer, refusal
from controller.rates import Rates
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire import paths
from wire.address_grants import Granted, decode_request, encode

REQUESTS_PER_SECOND: Final = 20.0
"""Of one node. An agent that has an address sends three or four, and one more for each change."""
REQUESTS_BURST: Final = 40
BYTES_PER_SECOND: Final = 600_000.0
"""Of the requests of one node. One that has all `MAX_ADDRESSES` sends 530 KB; a second of the event
loop reads 7 MB."""
BYTES_BURST: Final = 1 << 20
MOST_WAITING: Final = 4
"""Long polls for one node. Its agent has one, and a moment after its restart perhaps two."""


class AddressApi:
    """Routes and answers."""

    def __init__(self, reconciler: Reconciler, identity: str) -> None:
        """`identity`: of this process, as in the election."""
        self._reconciler = reconciler
        self._owners = reconciler.inventory.address_owners
        self._identity = identity
        self._rates = Rates(REQUESTS_PER_SECOND, REQUESTS_BURST, self._owners.now)
        self._bytes = Rates(BYTES_PER_SECOND, BYTES_BURST, self._owners.now)

    def agent_routes(self) -> list[web.RouteDef]:
        """For agents, each for its own node."""
        return [web.get(paths.GRANTS, self._duties), web.post(paths.GRANTS, self._take)]

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/addresses", self._report)]

    def _node(self, request: web.Request) -> str:
        """The node that asks. Raises `web.HTTPException`."""
        node = request.match_info["node"]
        only_own_node(request, node)
        if not self._reconciler.inventory.knows_node(node):
            raise refused(web.HTTPNotFound, f"Node {node} is unknown")
        return node

    async def _duties(self, request: web.Request) -> web.Response:
        """What the node should have."""
        if not self._reconciler.listed.is_set():
            only_own_node(request, request.match_info["node"])
            return refusal(503, NOT_READ)
        node = self._node(request)
        if self._owners.waiting(node) >= MOST_WAITING:
            return refusal(429, f"Node {node}: {MOST_WAITING} requests wait already")
        found = await self._owners.duties(
            node, request.query.get(paths.AFTER), seconds_to_wait(request)
        )
        if found is None:
            return web.Response(status=304)
        return web.Response(body=encode(found), content_type="application/json")

    async def _take(self, request: web.Request) -> web.Response:
        """Renew, grant and take back."""
        if not self._reconciler.listed.is_set():
            # It cannot lead yet: that is what an agent needs to know of it, whoever its node is.
            only_own_node(request, request.match_info["node"])
            return _granted(Granted(self._identity, leads=False))
        node = self._node(request)
        if not self._rates.allows(node):
            return refusal(429, f"Node {node}: too many requests")
        body = await request.read()
        if not self._bytes.allows(node, len(body)):
            return refusal(429, f"Node {node}: too long requests")
        try:
            given = decode_request(body)
        except (msgspec.MsgspecError, ValueError) as error:
            return refusal(400, f"not a request for addresses: {error}")
        return _granted(self._owners.request(node, self._identity, given))

    async def _report(self, _: web.Request) -> web.Response:
        """See `report`."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        return await answer(await in_turns(report.addresses(self._owners)))


def _granted(answered: Granted) -> web.Response:
    return web.Response(body=encode(answered), content_type="application/json")
