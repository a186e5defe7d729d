"""Counters of switches, as `sluice top` and `sluice drops` ask for them, and denied connections."""

import asyncio
import math
from bisect import bisect_right
from collections import OrderedDict
from typing import Final

from aiohttp import web

from controller.answers import NOT_READ, answer, refusal
from controller.counters import CounterReader
from controller.recent_denials import RecentDenials
from controller.reconciler import Reconciler
from controller.reports.counters import Counters, NodeCounters
from controller.work_budget import in_turns
from openflow.errors import SwitchError

MOST_NODES: Final = 16
"""Nodes of one answer."""
AT_ONCE: Final = 4
"""Switches that are read at a time."""
PATIENCE: Final = 10.0
"""Seconds that a switch may take."""
FRESH: Final = 1.0
"""Seconds in which all who ask get the same counters: so often a switch is read at most."""
MOST_KEPT: Final = 64
"""Answers of nodes that are kept for that."""


class CountersApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler, denials: RecentDenials) -> None:
        self._reconciler = reconciler
        self._denials = denials
        self._reader = CounterReader(reconciler)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._kept: OrderedDict[tuple[str, str], asyncio.Task[NodeCounters | str]] = OrderedDict()
        """By node and what was asked for."""

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [
            web.get("/v1/counters", self._counters),
            web.get("/v1/denials", self._denials_since),
        ]

    async def _counters(self, request: web.Request) -> web.Response:
        """Of the next nodes in order of their names; at most `MOST_NODES`.

        In the query, all optional: `node`, several times; `after` (the name of a node); `what`
        (`traffic` or `drops`; both by default).
        """
        if not self._reconciler.listed.is_set():
            return refusal(503, NOT_READ)
        query, nodes = request.query, self._reconciler.inventory.view.nodes
        if (what := query.get("what", "")) not in {"", "traffic", "drops"}:
            return refusal(400, "what: neither traffic nor drops")
        chosen = query.getall("node", [])
        for name in chosen:
            if name not in nodes:
                why = self._reconciler.inventory.nodes.reason(name)
                return refusal(404, f"Node {name}: {why}")
        ordered = sorted(chosen or nodes)
        first = bisect_right(ordered, query.get("after", ""))
        turn = ordered[first : first + MOST_NODES]
        found = await asyncio.gather(*(self._of(node, what) for node in turn))
        told = [(node, each) for node, each in zip(turn, found, strict=True)]
        return await answer(
            Counters(
                nodes=tuple(each for _, each in told if isinstance(each, NodeCounters)),
                unread={node: each for node, each in told if isinstance(each, str)},
                of=len(nodes),
                after=turn[-1] if first + MOST_NODES < len(ordered) else "",
            )
        )

    async def _of(self, node: str, what: str) -> NodeCounters | str:
        """The counters of a node, or why there are none. All who ask at one time share one read."""
        key = node, what
        task = self._kept.get(key)
        if task is None:
            task = self._kept[key] = asyncio.create_task(self._read(node, what))
            loop = asyncio.get_running_loop()
            task.add_done_callback(lambda _: loop.call_later(FRESH, self._forget, key, task))
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return await asyncio.shield(task)

    def _forget(self, key: tuple[str, str], task: asyncio.Task[NodeCounters | str]) -> None:
        if self._kept.get(key) is task:
            del self._kept[key]

    async def _read(self, node: str, what: str) -> NodeCounters | str:
        async with self._turns:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._reader.read(
                        node, traffic=what != "drops", drops=what != "traffic"
                    )
            except KeyError:
                return "its switch is not connected"
            except (TimeoutError, SwitchError) as error:
                return f"its switch does not answer: {error}".rstrip(": ")

    async def _denials_since(self, request: web.Request) -> web.Response:
        """What policy denied; with `since` (seconds since 1970), what was reported after that."""
        try:
            since = float(request.query.get("since", "0"))
        except ValueError:
            since = math.nan
        if not math.isfinite(since):
            return refusal(400, "since: not a number of seconds")
        return await answer(await in_turns(self._denials.report(since)))
