"""The layout refuses tables and flows that would fail on the switch."""

import pytest

from flows import names
from flows.flow import Ct, Goto, SetField, match
from flows.pipeline import (
    CT_LABEL,
    CT_MARK,
    LAYOUT,
    REGISTERS,
    TABLES,
    Feature,
    Layout,
    PipelineError,
    Priority,
    RegisterField,
    Table,
)

F = Feature.CLASSIFY


def table(number: int, name: str, **more: object) -> Table:
    return Table(number, name, "", writers=(F,), match=(), **more)  # type: ignore[arg-type]


def register(name: str, bits: tuple[int, int], writer: str, reader: str) -> RegisterField:
    return RegisterField(name, "reg0", bits, writers=(writer,), readers=(reader,), doc="")


def test_goto_to_an_earlier_table_is_refused() -> None:
    with pytest.raises(PipelineError, match="B goes backward to A"):
        Layout.of([table(1, "A"), table(2, "B", next=("A",))], [])


def test_miss_to_an_earlier_table_is_refused() -> None:
    with pytest.raises(PipelineError, match="goes backward"):
        Layout.of([table(1, "A"), table(2, "B", miss="A")], [])


def test_undeclared_next_table_is_refused() -> None:
    with pytest.raises(PipelineError, match="C, which is no table"):
        Layout.of([table(1, "A", next=("C",))], [])


def test_table_number_used_twice_is_refused() -> None:
    with pytest.raises(PipelineError, match="table number 1 is used twice"):
        Layout.of([table(1, "A"), table(1, "B")], [])


def layout_with(*registers: RegisterField) -> Layout:
    """Tables 1 to 4; each table declares the fields that name it."""
    tables = []
    for number, name in enumerate("ABCD", 1):
        writes = tuple(r.name for r in registers if name in r.writers)
        reads = tuple(r.name for r in registers if name in r.readers)
        tables.append(Table(number, name, "", writers=(F,), match=reads, writes=writes))
    return Layout.of(tables, registers)


def test_live_register_fields_that_share_bits_are_refused() -> None:
    with pytest.raises(PipelineError, match="share live bits of reg0"):
        layout_with(register("One", (0, 3), "A", "C"), register("Two", (3, 7), "B", "D"))


def test_register_fields_that_are_not_live_together_may_share_bits() -> None:
    layout_with(register("One", (0, 3), "A", "B"), register("Two", (3, 7), "C", "D"))


def test_register_fields_with_different_bits_are_accepted() -> None:
    layout_with(register("One", (0, 3), "A", "D"), register("Two", (4, 7), "B", "C"))


def test_undeclared_writer_table_is_refused() -> None:
    one = register("One", (0, 3), "A", "B")
    tables = [table(1, "A"), Table(2, "B", "", writers=(F,), match=("One",))]
    with pytest.raises(PipelineError, match="A does not have One in its writes"):
        Layout.of(tables, [one])


def test_undeclared_reader_table_is_refused() -> None:
    one = register("One", (0, 3), "A", "B")
    tables = [table(1, "A", writes=("One",)), table(2, "B")]
    with pytest.raises(PipelineError, match="B does not have One in its match"):
        Layout.of(tables, [one])


def test_flow_of_an_undeclared_feature_is_refused() -> None:
    with pytest.raises(PipelineError, match="ARP is no declared writer of Classifier"):
        LAYOUT.flow(Feature.ARP, "Classifier", Priority.LOCAL, {}, [], "")


def test_flow_with_an_undeclared_match_is_refused() -> None:
    with pytest.raises(PipelineError, match="does not declare a match on tp_dst"):
        LAYOUT.flow(F, "Classifier", Priority.LOCAL, {"tp_dst": 80}, [], "")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (LAYOUT.goto("Output"), "does not declare table 140 as next"),
        (Goto(77), "does not declare table 77"),
        (Ct(1, table=140), "does not declare table 140"),
        (SetField("dl_src", 1), "does not declare that it writes dl_src"),
        (SetField("reg0", 1), "does not declare all it writes of reg0"),
        (SetField("reg1", 1, 1), "does not declare all it writes of reg1"),
        (Ct(1, exec=(SetField("ct_mark", 1),)), "writes ct_mark"),
    ],
)
def test_flow_with_an_undeclared_action_is_refused(action: object, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        LAYOUT.flow(F, "Classifier", Priority.LOCAL, {}, [action], "")  # type: ignore[list-item]


def test_match_with_bits_outside_its_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="outside its mask"):
        match({"nw_dst": (0x0A000001, 0xFF000000)})


def test_match_on_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown match field 'dl_vlan_colour'"):
        match({"dl_vlan_colour": 1})


def test_value_too_large_for_its_register_field_is_refused() -> None:
    with pytest.raises(PipelineError, match="does not fit Source"):
        LAYOUT.load("Source", 16)


