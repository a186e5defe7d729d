"""Against a real ovs-vswitchd that dials us, as nodes do."""

import asyncio
import signal
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from flows.flow import ApplyMeter, Flow, Meter, Output, match
from flows.text import flow_text
from openflow.batch import BATCH_XID, Batch, DeleteByCookie, MeterMod
from openflow.codec import CodecError, MeterCommand
from openflow.connection import Timeouts
from openflow.errors import ConnectionLost, NotWriter
from openflow.messages import PortReason, PortStatus, Role, without_counters
from openflow.switch import Rejected, RequestRejected, name_in
from tests.openflow import samples
from tests.openflow.conftest import connected
from tests.ovs import Ovs

UNPREPARED = Flow(5, 60, 400, match({"nw_dst": 77}), (Output(1),), "lacks dl_type")
"""Refused when it is added to a bundle."""
UNMETERED = replace(samples.flow(78), actions=(ApplyMeter(99),), reason="meter is missing")
"""Refused too, by another part of the switch."""


def texts(flows):
    return sorted(f"cookie={flow.cookie:#x}, {flow_text(flow)}" for flow in flows)


def test_every_flow_is_on_the_switch_as_it_was_meant(ovs: Ovs):
    flows, meters = samples.compiled()
    flows += samples.handmade()

    async def main():
        async with connected(ovs) as switch:
            assert switch.dpid == 0xAA
            assert switch.peer.startswith("127.0.0.1:")
            assert switch.certificate_name is None
            await switch.apply(Batch.of(flows, meters_set=meters))
            assert ovs.dump() == texts(flows)
            dumped = await switch.dump_flows()
            assert sorted((f.cookie, f.table, f.priority) for f in dumped) == sorted(
                (f.cookie, f.table, f.priority) for f in flows
            )
            assert await switch.dump_meters() == {meter.id: meter for meter in meters}
            # The same again changes nothing.
            await switch.apply(Batch.of(flows, meters_change=meters))
            assert ovs.dump() == texts(flows)
            await switch.apply(
                Batch.of((), [f.cookie for f in flows], meters_delete=[m.id for m in meters])
            )
            assert ovs.dump() == []
            assert await switch.dump_meters() == {}

    asyncio.run(main())


def test_what_was_dumped_can_be_put_back_byte_for_byte(ovs: Ovs):
    flows, meters = samples.compiled()
    flows += samples.handmade()

    async def main():
        async with connected(ovs) as switch:
            await switch.apply(Batch.of(flows, meters_set=meters))
            ovs.ofctl("add-flow", str(ovs.mgmt),
                      "table=7,idle_timeout=600,hard_timeout=700,importance=5,send_flow_rem,"
                      "actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],resubmit(,8)")  # fmt: skip
            shown = ovs.dump()
            before = await switch.dump_flows()
            await switch.apply(
                Batch.of(deletes=[f.cookie for f in before], meters_delete=[m.id for m in meters])
            )
            assert ovs.dump() == []
            await switch.apply(Batch.of(map(without_counters, before), meters_set=meters))
            assert ovs.dump() == shown
            after = await switch.dump_flows()
            assert set(map(without_counters, after)) == set(map(without_counters, before))
            assert {flow.raw for flow in after} != {without_counters(flow).raw for flow in after}

    asyncio.run(main())


