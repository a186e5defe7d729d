"""Proofs of convergence, as `sluice wait` asks for them."""

from typing import Final

from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.convergence import Convergences
from controller.reconciler import Reconciler

LONGEST: Final = 600
"""Characters of the name of an object."""


class WaitApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._convergences = Convergences(reconciler)

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/wait", self._wait)]

    async def _wait(self, request: web.Request) -> web.Response:
        """With `object`, and `id` of the answer before: which switches hold it now.

        With `gone`: from which switches it is gone. It does not wait: a client asks again.
        """
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        text = request.query.get("object", "")
        if not text or len(text) > LONGEST:
            return refusal(400, f"object: give 1 to {LONGEST} characters")
        name, gone = request.query.get("id", ""), "gone" in request.query
        return await answer(await self._convergences.look(text, name, gone=gone))
