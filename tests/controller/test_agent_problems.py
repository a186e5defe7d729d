"""What agents say is wrong: whom the controller believes, and for how long."""

import asyncio
import dataclasses
import io
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web

from controller.agent_problems import SILENCE, take_problems
from controller.api import Api
from controller.host_services import HealthCheck, HostNodePort, HostServices, OwnAddress
from controller.inventory import Inventory
from controller.problems import Problems
from controller.reconciler import Reconciler
from flows import names
from flows.view import Service
from tests.controller.events import pod_object
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER
from wire.documents import (
    MAX_PODS,
    NodeProblems,
    decode_problems,
    decode_services,
    encode,
)


def inventory() -> Inventory:
    made = Inventory(CLUSTER)
    for item in (NODE, PEER, pod_object("a", "node1"), pod_object("b", "node2")):
        made.set_object(item)
    made.settle()
    return made


def test_agent_is_believed_about_its_own_node_and_pods_only() -> None:
    known = inventory()
    pods = {"default/a": "full", "default/b": "not its own", "default/c": "nobody", "x": "nothing"}
    take_problems(known, "node1", NodeProblems("no Open vSwitch", pods))
    assert known.problems.texts() == {
        "agent of node1": "no Open vSwitch",
        "Pod default/a on node1": "full",
    }


def test_agent_is_believed_about_existing_services_only() -> None:
    known = inventory()
    known.view = dataclasses.replace(
        known.view, services={"default/web": Service("default", "web", ())}
    )
    told = {"default/web": "held", "default/none": "held", "x": "nothing"}
    take_problems(known, "node1", NodeProblems(services=told))
    assert known.problems.texts() == {"Service default/web on node1": "held"}


def test_report_of_an_agent_replaces_the_one_before() -> None:
    known = inventory()
    take_problems(known, "node1", NodeProblems("one"))
    take_problems(known, "node2", NodeProblems("two"))
    take_problems(known, "node1", NodeProblems(pods={"default/a": "three"}))
    assert known.problems.texts() == {"Pod default/a on node1": "three", "agent of node2": "two"}
    take_problems(known, "node1", NodeProblems())
    assert known.problems.texts() == {"agent of node2": "two"}


def test_report_of_an_agent_ends_with_silence_or_with_its_node() -> None:
    now = 0.0
    problems = Problems(monotonic=lambda: now)
    reconciler = Reconciler(Inventory(CLUSTER, problems=problems))
    reconciler.update([NODE, PEER], [])
    take_problems(reconciler.inventory, "node1", NodeProblems("one"))
    take_problems(reconciler.inventory, "node2", NodeProblems("two"))
    reconciler.update([], [("Node", "", "node2")])
    now = SILENCE
    assert problems.texts() == {"agent of node1": "one"}
    now += 0.1
    assert problems.texts() == {}
    assert len(problems) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b'"x"', b'{"node": 1}', b'{"pods": []}', b'{"pods": {"a": 1}}', b'"node"',
        msgspec.json.encode({"node": "x" * 1001}),
        msgspec.json.encode({"node": "two\nlines"}),
        msgspec.json.encode({"pods": {"default/a": "\x1b[2J"}}),
        msgspec.json.encode({"pods": {f"default/{n}": "x" for n in range(MAX_PODS + 1)}}),
    ],
)  # fmt: skip
def test_invalid_report_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_problems(data)


def test_valid_report_is_accepted() -> None:
    whole = NodeProblems("x" * 1000, {f"default/{n}": "\N{EURO SIGN}" for n in range(MAX_PODS)})
    assert decode_problems(encode(whole)) == whole


def test_report_of_an_agent_by_http() -> None:
    async def main() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.listed.set()
        reconciler.update([NODE, PEER, pod_object("a", "node1")], [])
        runner = web.AppRunner(Api(reconciler, SETTINGS).application(local=True), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

                async def tell(node: str, data: Any) -> tuple[int, str]:
                    path = f"/v1/nodes/{node}/problems"
                    async with session.post(path, data=data) as response:
                        return response.status, await response.text()

                whole = encode(NodeProblems("why", {"default/a": "full"}))
                assert await tell("node1", whole) == (204, "")
                async with session.get("/v1/status") as response:
                    problems = (await response.json())["problems"]
                assert problems == {"agent of node1": "why", "Pod default/a on node1": "full"}
                assert await tell("node9", whole) == (404, '{"error":"Node node9 is unknown"}')
                code, text = await tell("node1", b"{")
                assert (code, text.startswith('{"error":"not a node\'s problems: ')) == (400, True)
                code, _ = await tell("node1", io.BytesIO(b" " * (2 << 20)))
                assert code == 413
                assert len(reconciler.problems) == 2
        finally:
            await runner.cleanup()

    asyncio.run(main())


def test_what_hosts_do_for_services_by_http() -> None:
    """By long poll, like the configuration."""
    first = HostServices(
        (HostNodePort(6, 30080, "default/web"),),
        (IPv4Address("198.51.100.7"),),
        (HealthCheck(32000, "a/lb", 2),),
        (OwnAddress(IPv4Address("172.30.1.1"), 6, 80, names.HOST_DNAT_RANGE[0], "default/web"),),
    )

    async def main() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, PEER], [])
        hosts = reconciler.inventory.services.hosts
        said = {"node1": first}
        revisions = {"node1": (1, 0)}
        hosts.wanted = said.__getitem__  # type: ignore[method-assign]
        hosts.revision = revisions.__getitem__  # type: ignore[method-assign]
        runner = web.AppRunner(Api(reconciler, SETTINGS).application(local=True), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:

                async def ask(node: str = "node1", **query: str) -> tuple[int, bytes]:
                    path = f"/v1/nodes/{node}/services"
                    async with session.get(path, params=query) as response:
                        return response.status, await response.read()

                assert (await ask())[0] == 503
                reconciler.source_complete(whole=False)
                status, body = await ask()
                found = decode_services(body)
                assert status == 200
                assert (found.node, found.node_ports) == ("node1", first.node_ports)
                assert found.external_addresses == first.addresses
                assert found.health_checks == first.health_checks
                assert found.own_addresses == first.own_addresses
                assert not found.source_complete
                reconciler.source_complete(whole=True)
                whole = decode_services((await ask(after=found.revision, wait="30"))[1])
                assert whole.source_complete
                assert (await ask(after=whole.revision))[0] == 304
                waiting = asyncio.create_task(ask(after=whole.revision, wait="30"))
                await asyncio.sleep(0.05)
                said["node1"] = dataclasses.replace(first, node_ports=())
                revisions["node1"] = (1, 1)
                hosts.changes += 1
                reconciler.update([], [])
                changed = decode_services((await waiting)[1])
                assert changed.revision != whole.revision
                assert changed.node_ports == ()
                assert await ask("node9") == (404, b'{"error":"Node node9 is unknown"}')
        finally:
            await runner.cleanup()

    asyncio.run(main())
