"""Groups on a real switch: what is sent of a change, and what is found and mended."""

import asyncio
import re
from collections import Counter

import pytest
from prometheus_client import REGISTRY

from controller.session import Session
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import ServiceObject
from flows import names
from flows.compile import compile_scope
from flows.features import endpoints
from flows.features.endpoints import MAX_DP_HASH_ENDPOINTS
from flows.flow import MOST_BUCKETS, Action, Flow, Group, Output
from flows.pipeline import Feature
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Endpoint
from openflow import digest
from openflow.batch import Batch, BucketRemove, BucketsInsert, Control, GroupDelete, Message
from openflow.switch import Switch
from openflow.watch import connect
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.controller.test_audit import counted
from tests.controller.test_audit import digest as looked_at
from tests.controller.world import World, controller, run
from tests.ovs import Ovs
from wire.documents import Verdict

FOREIGN = "group_id=7,type=all,bucket=drop"


def web(*endpoints: int) -> list[ServiceObject | SliceObject]:
    """A Service with these endpoints."""
    addresses = [f"10.244.2.{number}" for number in endpoints]
    return [service("web"), endpoint_slice("web-1", "web", addresses)]


def local(*endpoints: int) -> list[ServiceObject | SliceObject]:
    """One whose endpoints on node1 are a choice of that node's own."""
    fields = {"clusterIP": "10.96.0.2", "internalTrafficPolicy": "Local"}
    made = [endpoint(f"10.244.1.{number}", "node1") for number in endpoints]
    return [service("here", **fields), endpoint_slice("here-1", "here", made)]


def wanted(world: World) -> dict[int, Group]:
    """Compiled anew, from nothing."""
    view = world.reconciler.inventory.view
    return compile_scope(view, CLUSTER_SCOPE).groups | compile_scope(view, "node1").groups


async def held(ovs: Ovs) -> dict[int, int]:
    """The digests of our groups on the switch."""
    async with connect(ovs.mgmt) as switch:
        groups = await switch.dump_groups()
    return {each.id: digest.of_group_entry(each) for each in groups if each.id in names.GROUPS}


async def is_right(world: World) -> bool:
    """Whether the switch holds all flows, and all groups with all they should hold."""
    ours = await held(world.ovs)
    groups = {number: digest.of_group(group) for number, group in wanted(world).items()}
    return ours == groups and world.cookies() == world.desired()


def shared(world: World) -> dict[int, Group]:
    return compile_scope(world.reconciler.inventory.view, CLUSTER_SCOPE).groups


def group_of(world: World, name: str, variant: str = "cluster") -> int:
    (port,) = world.reconciler.inventory.view.services[f"default/{name}"].ports
    return port.groups[variant]


def record(session: Session) -> list[Message]:
    """What is sent from here on, but for what holds a batch together."""
    sent: list[Message] = []
    apply = session.switch.apply

    async def recorded(batch: Batch) -> None:
        for part in batch.parts:
            sent.extend(each for each in part.messages if not isinstance(each, Control))
        await apply(batch)

    session.switch.apply = recorded  # type: ignore[method-assign]
    return sent


def kinds(sent: list[Message], number: int) -> list[type]:
    """Of what was sent about this group."""
    return [
        type(each)
        for each in sent
        if (isinstance(each, Group) and each.id == number)
        or (isinstance(each, BucketRemove | BucketsInsert | GroupDelete) and each.group == number)
    ]  # fmt: skip


@pytest.mark.parametrize("make", [web, local])
def test_change_of_one_endpoint_sends_one_bucket(ovs: Ovs, make) -> None:  # type: ignore[no-untyped-def]
    """Shared by all, or the node's own."""

    async def story() -> None:
        async with controller(ovs) as world:
            update = world.reconciler.update
            # More than the datapath chooses among itself.
            update(make(*range(10, 50)), [])
            await world.in_sync()
            assert await is_right(world)
            sent = record(world.reconciler.sessions["node1"])
            update(make(*range(10, 51)), [])
            await world.in_sync()
            assert await is_right(world)
            changed = [n for n in wanted(world) if kinds(sent, n)]
            assert len(changed) == (1 if make is web else 2)
            for number in changed:
                assert Group not in kinds(sent, number)
                inserted = [m for m in sent if isinstance(m, BucketsInsert) and m.group == number]
                assert sum(len(message.buckets) for message in inserted) == 1
            sent.clear()
            update(make(*range(11, 51)), [])
            await world.in_sync()
            assert await is_right(world)
            assert all(kinds(sent, number) == [BucketRemove] for number in changed)
            assert not any(isinstance(m, Flow) and m.feature == Feature.SERVICES for m in sent)

    run(story)


