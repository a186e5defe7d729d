"""Seals and the audit on a real switch: what was changed by hand is found and mended."""

import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import msgspec
import pytest
from prometheus_client import REGISTRY

from controller.desired import batch_of
from flows.compile import compile_scope
from flows.diff import Delta
from flows.features import state
from flows.flow import Flow
from flows.pipeline import Feature
from flows.view import CLUSTER_SCOPE
from node_agent.audit import look
from openflow.batch import BUNDLE_SIZE, CLOSE, COMMIT, OPEN, Batch, DeleteStrict
from openflow.watch import connect
from tests.controller.events import node_object, pod_object
from tests.controller.world import World, controller, run
from tests.flows.worlds import view
from tests.ovs import Ovs
from wire.documents import SwitchDigest, Verdict

Dump: TypeAlias = Callable[..., Awaitable[Any]]


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"sluice_switch_{name}_total", labels) or 0.0


async def digest(ovs: Ovs) -> SwitchDigest:
    """What the node's agent would tell."""
    async with connect(ovs.mgmt) as switch:
        return (await look(switch)).digest


async def with_a_pod(world: World) -> str:
    """A pod on node1; the name of its port."""
    world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
    name = world.plug("a", "u1", 16)
    await world.until(lambda: world.reconciler.inventory.view.attachments.get("node1"))
    await world.in_sync()
    return name


