"""BGP: what agents with a speaker ask and say, and what people want to see."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.bgp import Announcer
from controller.bgp.report import reported
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from wire import paths
from wire.bgp import NodeBGP
from wire.documents import decode_sessions

Reporter = Callable[[web.Request], str]
"""The node that reports. Raises `web.HTTPException`."""
Follow = Callable[
    [web.Request, Callable[[], asyncio.Event], Callable[[str], NodeBGP | None]],
    Awaitable[web.Response],
]
"""A long poll of a node's document."""

NO_PEER: Final = "there is no BGPPeer {}"


class BGPApi:
    """Routes and answers."""

    def __init__(self, reconciler: Reconciler, announcer: Announcer) -> None:
        self._reconciler = reconciler
        self._announcer = announcer

    def agent_routes(self, follow: Follow, reporter: Reporter) -> list[web.RouteDef]:
        """For agents, each for its own node."""

        async def document(request: web.Request) -> web.Response:
            announcer = self._announcer
            return await follow(request, lambda: announcer.changed_for_nodes, announcer.document)

        async def take(request: web.Request) -> web.Response:
            node = reporter(request)
            try:
                given = decode_sessions(await request.read())
            except (msgspec.MsgspecError, ValueError) as error:
                return refusal(400, f"not a node's sessions: {error}")
            self._announcer.take_sessions(node, given)
            return web.Response(status=204)

        return [web.get(paths.BGP, document), web.post(paths.BGP_SESSIONS, take)]

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/bgp", self._report)]

    async def _report(self, request: web.Request) -> web.Response:
        """Peers and sessions; with `?peer=NAME` one of them, and its routes."""
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        peer = request.query.get("peer")
        inventory = self._reconciler.inventory
        if peer is not None and peer not in inventory.bgp_peers.objects:
            return refusal(404, NO_PEER.format(peer))
        return await answer(await in_turns(reported(inventory, self._announcer, peer)))
