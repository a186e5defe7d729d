"""The bridge's management socket, and what a flow monitor tells by it."""

import asyncio
import struct
from pathlib import Path

import pytest

from flows.flow import Goto, SetField, match
from openflow.batch import Batch
from openflow.errors import ConnectionLost
from openflow.watch import FlowWatch, connect, read_flows
from tests.openflow import samples
from tests.openflow.conftest import eventually
from tests.ovs import Ovs, wait_until

TABLE = 60


def entry(tag: int):
    """Two of these have the same place in the table: the later replaces the earlier."""
    return samples.Flow(
        2, TABLE, 400, match({"in_port": 16}), (SetField("reg1", tag), Goto(80)), "entry"
    )


async def apply(ovs: Ovs, batch: Batch) -> None:
    async with connect(ovs.mgmt) as switch:
        await switch.apply(batch)


def test_a_flow_that_is_there_is_seen_and_one_that_comes_is_awaited(ovs: Ovs):
    there, comes, elsewhere = samples.flow(1), samples.flow(2), samples.flow(3, table=70)

    async def main():
        await apply(ovs, Batch.of([there]))
        async with FlowWatch(ovs.mgmt, TABLE) as watch:
            assert await watch.wait_for(there.cookie, 5)
            await eventually(lambda: watch.connected)
            waiters = [asyncio.create_task(watch.wait_for(comes.cookie, 5)) for _ in range(100)]
            never = asyncio.create_task(watch.wait_for(elsewhere.cookie, 0.3))
            await asyncio.sleep(0)
            await apply(ovs, Batch.of([comes, elsewhere]))
            assert all(await asyncio.gather(*waiters))
            assert not await never
            assert watch._waiting == {}

    asyncio.run(main())


def test_what_is_deleted_or_replaced_is_forgotten(ovs: Ovs):
    async def main():
        async with FlowWatch(ovs.mgmt, TABLE) as watch:
            await apply(ovs, Batch.of([entry(1)]))
            assert await watch.wait_for(entry(1).cookie, 5)
            await apply(ovs, Batch.of([entry(2)]))
            assert await watch.wait_for(entry(2).cookie, 5)
            assert not await watch.wait_for(entry(1).cookie, 0)
            await apply(ovs, Batch.of(deletes=[entry(2).cookie]))
            await eventually(lambda: not watch._cookies)
            assert not await watch.wait_for(entry(2).cookie, 0)

    asyncio.run(main())


def test_a_waiter_that_gives_up_leaves_the_others(ovs: Ovs):
    async def main():
        async with FlowWatch(ovs.mgmt, TABLE) as watch:
            flow = samples.flow(1)
            short = asyncio.create_task(watch.wait_for(flow.cookie, 0.05))
            cancelled = asyncio.create_task(watch.wait_for(flow.cookie, 5))
            long = asyncio.create_task(watch.wait_for(flow.cookie, 5))
            assert not await short
            cancelled.cancel()
            await apply(ovs, Batch.of([flow]))
            assert await long
            assert watch._waiting == {}

    asyncio.run(main())


def test_after_a_restart_of_the_switch_the_table_is_learned_anew(ovs: Ovs):
    before, after = samples.flow(1), samples.flow(2)

    async def main():
        async with FlowWatch(ovs.mgmt, TABLE) as watch:
            await apply(ovs, Batch.of([before]))
            assert await watch.wait_for(before.cookie, 5)
            await eventually(lambda: watch.connected)
            waiting = asyncio.create_task(watch.wait_for(after.cookie, 20))
            ovs.stop_switch()
            await eventually(lambda: not watch.connected)
            assert not await watch.wait_for(before.cookie, 0)
            await asyncio.to_thread(ovs.start_switch)
            await asyncio.to_thread(wait_until, ovs.listens)
            await apply(ovs, Batch.of([after]))
            assert await waiting
            assert not await watch.wait_for(before.cookie, 0)

    asyncio.run(main())


def test_it_waits_for_a_bridge_that_is_not_there_yet(tmp_path: Path):
    async def main():
        async with FlowWatch(tmp_path / "br0.mgmt", TABLE) as watch:
            assert not await watch.wait_for(1, 0.2)
            assert not watch.connected

    asyncio.run(main())


def test_a_bridge_without_1_5_is_a_clear_error(ovs: Ovs):
    ovs.vsctl("set", "Bridge", "br0", "protocols=OpenFlow10,OpenFlow13")

    async def main():
        with pytest.raises(ConnectionLost, match=r"br0\.mgmt: the peer offers .*not 1\.5"):
            await read_flows(ovs.mgmt)

    asyncio.run(main())


def test_a_dump_keeps_every_flow_s_bytes_and_moves_do_not_break_it(ovs: Ovs):
    flows = samples.compiled()[0]
    meters = samples.compiled()[1]

    async def main():
        await apply(ovs, Batch.of(flows, meters_set=meters))
        found = await read_flows(ovs.mgmt)
        assert {flow.cookie for flow in found} == {flow.cookie for flow in flows}
        for flow in found:
            assert struct.unpack_from("!H", flow.raw)[0] == len(flow.raw)

    asyncio.run(main())


def test_updates_carry_table_key_and_cookie(ovs: Ovs):
    async def main():
        seen = []
        async with connect(ovs.mgmt, seen.append) as switch:
            await switch.monitor_flows(TABLE)
            assert seen == []
            await apply(ovs, Batch.of([entry(1)]))
            await apply(ovs, Batch.of([entry(2)]))
            await apply(ovs, Batch.of(deletes=[entry(2).cookie]))
            await eventually(lambda: len(seen) == 3)
        cookies = [entry(1).cookie, entry(2).cookie, entry(2).cookie]
        assert [(u.table, u.cookie, u.gone) for u in seen] == [
            (TABLE, cookie, gone)
            for cookie, gone in zip(cookies, (False, False, True), strict=True)
        ]
        assert len({update.key for update in seen}) == 1

    asyncio.run(main())
