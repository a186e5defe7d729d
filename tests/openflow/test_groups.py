"""Groups on a real ovs-vswitchd: whole, by bucket, in the bundle of the flows that use them."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from flows import names
from flows.diff import Delta, GroupChange
from flows.flow import MOST_BUCKETS, Bucket, Flow, Group, Learn, Output, SetField, ToGroup, match
from openflow import batch, digest
from openflow.batch import Batch, BucketRemove, BucketsInsert, DeleteByCookie, GroupDelete
from openflow.codec import CodecError
from openflow.conntrack import CtTuple, Forget
from openflow.errors import ConnectionLost
from openflow.messages import InstalledGroup
from openflow.switch import Rejected, Switch
from openflow.watch import connect
from tests.openflow import samples
from tests.ovs import Ovs
from tests.waiting import wait_until

ID = names.GROUPS[7]
GROUP = Group(ID, "hash", ("nw_src", "nw_dst"), tuple(map(samples.translating, range(1, 11))))
USES = Flow(7, 0, 5, match({"dl_type": 0x0800}), (ToGroup(ID),), "goes to the group")
BAD = Flow(5, 60, 400, match({"nw_dst": 77}), (Output(1),), "lacks dl_type")


def changed(*changes: GroupChange) -> Delta:
    return Delta(groups_set=changes)


def sent(made: Batch) -> list[object]:
    """What is in its bundles."""
    return [
        message
        for part in made.parts
        for message in part.messages
        if message not in (batch.OPEN, batch.CLOSE, batch.COMMIT)
    ]


async def held(switch: Switch) -> dict[int, int]:
    """The digests of the groups on a switch."""
    return {g.id: digest.of_group_entry(g) for g in await switch.dump_groups()}


def test_every_group_and_what_uses_it_is_on_the_switch_as_it_was_meant(ovs: Ovs):
    groups = samples.groups()

    async def main():
        async with connect(ovs.mgmt) as switch:
            # In an order in which a group is there before those it chooses among.
            changes = [GroupChange(group) for group in reversed(groups)]
            await switch.apply(Batch.of(samples.for_services(), groups_set=changes))
            assert await held(switch) == {group.id: digest.of_group(group) for group in groups}
            assert len(await switch.dump_flows()) == len(samples.for_services())

    asyncio.run(main())
    shown = ovs.ofctl("dump-groups", str(ovs.mgmt))
    assert f"group_id={names.GROUPS[0]},type=select,selection_method=dp_hash,bucket=" in shown
    assert "fields(ip_src,ip_dst,nw_proto,tcp_src,tcp_dst,udp_src,udp_dst,sctp_src,sctp_d" in shown
    assert (
        "bucket=bucket_id:3,weight:100,actions=ct(commit,table=74,zone=100,"
        "nat(dst=10.0.0.3:8080),exec(set_field:0x1/0x1->ct_mark))"
    ) in shown
    assert (
        "actions=set_field:0xa000003->reg3,set_field:0x1f90->reg4,resubmit(,ServiceNat)" in shown
        or "actions=set_field:0xa000003->reg3,set_field:0x1f90->reg4,resubmit(,70)" in shown
    )
    flows = "\n".join(ovs.dump())
    for text in (
        "learn(table=Affinity,idle_timeout=10800,priority=9,delete_learned,cookie=0xa00000000000005,eth_type=0x800,"
        "NXM_NX_REG2[],NXM_OF_IP_SRC[],load:NXM_NX_REG3[]->NXM_NX_REG3[],"
        "load:NXM_NX_REG4[]->NXM_NX_REG4[]),ct(commit,table=DestinationGuard,zone=100,nat(dst=10.0.0.1:53))",
        "nat(src=10.1.2.3:1024-65535)",
        "nat(src=10.1.2.3:1024)",
        "nat(src=10.1.2.3),exec(",
        f"actions=group:{names.GROUPS[0]}",
    ):
        assert text in flows


def test_a_group_may_choose_among_groups(ovs: Ovs):
    first, second = (
        Group(ID + n, "hash", ("nw_src", "tcp_src"), GROUP.buckets[n : n + 5]) for n in (1, 2)
    )
    choice = Group(ID, "hash", ("nw_src",), tuple(
        Bucket(number, 1, (ToGroup(ID + number),)) for number in (1, 2)
    ))  # fmt: skip

    async def main():
        async with connect(ovs.mgmt) as switch:
            changes = map(GroupChange, (choice, first, second))
            await switch.apply(Batch.of([USES], groups_set=changes))

    asyncio.run(main())
    ovs.port_up("p1", 3)
    met = {
        number
        for source in range(40)
        for number in range(1, 11)
        if f"nat(dst=10.0.0.{number}:8080)"
        in ovs.trace(f"in_port=3,tcp,nw_src=10.1.0.{source},nw_dst=10.96.0.1,tcp_dst=80,nw_ttl=9")
    }
    assert met == {2, 3, 4, 5, 6, 7}


def test_what_a_switch_learns(ovs: Ovs):
    """The packet's own values are matched and loaded, whole, under the cookie given."""
    cookie = 10 << 56 | 5
    learn = Learn(62, 9, cookie, 65_535, ("reg2", "nw_src"), ("reg3", "reg4"))
    values = (SetField("reg2", 2), SetField("reg3", 0xC000_0203), SetField("reg4", 8080))
    ovs.install([Flow(7, 0, 1, match({"dl_type": 0x0800}), (*values, learn), "learns")])
    ovs.port_up("p1", 3)
    (socket,) = ovs.directory.glob("ovs-vswitchd.*.ctl")
    packet = (
        "in_port(3),eth(src=50:54:00:00:00:01,dst=50:54:00:00:00:02),eth_type(0x0800),"
        "ipv4(src=10.1.2.3,dst=10.96.0.1,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)"
    )
    ovs.run("ovs-appctl", "-t", str(socket), "netdev-dummy/receive", "p1", packet)
    wait_until(lambda: len(ovs.dump()) == 2)
    (learned,) = (
        flow for flow in ovs.dump() if f"cookie={cookie:#x}," in flow.split(" actions")[0]
    )
    assert "table=Affinity, idle_timeout=65535, priority=9,ip,reg2=0x2,nw_src=10.1.2.3 " in learned
    assert "actions=set_field:0xc0000203->reg3,set_field:0x1f90->reg4" in learned
    # What was learned goes with the flow that learned it: its Service is gone, or has no affinity.
    ovs.ofctl("del-flows", str(ovs.mgmt), "table=0")
    wait_until(lambda: not ovs.dump())


