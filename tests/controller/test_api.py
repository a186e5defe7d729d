"""The controller's HTTP API on a real switch."""

import asyncio
from typing import Any

import aiohttp
from aiohttp.test_utils import TestClient, TestServer

from controller.answers import NOT_READ
from controller.api import Api
from tests.controller.events import node_object
from tests.controller.world import NODE, SETTINGS, World, controller, run
from tests.ovs import Ovs
from wire.documents import decode_config


def test_api(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            api = Api(world.reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:
                await check_health(client)
                await check_config(client, world)
                await check_flows(client, world)

    run(story)


def test_controller_that_has_not_read_the_cluster_knows_of_no_node_whether_it_exists(
    ovs: Ovs,
) -> None:
    """An agent that was told 404 waits for up to a minute, and this one is ready in a moment."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            world.reconciler.listed.clear()
            api = Api(world.reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:
                for method, path in (
                    ("GET", "config"), ("GET", "services"), ("GET", "questions"),
                    ("POST", "problems"), ("POST", "addresses"), ("POST", "denials"),
                    ("POST", "digest"),
                ):  # fmt: skip
                    response = await client.request(method, f"/v1/nodes/node1/{path}", data=b"{}")
                    found = await response.json()
                    assert (response.status, found) == (503, {"error": NOT_READ}), path

    run(story)


def replace_cidr(cidr: str) -> Any:
    return node_object("node1", cidr, "172.30.1.1", uid="n1-anew")


async def get(client: Any, path: str) -> tuple[int, Any]:
    response: aiohttp.ClientResponse = await client.get(path)
    is_json = response.content_type == "application/json"
    return response.status, await (response.json() if is_json else response.text())


async def check_health(client: Any) -> None:
    assert await get(client, "/healthz") == (200, "ok\n")
    assert await get(client, "/readyz") == (200, "ok\n")
    status, metrics = await get(client, "/metrics")
    assert status == 200
    assert "sluice_nodes 2.0" in metrics
    status, state = await get(client, "/v1/status")
    assert state["nodes"]["node1"]["inSync"] is True
    assert state["nodes"]["node2"]["connected"] is False
    assert state["problems"] == {}


async def check_config(client: Any, world: World) -> None:
    response = await client.get("/v1/nodes/node1/config")
    config = decode_config(await response.read())
    assert str(config.pod_cidr) == "10.244.1.0/24"
    assert str(config.address) == "172.30.1.1"
    assert config.tunnel_port == 6081
    path = f"/v1/nodes/node1/config?after={config.revision}"
    assert (await get(client, path))[0] == 304
    waiting = asyncio.create_task(get(client, path + "&wait=30"))
    await asyncio.sleep(0.05)
    world.reconciler.update([replace_cidr("10.244.8.0/24")], [])
    status, changed = await waiting
    assert (status, changed["podCidr"]) == (200, "10.244.8.0/24")
    world.reconciler.update([NODE], [])
    assert await get(client, "/v1/nodes/nobody/config") == (
        404,
        {"error": "Node nobody is unknown"},
    )
    world.reconciler.update([node_object("bad", "10.244.1.0/24", "172.30.1.7", "2026")], [])
    status, refused = await get(client, "/v1/nodes/bad/config")
    sentence = "Node bad: spec.podCIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of Node node1"
    assert (status, refused) == (409, {"error": sentence})
    assert (await get(client, "/v1/nodes/node1/config?wait=x"))[0] == 400


async def check_flows(client: Any, world: World) -> None:
    await world.in_sync()
    mgmt = str(world.ovs.mgmt)
    world.ovs.ofctl("add-flow", mgmt, "table=100,priority=9,tcp,tp_dst=80,actions=output:7")
    world.ovs.ofctl("del-flows", mgmt, "table=140,reg1=1")
    _, answer = await get(client, "/v1/nodes/node1/flows")
    rows = answer["flows"]
    assert {row["state"] for row in rows} == {"installed", "missing", "foreign"}
    (missing,) = [row for row in rows if row["state"] == "missing"]
    assert missing["match"] == "reg1=0x1"
    assert missing["table"] == "Output"
    assert missing["reason"] == "out through the tunnel"
    (foreign,) = [row for row in rows if row["state"] == "foreign"]
    assert (foreign["table"], foreign["priority"]) == ("Forwarding", 9)
    assert foreign["match"] == "dl_type=0x800,nw_proto=6,tp_dst=0x50"
    assert foreign["actions"] == "output:7"
    (peer,) = [row for row in rows if row["table"] == "PeerWay" and row["object"] == "Node node2"]
    assert peer["match"] == "ip,nw_dst=10.244.2.0/24"
    assert peer["feature"] == "forwarding"
    _, some = await get(client, "/v1/nodes/node1/flows?table=Arp")
    assert {row["table"] for row in some["flows"]} == {"Arp"}
    status, error = await get(client, "/v1/nodes/node1/flows?table=Nothing")
    assert status == 404
    assert "there is no table Nothing" in error["error"]
    assert (await get(client, "/v1/nodes/nobody/flows"))[0] == 404
    status, error = await get(client, "/v1/nodes/node2/flows")
    assert (status, error["error"]) == (503, "the switch of Node node2 is not connected")
