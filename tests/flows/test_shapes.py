"""Flows of a shape are the flows that the layout makes, and no others."""

from dataclasses import replace

import pytest

from flows.features import policy
from flows.flow import Flow, FormError, Goto, match
from flows.pipeline import LAYOUT, Feature, PipelineError, Priority
from flows.shapes import Pieces, Shape
from tests.flows import policies, tracing, worlds

SAMPLE = LAYOUT.flow(
    Feature.POLICY, "PolicyPeers", Priority.MEMBER,
    {"Verdict": 0, "PeerSet": 0, "dl_type": 0x0800, "nw_src": (0, 0xFFFF_0000)},
    [LAYOUT.resubmit("PolicyPorts")],
    "sample",
)  # fmt: skip
SHAPE = Shape(SAMPLE, ("reg10", "reg11", "nw_src"))


def test_flow_of_a_shape_is_the_flow_of_the_layout() -> None:
    set_id, address = 0x0123_4567_89AB_CDEF, 0x0A01_0000
    made = SHAPE.flow((set_id >> 32, set_id & 0xFFFF_FFFF, address), "one")
    same = LAYOUT.flow(
        Feature.POLICY, "PolicyPeers", Priority.MEMBER,
        {"Verdict": 0, "PeerSet": set_id, "dl_type": 0x0800, "nw_src": (address, 0xFFFF_0000)},
        [LAYOUT.resubmit("PolicyPorts")],
        "one",
    )  # fmt: skip
    assert made == same
    assert made.cookie == same.cookie
    assert made.key == same.key
    assert replace(made, reason="two").cookie == same.cookie


def test_cookies_of_all_policy_flows_are_those_of_their_canonical_form() -> None:
    view = worlds.view({1: ["default/a", "default/b"], 2: ["default/c"]})
    a, b = view.attachments["node1"].values()
    (c,) = view.attachments["node2"].values()
    view = policies.some(a, b, c, view.cluster.pod_range).on(view)
    flows = [flow for flow in tracing.flows(view, "node1") if flow.feature == Feature.POLICY]
    assert len(flows) > 50
    for flow in flows:
        fields = {name: (v if mask is None else (v, mask)) for name, v, mask in flow.match}
        again = Flow(
            flow.feature, flow.table, flow.priority, match(fields), flow.actions, flow.reason
        )
        assert (again, again.cookie) == (flow, flow.cookie)
        for action in flow.actions:
            LAYOUT.check(LAYOUT.by_number[flow.table].name, action)


def test_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FormError, match="flow for 'sample'"):
        SHAPE.flow((1, 1 << 32, 0))
    with pytest.raises(PipelineError, match="does not fit PolicyRule"):
        Pieces("PolicyWalk").load("PolicyRule", 1 << 32)


def test_fields_of_a_shape_are_fields_of_its_sample_in_their_order() -> None:
    for varied in (("nw_src", "reg10"), ("nw_dst",)):
        with pytest.raises(ValueError, match="not fields of the match in this order"):
            Shape(SAMPLE, varied)


def test_pieces_are_checked_for_their_table() -> None:
    pieces = Pieces("PolicyWalk")
    with pytest.raises(PipelineError, match="does not declare all it writes of reg0"):
        pieces.load("Source", 1)
    with pytest.raises(PipelineError, match="does not declare table 100 as next"):
        pieces.action(Goto(100))


@pytest.mark.parametrize(
    ("ranges", "masks"),
    [
        ([(6, 80)], [(80, 0xFFFF)]),
        ([(6,), (6, 80)], [None]),
        ([(6, 80, 80), (6, 81)], [(80, 0xFFFE)]),
        ([(6, 80), (6, 81), (6, 82, 83)], [(80, 0xFFFC)]),
        ([(6, 1024, 65535)], 6),
        ([(6, 1, 65535)], 16),
        ([(6, 1, 65534)], 30),
        ([(6, 65535)], [(65535, 0xFFFF)]),
    ],
)
def test_ports_are_as_few_masks_as_possible(
    ranges: list[tuple[int, ...]], masks: list[tuple[int, int] | None] | int
) -> None:
    made = policy.port_masks([policies.PortRange(*each) for each in ranges])
    if isinstance(masks, int):
        assert len(made) == masks
    else:
        assert made == masks
    matched = {
        port
        for each in made
        for port in range(1, 0x1_0000)
        if each is None or port & each[1] == each[0]
    }
    wanted = {
        port
        for _, *span in ranges
        for port in range(span[0] if span else 1, (span[-1] if span else 0xFFFF) + 1)
    }
    assert matched == wanted