def test_sealed_switch_is_not_dumped(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            name = await with_a_pod(world)
            assert len(world.seals()) == 2
            port = world.port
        compared, sealed = counted("comparisons"), counted("seal_matches")
        async with controller(ovs, port=port) as world:
            world.reconciler.update([pod_object("a", "node1", uid="u1")], [])
            await world.in_sync()
            assert (counted("comparisons"), counted("seal_matches")) == (compared, sealed + 1)
            # And what changes from here on is known against what the seals vouched for.
            ovs.vsctl("del-port", "br0", name)
            await world.until(lambda: not world.reconciler.inventory.view.attachments)
            await world.in_sync()
            assert world.cookies() == world.desired()
            assert "meter=16" not in ovs.ofctl("dump-meters", str(ovs.mgmt))
            assert counted("comparisons") == compared

    run(story)


@pytest.mark.parametrize("seal", ["shared", "own"])
def test_one_seal_alone_is_not_enough(ovs: Ovs, seal: str) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await with_a_pod(world)
            if seal == "own":
                # The next controller knows no state of the shared program that has this Node.
                world.reconciler.update([node_object("node3", "10.244.3.0/24", "172.30.1.3")], [])
                await world.in_sync()
            port = world.port
        compared = counted("comparisons")
        pod = [pod_object("a", "node1", uid="u1")] if seal == "own" else []
        async with controller(ovs, port=port) as world:
            world.reconciler.update(pod, [])
            await world.in_sync()
            assert world.cookies() == world.desired()
            assert counted("comparisons") == compared + 1

    run(story)


def many(count: int) -> list[Flow]:
    flow = next(f for f in compile_scope(view({1: []}), CLUSTER_SCOPE).flows() if not f.match)
    return [dataclasses.replace(flow, priority=number) for number in range(count)]


def test_seal_is_the_last_message_of_a_batch() -> None:
    seal = state.seal(CLUSTER_SCOPE, 1, 1)
    one, *rest = batch_of(Delta(adds=tuple(many(9)), deletes=(7,)), seal, sealed=True).parts
    assert not rest
    assert one.messages[-3:] == (seal, CLOSE, COMMIT)
    assert not any(isinstance(message, DeleteStrict) for message in one.messages)

    parts = batch_of(Delta(adds=tuple(many(BUNDLE_SIZE))), seal, sealed=True).parts
    assert len(parts) == 2
    assert parts[0].messages[:2] == (OPEN, DeleteStrict(seal))
    assert seal not in parts[0].messages
    assert parts[1].messages[-3:] == (seal, CLOSE, COMMIT)

    (unsealed,) = batch_of(Delta(adds=tuple(many(1))), seal, sealed=False).parts
    assert unsealed.messages[1] == DeleteStrict(seal)
    assert seal not in unsealed.messages


def test_comparison_deletes_the_seal_of_a_node_first(ovs: Ovs) -> None:
    """Or a crash in between would leave seals that vouch for what is left over."""

    async def story() -> None:
        async with controller(ovs) as world:
            await with_a_pod(world)
            session = world.reconciler.sessions["node1"]
            sent = []
            apply = session.switch.apply

            async def recorded(batch):  # type: ignore[no-untyped-def]
                sent.append(batch)
                await apply(batch)

            session.switch.apply = recorded  # type: ignore[method-assign]
            ovs.ofctl("del-flows", str(ovs.mgmt), "table=250")
            session.invalidate()
            await world.in_sync()
            own = world.reconciler.desired.program("node1").seal
            assert DeleteStrict(own) in sent[0].parts[0].messages
            assert own in sent[-1].parts[-1].messages
            assert world.cookies() == world.desired()

    run(story)


def forwarding(ovs: Ovs) -> str:
    """The flow to the pod, as ovs-ofctl takes it back."""
    lines = ovs.ofctl("--no-stats", "dump-flows", str(ovs.mgmt), "table=100")
    return next(line.strip() for line in lines.splitlines() if "nw_dst=10.244.1.5" in line)


def cookie_of(line: str) -> str:
    return line.partition("cookie=")[2].partition(",")[0]


def meters_of(ovs: Ovs) -> list[str]:
    """In the order of their ids: a switch shows them in any."""
    shown = ovs.ofctl("dump-meters", str(ovs.mgmt)).split("meter=")[1:]
    return sorted(meter.strip() for meter in shown)


TAMPERING = {
    "altered": lambda ovs: ovs.ofctl(
        "mod-flows", str(ovs.mgmt), "table=100,ip,nw_dst=10.244.1.5,actions=drop"
    ),
    "missing": lambda ovs: ovs.ofctl("del-flows", str(ovs.mgmt), "table=100,ip,nw_dst=10.244.1.5"),
    "stale": lambda ovs: ovs.ofctl(
        "add-flow", str(ovs.mgmt), f"cookie={5 << 56 | 7:#x},table=100,priority=9,actions=drop"
    ),
    "altered: the same cookie once more": lambda ovs: ovs.ofctl(
        "add-flow", str(ovs.mgmt),
        f"cookie={cookie_of(forwarding(ovs))},table=100,priority=999,ip,actions=drop",
    ),
    "missing: another flow in its place": lambda ovs: ovs.ofctl(
        "add-flow", str(ovs.mgmt), "table=100,priority=400,ip,nw_dst=10.244.1.5,actions=drop"
    ),
    "altered: with a timeout": lambda ovs: ovs.ofctl(
        "add-flow", str(ovs.mgmt),
        forwarding(ovs).replace("table=100,", "table=100,idle_timeout=60,"),
    ),
    "missing: all of them": lambda ovs: ovs.ofctl("del-flows", str(ovs.mgmt), "table=0"),
    "meters": lambda ovs: ovs.ofctl(
        "mod-meter", str(ovs.mgmt), "meter=16,pktps,burst,band=type=drop,rate=1,burst_size=1"
    ),
    "meters: all of them, and with them the flows that use them": lambda ovs: ovs.ofctl(
        "del-meters", str(ovs.mgmt)
    ),
    "seal": lambda ovs: ovs.ofctl("del-flows", str(ovs.mgmt), "table=250"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERING)
def test_manual_changes_are_found_and_repaired(ovs: Ovs, what: str) -> None:
    kind = what.partition(":")[0]

    async def story() -> None:
        async with controller(ovs) as world:
            await with_a_pod(world)
            take = world.reconciler.take_digest
            right = await digest(ovs)
            assert take("node1", right) is Verdict.RIGHT
            before, found = ovs.dump(), counted("drift", kind=kind)
            meters = meters_of(ovs)

            TAMPERING[what](ovs)
            wrong = await digest(ovs)
            assert wrong != right
            # One without its seal could be from before a change, unless it is told twice.
            verdicts = [take("node1", wrong)] + ([take("node1", wrong)] if kind == "seal" else [])
            assert verdicts[0] is (Verdict.SUPERSEDED if kind == "seal" else Verdict.DRIFT)
            await world.in_sync()
            assert ovs.dump() == before
            assert meters_of(ovs) == meters
            assert counted("drift", kind=kind) > found
            assert take("node1", await digest(ovs)) is Verdict.RIGHT

    run(story)


def test_only_a_right_digest_proves_a_switch(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            proven: list[str] = []
            monkeypatch.setattr(world.reconciler.proofs, "proven", proven.append)
            right = await digest(ovs)
            wrong = msgspec.structs.replace(right, meters=right.meters + 1)
            assert world.reconciler.take_digest("node1", wrong) is Verdict.DRIFT
            assert proven == []
            await world.in_sync()
            assert world.reconciler.take_digest("node1", right) is Verdict.RIGHT
            assert proven == ["node1"]

    run(story)


def test_only_ranges_that_differ_are_dumped_and_sent(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await with_a_pod(world)
            session = world.reconciler.sessions["node1"]
            sent, asked = [], []
            apply, dump = session.switch.apply, session.switch.dump_flows

            async def recorded_apply(batch):  # type: ignore[no-untyped-def]
                sent.append(batch)
                await apply(batch)

            async def recorded_dump(*of):  # type: ignore[no-untyped-def]
                asked.append(of)
                return await dump(*of)

            session.switch.apply = recorded_apply  # type: ignore[method-assign]
            session.switch.dump_flows = recorded_dump  # type: ignore[method-assign]
            cookie = int(cookie_of(forwarding(ovs)), 16)
            TAMPERING["missing"](ovs)
            world.reconciler.take_digest("node1", await digest(ovs))
            await world.in_sync()
            assert asked == [(None, cookie % 256, 255)]
            (batch,) = sent
            flows = [m for m in batch.parts[0].messages if isinstance(m, Flow)]
            assert [f.cookie for f in flows if f.feature != Feature.STATE] == [cookie]

    run(story)


def test_change_by_the_controller_is_not_drift(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            early = await digest(ovs)
            await with_a_pod(world)
            take = world.reconciler.take_digest
            assert take("node1", early) is Verdict.SUPERSEDED
            assert take("node1", await digest(ovs)) is Verdict.RIGHT
            # Not twice in a row: the first one may have been on its way for long.
            assert take("node1", early) is Verdict.SUPERSEDED
            assert world.reconciler.sessions["node1"].in_sync

    run(story)


@pytest.mark.parametrize("after", range(11))
def test_change_by_the_controller_during_a_look_is_not_drift(ovs: Ovs, after: int) -> None:
    """Whichever of its dumps come before the change: the digest must not have the new seal."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            async with connect(ovs.mgmt) as switch:
                dumps = itertools.count()

                async def changed_in_between(dump: Dump, *of: Any) -> Any:
                    if next(dumps) == after:
                        await with_a_pod(world)
                    return await dump(*of)

                for name in ("dump_flows", "dump_groups", "dump_meters"):
                    setattr(switch, name, partial(changed_in_between, getattr(switch, name)))
                found = (await look(switch)).digest
                assert next(dumps) > after, "it changed nothing"
            take = world.reconciler.take_digest
            assert take("node1", found) is not Verdict.DRIFT
            assert take("node1", await digest(ovs)) is Verdict.RIGHT

    run(story)


def test_no_part_of_a_change_is_drift(ovs: Ovs) -> None:
    """Meters cannot be in the bundle with the flows: those of a pod that goes, go after it."""

    async def story() -> None:
        async with controller(ovs) as world:
            name = await with_a_pod(world)
            session = world.reconciler.sessions["node1"]
            apply, found = session.switch.apply, []

            async def apply_by_parts(batch: Batch) -> None:
                for part in batch.parts:
                    await apply(Batch((part,)))
                    found.append(await digest(ovs))

            session.switch.apply = apply_by_parts  # type: ignore[method-assign]
            ovs.vsctl("del-port", "br0", name)
            await world.until(lambda: not world.reconciler.inventory.view.attachments)
            await world.in_sync()
            assert "meter=16" not in ovs.ofctl("dump-meters", str(ovs.mgmt))
            assert len(found) > 1
            verdicts = [world.reconciler.take_digest("node1", each) for each in found]
            assert Verdict.DRIFT not in verdicts
            assert verdicts[-1] is Verdict.RIGHT

    run(story)


def test_foreign_flows_are_counted_and_not_changed(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            ovs.ofctl("add-flow", str(ovs.mgmt), "table=100,priority=8,actions=drop")
            ovs.ofctl("add-group", str(ovs.mgmt), "group_id=7,type=all,bucket=drop")
            given = await digest(ovs)
            assert given.foreign == 2
            assert world.reconciler.take_digest("node1", given) is Verdict.RIGHT
            assert world.reconciler.sessions["node1"].audit.foreign == 2
            assert [g.id for g in (await world.reconciler.installed("node1"))[1]] == [7]
            assert world.cookies() == world.desired() | {0}

    run(story)


def test_repair_without_effect_is_not_repeated_for_ever(ovs: Ovs) -> None:
    """As it would be with an Open vSwitch that shows flows in another form than ours."""

    async def story() -> None:
        async with controller(ovs) as world:
            await with_a_pod(world)
            take = world.reconciler.take_digest
            for expected in (True, True, False):
                TAMPERING["missing"](ovs)
                assert take("node1", await digest(ovs)) is Verdict.DRIFT
                await world.in_sync()
                assert (world.cookies() == world.desired()) is expected

    run(story)
