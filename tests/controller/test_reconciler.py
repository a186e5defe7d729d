"""The reconciler on a real switch: what it sends, what it leaves alone, what it shows."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from controller.sources.objects import Object
from flows.features import conntrack, services
from flows.flow import Meter
from flows.kinds import Entry
from flows.pipeline import PipelineError
from flows.refs import ObjectRef
from flows.view import Attachment, Cluster, Service
from openflow.batch import Batch, BucketRemove, BucketsInsert, Part
from openflow.conntrack import Forget
from openflow.switch import Switch
from tests.controller.events import node_object, pod_object
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import PEER, controller, run
from tests.flows.worlds import compiler_with
from tests.ovs import Ovs

GONE = IPv4Address("10.244.1.77")


def test_empty_switch_gets_everything(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)


def test_flows_follow_a_pod(ovs: Ovs) -> None:
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
            nodes = world.reconciler.inventory.nodes
            assert nodes.session_addresses == {"node1": IPv4Address("127.0.0.1")}

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


def test_changes_during_a_restart_are_found(ovs: Ovs) -> None:
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


def test_nothing_is_removed_before_the_source_is_complete(ovs: Ovs) -> None:
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
            reconciler.source_complete(True)
            await world.in_sync()
            assert world.cookies() == world.desired()
            assert not world.cookies() >= before

    run(story)


def test_returning_peer_keeps_its_flows(ovs: Ovs) -> None:
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
            reconciler.source_complete(True)
            reconciler.update([PEER], [])
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)


def test_removed_node_keeps_its_flows(ovs: Ovs) -> None:
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


def test_flow_that_a_switch_rejects_harms_no_other_object(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            assert "the switch rejected flow" in world.reconciler.problems.texts()[subject]
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


def test_service_that_cannot_be_compiled_harms_no_other(
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


def test_conntrack_is_flushed_after_the_flows_are_installed(
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
            monkeypatch.setattr("controller.conntrack_flush.FLUSHES_OF_STALE", 3)
            world.reconciler.update([service("other", clusterIP="10.96.0.2")], [])
            await asyncio.sleep(0.1)
            world.reconciler.update([behind("s", *many)], [])
            await world.until(lambda: len(order) == 1 + 2 * 3)

    run(story)
    # In either zone, and again and again: one flush of the userspace datapath leaves up to half.
    assert order == ["endpoint removed", *["connections forgotten"] * 6]


def test_endpoint_that_came_back_is_not_flushed_after_its_flows_are_installed(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections may be answered by then, and the answer would be lost."""
    order: list[str] = []
    apply = Switch._apply
    coming_back = asyncio.Event()

    async def noted(switch: Switch, part: Part, following: Part | None) -> None:
        await apply(switch, part, following)
        for message in part.messages:
            if isinstance(message, BucketsInsert):
                order.append("endpoint added")
            elif isinstance(message, Forget) and message.reply.source == GONE:
                order.append("connections forgotten")
                coming_back.set()

    def behind(*addresses: str) -> Object:
        return endpoint_slice("s-1", "s", addresses, [{"port": 53, "protocol": "UDP"}])

    async def story() -> None:
        many = [f"10.244.1.{n}" for n in range(5, 45)]
        async with controller(ovs) as world:
            ports = [{"port": 53, "protocol": "UDP"}]
            world.reconciler.update([service("s", ports=ports), behind(*many, str(GONE))], [])
            await world.in_sync()
            monkeypatch.setattr(Switch, "_apply", noted)
            monkeypatch.setattr("controller.conntrack_flush.FLUSHES_OF_STALE", 1_000_000)
            world.reconciler.update([behind(*many)], [])
            async with asyncio.timeout(60):
                await coming_back.wait()
            world.reconciler.update([behind(*many, str(GONE))], [])
            await world.until(lambda: "endpoint added" in order)
            # A flush that had not ended would be there by then.
            assert await world.reconciler.sessions["node1"].switch.alive(60)

    run(story)
    assert order[-1] == "endpoint added"


def test_comparison_requested_during_another_is_not_lost(ovs: Ovs) -> None:
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
            reconciler.source_complete(True)
            go_on.set()
            await world.in_sync()
            assert world.cookies() == world.desired()

    run(story)
