"""What people may ask about the flows of a switch, as `sluice flows` does."""

import asyncio
from typing import Final

from aiohttp import web

from controller import flow_report
from controller.answers import answer, refusal
from controller.flow_choice import (
    ALL_BITS,
    BadQuestion,
    Choice,
    Wanted,
    choose,
    shown_groups,
    wanted_flows,
)
from controller.reconciler import Reconciler
from controller.reports.flows import FlowReport
from controller.work_budget import in_turns
from flows.labels import Labels
from flows.pipeline import LAYOUT
from openflow.errors import SwitchError
from openflow.messages import InstalledFlow, InstalledGroup
from openflow.switch import Switch

LONGEST_DUMP: Final = 10.0
"""Seconds that a switch may take to tell its flows to somebody who looks."""
MOST_COOKIES: Final = 64
"""Flows that a switch is asked for one by one, by their cookies, which it finds by an index. For
more it tells their whole tables."""


class FlowApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/nodes/{node}/flows", self._flows), web.get("/v1/flows", self._flows)]

    async def _flows(self, request: web.Request) -> web.Response:
        """What a node's switch holds now; see `controller.flow_report`.

        In the query, all optional: `table`, `cookie` (`VALUE` or `VALUE/MASK`), `pod`, `service`,
        `policy`; `node` with the path that has none, unless `pod` is given. With `names`, register
        fields, ofports and Service ports have names.
        """
        inventory = self._reconciler.inventory
        try:
            choice = choose(inventory, request.query, request.match_info.get("node"))
            wanted = await in_turns(wanted_flows(inventory, self._reconciler.desired, choice))
            installed, groups = await self._read(choice, wanted)
        except BadQuestion as error:
            return refusal(error.status, str(error))
        reconciler, node = self._reconciler, choice.node
        view, desired = reconciler.inventory.view, reconciler.desired
        labels = Labels.of(view, node) if "names" in request.query else None
        flows = await in_turns(flow_report.flows(installed, wanted.flows, view.services, labels))
        desired_groups = desired.groups_of(node)
        if not choice.is_everything:
            shown = shown_groups(flows, desired_groups)
            desired_groups = {n: g for n, g in desired_groups.items() if n in shown}
            is_foreign = choice.cookie is None and not choice.objects
            groups = [
                each
                for each in groups
                if each.id in shown or (is_foreign and flow_report.is_foreign_group(each))
            ]
        found = await in_turns(flow_report.groups(groups, desired_groups, flows, labels))
        return await answer(FlowReport(node=node, flows=tuple(flows), groups=tuple(found)))

    async def _read(
        self, choice: Choice, wanted: Wanted
    ) -> tuple[list[InstalledFlow], list[InstalledGroup]]:
        """Ask the switch for what is wanted alone, where it can do that. Raises `BadQuestion`."""
        node = choice.node
        session = self._reconciler.sessions.get(node)
        if session is None:
            raise BadQuestion(503, f"the switch of Node {node} is not connected")
        try:
            async with asyncio.timeout(LONGEST_DUMP):
                if choice.objects:
                    flows = await _dump_wanted(session.switch, choice, wanted)
                else:
                    table = choice.table.number if choice.table else None
                    flows = await session.switch.dump_flows(table, *(choice.cookie or (0, 0)))
                return flows, await session.switch.dump_groups()
        except (TimeoutError, SwitchError) as error:
            why = f"the switch of Node {node} does not answer: {error}".rstrip(": ")
            raise BadQuestion(503, why) from error


async def _dump_wanted(switch: Switch, choice: Choice, wanted: Wanted) -> list[InstalledFlow]:
    found: list[InstalledFlow] = []
    if len(wanted.flows) <= MOST_COOKIES:
        for cookie in wanted.flows:
            found += await switch.dump_flows(None, cookie, ALL_BITS)
    else:
        for table in sorted({flow.table for flow, _ in wanted.flows.values()}):
            dump = await switch.dump_flows(table)
            found += [flow for flow in dump if flow.cookie in wanted.flows]
    affinity = LAYOUT.tables["Affinity"].number
    if wanted.learned_for and choice.takes(affinity, 0):
        found += [
            flow
            for flow in await switch.dump_flows(affinity)
            if flow_report.service_group(flow) in wanted.learned_for
            and flow.cookie not in wanted.flows
        ]
    return found
