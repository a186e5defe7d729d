"""What the flows of a switch have counted: traffic of pods and Services, and dropped packets.

A switch is asked only for what is needed: small tables as a whole, and of large ones the flows that
drop, by their cookies.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from controller.drop_reasons import COUNTING, METER, drop_reason, meter_purpose
from controller.reconciler import Reconciler
from controller.references import Reference
from controller.reports.counters import DropRow, NodeCounters, ServiceTrafficRow, TrafficRow
from controller.work_budget import in_turns
from flows import names
from flows.compile import Program
from flows.flow import Flow
from flows.pipeline import LAYOUT
from flows.refs import ObjectRef, Owners
from openflow.messages import InstalledFlow, MeterStats, idle_seconds
from openflow.switch import Switch

LARGEST_TABLE: Final = 5_000
"""Flows of a table that is read as a whole."""
MOST_COOKIES: Final = 512
"""Flows of one switch that are asked for one by one."""
AT_ONCE: Final = 32
"""Of these, requests that a switch has at a time."""
SLICE: Final = 200
"""Flows that are looked at before the event loop may have its turn."""
_ALL_BITS: Final = (1 << 64) - 1
_CLASSIFIER, _OUTPUT, _SERVICE_CHOICE = (
    LAYOUT.tables[name].number for name in ("Classifier", "Output", "ServiceChoice")
)
_OUTPUT_PORT: Final = LAYOUT.registers["OutputPort"].register


Known: TypeAlias = tuple[InstalledFlow, Flow, Owners]
"""A flow of a dump, the desired flow with its cookie, and that one's owners."""


@dataclass
class _Index:
    """The flows of a program that drop packets, and how many flows its tables have."""

    version: int
    drops: dict[int, list[int]] = field(default_factory=dict)
    """By table, their cookies."""
    sizes: Counter[int] = field(default_factory=Counter)


@dataclass
class _Plan:
    """What a switch is asked for."""

    tables: set[int] = field(default_factory=set)
    cookies: list[int] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)


