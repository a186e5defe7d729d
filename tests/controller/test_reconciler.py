"""The reconciler on a real switch: what it sends, what it leaves alone, what it shows."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.api import Api
from controller.session import Session
from controller.sources.objects import Object
from flows import names
from flows.features import conntrack, services
from flows.flow import Meter
from flows.kinds import Entry
from flows.pipeline import PipelineError
from flows.refs import ObjectRef
from flows.view import Attachment, Cluster, Service
from openflow.batch import Batch, BucketRemove, Forget, Part
from openflow.switch import Switch
from tests.controller.events import node_object, pod_object
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import NODE, PEER, SETTINGS, World, controller, run
from tests.flows.worlds import compiler_with
from tests.ovs import Ovs
from wire.documents import decode_config

GONE = IPv4Address("10.244.1.77")


def test_an_empty_switch_gets_everything(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)


def test_a_pod_comes_and_goes(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            before = world.cookies()
            name = world.plug("a", "u1", 16)
            # The port may be there before its Pod: the watch is late.
            await world.until(lambda: any(name in p for p in world.reconciler.problems.texts()))
            assert world.cookies() == before
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            await world.in_sync()
            assert world.cookies() == world.desired() != before
            meters = ovs.ofctl("dump-meters", str(ovs.mgmt))
            assert "meter=16 pktps burst" in meters
            assert "type=drop rate=10000 burst_size=10000" in meters
            ovs.vsctl("del-port", "br0", name)
            await world.until(lambda: world.desired() == before)
            await world.in_sync()
            assert world.cookies() == before
            assert "meter=16" not in ovs.ofctl("dump-meters", str(ovs.mgmt))

    run(story)


def test_flows_of_a_pod_end_with_its_port(ovs: Ovs) -> None:
    """A pod that was deleted by force still closes its connections."""

    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            await world.in_sync()
            before = world.cookies()
            name = world.plug("a", "u1", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            attached = world.cookies()
            world.reconciler.update([], [ObjectRef("Pod", "default", "a")])
            await world.in_sync()
            assert world.cookies() == attached != before
            ovs.vsctl("del-port", "br0", name)
            await world.until(lambda: not world.reconciler.inventory.view.attachments)
            await world.in_sync()
            assert world.cookies() == before

    run(story)


def test_inventory_knows_where_a_switch_connects_from(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            assert world.reconciler.inventory.nodes.sessions == {"node1": IPv4Address("127.0.0.1")}

    run(story)


def test_a_restart_that_changed_nothing_sends_nothing(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            world.plug("a", "u1", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            port = world.port
        before = world.cookies()
        begun = time.monotonic()
        async with controller(ovs, port=port) as world:
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            await world.in_sync()
            elapsed = time.monotonic() - begun
            assert world.cookies() == world.desired() == before
            # An ADD of the same flow, too, would begin its time anew.
            assert min(ages(ovs)) > elapsed

    run(story)


def ages(ovs: Ovs) -> list[float]:
    """Seconds since each flow was added."""
    dump = ovs.ofctl("dump-flows", str(ovs.mgmt))
    return [float(age) for age in re.findall(r"duration=([\d.]+)s", dump)]


def test_what_changed_while_the_controller_was_away(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            port = world.port
        ovs.ofctl("del-flows", str(ovs.mgmt), "table=100")
        ovs.ofctl("del-flows", str(ovs.mgmt), "table=250")  # the seals with them
        stale = f"{5 << 56 | 77:#x}"
        ovs.ofctl("add-flow", str(ovs.mgmt), f"cookie={stale},table=100,priority=7,actions=drop")
        ovs.ofctl("add-flow", str(ovs.mgmt), "table=100,priority=8,actions=drop")
        async with controller(ovs, port=port) as world:
            await world.in_sync()
            # A flow made by hand, with nobody's cookie, is shown and left alone.
            assert world.cookies() == world.desired() | {0}

    run(story)


def test_until_all_is_read_nothing_is_removed(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            world.plug("a", "u1", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            await world.in_sync()
            before, port = world.cookies() - world.seals(), world.port
        async with controller(ovs, whole=False, port=port) as world:
            reconciler = world.reconciler
            await world.until(lambda: reconciler.sessions.get("node1"))
            await world.until(lambda: reconciler.sessions["node1"].shared_version)
            third = node_object("node3", "10.244.3.0/24", "172.30.1.3")
            reconciler.update([third], [])
            await world.until(lambda: world.cookies() >= world.desired())
            assert world.cookies() > before
            reconciler.complete(True)
            await world.in_sync()
            assert world.cookies() == world.desired()
            assert not world.cookies() >= before

    run(story)


def test_a_peer_that_comes_back_while_its_flows_are_left_over(ovs: Ovs) -> None:
    """What was left over at the comparison is not removed once it is wanted again."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            port = world.port
        async with controller(ovs, whole=False, port=port) as world:
            reconciler = world.reconciler
            await world.until(lambda: reconciler.sessions.get("node1"))
            await world.until(lambda: reconciler.sessions["node1"].shared_version)
            reconciler.update([], [("Node", "", "node2")])
            await asyncio.sleep(0.02)
            reconciler.sessions["node1"].shared_version = None
            reconciler.complete(True)
            reconciler.update([PEER], [])
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)