def test_every_endpoint_is_chosen_after_any_history(ovs: Ovs) -> None:
    """Open vSwitch makes the slots of `dp_hash` of what a message inserts, and of nothing else."""

    def chosen(world: World) -> Counter[str]:
        found: Counter[str] = Counter()
        number = group_of(world, "web")
        for count in range(1, 257):
            traced = ovs.appctl(
                "ofproto/trace-packet-out", "br0",
                f"tcp,nw_src=10.244.1.9,nw_dst=10.96.0.1,tcp_src={count},dp_hash={count}",
                f"group:{number}",
            )  # fmt: skip
            found.update(re.findall(r"nat\(dst=([\d.]+):", traced)[:1])
        return found

    async def story() -> None:
        async with controller(ovs) as world:
            for count in (
                1,
                2,
                3,
                2,
                11,
                MAX_DP_HASH_ENDPOINTS,
                MAX_DP_HASH_ENDPOINTS + 1,
                MAX_DP_HASH_ENDPOINTS,
            ):
                world.reconciler.update(web(*range(10, 10 + count)), [])
                await world.in_sync()
                assert await is_right(world)
                found = await asyncio.to_thread(chosen, world)
                assert found.keys() == {f"10.244.2.{number}" for number in range(10, 10 + count)}
                if count <= MAX_DP_HASH_ENDPOINTS:
                    assert max(found.values()) - min(found.values()) <= 1

    run(story)


def test_more_endpoints_than_a_group_holds(ovs: Ovs) -> None:
    """From one group to many and back; of the many, one endpoint changes a few buckets of each."""

    def crowd(count: int) -> list[ServiceObject | SliceObject]:
        addresses = [f"10.244.{2 + n // 250}.{n % 250 + 2}" for n in range(count)]
        return [service("web"), endpoint_slice("web-1", "web", addresses)]

    async def story() -> None:
        async with controller(ovs) as world:
            update = world.reconciler.update
            for count, groups in ((MOST_BUCKETS, 1), (MOST_BUCKETS + 1, 1 + 2), (800, 1 + 4)):
                update(crowd(count), [])
                await world.in_sync()
                assert len(wanted(world)) == groups
                assert await is_right(world)
            sent = record(world.reconciler.sessions["node1"])
            update(crowd(801), [])
            await world.in_sync()
            assert await is_right(world)
            assert not any(isinstance(message, Group) for message in sent)
            edits = [m for m in sent if isinstance(m, BucketRemove | BucketsInsert)]
            assert 1 <= len(edits) <= 2 * 4
            assert sum(len(m.buckets) for m in edits if isinstance(m, BucketsInsert)) <= 4
            update(crowd(3), [])
            await world.in_sync()
            assert len(wanted(world)) == 1
            assert await is_right(world)

    run(story)


