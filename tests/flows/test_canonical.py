"""The canonical bytes that cookies and digests are made of. Vectors here must never change."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import fields
from flows.features import forwarding
from flows.features.classify import attachment_classifier_flow, gateway_classifier_flow
from flows.flow import (
    Action,
    ApplyMeter,
    Bucket,
    Ct,
    CtClear,
    Flow,
    FormError,
    Goto,
    Group,
    Learn,
    Meter,
    Move,
    MoveBits,
    Nat,
    Note,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    match,
)
from flows.pipeline import PipelineError
from flows.view import CLUSTER_SCOPE
from tests.flows import worlds
from tests.openflow import samples

ACTIONS: list[tuple[Action, str]] = [
    (Output(16), "01 00000010"),
    (OutputReg("reg1"), "02 41"),
    (SetField("reg0", 1, 0xF), "03 c0 00000001 0000000f"),
    (SetField("dl_dst", 0x0A58_A9FE_0101), "03 16 0a58a9fe0101"),
    (Move("arp_sha", "arp_tha"), "04 21 22"),
    (MoveBits("reg15", 2, "reg15", 0, 2), "0f 4f 02 4f 00 02"),
    (MoveBits("reg6", 0, "ct_label", 32, 32), "0f 46 00 04 20 20"),
    (SetField("xreg4", 0x0102_0304_0506_0708), "03 54 0102030405060708"),
    (Push("nw_src"), "05 17"),
    (Pop("tcp_dst"), "06 2b"),
    (Ct(100, 74), "07 0064 4a 00 00"),
    (Ct(100, commit=True), "07 0064 ff 01 00"),
    (Ct(100, 32, nat=Nat()), "07 0064 20 02 00 00"),
    (
        Ct(100, 74, True, Nat(destination=(0x0AF4_0102, 8080)), (SetField("ct_mark", 1, 1),)),
        "07 0064 4a 03 01 02 0af40102 1f90 03 83 00000001 00000001",
    ),
    (
        Ct(100, 130, True, None, (MoveBits("reg7", 0, "ct_label", 0, 32),)),
        "07 0064 82 01 01 0f 47 00 04 00 20",
    ),
    (
        Ct(101, 140, True, Nat(0xA9FE_0102, ports=(1024, 65535))),
        "07 0065 8c 03 00 05 a9fe0102 0400ffff",
    ),
    (CtClear(), "08"),
    (ApplyMeter(16), "09 00000010"),
    (Note(b"\0\0\1"), "0a 0003 000001"),
    (ToGroup(0x1000_0000), "0b 10000000"),
    (Resubmit(62), "0c 3e"),
    (
        Learn(62, 100, 10 << 56 | 9, 10800, ("reg2", "nw_src"), ("reg3", "reg4")),
        "0d 3e 0064 0a00000000000009 2a30 02 02 42 17 43 44",
    ),
    (Goto(110), "0e 6e"),
    (ToController(0x534C, 128), "10 534c 0080"),
]

FLOW = Flow(
    5, 100, 200,
    match({"ct_state": (0x21, 0x31), "dl_type": 0x0800, "nw_dst": (0x0AF4_0200, 0xFFFF_FF00)}),
    (SetField("tun_dst", 0xAC1E_0102), Goto(110)),
    "a peer's pods",
)  # fmt: skip
BUCKET = Bucket(7, 256, (ToGroup(0x1000_0001),))
GROUP = Group(0x1000_0000, "hash", ("nw_src", "tcp_dst"), (BUCKET,))


@pytest.mark.parametrize(("action", "form"), ACTIONS, ids=lambda given: type(given).__name__)
def test_action_has_its_pinned_bytes(action: Action, form: str) -> None:
    assert action.canonical().hex() == form.replace(" ", "")


def test_every_action_is_pinned() -> None:
    assert {type(action) for action, _ in ACTIONS} == set(Action.__args__)


def test_flow_has_its_pinned_bytes_and_cookie() -> None:
    assert FLOW.canonical() == bytes.fromhex(
        "64 00c8 03"  # table, priority, number of fields
        "81 00000021 00000031 0a 0800 98 0af40200 ffffff00"
        "03 11 ac1e0102 0e 6e"
    )
    assert FLOW.cookie == 0x05_5907_6146_CF57_9F


def test_groups_and_buckets_have_their_pinned_digests() -> None:
    assert BUCKET.digest == 0x7796_581D_EB3F_CAC1
    assert GROUP.digest == 0xA9AB_A9D4_B50C_D4E9
    assert replace(GROUP, method="dp_hash", fields=()).digest == 0xC783_8F57_0AA9_6C92


def test_meters_have_their_pinned_digests() -> None:
    """Agents of all versions report sums of these."""
    assert Meter(16, 10_000, 10_000).digest == 0x2810_FFA2_9C0D_B171
    assert Meter(1, 1_000, 1_000).digest == 0xE13E_BFA8_4B93_72E2


def test_field_numbers_are_fixed() -> None:
    numbers = {name: fields.field_bytes(name)[0] for name in fields.WIDTHS}
    assert len(set(numbers.values())) == len(numbers)
    assert max(numbers.values()) < 0x80
    assert numbers == {
        "ct_state": 1,
        "ct_zone": 2,
        "ct_mark": 3,
        "ct_label": 4,
        "ct_nw_src": 5,
        "ct_nw_dst": 6,
        "ct_ipv6_src": 7,
        "ct_ipv6_dst": 8,
        "dl_type": 10,
        "nw_proto": 11,
        "reg0": 64,
        "reg1": 65,
        "reg2": 66,
        "reg3": 67,
        "reg4": 68,
        "reg5": 69,
        "reg6": 70,
        "reg7": 71,
        "reg8": 72,
        "reg9": 73,
        "reg10": 74,
        "reg11": 75,
        "reg12": 76,
        "reg13": 77,
        "reg14": 78,
        "reg15": 79,
        "tun_id": 15,
        "tun_src": 16,
        "tun_dst": 17,
        "tun_ipv6_src": 18,
        "tun_ipv6_dst": 19,
        "in_port": 20,
        "dl_src": 21,
        "dl_dst": 22,
        "nw_src": 23,
        "nw_dst": 24,
        "ipv6_src": 25,
        "ipv6_dst": 26,
        "arp_spa": 30,
        "arp_tpa": 31,
        "arp_op": 32,
        "arp_sha": 33,
        "arp_tha": 34,
        "nw_frag": 35,
        "icmp_type": 36,
        "icmp_code": 37,
        "icmpv6_type": 38,
        "tp_src": 40,
        "tp_dst": 41,
        "tcp_src": 42,
        "tcp_dst": 43,
        "udp_src": 44,
        "udp_dst": 45,
        "sctp_src": 46,
        "sctp_dst": 47,
        "xreg0": 80,
        "xreg1": 81,
        "xreg2": 82,
        "xreg3": 83,
        "xreg4": 84,
        "xreg5": 85,
        "xreg6": 86,
        "xreg7": 87,
    }


@pytest.mark.parametrize(
    ("flow", "form", "cookie"),
    [
        (
            attachment_classifier_flow(16, 1),
            "0 400 (('in_port', 16, None),) (SetField(field='reg0', value=1, mask=15),"
            " SetField(field='reg0', value=4096, mask=4294963200), Goto(table=10))",
            0x02_5B2E_F73E_8758_7D,
        ),
        (attachment_classifier_flow(0xFEFF, 0xF_FFFF), None, 0x02_9746_1C86_698B_EC),
        (
            gateway_classifier_flow(),
            "0 200 (('in_port', 2, None),) (SetField(field='reg0', value=3, mask=15),"
            " Goto(table=14))",
            0x02_3E14_DEAD_1050_8F,
        ),
    ],
)
def test_agents_of_all_versions_wait_for_the_same_cookies(
    flow: Flow, form: str | None, cookie: int
) -> None:
    assert form is None or flow.canonical() == form.encode()
    assert flow.cookie == cookie


def test_names_in_python_are_not_part_of_a_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new name of a class or a field changes its `repr`, but no flow on a switch."""
    kinds = (*Action.__args__, Nat, Flow, Bucket, Group)
    flows = [attachment_classifier_flow(16, 1), *samples.for_services(), FLOW]
    before = [flow.cookie for flow in flows]
    digests = [group.digest for group in samples.groups()]
    for kind in kinds:
        monkeypatch.setattr(kind, "__repr__", lambda _: "renamed")
    assert [replace(flow).cookie for flow in flows] == before
    assert [group.digest for group in samples.groups()] == digests