class CounterReader:
    """Reads the counters of one switch after the other."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._shared: WeakKeyDictionary[Program, _Index] = WeakKeyDictionary()

    async def read(self, node: str, *, traffic: bool, drops: bool) -> NodeCounters:
        """The counters of a node's switch now.

        Raises `KeyError` if it is not connected, and what `Switch.dump_flows` raises.
        """
        desired = self._reconciler.desired
        switch = self._reconciler.sessions[node].switch
        own, shared = desired.program(node), desired.shared
        plan = _Plan()
        index = self._shared.get(shared)
        if index is None or index.version != shared.version:
            index = self._shared[shared] = await in_turns(_indexed(shared))
        indexes = index, await in_turns(_indexed(own))
        if traffic:
            plan.tables |= {_CLASSIFIER, _OUTPUT}
            size = sum(each.sizes[_SERVICE_CHOICE] for each in indexes)
            (plan.tables if size <= LARGEST_TABLE else plan.left_out).add(_SERVICE_CHOICE)
        if drops:
            _plan_drops(plan, indexes)
        installed = await _dumped(switch, plan)
        meters = await switch.dump_meter_stats() if drops else []
        at = time.time()
        known: list[Known] = []
        for row in installed:
            entry = own.cookies.get(row.cookie) or shared.cookies.get(row.cookie)
            if entry is not None and row.table == entry[0].table:
                known.append((row, *entry))
        dropped = await in_turns(_drops(known)) if drops else []
        return NodeCounters(
            node,
            at,
            tuple(_traffic(node, known)) if traffic else (),
            tuple(_services(known)) if traffic else (),
            (*dropped, *self._metered(node, meters)),
            tuple(sorted(LAYOUT.by_number[table].name for table in plan.left_out)),
        )

    def _metered(self, node: str, meters: Iterable[MeterStats]) -> Iterable[DropRow]:
        """What meters have dropped: of pods by their ofport."""
        attachments = self._reconciler.inventory.view.attachments.get(node, {}).values()
        by_ofport = {each.ofport: each.ref for each in attachments}
        for each in meters:
            purpose = meter_purpose(each.id)
            if not purpose or not each.packets:
                continue
            ref = by_ofport.get(each.id & 0xFFFF, ObjectRef.node(node))
            yield DropRow(
                METER, f"too many {purpose}", "", (Reference.of(ref),),
                each.packets, each.octets, None,
            )  # fmt: skip


def _indexed(program: Program) -> Generator[None, None, _Index]:
    made = _Index(program.version)
    for number, (cookie, (flow, _)) in enumerate(list(program.cookies.items())):
        if number % SLICE == 0:
            yield
        if flow.table not in COUNTING:
            continue
        made.sizes[flow.table] += 1
        if drop_reason(flow) is not None:
            made.drops.setdefault(flow.table, []).append(cookie)
    return made


def _plan_drops(plan: _Plan, indexes: Iterable[_Index]) -> None:
    for table in COUNTING - plan.tables:
        cookies = [each for index in indexes for each in index.drops.get(table, ())]
        size = sum(index.sizes[table] for index in indexes)
        if not cookies:
            continue
        if size <= max(AT_ONCE, 2 * len(cookies)) and size <= LARGEST_TABLE:
            plan.tables.add(table)
        elif len(plan.cookies) + len(cookies) <= MOST_COOKIES:
            plan.cookies += cookies
        elif size <= LARGEST_TABLE:
            plan.tables.add(table)
        else:
            plan.left_out.add(table)


async def _dumped(switch: Switch, plan: _Plan) -> list[InstalledFlow]:
    found: list[InstalledFlow] = []
    for table in sorted(plan.tables):
        found += await switch.dump_flows(table)
    for at in range(0, len(plan.cookies), AT_ONCE):
        some = plan.cookies[at : at + AT_ONCE]
        for rows in await asyncio.gather(
            *(switch.dump_flows(None, cookie, _ALL_BITS) for cookie in some)
        ):
            found += rows
    return found


def _traffic(node: str, known: Iterable[Known]) -> Iterable[TrafficRow]:
    """By ingress port in `Classifier`, by output port in `Output`."""
    sent: dict[ObjectRef, tuple[int, int]] = {}
    received: dict[ObjectRef, tuple[int, int]] = {}
    for row, flow, owners in known:
        if flow.table not in (_CLASSIFIER, _OUTPUT):
            continue
        fields = {name: value for name, value, _ in flow.match}
        port = fields.get("in_port" if flow.table == _CLASSIFIER else _OUTPUT_PORT)
        if port is None:
            continue
        ref = _EVERY_PORT.get(port, "")
        of = ObjectRef(ref, "", node) if ref else owners[0]
        by_object = sent if flow.table == _CLASSIFIER else received
        by_object[of] = row.packets, row.octets
    for of in sorted(sent.keys() | received.keys()):
        yield TrafficRow(Reference.of(of), *sent.get(of, (0, 0)), *received.get(of, (0, 0)))


_EVERY_PORT: Final[Mapping[int, str]] = {
    names.TUNNEL_OFPORT: "tunnel",
    names.GATEWAY_OFPORT: "gateway",
}


def _services(
    known: Iterable[Known],
) -> Iterable[ServiceTrafficRow]:
    connections: Counter[ObjectRef] = Counter()
    for row, flow, owners in known:
        is_served = flow.table == _SERVICE_CHOICE and drop_reason(flow) is None
        if is_served and owners[0].kind == "Service":
            connections[owners[0]] += row.packets
    for ref, count in sorted(connections.items()):
        yield ServiceTrafficRow(Reference.of(ref), count)


def _drops(
    known: Iterable[Known],
) -> Generator[None, None, list[DropRow]]:
    """Flows that drop for one reason are one row: some guards have a flow for each bit."""
    found: dict[tuple[str, str, str, Owners], list[InstalledFlow]] = {}
    for number, (row, flow, owners) in enumerate(known):
        if number % SLICE == 0:
            yield
        reason = drop_reason(flow)
        if reason is not None and row.packets:
            key = reason, flow.reason, LAYOUT.by_number[flow.table].name, owners
            found.setdefault(key, []).append(row)
    made = []
    for (reason, why, table, owners), rows in found.items():
        idle = [seconds for each in rows if (seconds := idle_seconds(each)) is not None]
        made.append(
            DropRow(
                reason, why, table, tuple(map(Reference.of, owners)),
                sum(each.packets for each in rows), sum(each.octets for each in rows),
                min(idle, default=None),
            )
        )  # fmt: skip
    return made