def test_groups_come_and_go_with_their_services(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            update = world.reconciler.update
            await world.in_sync()
            assert not wanted(world)
            for objects in (web(1), local(5), web(1, 2), web(), local(), web(3), local(6, 7)):
                update(objects, [])
                await world.in_sync()
                assert await is_right(world)
            assert len(wanted(world)) == 3
            update([], [("Service", "default", "web")])
            await world.in_sync()
            assert await is_right(world)
            update([], [("Service", "default", "here")])
            await world.in_sync()
            assert await is_right(world)
            assert not wanted(world)

    run(story)


def shown(ovs: Ovs) -> list[str]:
    """The groups, in the order of their ids: a switch shows them in any."""
    return sorted(ovs.ofctl("dump-groups", str(ovs.mgmt)).splitlines()[1:])


def a_bucket(ovs: Ovs, number: int) -> str:
    """The id of one of a group's buckets, as the switch shows it."""
    (line,) = (line for line in shown(ovs) if f"group_id={number}," in line)
    found = re.search(r"bucket_id:(\d+)", line)
    assert found
    return found[1]


BY_HAND = {
    "deleted, and with it the flows that use it": lambda ovs, n: ovs.ofctl(
        "del-groups", str(ovs.mgmt), f"group_id={n}"
    ),
    "all deleted": lambda ovs, _: ovs.ofctl("del-groups", str(ovs.mgmt)),
    "a bucket less": lambda ovs, n: ovs.ofctl(
        "remove-buckets", str(ovs.mgmt), f"group_id={n},command_bucket_id={a_bucket(ovs, n)}"
    ),
    "a bucket more": lambda ovs, n: ovs.ofctl(
        "insert-buckets", str(ovs.mgmt),
        f"group_id={n},command_bucket_id=last,bucket=bucket_id:3,weight:9,actions=drop",
    ),
    "other buckets": lambda ovs, n: ovs.ofctl(
        "mod-group", str(ovs.mgmt),
        f"group_id={n},type=select,selection_method=dp_hash,bucket=bucket_id:1,actions=drop",
    ),
    "stale": lambda ovs, _: ovs.ofctl(
        "add-group", str(ovs.mgmt), f"group_id={names.GROUPS[99]},type=select,bucket=drop"
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", [web, local])
@pytest.mark.parametrize("what", BY_HAND)
def test_manual_changes_are_found_and_repaired(ovs: Ovs, what: str, make) -> None:  # type: ignore[no-untyped-def]
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(make(10, 11, 12), [])
            await world.in_sync()
            take = world.reconciler.take_digest
            assert take("node1", await looked_at(ovs)) is Verdict.RIGHT
            flows, groups, found = ovs.dump(), shown(ovs), counted("drift", kind="groups")

            number = group_of(world, "web") if make is web else group_of(world, "here", "local")
            BY_HAND[what](ovs, number)
            assert shown(ovs) != groups
            ovs.ofctl("add-group", str(ovs.mgmt), FOREIGN)
            assert take("node1", await looked_at(ovs)) is Verdict.DRIFT
            await world.in_sync()
            assert counted("drift", kind="groups") > found
            assert ovs.dump() == flows
            assert await is_right(world)
            assert any("group_id=7," in line for line in shown(ovs))
            assert take("node1", await looked_at(ovs)) is Verdict.RIGHT

    run(story)


def test_repair_without_effect_is_not_repeated_for_ever(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update(web(10, 11, 12), [])
            await world.in_sync()
            number = group_of(world, "web")
            for mended in (True, True, False):
                BY_HAND["other buckets"](ovs, number)
                assert world.reconciler.take_digest("node1", await looked_at(ovs)) is Verdict.DRIFT
                await world.in_sync()
                assert await is_right(world) is mended

    run(story)


def test_comparison_removes_stale_groups_and_leaves_foreign_ones(ovs: Ovs) -> None:
    """After a time without a controller, and without seals that would vouch for the switch."""

    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*web(10, 11), *local(5)], [])
            await world.in_sync()
            port, gone = world.port, group_of(world, "web")
        stale, mgmt = names.GROUPS[99], str(ovs.mgmt)
        outside = [names.GROUPS[0] - 1, names.GROUPS[-1] + 1]
        ovs.ofctl("del-flows", mgmt, "table=250")
        ovs.ofctl("add-group", mgmt, FOREIGN)
        for number in (stale, *outside):
            ovs.ofctl("add-group", mgmt, f"group_id={number},type=select,bucket=drop")
        async with controller(ovs, port=port) as world:
            world.reconciler.update(local(5), [])
            await world.in_sync()
            assert gone not in wanted(world)
            assert await is_right(world)
            ids = [int(number) for number in re.findall(r"group_id=(\d+)", "\n".join(shown(ovs)))]
            assert set(ids) == {7, *outside, *wanted(world)}
            given = await looked_at(ovs)
            assert given.foreign == 3
            assert world.reconciler.take_digest("node1", given) is Verdict.RIGHT

    run(story)


def test_comparison_restores_missing_and_unknown_groups(
    ovs: Ovs,
) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*web(10, 11), *local(5)], [])
            await world.in_sync()
            port, shared = world.port, group_of(world, "web")
            own = group_of(world, "here", "local")
        mgmt = str(ovs.mgmt)
        ovs.ofctl("del-flows", mgmt, "table=250")
        ovs.ofctl("del-groups", mgmt, f"group_id={shared}")
        # Without its companion nobody knows what it holds.
        ovs.ofctl("del-flows", mgmt, f"table=252,reg2={own:#x}")
        BY_HAND["other buckets"](ovs, own)
        async with controller(ovs, port=port) as world:
            world.reconciler.update([*web(10, 11), *local(5)], [])
            await world.in_sync()
            assert await is_right(world)

    run(story)


