"""What people may ask about the flows of a switch, as `sluice flows` does."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from controller import flow_report
from controller.answers import answer, refusal
from controller.causes import keys_of
from controller.flow_rows import group_behind
from controller.object_names import is_known
from controller.policies.slices import SLICE, Slices
from controller.policy_reports.pods import attached, why_not_attached
from controller.reconciler import Reconciler
from controller.reports.flows import FlowReport, FlowRow
from controller.work_budget import in_turns
from flows.flow import Flow, Group
from flows.labels import Labels
from flows.pipeline import LAYOUT, Table
from flows.refs import ObjectRef, Owners
from flows.view import Key
from openflow.errors import SwitchError
from openflow.messages import InstalledFlow, InstalledGroup
from openflow.switch import Switch

LONGEST_DUMP: Final = 10.0
"""Seconds that a switch may take to tell its flows to somebody who looks."""
MOST_COOKIES: Final = 64
"""Flows that a switch is asked for one by one, by their cookies, which it finds by an index. For
more it tells their whole tables."""
_ALL_BITS: Final = (1 << 64) - 1


class BadQuestion(ValueError):  # noqa: N818
    """What was asked cannot be answered: `status` of HTTP, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


@dataclass(frozen=True)
class _Choice:
    """Which flows of a switch are wanted. All conditions hold."""

    node: str
    table: Table | None = None
    cookie: tuple[int, int] | None = None
    """Value and mask."""
    objects: tuple[ObjectRef, ...] = ()

    def takes(self, table: int, cookie: int) -> bool:
        """Whether a flow is wanted, as far as table and cookie say."""
        if self.table is not None and table != self.table.number:
            return False
        return self.cookie is None or cookie & self.cookie[1] == self.cookie[0]

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.table is None and self.cookie is None and not self.objects


