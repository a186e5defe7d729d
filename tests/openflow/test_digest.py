"""What a real switch dumps has the digest that was computed of what was sent."""

import asyncio
import dataclasses

from flows.features import state
from flows.flow import Note
from openflow import digest
from openflow.watch import read_flows
from tests.openflow.samples import compiled, flow, for_services, groups, handmade
from tests.ovs import Ovs
from tests.waiting import wait_until


def test_a_dump_has_the_digests_of_what_was_sent(ovs: Ovs) -> None:
    flows, meters = compiled()
    flows += [*handmade(), *for_services()]
    flows += [state.seal("", 5, 1 << 63), state.seal("node1", 0, 0)]
    sent = {each.cookie: each for each in flows}
    ovs.install(flows, meters, groups())
    dumped = asyncio.run(read_flows(ovs.mgmt))
    assert len(dumped) == len(sent)
    for entry in dumped:
        assert digest.of_entry(entry.raw) == digest.of_flow(sent[entry.cookie]), sent[entry.cookie]


def test_counters_and_age_do_not_count(ovs: Ovs) -> None:
    ovs.install([dataclasses.replace(flow(1, table=0), match=())])
    flows = [asyncio.run(read_flows(ovs.mgmt))[0]]

    # Its age, at the least, which the switch tells in whole milliseconds: two dumps may share one.
    def older() -> bool:
        flows.append(asyncio.run(read_flows(ovs.mgmt))[0])
        return flows[-1].raw != flows[0].raw

    wait_until(older)
    assert digest.of_entry(flows[0].raw) == digest.of_entry(flows[-1].raw)


def test_everything_else_counts() -> None:
    one = flow(1)
    others = [
        dataclasses.replace(one, table=61),
        dataclasses.replace(one, priority=401),
        dataclasses.replace(one, feature=6),
        dataclasses.replace(one, match=one.match[:1]),
        dataclasses.replace(one, actions=()),
        dataclasses.replace(one, actions=(Note(b"123456"), *one.actions)),
    ]
    assert len({digest.of_flow(each) for each in (one, *others)}) == 1 + len(others)
    assert digest.of_flow(one) == digest.of_flow(dataclasses.replace(one, reason="another"))


def test_sums_do_not_depend_on_order_and_say_where() -> None:
    pairs = [(0x0500, 1 << 63), (0x0600, 1 << 63), (0x0501, 7)]
    sums = digest.sums(pairs)
    assert sums == digest.sums(reversed(pairs))
    assert (sums[0], sums[1], sum(sums)) == (0, 7, 7)  # 64 bits