def test_numbers_never_change() -> None:
    """Installed flows of an earlier version must mean the same. Add; never change."""
    assert {t.name: t.number for t in TABLES} == {
        "Classifier": 0, "SpoofGuard": 10, "TunnelGuard": 12, "GatewayGuard": 14, "PeerGuard": 15,
        "RouterGuard": 16, "BroadcastGuard": 18, "Arp": 20,
        "UnSnat": 25, "Conntrack": 30, "ConntrackState": 32, "EgressReply": 33,
        "IcmpError": 34, "NewConnection": 40,
        "NodeAddress": 50, "ServiceAddress": 55, "ServiceSource": 57, "ServiceChoice": 60,
        "Affinity": 62, "AffinityCheck": 63,
        "Topology": 64, "EndpointChoice": 66, "ServiceNat": 70, "Direct": 71, "ReplyTuple": 72,
        "DestinationGuard": 74,
        "Refuse": 78, "PolicyFromPod": 80, "PolicyFromPodAgain": 84, "IsolationFromPod": 86,
        "PolicyFromPodVerdict": 90, "DeniedFromPod": 92,
        "Forwarding": 100, "PeerWay": 102, "Egress": 104, "EgressRoute": 106,
        "PolicyToPod": 110, "PolicyToPodAgain": 111, "IsolationToPod": 112,
        "PolicyToPodVerdict": 114, "Hairpin": 115, "DeniedToPod": 116,
        "Commit": 120, "Snat": 130, "Output": 140,
        "PolicyWalk": 150, "PolicyPeers": 152, "PolicyPorts": 154, "PolicyDenials": 156,
        "PolicyTier": 158, "State": 250, "Groups": 252,
    }  # fmt: skip
    assert {f.name: f.value for f in Feature} == {
        "MISS": 1, "CLASSIFY": 2, "ARP": 3, "CONNTRACK": 4, "FORWARDING": 5, "OUTPUT": 6,
        "SERVICES": 7, "POLICY": 8, "STATE": 9, "LEARNED": 10, "DIRECT": 11, "GENERATION": 12,
        "EGRESS": 13,
    }  # fmt: skip
    assert {r.name: (r.register, r.bits) for r in REGISTERS} == {
        "Source": ("reg0", (0, 3)), "NodeAddress": ("reg0", (4, 4)), "Hairpin": ("reg0", (5, 5)),
        "Refused": ("reg0", (6, 6)), "SourcePortConflict": ("reg0", (7, 7)),
        "ToPeer": ("reg0", (10, 10)), "AttachmentTag": ("reg0", (12, 31)),
        "GuardSubnet": ("reg3", (0, 31)), "GuardNoEncap": ("reg4", (0, 0)),
        "Subnet": ("reg3", (0, 31)), "NoEncap": ("reg4", (0, 0)),
        "OutputPort": ("reg1", (0, 31)), "Service": ("reg2", (0, 31)),
        "EndpointAddress": ("reg3", (0, 31)), "EndpointPort": ("reg4", (0, 15)),
        "TopologyZone": ("reg5", (0, 31)), "AddressSet": ("reg6", (0, 31)),
        "ToItself": ("reg0", (8, 8)), "Rejudged": ("reg0", (9, 9)),
        "Walk": ("xreg4", (0, 63)), "PeerSet": ("xreg5", (0, 63)), "PortSet": ("xreg6", (0, 63)),
        "PolicyRule": ("reg14", (0, 31)), "Verdict": ("reg15", (0, 1)),
        "StepAction": ("reg15", (2, 3)), "Selected": ("reg15", (4, 4)),
        "Isolated": ("reg15", (5, 5)), "Pass": ("reg15", (6, 6)),
        "DecidedRule": ("reg6", (0, 31)), "RuleFromPod": ("reg7", (0, 31)),
        "EgressAddress": ("reg15", (8, 31)),
    }  # fmt: skip


def test_marks_and_labels_do_not_overlap() -> None:
    for fields in (CT_MARK, CT_LABEL):
        taken = 0
        for bits in fields:
            assert not taken & bits.mask
            taken |= bits.mask


def test_table_names_need_no_quotes() -> None:
    """ovs-ofctl quotes names with anything but letters and digits, and cuts at 32 bytes."""
    assert all(t.name.isalnum() and len(t.name) <= 32 for t in TABLES)


def test_every_meter_has_a_unique_number_and_is_ours() -> None:
    kinds = (names.connection_meter, names.fragment_meter, names.refusal_meter)
    ofports = range(names.FIRST_ATTACHMENT_OFPORT, names.LAST_ATTACHMENT_OFPORT + 1)
    numbers = [kind(ofport) for kind in kinds for ofport in ofports]
    numbers += [names.REFUSAL_METER, names.POD_REFUSAL_METER, names.DENIAL_METER]
    assert len(set(numbers)) == len(numbers)
    assert all(map(names.is_our_meter, numbers))
    # The limit of the kernel datapath (DP_METER_NUM_MAX).
    assert max(numbers) < 200_000
    others = (0, 4, 0xFFFF, names.fragment_meter(3), names.refusal_meter(0xFFFF), 0x3_0010)
    assert not any(map(names.is_our_meter, others))