def test_a_node_that_is_gone_keeps_its_flows(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            before = world.cookies()
            world.reconciler.update([], [("Node", "", "node1")])
            await asyncio.sleep(0.1)
            assert world.cookies() == before
            world.reconciler.update([replace_cidr("10.244.7.0/24")], [])
            await world.in_sync()
            assert world.cookies() == world.desired() != before

    run(story)


def replace_cidr(cidr: str) -> Any:
    return node_object("node1", cidr, "172.30.1.1", uid="n1-anew")


def test_a_switch_of_no_node_waits_for_it(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            port = world.port
        ovs.vsctl(
            "set", "Bridge", "br0", f"other_config:datapath-id={names.datapath_id('node9'):016x}"
        )
        async with controller(ovs, port=port) as world:
            problems = world.reconciler.problems
            await world.until(lambda: problems)
            ((subject, problem),) = problems.texts().items()
            assert subject.startswith(f"switch {names.datapath_id('node9'):016x} at 127.0.0.1:")
            assert problem == "no Node's name gives this datapath id; it waits for one"
            # Gone and come again, it is one stranger still.
            next(iter(world.switches)).close("for a test")
            await world.until(lambda: problems and problems.texts().keys() != {subject})
            assert len(problems) == 1
            assert not world.reconciler.sessions
            ninth = node_object("node9", "10.244.9.0/24", "172.30.1.9")
            world.reconciler.update([ninth], [])
            await world.until(lambda: "node9" in world.reconciler.sessions)
            assert not problems

    run(story)


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
    assert missing["reason"] == "out by the tunnel"
    (foreign,) = [row for row in rows if row["state"] == "foreign"]
    assert (foreign["table"], foreign["priority"]) == ("Forwarding", 9)
    assert foreign["match"] == "dl_type=0x800,nw_proto=6,tp_dst=0x50"
    assert foreign["actions"] == "output:7"
    (peer,) = [
        row for row in rows if row["table"] == "Forwarding" and row["object"] == "Node node2"
    ]
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


def test_what_a_switch_refuses_harms_no_other(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pod b's flow names a meter that is not there. All of b is left out, and a goes on."""

    def wrong_meter(cluster: Cluster, attachment: Attachment) -> Iterable[Entry]:
        for entry in conntrack.attachment(cluster, attachment):
            if isinstance(entry, Meter) and attachment.pod == "default/b":
                yield replace(entry, id=entry.id + 1000)
            else:
                yield entry

    monkeypatch.setattr(
        "controller.desired.COMPILER", compiler_with(conntrack.attachment, wrong_meter)
    )

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            before = world.cookies() - world.seals()
            pods = [pod_object("a", "node1", uid="u1"), pod_object("b", "node1", uid="u2")]
            world.reconciler.update(pods, [])
            world.plug("b", "u2", 17, "10.244.1.6")
            world.plug("a", "u1", 16, "10.244.1.5")
            subject = "Pod default/b on the switch of node1"
            await world.until(lambda: subject in world.reconciler.problems.texts())
            assert "the switch refused flow" in world.reconciler.problems.texts()[subject]
            await world.until(
                lambda: len(world.reconciler.inventory.view.attachments.get("node1", {})) == 2
            )
            await world.in_sync()
            of_a = {
                cookie
                for cookie, (_, owners) in world.reconciler.desired.of("node1").items()
                if owners == (ObjectRef("Pod", "default", "a"),)
            }
            assert len(of_a) == 13
            # A switch that lacks something is not sealed: it is looked at when it comes again.
            assert world.cookies() == before | of_a

    run(story)


def test_a_service_whose_flows_cannot_be_harms_no_other(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, broken = services.service, {"bad"}

    def partly(cluster: Cluster, given: Service) -> Iterable[Entry]:
        if given.name in broken:
            raise PipelineError("Service default/bad: no such thing")
        return make(cluster, given)

    monkeypatch.setattr("controller.desired.COMPILER", compiler_with(make, partly))

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            subject = "flows of Service default/bad"
            world.reconciler.update(
                [service("bad"), service("good", clusterIP="10.96.0.2"),
                 endpoint_slice("good-1", "good", ["10.244.1.5"])],
                [],
            )  # fmt: skip
            await world.until(lambda: subject in world.reconciler.problems.texts())
            assert (
                world.reconciler.problems.texts()[subject] == "Service default/bad: no such thing"
            )
            await world.in_sync()
            dump = "\n".join(ovs.dump())
            assert "nw_dst=10.96.0.2" in dump
            assert "nw_dst=10.96.0.1," not in dump
            broken.clear()
            world.reconciler.update([service("other", clusterIP="10.96.0.3")], [])
            await world.until(lambda: subject not in world.reconciler.problems.texts())
            await world.in_sync()
            assert {"nw_dst=10.96.0.1,", "nw_dst=10.96.0.3,"} <= {
                f"nw_dst={at}," for at in re.findall(r"nw_dst=([\d.]+),", "\n".join(ovs.dump()))
            }

    run(story)


def test_connections_are_forgotten_when_the_flows_are_there(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of a switch that is slow, and busy with an earlier change.

    What a client sends in between would be remembered as before, and nobody would forget it.
    """
    order: list[str] = []
    apply = Switch._apply

    async def slowly(switch: Switch, part: Part, following: Part | None) -> None:
        await asyncio.sleep(0.2)
        await apply(switch, part, following)
        for message in part.messages:
            if isinstance(message, BucketRemove):
                order.append("endpoint removed")
            elif isinstance(message, Forget) and message.reply.source == GONE:
                order.append("connections forgotten")

    def behind(name: str, *addresses: str) -> Object:
        return endpoint_slice(f"{name}-1", name, addresses, [{"port": 53, "protocol": "UDP"}])

    async def story() -> None:
        many = [f"10.244.1.{n}" for n in range(5, 45)]
        async with controller(ovs) as world:
            ports = [{"port": 53, "protocol": "UDP"}]
            world.reconciler.update([service("s", ports=ports), behind("s", *many, str(GONE))], [])
            await world.in_sync()
            monkeypatch.setattr(Switch, "_apply", slowly)
            monkeypatch.setattr("controller.forgetting.FLUSHES_OF_STALE", 3)
            world.reconciler.update([service("other", clusterIP="10.96.0.2")], [])
            await asyncio.sleep(0.1)
            world.reconciler.update([behind("s", *many)], [])
            await world.until(lambda: len(order) == 1 + 2 * 3)

    run(story)
    # In either zone, and again and again: one flush of the userspace datapath leaves up to half.
    assert order == ["endpoint removed", *["connections forgotten"] * 6]


def test_a_comparison_asked_for_while_one_runs_is_not_forgotten(ovs: Ovs) -> None:
    """The last file is mended while a batch is on its way."""

    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([node_object("node3", "10.244.3.0/24", "172.30.1.3")], [])
            await world.in_sync()
            port = world.port
        async with controller(ovs, whole=False, port=port) as world:
            reconciler = world.reconciler
            await world.until(lambda: reconciler.sessions.get("node1"))
            session = reconciler.sessions["node1"]
            await world.until(lambda: session.shared_version)
            sending, go_on = asyncio.Event(), asyncio.Event()
            apply = session.switch.apply

            async def slow(batch: Batch) -> None:
                sending.set()
                await go_on.wait()
                await apply(batch)

            session.switch.apply = slow  # type: ignore[method-assign]
            reconciler.update([node_object("node4", "10.244.4.0/24", "172.30.1.4")], [])
            await sending.wait()
            reconciler.complete(True)
            go_on.set()
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)


def test_of_two_that_follow_a_dead_session_one_is_refused(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            ovs.freeze_switch()
            first = world.reconciler.sessions["node1"]
            owners = await asyncio.gather(*(taken_over(world) for _ in range(2)))
            assert world.reconciler.sessions["node1"] is not first
            del world.reconciler.sessions["node1"]
            assert sorted(owners, key=str) == [None, "node1"]

    async def taken_over(world: World) -> str | None:
        """What `on_switch` does first; the newcomer then lives."""
        newcomer = Newcomer(world.reconciler.sessions["node1"].switch.dpid)
        owner = await world.reconciler.switches._node_of(newcomer)  # type: ignore[arg-type]
        if owner:
            world.reconciler.sessions[owner] = Session(owner, newcomer, world.reconciler.desired)  # type: ignore[arg-type]
        return owner

    run(story)


class Newcomer:
    """Of a switch, what the choice between sessions asks."""

    certificate_name: str | None = None
    host = ""
    peer = "nowhere"

    def __init__(self, dpid: int) -> None:
        self.dpid = dpid

    async def alive(self, _: float) -> bool:
        return True


def test_second_session(ovs: Ovs, tmp_path_factory: Any) -> None:
    """Of two switches with one datapath id the first, alive, keeps its session."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            first = world.reconciler.sessions["node1"]
            second = Ovs(tmp_path_factory.mktemp("second"))
            try:
                second.start()
                second.vsctl(
                    "set", "Bridge", "br0",
                    f"other_config:datapath-id={names.datapath_id('node1'):016x}",
                )  # fmt: skip
                second.dial(f"tcp:127.0.0.1:{world.port}")
                await asyncio.sleep(0.5)
                assert world.reconciler.sessions["node1"] is first
                # The first one hangs: it is half open now, and the second takes over.
                ovs.freeze_switch()
                await world.until(lambda: world.reconciler.sessions.get("node1") is not first)
            finally:
                second.stop()

    run(story)
