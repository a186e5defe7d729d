"""What the flows of a switch have counted: traffic of pods and Services, and dropped packets.

A switch is asked only for what is needed: small tables as a whole, and of large ones the flows that
drop, by their cookies.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from controller.counter_rows import (
    CLASSIFIER,
    OUTPUT,
    SERVICE_CHOICE,
    SLICE,
    Counted,
    drop_rows,
    service_rows,
    traffic_rows,
)
from controller.drop_reasons import COUNTING, METER, drop_reason, meter_purpose
from controller.reconciler import Reconciler
from controller.references import Reference
from controller.reports.counters import DropRow, NodeCounters
from controller.work_budget import in_turns
from flows.compile import Program
from flows.pipeline import LAYOUT
from flows.refs import ObjectRef
from openflow.messages import InstalledFlow, MeterStats, idle_seconds
from openflow.switch import Switch

LARGEST_TABLE: Final = 5_000
"""Flows of a table that is read as a whole."""
MOST_COOKIES: Final = 512
"""Flows of one switch that are asked for one by one."""
AT_ONCE: Final = 32
"""Of these, requests that a switch has at a time."""
_ALL_BITS: Final = (1 << 64) - 1


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
            plan.tables |= {CLASSIFIER, OUTPUT}
            size = sum(each.sizes[SERVICE_CHOICE] for each in indexes)
            (plan.tables if size <= LARGEST_TABLE else plan.left_out).add(SERVICE_CHOICE)
        if drops:
            _plan_drops(plan, indexes)
        installed = await _dumped(switch, plan)
        meters = await switch.dump_meter_stats() if drops else []
        at = time.time()
        known = await in_turns(_counted(installed, own, shared))
        dropped = await in_turns(drop_rows(known)) if drops else []
        return NodeCounters(
            node,
            at,
            tuple(traffic_rows(node, known)) if traffic else (),
            tuple(service_rows(known)) if traffic else (),
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


def _counted(
    installed: Iterable[InstalledFlow], own: Program, shared: Program
) -> Generator[None, None, list[Counted]]:
    """The desired ones among the flows of a switch."""
    known: list[Counted] = []
    for number, row in enumerate(installed):
        if number % SLICE == 0:
            yield
        entry = own.cookies.get(row.cookie) or shared.cookies.get(row.cookie)
        if entry is not None and row.table == entry[0].table:
            known.append(Counted(row.packets, row.octets, idle_seconds(row), *entry))
    return known


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