def test_rejected_flow_of_a_dump_is_named(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            meter = Meter(99, 1, 1)
            await switch.apply(Batch.of([UNMETERED], meters_set=[meter]))
            dumped = await switch.dump_flows()
            await switch.apply(Batch.of(meters_delete=[99]))
            with pytest.raises(Rejected, match=r"flow of table 60, priority 400, cookie 0x5"):
                await switch.apply(Batch.of(dumped))

    asyncio.run(main())


def test_a_deletion_takes_the_flows_of_one_cookie_in_whatever_table(ovs: Ovs):
    async def main():
        flows = [samples.flow(1), samples.flow(2), samples.flow(3, table=70)]
        async with connected(ovs) as switch:
            await switch.apply(Batch.of(flows))
            await switch.apply(Batch.of(deletes=[flows[0].cookie, flows[2].cookie]))
            assert ovs.dump() == texts([flows[1]])

    asyncio.run(main())


def test_flows_can_be_read_by_table_and_by_cookie(ovs: Ovs):
    async def main():
        flows = [samples.flow(1), samples.flow(2), samples.flow(3, table=70)]
        async with connected(ovs) as switch:
            await switch.apply(Batch.of(flows))
            assert len(await switch.dump_flows()) == 3
            (found,) = await switch.dump_flows(table=70)
            assert found.cookie == flows[2].cookie
            (found,) = await switch.dump_flows(cookie=flows[1].cookie, cookie_mask=(1 << 64) - 1)
            assert found.cookie == flows[1].cookie
            assert await switch.dump_flows(cookie=6 << 56, cookie_mask=0xFF << 56) == []

    asyncio.run(main())


def test_counters_are_read(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            ovs.port_up("p1", 3)
            flow = Flow(5, 0, 1, match({"in_port": 3}), (), "counted")
            await switch.apply(Batch.of([flow]))
            packet = "0a580000000200000000000108060001"
            ovs.run("ovs-appctl", "-t", str(control(ovs)), "netdev-dummy/receive", "p1", packet)
            (found,) = await switch.dump_flows()
            assert (found.packets, found.octets) == (1, 16)

    asyncio.run(main())


def control(ovs: Ovs):
    (socket,) = ovs.directory.glob("ovs-vswitchd.*.ctl")
    return socket


@pytest.mark.parametrize("bad", [UNPREPARED, UNMETERED])
def test_rejected_flow_is_named_and_its_bundle_undone(ovs: Ovs, bad):
    async def main():
        async with connected(ovs) as switch:
            kept = samples.flow(1)
            await switch.apply(Batch.of([kept]))
            with pytest.raises(
                Rejected, match=f"flow '{bad.reason}' .*OFPET_.*OFP[BM]M"
            ) as rejected:
                await switch.apply(Batch.of([samples.flow(2), bad, samples.flow(3)], [kept.cookie]))
            assert [message for message, _ in rejected.value.rejections] == [bad]
            assert ovs.dump() == texts([kept])
            # The connection is as good as before.
            await switch.apply(Batch.of([samples.flow(4)]))
            assert ovs.dump() == texts([kept, samples.flow(4)])

    asyncio.run(main())


def test_after_a_rejection_nothing_more_is_sent(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            # By table, last first: 70, 60, 50; the bundle with table 60 is rejected.
            flows = [samples.flow(1, table=50), UNPREPARED, samples.flow(2, table=70)]
            with pytest.raises(Rejected):
                await switch.apply(Batch.of(flows, bundle_size=1))
            assert ovs.dump() == texts([flows[2]])
            meter = Meter(5, 100, 200)
            await switch.apply(Batch.of(meters_set=[meter]))
            with pytest.raises(Rejected, match=r"ADD of meter 5 .*METER_EXISTS"):
                await switch.apply(Batch.of([samples.flow(9)], meters_set=[meter]))
            assert ovs.dump() == texts([flows[2]])

    asyncio.run(main())


def test_ten_thousand_flows_in_many_bundles(ovs: Ovs):
    flows = [samples.flow(number) for number in range(10_000)]

    async def main():
        async with connected(ovs) as switch:
            batch = Batch.of(flows)
            assert len(batch.parts) == 5
            await switch.apply(batch)
            assert {f.cookie for f in await switch.dump_flows()} == {f.cookie for f in flows}
            await switch.apply(Batch.of(deletes=[flow.cookie for flow in flows]))
            assert await switch.dump_flows() == []

    asyncio.run(main())


def test_two_batches_at_once_follow_one_another(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            flows = [[samples.flow(n) for n in range(s, s + 100)] for s in range(0, 1000, 100)]
            await asyncio.gather(*(switch.apply(Batch.of(f, bundle_size=30)) for f in flows))
            assert len(await switch.dump_flows()) == 1000

    asyncio.run(main())


def test_a_batch_is_the_same_bytes_for_every_switch_and_knows_its_messages():
    flows = [samples.flow(1, table=50), samples.flow(2, table=60)]
    meter = Meter(5, 1, 2)
    batch = Batch.of(flows, [7], [meter], meters_delete=[6])
    assert bool(batch)
    assert not Batch.of()
    messages = [batch.message(i) for i in range(sum(len(p.messages) for p in batch.parts))]
    assert messages[0] == MeterMod(MeterCommand.ADD, meter)
    # The entry to the pipeline is opened last; what is gone goes after what comes.
    assert messages[3:6] == [flows[1], flows[0], DeleteByCookie(7)]
    assert messages[-2] == MeterMod(MeterCommand.DELETE, Meter(6, 0, 0))
    assert batch.parts[0].data is batch.parts[0].data
    assert batch.parts[0].first_xid == BATCH_XID
    assert batch.parts[1].first_xid == batch.parts[0].last_xid + 1
    for index in (-1, len(messages)):
        with pytest.raises(IndexError):
            batch.message(index)


def test_what_cannot_be_encoded_is_not_sent(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            with pytest.raises(CodecError, match="'sample 1'"):
                await switch.apply(Batch.of([replace(samples.flow(1), priority=1 << 20)]))
            await switch.apply(Batch.of([samples.flow(2)]))
            assert ovs.dump() == texts([samples.flow(2)])

    asyncio.run(main())


def test_what_cannot_be_encoded_stops_a_batch_where_it_stands(ovs: Ovs):
    """Parts are encoded ahead, while the switch is busy: that must not lose what was sent."""

    async def main():
        bad = replace(samples.flow(3), match=match({"dl_type": 0x800, "tp_dst": 1}))
        async with connected(ovs) as switch:
            flows = [samples.flow(1), samples.flow(2), bad, samples.flow(4)]
            with pytest.raises(CodecError, match="'sample 3'"):
                await switch.apply(Batch.of(flows, bundle_size=2))
            assert ovs.dump() == texts(flows[:2])
            await switch.apply(Batch.of(flows[3:]))
            assert ovs.dump() == texts([*flows[:2], flows[3]])

    asyncio.run(main())


def test_a_lost_connection_is_an_unknown_outcome(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            ovs.processes[-1].send_signal(signal.SIGSTOP)
            work = asyncio.create_task(switch.apply(Batch.of([samples.flow(1)])))
            await asyncio.sleep(0)
            ovs.stop_switch()
            with pytest.raises(ConnectionLost, match="connection lost"):
                await work
            assert "connection lost" in await switch.wait_closed()
            for use in (switch.dump_flows(), switch.apply(Batch.of([samples.flow(2)]))):
                with pytest.raises(ConnectionLost, match="connection lost"):
                    await use
            assert not await switch.alive(1.0)

    asyncio.run(main())


def test_a_cancelled_batch_cuts_the_connection(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            work = asyncio.create_task(switch.apply(Batch.of([samples.flow(1)])))
            await asyncio.sleep(0)
            work.cancel()
            assert await switch.wait_closed() == "a batch was cancelled half-way"
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(main())


def test_ports_are_known_and_their_changes_told(ovs: Ovs):
    first = ovs.port_up("p0", 5)

    async def main():
        async with connected(ovs) as switch:
            assert switch.ports[5] == first
            events = switch.port_events()
            second = ovs.port_up("p1", 7)
            async with asyncio.timeout(60):
                assert await anext(events) == PortStatus(PortReason.ADD, second)
            assert switch.ports[7] == second
            ovs.vsctl("del-port", "p1")
            async with asyncio.timeout(60):
                while (event := await anext(events)).reason is not PortReason.DELETE:
                    pass
            assert event.port.ofport == 7
            assert 7 not in switch.ports
            switch.close("enough")
            assert [event async for event in events] == []

    asyncio.run(main())


def test_roles_with_a_stale_generation_are_rejected(ovs: Ovs):
    async def main():
        async with connected(ovs) as switch:
            assert await switch.request_role(Role.MASTER, 5) == (Role.MASTER, 5)
            with pytest.raises(RequestRejected, match="OFPRRFC_STALE"):
                await switch.request_role(Role.MASTER, 4)
            assert await switch.alive(5.0)

    asyncio.run(main())


def test_slave_may_flush_connections_and_write_nothing_else(ovs: Ovs):
    """So a flush that arrives late is carried out although another controller is master."""

    async def main():
        async with connected(ovs) as switch:
            assert await switch.request_role(Role.SLAVE, 5) == (Role.SLAVE, 5)
            await switch.apply(Batch.forgetting(1, [IPv4Address("10.0.0.1")]))
            for batch in (
                Batch.of(deletes=[1]),
                Batch.of(meters_set=[Meter(1, 1, 1)]),
            ):
                with pytest.raises(NotWriter):
                    await switch.apply(batch)

    asyncio.run(main())


def test_an_idle_connection_is_kept_by_echoes(ovs: Ovs):
    async def main():
        timeouts = Timeouts(handshake=10, idle=0.05, answer=10)
        async with connected(ovs, timeouts) as switch:
            enough = asyncio.Event()
            echoes = iter([enough.clear, enough.clear, enough.set])
            request = switch._connection.request_echo
            switch._connection.request_echo = lambda: next(echoes)() or request()
            async with asyncio.timeout(60):
                await enough.wait()
            assert not switch._connection.closed

    asyncio.run(main())


def test_a_switch_that_stops_answering_is_cut(ovs: Ovs):
    async def main():
        async with connected(ovs, Timeouts(handshake=10, idle=0.1, answer=0.2)) as switch:
            ovs.processes[-1].send_signal(signal.SIGSTOP)
            assert not await switch.alive(0.05)
            async with asyncio.timeout(60):
                assert "silent for" in await switch.wait_closed()

    asyncio.run(main())


def test_the_name_in_a_certificate():
    subject = ((("countryName", "XX"),), (("commonName", "node1"),))
    assert name_in({"subject": subject, "subjectAltName": (("DNS", "other"),)}) == "node1"
    assert name_in({"subjectAltName": (("IP Address", "1.2.3.4"), ("DNS", "node2"))}) == "node2"
    assert name_in({}) is None
    assert name_in(None) is None
