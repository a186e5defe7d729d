"""What is wrong with nodes, as their own agents find it: `sluice check`."""

import asyncio
import random
from ipaddress import IPv4Address
from typing import Final, cast

import msgspec
from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.questions import NoAnswerError, Questions
from controller.reconciler import Reconciler
from controller.reports.check import CheckReport
from wire.findings import MAX_NODES, MAX_PEERS, NodeFindings, Peer
from wire.questions import Checked, CheckNode

PATIENCE: Final = 50.0
"""Seconds for the answer of an agent: most have it in two."""


class CheckApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler, questions: Questions) -> None:
        self._view = reconciler.inventory.view
        self._listed = reconciler.listed
        self._questions = questions

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/check", self._check)]

    async def _check(self, request: web.Request) -> web.Response:
        """With `?node=NODE`, repeated for each node: what their agents find now."""
        if not self._listed.is_set():
            return refusal(503, NOT_READ)
        names = [*dict.fromkeys(request.query.getall("node", []))]
        if not names:
            return refusal(400, "node: give the names of some nodes")
        if len(names) > MAX_NODES:
            return refusal(400, f"node: {len(names)} nodes, and {MAX_NODES} are the most at a time")
        found = await asyncio.gather(*map(self._one, names))
        report = CheckReport(
            nodes=tuple(each for each in found if isinstance(each, NodeFindings)),
            unanswered={
                name: each for name, each in zip(names, found, strict=True) if isinstance(each, str)
            },
        )
        return await answer(report)

    async def _one(self, name: str) -> NodeFindings | str:
        """What its agent finds, or why there is no answer."""
        if name not in self._view.nodes:
            return f"Node {name} is unknown, or refused"
        try:
            given = await self._questions.ask(name, CheckNode(self._peers(name)), PATIENCE)
        except NoAnswerError as error:
            return str(error)
        if not isinstance(given, Checked):
            return f"Node {name}: its agent answers something else"
        # An agent speaks of its own node only.
        return msgspec.structs.replace(given.found, node=name)

    def _peers(self, name: str) -> tuple[Peer, ...]:
        """Some other nodes, which ones is chance."""
        names = list(self._view.nodes)
        chosen = [each for each in random.sample(names, min(len(names), MAX_PEERS + 1))
                  if each != name]  # fmt: skip
        nodes = [self._view.nodes[each] for each in chosen[:MAX_PEERS]]
        # The protocol has IPv4 only, as have all Nodes that are accepted.
        return tuple(
            Peer(node.name, cast("IPv4Address", node.address), cast("IPv4Address", node.gateway))
            for node in nodes
        )
