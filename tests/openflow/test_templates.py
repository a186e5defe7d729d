import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.flow import (
    MOST_BUCKETS,
    Bucket,
    Ct,
    Flow,
    Group,
    Learn,
    Move,
    Nat,
    Output,
    SetField,
    match,
)
from openflow import codec, templates
from openflow.templates import FlowEncoder, GroupEncoder, Template, numbered
from tests.openflow import samples

XID = 0x1234_5678
ENCODER = FlowEncoder()
"""Shared by all examples, so that most meet a template that another flow has made."""


@given(samples.flows())
def test_a_template_makes_the_bytes_that_os_ken_makes(flow):
    for _ in range(3):  # by os-ken, by a new template, by a known one
        assert ENCODER.add(flow, XID) == numbered(codec.flow_add(flow), XID)


@given(samples.flows(least=templates.MOST_ACTIONS, most=20))
def test_flow_with_many_actions_has_the_bytes_that_os_ken_makes(flow):
    for _ in range(2):
        assert ENCODER.add(flow, XID) == numbered(codec.flow_add(flow), XID)


def test_flow_with_many_actions_gets_no_template_of_its_own():
    """Each of its values would have os-ken encode all its actions again."""
    encoder = FlowEncoder()
    walk = Flow(8, 150, 200, match({"reg8": 1, "reg9": 2}), (SetField("reg14", 1),) * 2_000, "walk")
    for number in range(3):
        encoder.add(replace(walk, priority=number))
    assert all(not shape[3:] for shape in encoder._flows._templates)
    assert len(encoder._actions._templates) == 1


def test_flow_that_is_too_long_for_a_message_is_refused_by_name():
    long = Flow(8, 150, 200, (), (SetField("reg14", 1),) * 5_000, "all of them")
    with pytest.raises(codec.CodecError, match=r"'all of them'.* are too long for a message"):
        ENCODER.add(long)


@given(samples.flows())
def test_every_shape_has_a_template(flow):
    encoder = FlowEncoder()
    encoder.add(flow)
    encoder.add(flow)
    (template,) = encoder._flows._templates.values()
    assert template is not None


GROUPS = GroupEncoder()


@given(st.lists(samples.buckets, max_size=4).map(tuple))
def test_a_bucket_by_a_template_is_what_os_ken_makes(buckets):
    group = Group(0x1000_0000, "hash", samples.FIVE_TUPLE, buckets)
    for _ in range(3):
        assert GROUPS.set(group, XID) == numbered(codec.group_set(group), XID)
        assert GROUPS.insert(group.id, buckets, XID) == numbered(
            codec.buckets_insert(group.id, buckets), XID
        )


@given(samples.buckets)
def test_every_shape_of_bucket_has_a_template(bucket):
    encoder = GroupEncoder()
    for _ in range(2):
        encoder.insert(1, [bucket])
    (template,) = encoder._buckets._templates.values()
    assert template is not None


def test_known_shapes_of_groups_do_not_meet_os_ken(monkeypatch):
    encoder = GroupEncoder()
    expected = [codec.group_set(group) for group in samples.groups()]
    assert [encoder.set(group) for group in samples.groups()] == expected
    encoder.set(samples.groups()[3])
    for name in ("group_set", "buckets_insert"):
        monkeypatch.setattr(codec, name, None)
    assert [encoder.set(group) for group in samples.groups()] == expected


def test_groups_that_cannot_be_written_are_named():
    big = Group(7, "dp_hash", (), tuple(map(samples.translating, range(MOST_BUCKETS + 1))))
    unknown = Group(7, "hash", ("nw_source",), ())
    wide = Group(7, "dp_hash", (), (samples.translating(1, 1 << 16),))
    deep = Group(7, "dp_hash", (), (Bucket(1, 1, (SetField("reg99", 1),)),))
    long = Group(7, "dp_hash", (), tuple(
        Bucket(number, 1, (SetField("ct_label", 1, 1),) * 5) for number in range(400)
    ))  # fmt: skip
    for group, complaint in (
        (big, "group 0x7: 501 buckets, of which it may have 500"),
        (unknown, "group 0x7: 'nw_source': no such field"),
        (wide, "does not fit"),
        (deep, "bucket 1 .*reg99: no such field"),
        (long, "group 0x7: .*"),
        (Group(1 << 32, "dp_hash", (), ()), "group 0x100000000: a number does not fit"),
    ):
        for make in (codec.group_set, GroupEncoder().set):
            with pytest.raises(codec.CodecError, match=complaint):
                make(group)