@pytest.mark.parametrize(
    "after",
    [
        replace(GROUP, buckets=(*GROUP.buckets, samples.translating(11))),
        replace(GROUP, buckets=GROUP.buckets[1:]),
        replace(GROUP, buckets=(*GROUP.buckets[:4], samples.translating(5, 7), *GROUP.buckets[5:])),
        replace(GROUP, buckets=(*GROUP.buckets[2:], *map(samples.translating, (11, 12)))),
        replace(GROUP, buckets=()),
        replace(GROUP, buckets=tuple(map(samples.choosing, range(1, 30)))),
        replace(GROUP, method="hash", fields=("nw_src",)),
    ],
)
def test_a_group_becomes_another_together_with_flows_or_not_at_all(ovs: Ovs, after):
    """Sent is only what differs, from whichever of the two the other is made."""
    new = replace(GROUP, id=ID + 1)
    uses_new = Flow(7, 0, 6, match({"dl_type": 0x0800}), (ToGroup(new.id),), "goes to the new one")

    async def main():
        async with connect(ovs.mgmt) as switch:
            await switch.apply(Batch.of([USES], groups_set=[GroupChange(GROUP)]))
            for before, then in ((GROUP, after), (after, GROUP)):
                was = await held(switch)
                assert was[ID] == digest.of_group(before)
                changes = [GroupChange(new), GroupChange(then, before)]
                with pytest.raises(Rejected, match="lacks dl_type"):
                    await switch.apply(Batch.of([uses_new, BAD], groups_set=changes))
                assert await held(switch) == was
                await switch.apply(Batch.of([uses_new], groups_set=changes))
                expected = {group.id: digest.of_group(group) for group in (then, new)}
                assert await held(switch) == expected
                # The flow stands, though its group became another.
                assert len(await switch.dump_flows()) == 2
                await switch.apply(Batch.of(deletes=[uses_new.cookie], groups_delete=[new.id]))
            assert await held(switch) == {ID: digest.of_group(GROUP)}
            assert len(await switch.dump_flows()) == 1

    asyncio.run(main())


def test_what_is_sent_of_a_change_and_in_which_order():
    after = replace(GROUP, buckets=(*GROUP.buckets[1:], samples.translating(11)))
    gone = replace(USES, table=60)
    made = Batch.of(
        [USES], [gone.cookie],
        groups_set=[GroupChange(after, GROUP)], groups_delete=[ID + 1],
        first=[DeleteByCookie(1)], last=[gone],
    )  # fmt: skip
    assert sent(made) == [
        DeleteByCookie(1),
        BucketRemove(ID, 1),
        BucketsInsert(ID, (samples.translating(11),)),
        USES,
        DeleteByCookie(gone.cookie),
        GroupDelete(ID + 1),
        gone,
    ]
    # One endpoint of 250 costs the same as one of two.
    many = replace(GROUP, buckets=tuple(map(samples.translating, range(250))))
    more = replace(many, buckets=(*many.buckets, samples.translating(250)))
    (part,) = Batch.of(groups_set=[GroupChange(more, many)]).parts
    assert len(part.data) < 200
    (part,) = Batch.of(groups_set=[GroupChange(more)]).parts
    assert len(part.data) > 250 * 80


