"""What people are told of a switch's groups and learned flows, read from a real switch."""

from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller import flow_report
from controller.api import Api
from controller.inventory import Inventory
from controller.policies.slices import complete
from controller.reports.flows import FlowReport
from controller.reports.report import encoded
from controller.sources.objects import Object
from flows import names
from flows.compile import compile_scope
from flows.pipeline import LAYOUT, Feature
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE
from openflow.messages import InstalledFlow
from openflow.switch import Switch
from tests.controller.events import pod_object
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.controller.world import NODE, PEER, SETTINGS, World, controller, run
from tests.flows.worlds import CLUSTER
from tests.ovs import Ovs

SERVICES: list[Object] = [
    service("web", clusterIP="10.96.0.1"),
    endpoint_slice("web-1", "web", ["10.244.1.2", "10.244.2.2"]),
    service("sticky", clusterIP="10.96.0.2", sessionAffinity="ClientIP"),
    endpoint_slice("sticky-1", "sticky", ["10.244.2.3"]),
    service("near", clusterIP="10.96.0.3", internalTrafficPolicy="Local"),
    endpoint_slice("near-1", "near", [endpoint("10.244.1.4", "node1")]),
]


async def asked(world: World, query: str = "") -> dict[str, Any]:
    api = Api(world.reconciler, SETTINGS).application(local=True)
    async with TestClient(TestServer(api)) as client:
        response = await client.get(f"/v1/nodes/node1/flows{query}")
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
        return answer


def group_of(world: World, name: str, variant: str = "cluster") -> int:
    return world.reconciler.inventory.view.services[f"default/{name}"].ports[0].groups[variant]


def by_object(answer: dict[str, Any]) -> dict[str, list[tuple[str, str, list[str]]]]:
    found: dict[str, list[tuple[str, str, list[str]]]] = {}
    for group in answer["groups"]:
        endpoints = sorted({bucket["endpoint"] for bucket in group["buckets"]})
        found.setdefault(group["object"], []).append((group["state"], group["reason"], endpoints))
    return {name: sorted(rows) for name, rows in found.items()}