def test_known_shapes_do_not_meet_os_ken(monkeypatch):
    encoder = FlowEncoder()
    expected = codec.flow_add(samples.flow(2))
    for number in (1, 3):
        encoder.add(samples.flow(number))
    monkeypatch.setattr(codec, "flow_add", None)
    assert encoder.add(samples.flow(2)) == expected


def test_layer_4_ports_are_other_fields_for_other_protocols():
    encoder = FlowEncoder()

    def flow(protocol):
        fields = {"dl_type": 0x0800, "nw_proto": protocol, "tp_dst": 80}
        return Flow(5, 60, 1, match(fields), (), "")

    for protocol in (samples.TCP, samples.UDP, samples.SCTP) * 2:
        assert encoder.add(flow(protocol)) == codec.flow_add(flow(protocol))


def test_a_value_without_a_place_of_its_own_makes_no_template():
    with pytest.raises(ValueError, match="value 1 "):
        Template(lambda values: struct.pack("!IIII", 0, 0, values[0], 0), [4, 4])
    with pytest.raises(ValueError, match="value 1 "):  # in the wrong order
        Template(lambda values: struct.pack("!IIII", 0, 0, values[1], values[0]), [4, 4])
    with pytest.raises(ValueError, match="value 0 "):  # twice
        Template(lambda values: struct.pack("!IIII", 0, 0, values[0], values[0]), [4])


def test_an_untemplatable_shape_goes_through_os_ken(monkeypatch):
    monkeypatch.setattr(templates, "_template", lambda _flow, _values: None)
    encoder = FlowEncoder()
    for _ in range(2):
        assert encoder.add(samples.flow(1), XID) == numbered(codec.flow_add(samples.flow(1)), XID)


@pytest.mark.parametrize(
    ("flow", "complaint"),
    [
        (Flow(5, 60, 1, match({"tp_dst": 80}), (), "web"), "flow 'web' .*tp_dst needs nw_proto"),
        (Flow(5, 60, 1, (("reg0", 1 << 32, None),), (), "big"), "reg0: 0x100000000 does not fit"),
        (Flow(5, 60, 1, (), (SetField("reg99", 1),), "none"), "reg99: no such field"),
        (Flow(5, 60, 1, (), (Move("reg0", "dl_dst"),), "move"), "reg0 and dl_dst differ"),
        (Flow(5, 60, 1, (), (Output(1 << 32),), "out"), "'out' .*does not fit"),
        (Flow(5, 256, 1, (), (), "table"), "'table' .*does not fit"),
        (Flow(5, 60, 1, (), (Learn(1, 1, 1, 86_400, (), ()),), "day"), "'day' .*does not fit"),
        (Flow(5, 60, 1, (), (Learn(1, 1, 1, 1, ("reg99",), ()),), "learn"), "reg99: no such field"),
        (Flow(5, 60, 1, (), (Ct(1, nat=Nat(1, (2, 3))),), "both"), "'both' .*cannot encode Nat"),
        (Flow(5, 60, 1, (), (Ct(1, nat=Nat(destination=(1, 1 << 16))),), "nat"), "'nat' .*not fit"),
    ],
)
def test_what_cannot_be_written_is_named(flow, complaint):
    with pytest.raises(codec.CodecError, match=complaint):
        codec.flow_add(flow)
    encoder = FlowEncoder()
    with pytest.raises(codec.CodecError, match=complaint):
        encoder.add(flow)


def test_a_number_too_big_for_a_known_shape_is_named():
    encoder = FlowEncoder()
    good = samples.flow(1)
    for _ in range(2):
        encoder.add(good)
    with pytest.raises(codec.CodecError, match="does not fit"):
        encoder.add(replace(good, priority=1 << 16))