def test_buckets_count_where_a_batch_is_cut():
    many = [replace(GROUP, id=ID + n) for n in range(10)]  # of ten buckets each
    made = Batch.of([USES], groups_set=map(GroupChange, many), bundle_size=25)
    assert [len(part.messages) - 3 for part in made.parts] == [2, 2, 2, 2, 3]
    assert made.bundles == 5
    # A group that is larger than a bundle should be is not cut.
    assert Batch.of(groups_set=[GroupChange(GROUP)], bundle_size=5).bundles == 1
    entry = InstalledGroup(ID, bytes(40_000))
    assert Batch.of(groups_set=[entry, entry], bundle_size=800).bundles == 2


def test_groups_come_back_byte_for_byte(ovs: Ovs):
    async def main():
        async with connect(ovs.mgmt) as switch:
            changes = [GroupChange(group) for group in samples.groups()]
            await switch.apply(Batch.of(groups_set=changes))
            before = sorted(await switch.dump_groups(), key=lambda group: group.id)
            await switch.apply(Batch.of(groups_delete=[group.id for group in before]))
            assert await switch.dump_groups() == []
            for _ in range(2):  # also where they are there already
                await switch.apply(Batch.of(groups_set=before))
                after = sorted(await switch.dump_groups(), key=lambda group: group.id)
                assert after == before

    asyncio.run(main())


def test_what_a_switch_refuses_is_named(ovs: Ovs):
    wrong = Group(ID, "dp_hash", (), (Bucket(1, 1, (Output(0xFFFF_FF00),)),))
    cases = [
        (Batch.of(groups_set=[GroupChange(wrong)]), rf"group {ID:#x}: OFPET_"),
        (
            Batch.of(groups_set=[GroupChange(replace(GROUP, buckets=GROUP.buckets[1:]), GROUP)]),
            rf"the removal of bucket 1 of group {ID:#x}: OFPET_GROUP_MOD_FAILED.*UNKNOWN_GROUP",
        ),
        (
            Batch.of(
                groups_set=[
                    GroupChange(
                        replace(GROUP, buckets=(*GROUP.buckets, samples.translating(11))), GROUP
                    )
                ]
            ),
            rf"1 buckets more for group {ID:#x}: OFPET_GROUP_MOD_FAILED.*UNKNOWN_GROUP",
        ),
    ]

    async def main():
        async with connect(ovs.mgmt) as switch:
            for made, complaint in cases:
                with pytest.raises(Rejected, match=complaint):
                    await switch.apply(made)
            assert await switch.dump_groups() == []

    asyncio.run(main())


def test_a_group_that_could_not_be_dumped_is_not_sent(ovs: Ovs):
    most = replace(GROUP, buckets=tuple(map(samples.translating, range(MOST_BUCKETS))))
    more = replace(most, buckets=(*most.buckets, samples.translating(MOST_BUCKETS)))

    async def refused():
        async with connect(ovs.mgmt) as switch:
            await switch.apply(Batch.of(groups_set=[GroupChange(most)]))
            for change in (GroupChange(more), GroupChange(more, most)):
                with pytest.raises(CodecError, match=rf"group {ID:#x}: 501 buckets"):
                    await switch.apply(Batch.of(groups_set=[change]))
            assert await held(switch) == {ID: digest.of_group(most)}

    asyncio.run(refused())

    async def undumpable():
        """Why: Open vSwitch takes it, and says of it more than a message holds."""
        buckets = tuple(map(samples.translating, range(MOST_BUCKETS, 1000)))
        made = Batch._of_parts(
            [[batch.OPEN, BucketsInsert(ID, buckets), batch.CLOSE, batch.COMMIT]]
        )
        async with connect(ovs.mgmt) as switch:
            await switch.apply(made)
            with pytest.raises(ConnectionLost, match="protocol error: a "):
                await switch.dump_groups()

    asyncio.run(undumpable())


def test_everything_of_a_group_counts_but_the_order_of_its_buckets():
    others = [
        replace(GROUP, id=ID + 1),
        replace(GROUP, method="dp_hash", fields=()),
        replace(GROUP, fields=("nw_src",)),
        replace(GROUP, buckets=GROUP.buckets[1:]),
        replace(GROUP, buckets=(samples.translating(1, 99), *GROUP.buckets[1:])),
        replace(GROUP, buckets=(samples.choosing(1), *GROUP.buckets[1:])),
    ]
    assert len({digest.of_group(each) for each in (GROUP, *others)}) == 1 + len(others)
    turned = replace(GROUP, buckets=GROUP.buckets[::-1])
    assert digest.of_group(turned) == digest.of_group(GROUP)


def test_what_is_to_be_forgotten_is_said_in_words():
    address = IPv4Address("10.0.0.1")
    for forget, text in (
        (
            Forget.endpoint(100, 17, address, 53),
            "of protocol 17 answered from 10.0.0.1:53",
        ),
        (Forget.frontend(100, 17, address, 53), "of protocol 17 opened to 10.0.0.1:53"),
        (Forget.frontend(100, 17, None, 53), "of protocol 17 opened to any address:53"),
        (Forget(100, original=CtTuple(source=address)), "opened from 10.0.0.1"),
        (Forget(100), "of all kinds"),
    ):
        assert text + ", in zone 100" in str(forget)