def test_no_group_is_removed_before_the_source_is_complete(ovs: Ovs) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*web(10, 11), *local(5)], [])
            await world.in_sync()
            port, groups = world.port, shown(ovs)
        async with controller(ovs, whole=False, port=port) as world:
            reconciler = world.reconciler
            await world.until(lambda: reconciler.sessions.get("node1"))
            await world.until(lambda: reconciler.sessions["node1"].shared_version)
            await world.until(lambda: not reconciler.sessions["node1"].dirty.is_set())
            await asyncio.sleep(0.1)
            assert shown(ovs) == groups
            # What is known by now comes, and what it goes to.
            reconciler.update(web(11, 12), [])
            await world.until(lambda: world.cookies() >= world.desired())
            number = group_of(world, "web")
            there = await held(ovs)
            assert there[number] == digest.of_group(wanted(world)[number])
            assert len(there) == len(groups)
            reconciler.update([], [("Service", "default", "web")])
            reconciler.source_complete(True)
            await world.in_sync()
            assert shown(ovs) == []
            assert await is_right(world)

    run(story)


def test_nothing_is_sent_to_a_sealed_switch(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with controller(ovs) as world:
            world.reconciler.update([*web(*range(10, 50)), *local(5)], [])
            await world.in_sync()
            port = world.port
        sent: list[Batch] = []
        apply = Switch.apply

        async def recorded(switch: Switch, batch: Batch) -> None:
            sent.append(batch)
            await apply(switch, batch)

        monkeypatch.setattr(Switch, "apply", recorded)
        sealed = REGISTRY.get_sample_value("sluice_switch_seal_matches_total") or 0.0
        async with controller(ovs, whole=False, port=port) as world:
            # What is not whole yet would be compared: so all of it at once.
            reconciler = world.reconciler
            reconciler.update([*web(*range(10, 50)), *local(5)], [])
            reconciler.source_complete(True)
            await world.until(lambda: reconciler.sessions.get("node1"))
            await world.in_sync()
            assert not any(sent)
            assert REGISTRY.get_sample_value("sluice_switch_seal_matches_total") == sealed + 1
            assert await is_right(world)
            # And what changes from here on is known against what the seals vouched for.
            reconciler.update(web(*range(10, 51)), [])
            await world.in_sync()
            sent.clear()
            reconciler.update(web(*range(10, 52)), [])
            await world.in_sync()
            (batch,) = sent
            assert not any(isinstance(m, Group) for p in batch.parts for m in p.messages)
            assert await is_right(world)

    run(story)


def test_group_that_a_switch_rejects_harms_no_other_object(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its Service is left out, and the others go on."""

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            refusals = REGISTRY.get_sample_value("sluice_switch_rejected_messages_total") or 0.0
            with monkeypatch.context() as patch:
                patch.setattr(endpoints, "_translate", wrong)
                patch.setattr(endpoints, "_buckets", {})
                world.reconciler.update([*web(10, 11), *local(5)], [])
                subject = "Service default/web on the switch of node1"
                await world.until(lambda: subject in world.reconciler.problems.texts())
                assert "the switch rejected group" in world.reconciler.problems.texts()[subject]
                await world.in_sync()
                # It is not sent again for now.
                await asyncio.sleep(0.2)
                assert (
                    REGISTRY.get_sample_value("sluice_switch_rejected_messages_total")
                    == refusals + 1
                )
                rejected, right = group_of(world, "web"), group_of(world, "here", "local")
            async with connect(ovs.mgmt) as switch:
                ids = {group.id for group in await switch.dump_groups()}
            assert rejected not in ids
            assert right in ids
            of_web = {
                cookie
                for cookie, (_, owners) in world.reconciler.desired.of("node1").items()
                if owners == (ObjectRef("Service", "default", "web"),)
            }
            assert of_web
            assert not of_web & world.cookies()
            # A change of one of its endpoints may need a bucket of the group that is not there.
            world.reconciler.update(web(*range(10, 20)), [])
            session = world.reconciler.sessions["node1"]
            await world.until(lambda: world.reconciler.desired.shared.groups == shared(world))
            await world.until(lambda: not session.dirty.is_set())
            session._try_again(world.reconciler.switches._on_retry)
            await world.until(lambda: session.in_sync)
            assert await is_right(world)

    original = endpoints._translate

    def wrong(of: Endpoint) -> Action:
        return original(of) if str(of.address) == "10.244.1.5" else Output(0xFFFF_FF00)

    run(story)