def test_groups_are_shown_by_their_state(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(SERVICES, [])
            await world.in_sync()
            web = "an endpoint of default/web"
            here = "an endpoint of default/near on this node"
            as_it_is = by_object(await asked(world))
            assert as_it_is == {
                "Service default/web": [("installed", web, ["10.244.1.2:8080", "10.244.2.2:8080"])],
                "Service default/sticky": [
                    ("installed", "an endpoint of default/sticky", ["10.244.2.3:8080"])
                ],
                "Service default/near": [
                    ("installed", "an endpoint of default/near", ["10.244.1.4:8080"]),
                    ("installed", here, ["10.244.1.4:8080"]),
                ],
            }
            answer = await asked(world)
            (leads,) = [row for row in answer["flows"] if row["groups"] == [group_of(world, "web")]]
            assert (leads["table"], leads["reason"]) == ("EndpointChoice", web)
            (group,) = [g for g in answer["groups"] if g["id"] == group_of(world, "web")]
            assert sum(bucket["weight"] for bucket in group["buckets"]) == 512
            assert all("nat(dst=10.244." in bucket["actions"] for bucket in group["buckets"])

            mgmt = str(ovs.mgmt)
            other = "ct(commit,zone=100,table=74,nat(dst=192.0.2.9:99))"
            buckets = f"bucket=bucket_id:5,weight:7,actions={other}"
            method = "type=select,selection_method=dp_hash"
            number = group_of(world, "web")
            ovs.ofctl("mod-group", mgmt, f"group_id={number},{method},{buckets}")
            ovs.ofctl("del-groups", mgmt, f"group_id={group_of(world, 'near', 'local')}")
            stale = names.GROUPS[-1]
            ovs.ofctl("add-group", mgmt, f"group_id={stale},{method},bucket=drop")
            ovs.ofctl("add-group", mgmt, "group_id=7,type=all,bucket=output:1")
            answer = await asked(world)
            found = by_object(answer)
            assert found["Service default/web"] == [("altered", web, ["192.0.2.9:99"])]
            assert found["Service default/sticky"] == as_it_is["Service default/sticky"]
            # With the group the switch has deleted the flow that leads to it.
            states = [state for state, _, _ in found["Service default/near"]]
            assert states == ["installed", "missing"]
            nobodys = {g["id"]: g["state"] for g in answer["groups"] if not g["object"]}
            assert nobodys == {stale: "stale", 7: "foreign"}
            (altered,) = [group for group in answer["groups"] if group["state"] == "altered"]
            (bucket,) = altered["buckets"]
            assert (bucket["id"], bucket["weight"]) == (5, 7)
            assert "nat(dst=192.0.2.9:99)" in bucket["actions"]

            # With a table: the groups that its flows use, and the foreign ones.
            others = (await asked(world, "?table=Forwarding"))["groups"]
            assert [group["id"] for group in others] == [7]
            shown = by_object(await asked(world, "?table=EndpointChoice"))
            assert shown.pop("") == [("foreign", "", [""])]
            assert set(shown) == {f"Service default/{name}" for name in ("web", "sticky", "near")}

    run(story)


def test_flow_names_all_its_owners(ovs: Ovs) -> None:
    """Where Services have endpoints at one port, one flow is there for all of them."""

    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(SERVICES, [])
            await world.in_sync()
            (row,) = [
                row
                for row in (await asked(world, "?table=Direct"))["flows"]
                if row["owners"][0]["kind"] == "Service"
            ]
            assert row["object"] == (
                "Service default/near, Service default/sticky, Service default/web"
            )
            assert row["owners"][2] == {"kind": "Service", "namespace": "default", "name": "web"}
            world.reconciler.update([], [ObjectRef("Service", "default", "sticky")])
            await world.in_sync()
            shown = {row["object"] for row in (await asked(world, "?table=Direct"))["flows"]}
            assert "Service default/near, Service default/web" in shown

    run(story)


def test_register_fields_have_names_if_asked_for(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(SERVICES, [])
            await world.in_sync()
            table, web = "?table=EndpointChoice", group_of(world, "web")
            rows = [(await asked(world, table + more))["flows"] for more in ("", "&names")]
            raw, named = ({row["match"] for row in found} for found in rows)
            assert f"reg2={web:#x}" in raw
            assert f"Service={web:#x} (default/web)" in named
            assert not any("reg" in match for match in named)

    run(story)


def test_learned_flows_by_their_service(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(SERVICES, [])
            await world.in_sync()
            learned = int(Feature.LEARNED) << 56 | 10800
            register = LAYOUT.registers["Service"].register
            for at, client in ((group_of(world, "sticky"), "10.0.0.1"), (12345, "10.0.0.2")):
                ovs.ofctl(
                    "add-flow", str(ovs.mgmt),
                    f"cookie={learned:#x},table=62,priority=100,ip,{register}={at},"
                    f"nw_src={client},actions=set_field:9->reg3",
                )  # fmt: skip
            rows = [row for row in (await asked(world))["flows"] if row["state"] == "learned"]
            told = {row["match"].split("nw_src=")[1].split(",")[0]: row["object"] for row in rows}
            assert told == {"10.0.0.1": "Service default/sticky", "10.0.0.2": ""}
            assert {(row["feature"], row["table"]) for row in rows} == {("learned", "Affinity")}

    run(story)


def test_unreadable_bucket_hides_no_other(ovs: Ovs) -> None:
    """`move` is what os-ken stumbles over."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            move = "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],output:1"
            ovs.ofctl(
                "add-group", str(ovs.mgmt),
                f"group_id=7,type=all,bucket=output:1,bucket=bucket_id:9,actions={move}",
            )  # fmt: skip
            (group,) = (await asked(world))["groups"]
            assert [bucket["id"] for bucket in group["buckets"]] == [0, 9]
            assert group["buckets"][0]["actions"] == "output:1"

    run(story)


def test_more_endpoints_than_a_group_holds(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            many = [f"10.244.{2 + n // 250}.{1 + n % 250}" for n in range(600)]
            slices = [endpoint_slice(f"web-{n}", "web", many[n::4]) for n in range(4)]
            world.reconciler.update([SERVICES[0], *slices], [])
            await world.in_sync()
            answer = await asked(world, "?table=EndpointChoice")
            groups = {group["id"]: group for group in answer["groups"]}
            assert {group["reason"] for group in groups.values()} == {"an endpoint of default/web"}
            top = groups.pop(group_of(world, "web"))
            assert {bucket["group"] for bucket in top["buckets"]} == set(groups)
            found = [b["endpoint"] for group in groups.values() for b in group["buckets"]]
            assert sorted(found) == sorted(f"{address}:8080" for address in many)

            # As somebody has made it who also knows of groups in groups.
            part = min(groups)
            ovs.ofctl(
                "mod-group", str(ovs.mgmt),
                f"group_id={top['id']},type=select,bucket=weight:3,actions=group:{part}",
            )  # fmt: skip
            (altered,) = [
                group for group in (await asked(world))["groups"] if group["state"] == "altered"
            ]
            (bucket,) = altered["buckets"]
            assert (bucket["group"], bucket["weight"]) == (part, 3)
            assert bucket["actions"] == f"group:{part}"

    run(story)


def test_report_of_many_flows_is_made_in_small_steps() -> None:
    made = Inventory(CLUSTER)
    for each in (NODE, PEER, *SERVICES):
        made.set_object(each)
    made.settle()
    desired = compile_scope(made.view, CLUSTER_SCOPE).cookies
    steps = sum(1 for _ in flow_report.flows([], desired, made.view.services))
    assert steps > len(desired)
    rows = complete(flow_report.flows([], desired, made.view.services))
    assert len(rows) == len(desired)
    order = [(row.table_number, -row.priority, row.match) for row in rows]
    assert order == sorted(order)
    report = FlowReport(node="node1", flows=tuple(rows), groups=())
    assert sum(1 for _ in encoded(report)) > len(rows)
    assert complete(encoded(report)) == msgspec.json.encode(report)


async def refused(world: World, path: str) -> tuple[int, str]:
    api = Api(world.reconciler, SETTINGS).application(local=True)
    async with TestClient(TestServer(api)) as client, client.get(path) as response:
        return response.status, (await response.json())["error"]


def test_switch_is_asked_for_the_flows_of_one_object(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for all flows, of which most would be thrown away."""
    dumps: list[tuple[int | None, int]] = []
    dump_flows = Switch.dump_flows

    async def noted(self: Switch, table: int | None = None, *given: int) -> list[InstalledFlow]:
        dumps.append((table, given[0] if given else 0))
        return await dump_flows(self, table, *given)

    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*SERVICES, pod_object("a", "node1", uid="ua")], [])
            world.plug("a", "ua", 16)
            await world.in_sync()
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            everything = (await asked(world))["flows"]
            monkeypatch.setattr(Switch, "dump_flows", noted)
            for query, kind, name in (
                ("?pod=default/a", "Pod", "a"),
                ("?service=default/near", "Service", "near"),
            ):
                dumps.clear()
                answer = await asked(world, query)
                wanted = [
                    row
                    for row in everything
                    if {"kind": kind, "namespace": "default", "name": name} in row["owners"]
                ]
                assert wanted
                assert [row["cookie"] for row in answer["flows"]] == [
                    row["cookie"] for row in wanted
                ]
                assert {row["state"] for row in answer["flows"]} == {"installed"}
                asked_for = {cookie for table, cookie in dumps if table is None}
                assert asked_for == {int(row["cookie"], 16) for row in wanted}
            led_to = {number for row in wanted for number in row["groups"]}
            assert {group["id"] for group in answer["groups"]} == led_to

            dumps.clear()
            both = await asked(world, "?service=default/near&table=EndpointChoice")
            assert {row["table"] for row in both["flows"]} == {"EndpointChoice"}
            cookie = both["flows"][0]["cookie"]
            found = (await asked(world, f"?cookie={cookie}"))["flows"]
            assert [row["cookie"] for row in found] == [cookie]
            one_feature = (await asked(world, "?cookie=0x3/0xff00000000000000"))["flows"]
            assert one_feature == []
            arp = int(Feature.ARP) << 56
            some = (await asked(world, f"?cookie={arp:#x}/{0xFF << 56:#x}"))["flows"]
            assert {row["feature"] for row in some} == {"arp"}
            # Nobody needs the flow of a Service in the program of a pod.
            assert (await asked(world, "?service=default/near&pod=default/a"))["flows"] == []

    run(story)


def test_learned_flows_belong_to_the_flows_of_their_service(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(SERVICES, [])
            await world.in_sync()
            learned = int(Feature.LEARNED) << 56 | 10800
            register = LAYOUT.registers["Service"].register
            for at, client in ((group_of(world, "sticky"), "10.0.0.1"), (12345, "10.0.0.2")):
                ovs.ofctl(
                    "add-flow", str(ovs.mgmt),
                    f"cookie={learned:#x},table=62,priority=100,ip,{register}={at},"
                    f"nw_src={client},actions=set_field:9->reg3",
                )  # fmt: skip
            rows = (await asked(world, "?service=default/sticky"))["flows"]
            matches = [row["match"] for row in rows if row["state"] == "learned"]
            assert len(matches) == 1
            assert "10.0.0.1" in matches[0]

    run(story)


def test_node_of_a_pod_need_not_be_given(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([pod_object("a", "node1", uid="ua")], [])
            world.plug("a", "ua", 16)
            await world.in_sync()
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            api = Api(world.reconciler, SETTINGS).application(local=True)
            async with (
                TestClient(TestServer(api)) as client,
                client.get("/v1/flows?pod=default/a") as response,
            ):
                answer = msgspec.json.decode(await response.read(), type=FlowReport)
            assert answer.node == "node1"
            assert {row.object for row in answer.flows} == {"Pod default/a"}
            for path, why in (
                ("/v1/flows", (400, "node: give this, or pod")),
                ("/v1/flows?pod=default/no", (404, "there is no Pod default/no")),
                (
                    "/v1/flows?node=node1&service=web",
                    (
                        400,
                        "service: web is not of the form NAMESPACE/NAME",
                    ),
                ),
                ("/v1/flows?node=node1&policy=x/no", (404, "there is no NetworkPolicy x/no")),
                (
                    "/v1/flows?node=node1&cookie=x",
                    (
                        400,
                        "cookie: x is not of the form 0x... or VALUE/MASK",
                    ),
                ),
                ("/v1/flows?node=node9", (404, "Node node9 is unknown")),
            ):
                assert await refused(world, path) == why

    run(story)
