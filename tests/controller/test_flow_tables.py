"""Flows that mean nothing, computed for one packet: which flow matches, and where it ends."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address
from random import Random

import pytest

from controller.offline.switch import FlowTables, OfflineSwitch
from flows.actions import (
    Action,
    Ct,
    CtClear,
    Goto,
    Move,
    MoveBits,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToGroup,
)
from flows.flow import Bucket, Flow, Group, MatchValue, match
from flows.traced import Traced
from wire.questions import Packet
from wire.tracing import TraceError
from wire.tracing.switch import Entry

PACKET = Packet(6, IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 40_000, 80)
MAC = "0a:58:0a:00:00:01"


def flow(table: int, priority: int, fields: dict[str, MatchValue], *actions: Action) -> Flow:
    return Flow(1, table, priority, match(fields), actions, "")


def part(flows: Iterable[Flow], *groups: Group, **more: object) -> Traced:
    fields = {"in_port": "5", "dl_src": MAC, "dl_dst": MAC}
    given = {"table": 0, "tunnel": {}, "state": "", "connection": None, "endpoint": None} | more
    entry = Entry(packet=PACKET, fields=fields, **given)  # type: ignore[arg-type]
    switch = OfflineSwitch([FlowTables(flows)], {group.id: group for group in groups})
    return asyncio.run(switch.part(entry))


def test_actions_change_the_packet_in_their_order() -> None:
    traced = part(
        [
            flow(
                0, 1, {},
                SetField("xreg4", 0x5_0000_0007), SetField("reg0", 0xA0, 0xF0),
                MoveBits("nw_src", 0, "reg0", 8, 4), Move("nw_dst", "nw_src"),
                Push("tcp_src"), Push("tcp_dst"), Pop("tcp_src"), Pop("tcp_dst"), Pop("reg1"),
                OutputReg("reg9"), Goto(3),
            ),
            flow(3, 1, {"tp_src": 80, "tp_dst": 40_000, "reg8": 5}, Output(9)),
        ]
    )  # fmt: skip
    assert traced.outputs == (7, 9)
    assert traced.fields["reg0"] == "0x1a0"
    assert traced.fields["nw_src"] == "10.0.0.2"


def test_flow_of_the_highest_priority_matches() -> None:
    chance = Random(1)  # noqa: S311  no secret
    for _ in range(200):
        flows = [
            flow(0, priority, {
                name: (value & mask, mask)
                for name in chance.sample(("reg0", "reg1", "in_port", "nw_src"), 2)
                for value, mask in [(chance.randrange(8), chance.choice((1, 3, 7)))]
            })
            for priority in range(20)
        ]  # fmt: skip
        packet = {name: chance.randrange(8) for name in ("reg0", "reg1", "in_port", "nw_src")}
        expected = next(
            (
                each
                for each in reversed(flows)
                if all(packet[n] & (7 if m is None else m) == v for n, v, m in each.match)
            ),
            None,
        )
        assert FlowTables(flows).find(0, packet) is expected
        halves = OfflineSwitch([FlowTables(flows[::2]), FlowTables(flows[1::2])], {})
        assert halves.find(0, packet) is expected


def test_packet_that_no_flow_matches_is_dropped() -> None:
    traced = part([flow(0, 1, {"in_port": 6}, Output(1))])
    assert [(step.table, step.cookie) for step in traced.steps] == [(0, None)]
    assert not traced.outputs


def test_first_lookup_ends_the_part() -> None:
    mark = SetField("ct_mark", 1, 3), SetField("ct_mark", 4, 4)
    traced = part([flow(0, 1, {}, CtClear(), Ct(7), Ct(7, 2, commit=True, exec=mark), Ct(8, 3))])
    assert traced.resume is not None
    assert (traced.resume.table, traced.resume.zone, traced.resume.mark) == (2, 7, (5, 7))


def test_state_of_a_connection_matches_until_it_is_cleared() -> None:
    flows = [
        flow(0, 1, {"ct_state": (0x21, 0x23)}, CtClear(), Goto(1)),
        flow(1, 2, {"ct_state": (0x20, 0x20)}, Output(1)),
        flow(1, 1, {}, Output(2)),
    ]
    assert part(flows, state="trk|new|dnat").outputs == (2,)
    assert part(flows, state="trk|est").outputs == ()


@pytest.mark.parametrize(
    "flows",
    [
        [flow(0, 1, {}, Resubmit(0))],
        [flow(0, 1, {}, Goto(1)), flow(1, 1, {}, Goto(0))],
        [flow(0, 1, {}, Resubmit(1), Resubmit(1)), flow(1, 1, {}, Resubmit(0), Goto(0))],
        [flow(0, 1, {}, ToGroup(1))],
        [flow(0, 1, {}, ToGroup(2))],
    ],
)
def test_flows_that_go_in_circles_are_refused(flows: list[Flow]) -> None:
    circles = [
        Group(number, "hash", (), (Bucket(1, 1, (action,)),))
        for number, action in ((1, Resubmit(0)), (2, ToGroup(2)))
    ]
    for endpoint in (None, (IPv4Address("10.0.0.9"), 80)):
        with pytest.raises(TraceError, match="more than"):
            part(flows, *circles, endpoint=endpoint)


def test_group_without_buckets_drops() -> None:
    flows = [flow(0, 1, {}, ToGroup(1), ToGroup(2))]
    traced = part(flows, Group(1, "hash", (), ()))
    assert (traced.groups, traced.outputs, traced.resume) == ((1, 2), (), None)
