"""What switches have counted: read from a real switch, and added up by reason."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller import counters_api
from controller.api import Api
from controller.counters import (
    LARGEST_TABLE,
    MOST_COOKIES,
    CounterReader,
    _Index,
    _Plan,
    _plan_drops,
)
from controller.drop_reasons import (
    COUNTING,
    GUARD,
    INVALID,
    MISS,
    NO_ENDPOINT,
    NO_ROUTE,
    POLICY,
    REASONS,
    drop_reason,
    meter_purpose,
)
from controller.reports.counters import Counters
from flows import names
from flows.compile import compile_scope
from flows.pipeline import LAYOUT
from flows.view import CLUSTER_SCOPE
from openflow.messages import InstalledFlow
from openflow.switch import Switch
from tests.controller.events import node_object, pod_object
from tests.controller.explained_cluster import explained_cluster
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import SETTINGS, World, controller, run
from tests.ovs import Ovs

NOBODY = [service("nobody", clusterIP="10.96.0.9")]
WEB = [service("web", clusterIP="10.96.0.1"), endpoint_slice("web-1", "web", ["10.244.1.5"])]


def test_tables_that_return_to_their_caller_drop_nothing() -> None:
    """As the description of their misses says."""
    for table in LAYOUT.tables.values():
        if "processing continues" in table.miss_doc or table.is_subroutine:
            assert table.number not in COUNTING


def test_every_flow_without_actions_has_a_reason(tmp_path: Path) -> None:
    view = explained_cluster(tmp_path).view
    found: Counter[str] = Counter()
    by_table: dict[str, set[str]] = {}
    for scope in (CLUSTER_SCOPE, *view.nodes):
        for flow, _ in compile_scope(view, scope).cookies.values():
            reason = drop_reason(flow)
            assert (reason is None) == (
                flow.table not in COUNTING
                or (
                    bool(flow.actions)
                    and LAYOUT.goto("Refuse") not in flow.actions
                    and not LAYOUT.by_number[flow.table].name.startswith("Denied")
                )
            )
            if reason is not None:
                found[reason] += 1
                by_table.setdefault(LAYOUT.by_number[flow.table].name, set()).add(reason)
    assert {*found} == {*REASONS} - {"meter"}
    assert by_table["SpoofGuard"] == by_table["TunnelGuard"] == {GUARD}
    assert by_table["Classifier"] == {MISS}
    assert by_table["ConntrackState"] == {INVALID}
    assert by_table["DeniedToPod"] == {POLICY}
    assert by_table["Forwarding"] == by_table["EgressRoute"] == {NO_ROUTE}
    assert by_table["Egress"] == {GUARD}
    assert by_table["EndpointChoice"] == {NO_ENDPOINT}


def test_meters_have_a_purpose() -> None:
    for ofport in (names.FIRST_ATTACHMENT_OFPORT, names.LAST_ATTACHMENT_OFPORT):
        assert meter_purpose(names.connection_meter(ofport)) == "new connections of the pod"
        assert meter_purpose(names.fragment_meter(ofport)) == "fragments of the pod"
        assert meter_purpose(names.refusal_meter(ofport)).startswith("refusals to the pod")
    assert meter_purpose(names.REFUSAL_METER)
    assert meter_purpose(7) == meter_purpose(1 << 24) == ""


def index(table: str, size: int, drops: int) -> _Index:
    made = _Index(0)
    number = LAYOUT.tables[table].number
    made.sizes[number] = size
    made.drops[number] = list(range(drops))
    return made


@pytest.mark.parametrize(
    ("size", "drops", "whole", "cookies", "left_out"),
    [
        (4, 4, True, 0, False),
        (3_000, 2, False, 2, False),
        (3_000, 2_900, True, 0, False),
        (LARGEST_TABLE + 1, MOST_COOKIES, False, MOST_COOKIES, False),
        (LARGEST_TABLE + 1, MOST_COOKIES + 1, False, 0, True),
        (LARGEST_TABLE + 1, LARGEST_TABLE, False, 0, True),
        (10, 0, False, 0, False),
    ],
)
def test_large_tables_are_not_read_as_a_whole(
    size: int, drops: int, whole: bool, cookies: int, left_out: bool
) -> None:
    plan = _Plan()
    _plan_drops(plan, [index("DestinationGuard", size, drops), _Index(0)])
    number = LAYOUT.tables["DestinationGuard"].number
    assert (number in plan.tables, len(plan.cookies), number in plan.left_out) == (
        whole, cookies, left_out,
    )  # fmt: skip


async def read(world: World, **what: bool) -> Any:
    wanted = {"traffic": True, "drops": True} | what
    return await CounterReader(world.reconciler).read("node1", **wanted)


def test_counters_of_a_switch(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*NOBODY, *WEB, pod_object("a", "node1", uid="ua")], [])
            world.plug("a", "ua", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            found = await read(world)
            rows = {str(row.object): row for row in found.traffic}
            assert {*rows} == {"Pod default/a", "tunnel node1", "gateway node1"}
            assert [str(row.object) for row in found.services] == [
                "Service default/nobody",
                "Service default/web",
            ]
            assert found.left_out == ()
            assert (await read(world, traffic=False)).traffic == ()
            assert (await read(world, drops=False)).drops == ()

    run(story)


def test_switch_tells_what_its_meters_have_dropped(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([pod_object("a", "node1", uid="ua")], [])
            world.plug("a", "ua", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            stats = await world.reconciler.sessions["node1"].switch.dump_meter_stats()
            ids = {each.id for each in stats}
            assert {names.connection_meter(16), names.REFUSAL_METER} <= ids
            assert {(each.packets, each.octets) for each in stats} == {(0, 0)}

    run(story)


def test_many_who_ask_cause_one_read(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps: list[int | None] = []
    dump_flows = Switch.dump_flows

    async def noted(self: Switch, table: int | None = None, *given: int) -> list[InstalledFlow]:
        dumps.append(table)
        return await dump_flows(self, table, *given)

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            monkeypatch.setattr(Switch, "dump_flows", noted)
            monkeypatch.setattr(counters_api, "FRESH", 30.0)
            api = Api(world.reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:

                async def get(query: str = "") -> Any:
                    async with client.get(f"/v1/counters{query}") as response:
                        body = await response.read()
                        if response.status != 200:
                            return response.status, msgspec.json.decode(body)["error"]
                        return msgspec.json.decode(body, type=Counters)

                answers = await asyncio.gather(*(get("?what=traffic") for _ in range(20)))
                assert len(dumps) == 3
                assert len({each.nodes[0].at for each in answers}) == 1
                (first, *_) = answers
                assert [each.node for each in first.nodes] == ["node1"]
                assert first.unread == {"node2": "its switch is not connected"}
                assert (first.of, first.after) == (2, "")
                assert await get("?what=all") == (400, "what: neither traffic nor drops")
                assert (await get("?node=node9"))[0] == 404
                assert [*(await get("?node=node2")).unread] == ["node2"]

                # At most so many nodes in one answer.
                more = [
                    node_object(
                        f"x{n:02}", f"10.244.{n + 10}.0/24", f"172.30.2.{n + 1}", uid=f"x{n}"
                    )
                    for n in range(counters_api.MOST_NODES + 3)
                ]
                world.reconciler.update(more, [])
                await world.in_sync()
                page = await get()
                assert len(page.nodes) + len(page.unread) == counters_api.MOST_NODES
                rest = await get(f"?after={page.after}")
                assert len(rest.nodes) + len(rest.unread) == 5
                assert rest.after == ""
                assert not {*page.unread} & {*rest.unread}

    run(story)
