"""Flows as people read them: register fields, ofports and Service ports by name."""

import pytest

from flows.flow import Flow, Output, OutputReg, SetField, match
from flows.labels import Labels
from flows.pipeline import LAYOUT
from flows.text import flow_text
from tests.flows import worlds

VIEW = worlds.view({1: ["default/a"], 2: []}, served=worlds.services())
LABELS = Labels.of(VIEW, "node1")


def text(table: str, fields: dict[str, int | tuple[int, int]], *actions: object) -> str:
    number = LAYOUT.tables[table].number
    flow = Flow(1, number, 1, match(fields), tuple(actions), "")  # type: ignore[arg-type]
    return flow_text(flow, LABELS).removeprefix(f"table={table}, priority=1").strip(", ")


@pytest.mark.parametrize(
    ("table", "fields", "shown"),
    [
        ("Forwarding", {"reg0": (2, 0xF)}, "Source=PEER"),
        ("Forwarding", {"reg0": (9, 0xF)}, "Source=9"),
        ("Output", {"reg1": 16}, "OutputPort=16 (default/a)"),
        ("Output", {"reg1": 1}, "OutputPort=1 (sluice-tun)"),
        ("Output", {"reg1": 99}, "OutputPort=99"),
        ("Classifier", {"in_port": 2}, "in_port=2 (sluice-gw)"),
        ("EndpointChoice", {"reg2": 0x1000_0000}, "Service=0x10000000 (default/web:http)"),
        ("ServiceNat", {"reg3": 0x0AF4_0102, "reg4": (80, 0xFFFF)},
         "EndpointAddress=10.244.1.2,EndpointPort=80"),
        ("ServiceChoice", {"reg0": (0x11, 0x1F)}, "Source=POD,NodeAddress=1"),
    ],
)  # fmt: skip
def test_match_shows_register_fields(
    table: str, fields: dict[str, int | tuple[int, int]], shown: str
) -> None:
    assert text(table, fields) == f"{shown} actions=drop"


def test_bits_outside_register_fields_keep_the_name_of_the_register() -> None:
    assert text("Forwarding", {"reg0": (0x0200_0001, 0x0F00_000F)}) == (
        "Source=POD,reg0=0x2000000/0xf000000 actions=drop"
    )
    assert text("Forwarding", {"reg5": 7}) == "reg5=0x7/0xffffffff actions=drop"
    # A part of a field is not shown as the field.
    assert text("Forwarding", {"reg0": (1, 3)}) == "reg0=0x1/0x3 actions=drop"


def test_actions_show_register_fields_and_ofports() -> None:
    assert text("Forwarding", {}, SetField("reg1", 2), Output(16), OutputReg("reg1")) == (
        "actions=set_field:2 (sluice-gw)->OutputPort,output:16 (default/a),output:OutputPort"
    )
    assert text("Classifier", {}, SetField("reg0", 1, 0xF)) == "actions=set_field:POD->Source"


def test_attachment_without_a_pod_has_the_name_of_its_port() -> None:
    attachment = worlds.attachment(VIEW.nodes["node2"], 0, "default/x")
    known = {attachment.port: attachment.__class__(attachment.port, 16, attachment.address, "")}
    view = worlds.view({2: []})
    labels = Labels.of(view.__class__(view.cluster, view.nodes, {"node2": known}), "node2")
    assert labels.ofport(16) == f"16 ({attachment.port})"