@dataclass
class _Wanted:
    """The flows that a switch should hold, of those that are wanted."""

    flows: dict[int, tuple[Flow, Owners]] = field(default_factory=dict)
    """By cookie."""
    learned_for: frozenset[int] = frozenset()
    """The groups of the Services whose learned flows are wanted as well."""


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
        try:
            choice = self._choice(request)
            wanted = await in_turns(self._wanted(choice))
            installed, groups = await self._read(choice, wanted)
        except BadQuestion as error:
            return refusal(error.status, str(error))
        reconciler, node = self._reconciler, choice.node
        view, desired = reconciler.inventory.view, reconciler.desired
        labels = Labels.of(view, node) if "names" in request.query else None
        flows = await in_turns(flow_report.flows(installed, wanted.flows, view.services, labels))
        desired_groups = desired.groups_of(node)
        if not choice.is_everything:
            shown = _shown_groups(flows, desired_groups)
            desired_groups = {n: g for n, g in desired_groups.items() if n in shown}
            is_foreign = choice.cookie is None and not choice.objects
            groups = [
                each
                for each in groups
                if each.id in shown or (is_foreign and flow_report.is_foreign_group(each))
            ]
        found = await in_turns(flow_report.groups(groups, desired_groups, flows, labels))
        return await answer(FlowReport(node=node, flows=tuple(flows), groups=tuple(found)))

    # --- what is asked for ---

    def _choice(self, request: web.Request) -> _Choice:
        """Raises `BadQuestion`."""
        query, inventory = request.query, self._reconciler.inventory
        objects: list[ObjectRef] = []
        node = request.match_info.get("node") or query.get("node")
        if (pod := query.get("pod")) is not None:
            found = attached(inventory, pod)
            if found is None:
                raise BadQuestion(404, why_not_attached(inventory, pod))
            if node is None:
                node = found.node
            objects.append(ObjectRef.namespaced("Pod", pod))
        if node is None:
            raise BadQuestion(400, "node: give this, or pod")
        if (service := query.get("service")) is not None:
            objects.append(self._known(ObjectRef("Service", *_namespaced("service", service))))
        if (policy := query.get("policy")) is not None:
            objects.append(self._policy(policy))
        if not inventory.knows_node(node):
            raise BadQuestion(404, f"Node {node} is unknown")
        return _Choice(node, _table(query.get("table")), _cookie(query.get("cookie")),
                       tuple(objects))  # fmt: skip

    def _known(self, ref: ObjectRef) -> ObjectRef:
        if not is_known(self._reconciler.inventory, ref):
            raise BadQuestion(404, f"there is no {ref}")
        return ref

    def _policy(self, text: str) -> ObjectRef:
        if "/" not in text:
            return self._known(ObjectRef("ClusterNetworkPolicy", "", text))
        return self._known(ObjectRef("NetworkPolicy", *_namespaced("policy", text)))

    # --- what the switch should hold of it ---

    def _wanted(self, choice: _Choice) -> Slices[_Wanted]:
        made = _Wanted()
        desired, inventory = self._reconciler.desired, self._reconciler.inventory
        if not choice.objects:
            if choice.is_everything:
                made.flows = desired.of(choice.node)
                return made
            entries = list(desired.of(choice.node).items())
            for number, (cookie, entry) in enumerate(entries):
                if number % SLICE == 0:
                    yield
                if choice.takes(entry[0].table, cookie):
                    made.flows[cookie] = entry
            return made
        flows: dict[int, tuple[Flow, Owners]] | None = None
        for ref in choice.objects:
            keys = yield from keys_of(inventory, ref)
            of_object = yield from self._of_keys(choice, keys)
            if flows is not None:
                of_object = {each: flows[each] for each in of_object if each in flows}
            flows = of_object
        made.flows = flows or {}
        (*_, last) = choice.objects
        if len(choice.objects) == 1 and last.kind == "Service":
            made.learned_for = self._learned_for(last)
        return made

    def _of_keys(
        self, choice: _Choice, keys: Iterable[Key]
    ) -> Slices[dict[int, tuple[Flow, Owners]]]:
        desired = self._reconciler.desired
        programs = desired.shared, desired.program(choice.node)
        found: dict[int, tuple[Flow, Owners]] = {}
        for number, key in enumerate(keys):
            if number % SLICE == 0:
                yield
            for program in programs:
                if (fragment := program.fragments.get(key)) is not None:
                    found |= {
                        entry[0].cookie: entry
                        for entry in fragment.entries
                        if choice.takes(entry[0].table, entry[0].cookie)
                    }
        return found

    def _learned_for(self, ref: ObjectRef) -> frozenset[int]:
        service = self._reconciler.inventory.view.services.get(f"{ref.namespace}/{ref.name}")
        return frozenset(
            number
            for port in (service.ports if service else ())
            if port.affinity is not None
            for number in port.groups.values()
        )

    # --- what it does hold ---

    async def _read(
        self, choice: _Choice, wanted: _Wanted
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


async def _dump_wanted(switch: Switch, choice: _Choice, wanted: _Wanted) -> list[InstalledFlow]:
    found: list[InstalledFlow] = []
    if len(wanted.flows) <= MOST_COOKIES:
        for cookie in wanted.flows:
            found += await switch.dump_flows(None, cookie, _ALL_BITS)
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


def _shown_groups(
    flows: Iterable[FlowRow], desired: dict[int, tuple[Group, Owners]]
) -> Collection[int]:
    """The groups that flows lead to, and those behind these."""
    first = {number for row in flows for number in row.groups}
    behind = {
        part
        for number in first
        if number in desired
        for bucket in desired[number][0].buckets
        if (part := group_behind(bucket)) is not None
    }
    return first | behind


def _table(text: str | None) -> Table | None:
    """Raises `BadQuestion`."""
    if text is None:
        return None
    for table in LAYOUT.tables.values():
        if text.lower() in {table.name.lower(), str(table.number)}:
            return table
    raise BadQuestion(404, f"there is no table {text}; there are {', '.join(LAYOUT.tables)}")


def _cookie(text: str | None) -> tuple[int, int] | None:
    """Value and mask. Raises `BadQuestion`."""
    if text is None:
        return None
    value, slash, mask = text.partition("/")
    try:
        numbers = int(value, 0), int(mask, 0) if slash else _ALL_BITS
    except ValueError:
        numbers = -1, 0
    if not all(0 <= number <= _ALL_BITS for number in numbers):
        raise BadQuestion(400, f"cookie: {text} is not of the form 0x... or VALUE/MASK")
    return numbers[0] & numbers[1], numbers[1]


def _namespaced(what: str, text: str) -> tuple[str, str]:
    """Raises `BadQuestion`."""
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise BadQuestion(400, f"{what}: {text} is not of the form NAMESPACE/NAME")
    return namespace, name
