"""Which switches are proven to hold an object: by their acknowledgements alone."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.acknowledgements import MOST, Acknowledgements
from controller.api import Api
from controller.convergence import MOST_WAITS, Convergences
from controller.reports.convergence import Convergence
from controller.sources.objects import Object, from_manifest
from flows.refs import ObjectRef
from openflow.batch import Batch
from openflow.switch import Switch
from tests.controller.events import node_object, pod_object
from tests.controller.service_objects import endpoint_slice, service
from tests.controller.world import SETTINGS, World, controller, run
from tests.ovs import Ovs

WEB = [service("web", clusterIP="10.96.0.1"), endpoint_slice("web-1", "web", ["10.244.1.2"])]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_acknowledgements_tell_the_first_that_is_known() -> None:
    clock = Clock()
    made = Acknowledgements(clock)
    assert made.of(0, 0) is None
    for number in range(1, 4):
        clock.now = 100.0 + number
        made.note(number, 1)
    assert made.of(1, 1) == (101.0, False)
    assert made.of(2, 1) == (102.0, True)
    assert made.of(3, 2) is None
    for number in range(4, 4 + MOST):
        clock.now = 100.0 + number
        made.note(number, 1)
    # Known to hold version 2, but not since when.
    assert made.of(2, 1) == (104.0, False)
    clock.now = 500.0
    made.note(3 + MOST, 1)
    assert made.of(3 + MOST, 1) == (103.0 + MOST, True)
    made.clear()
    assert made.of(0, 0) is None


async def in_force(convergences: Convergences, text: str, name: str = "") -> Convergence:
    async with asyncio.timeout(30):
        while True:
            found = await convergences.look(text, name)
            if found.in_force:
                return found
            name = found.id
            await asyncio.sleep(0.02)


def without_peer(world: World) -> None:
    """node2 never connects."""
    world.reconciler.update([], [ObjectRef("Node", "", "node2")])


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """A switch applies nothing while this is not set."""
    gate = asyncio.Event()
    gate.set()
    apply = Switch.apply

    async def waiting(self: Switch, batch: Batch) -> None:
        await gate.wait()
        await apply(self, batch)

    monkeypatch.setattr(Switch, "apply", waiting)
    return gate


def test_switch_that_has_not_acknowledged_lacks_it(ovs: Ovs, held_back: asyncio.Event) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            without_peer(world)
            await world.in_sync()
            convergences = Convergences(world.reconciler)
            held_back.clear()
            world.reconciler.update(WEB, [])
            found = await convergences.look("svc/default/web")
            assert (found.hold, found.need, found.in_force) == (0, 1, False)
            assert [(row.node, row.why) for row in found.lacking] == [
                ("node1", "it has not acknowledged the change yet")
            ]
            held_back.set()
            done = await in_force(convergences, "svc/default/web", found.id)
            assert done.id == found.id
            assert (done.hold, done.need, done.lacking) == (1, 1, ())
            assert done.last is not None
            assert done.in_force_at is not None
            assert (done.last.node, done.last.exact) == ("node1", True)
            assert done.in_force_at > done.last.at

            # What changes later is not what was asked about.
            held_back.clear()
            more = [service("more", clusterIP="10.96.0.2")]
            world.reconciler.update(more, [])
            assert (await convergences.look("", found.id)).in_force
            assert (await convergences.look("svc/default/web")).hold == 1
            assert (await convergences.look("svc/default/more")).hold == 0
            held_back.set()
            await in_force(convergences, "svc/default/more")

    run(story)


def test_each_kind_of_object(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*WEB, pod_object("a", "node1", uid="ua")], [])
            await world.in_sync()
            convergences = Convergences(world.reconciler)
            waiting = await convergences.look("pod/default/a")
            assert "has no interface on Node node1" in waiting.pending
            assert not waiting.in_force
            world.plug("a", "ua", 16)
            await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
            assert (await in_force(convergences, "pod/default/a")).need == 1
            # All nodes have a route to a node, and node2 is not connected.
            found = await convergences.look("node/node1")
            assert (found.hold, found.need) == (1, 2)
            assert [(row.node, row.why) for row in found.lacking] == [("node2", "not connected")]
            without_peer(world)
            assert (await convergences.look("node/node1", found.id)).need == 1
            await in_force(convergences, "endpointslice/default/web-1")
            headless = service("nobody", clusterIP="None")
            world.reconciler.update([headless], [])
            nobody = await convergences.look("svc/default/nobody")
            assert (nobody.need, nobody.in_force, nobody.pending) == (0, True, "")
            refused = node_object("node9", "10.250.0.0/24", "172.30.1.9", uid="n9")
            world.reconciler.update([refused], [])
            outside = await convergences.look("node/node9")
            assert not outside.in_force
            assert outside.pending.startswith("Node node9: ")
            missing = await convergences.look("svc/default/none")
            assert (missing.object, missing.pending) == (None, "there is no Service default/none")

    run(story)


def policy(selected: str) -> Object:
    return from_manifest(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "closed", "namespace": "default", "uid": "p"},
            "spec": {"podSelector": {"matchLabels": {"app": selected}}},
        }
    )


def test_switch_that_still_holds_what_was_removed_lacks_it(
    ovs: Ovs, held_back: asyncio.Event
) -> None:
    """A policy selects a pod no more: its node needs no flows of it, but still has them."""

    async def story() -> None:
        async with controller(ovs) as world:
            without_peer(world)
            labelled = from_manifest(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": "a", "namespace": "default", "uid": "ua", "labels": {"app": "a"}
                    },
                    "spec": {"nodeName": "node1"},
                }
            )  # fmt: skip
            world.reconciler.update([labelled, policy("a")], [])
            world.plug("a", "ua", 16)
            await world.until(lambda: world.reconciler.inventory.view.isolations.get("node1"))
            convergences = Convergences(world.reconciler)
            await in_force(convergences, "networkpolicy/default/closed")
            held_back.clear()
            world.reconciler.update([policy("nobody")], [])
            async with asyncio.timeout(30):
                while not (found := await convergences.look("networkpolicy/default/closed")).id:
                    pass
            assert (found.hold, found.need) == (0, 1)
            held_back.set()
            done = await in_force(convergences, "networkpolicy/default/closed", found.id)
            assert (done.hold, done.need) == (1, 1)
            # Nobody needs it any more.
            assert (await convergences.look("networkpolicy/default/closed")).need == 0

    run(story)


def test_object_that_is_gone_is_gone_from_every_switch(ovs: Ovs, held_back: asyncio.Event) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(WEB, [])
            await world.in_sync()
            convergences = Convergences(world.reconciler)
            still = await convergences.look("svc/default/web", gone=True)
            assert (still.pending, still.in_force) == ("Service default/web is still there", False)
            held_back.clear()
            gone = [ObjectRef("Service", "default", "web")]
            world.reconciler.update([], [*gone, ObjectRef("EndpointSlice", "default", "web-1")])
            found = await convergences.look("svc/default/web", gone=True)
            assert (found.hold, found.need, found.gone) == (0, 2, True)
            held_back.set()
            await world.in_sync()
            found = await convergences.look("", found.id)
            # A switch that is away may still hold it.
            assert (found.hold, found.need) == (1, 2)
            assert [(row.node, row.why) for row in found.lacking] == [("node2", "not connected")]
            without_peer(world)
            assert (await in_force(convergences, "", found.id)).need == 1

    run(story)


def test_nothing_is_proven_while_the_cluster_is_not_read_completely(ovs: Ovs) -> None:
    """Nothing is removed then, so old flows may let more pass."""

    async def story() -> None:
        async with controller(ovs, whole=False) as world:
            await world.until(lambda: "node1" in world.reconciler.sessions)
            convergences = Convergences(world.reconciler)
            found = await convergences.look("node/node1")
            assert "not all of the cluster could be read" in found.pending
            assert not found.in_force

    run(story)


def test_drift_and_rejection_are_no_proof(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            without_peer(world)
            world.reconciler.update(WEB, [])
            await world.in_sync()
            convergences = Convergences(world.reconciler)
            done = await in_force(convergences, "svc/default/web")
            session = world.reconciler.sessions["node1"]
            session.drifted()
            found = await convergences.look("", done.id)
            assert (found.hold, found.in_force) == (0, False)
            assert found.lacking[0].why == "an audit found drift: it has to be repaired"
            again = await in_force(convergences, "", done.id)
            assert again.last is not None
            assert done.last is not None
            assert again.last.at > done.last.at
            shared = world.reconciler.desired.shared
            session.left_out = {
                cookie for cookie, (_, owners) in shared.cookies.items()
                if owners[0].name == "web"
            }  # fmt: skip
            assert (await convergences.look("", done.id)).lacking[0].why == (
                "the switch rejected flows of it"
            )
            assert (await convergences.look("node/node1")).hold == 1

    run(story)


def test_forgotten_wait_begins_anew(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            without_peer(world)
            await world.in_sync()
            convergences = Convergences(world.reconciler)
            first = await in_force(convergences, "node/node1")
            for _ in range(MOST_WAITS):
                await convergences.look("node/node1")
            again = await convergences.look("node/node1", first.id)
            assert again.id != first.id
            assert again.hold == 1

    run(story)


def test_route_refuses_what_is_no_object(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            api = Api(world.reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:

                async def get(query: str) -> tuple[int, Any]:
                    async with client.get(f"/v1/wait{query}") as response:
                        return response.status, await response.json()

                assert (await get(""))[0] == 400
                assert (await get(f"?object={'x' * 601}"))[0] == 400
                status, answer = await get("?object=a/b/c/d")
                assert status == 200
                assert "not of the form" in answer["pending"]

    run(story)
