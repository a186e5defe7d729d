"""`sluice bgp`: what it says of the controller whose sessions it shows."""

import pytest

from cli.bgp import _list
from controller.reports.bgp import BGPReport, PeerRow


def peer(name: str, source: str, *, used: bool = True) -> PeerRow:
    return PeerRow(
        name=name,
        used=used,
        problem="" if used else "spec.address: 172.30.1.1 is the address of Node node1",
        address="192.0.2.1",
        port=179,
        asn=64601,
        local_asn=64512,
        source=source,
        announce=("PodRanges",),
        sessions=(),
        routes=(),
        route_count=0,
        left_out=0,
    )


def test_the_controller_of_the_sessions_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _list(BGPReport(controller="cp1", peers=(peer("leaf1", "Controllers"),)), 0.0)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "sessions of controller cp1; another controller has its own, which are not shown"


@pytest.mark.parametrize("row", [peer("a", "Nodes"), peer("b", "Controllers", used=False)])
def test_no_controller_is_named_where_none_has_a_session(
    row: PeerRow, capsys: pytest.CaptureFixture[str]
) -> None:
    _list(BGPReport(controller="cp1", peers=(row,)), 0.0)
    assert "of controller cp1" not in capsys.readouterr().out