@pytest.mark.parametrize(
    "flow",
    [
        replace(FLOW, priority=1 << 16),
        replace(FLOW, actions=(SetField("dl_wrong", 1),)),
        replace(FLOW, actions=(Output(1 << 32),)),
        replace(FLOW, match=(("nw_dst", 1 << 32, None),)),
    ],
)
def test_flow_without_canonical_form_is_refused_with_its_owner(flow: Flow) -> None:
    with pytest.raises(FormError, match="a peer's pods"):
        _ = flow.cookie
    broken = worlds.compiler_with(forwarding.peer, lambda _, __: [flow])
    with pytest.raises(PipelineError, match=r"^Node node1: flow for .a peer's pods.: "):
        broken.program(worlds.view({1: []}), CLUSTER_SCOPE)


few = st.sampled_from(
    [
        *(action for action, _ in ACTIONS),
        Output(0x0E6E_0E6E), Goto(14), Resubmit(14), Resubmit(110), Note(b""), Note(b"\x0e\x6e"),
        *(Ct(100, table, commit, nat) for table, commit, nat in itertools.product(
            (None, 0), (False, True), (None, Nat(), Nat(0), Nat(0, ports=(0, 0)),
                                       Nat(destination=(0, 0)), Nat(1))
        )),
        SetField("reg0", 1), SetField("reg0", 1, 1), SetField("reg1", 1), SetField("ct_mark", 1),
    ]
)  # fmt: skip


@given(st.lists(few, max_size=3), st.lists(few, max_size=3))
def test_different_actions_have_different_bytes(one: list[Action], two: list[Action]) -> None:
    first, second = (replace(FLOW, actions=tuple(actions)) for actions in (one, two))
    assert (first.canonical() == second.canonical()) == (one == two)


@given(samples.flows(), samples.flows())
def test_different_flows_have_different_bytes(one: Flow, two: Flow) -> None:
    same = (one.key, one.actions) == (two.key, two.actions)
    assert (one.canonical() == two.canonical()) == same
    assert replace(one, reason="another").cookie == one.cookie
