"""`sluice addresses`, from the controller's answers."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import addresses
from cli.main import main

OWNED: dict[str, Any] = {
    "address": "192.0.2.10", "kind": "Service", "namespace": "shop", "name": "web",
    "owner": "node2", "secondsLeft": 1.234, "reason": "the first of 2 candidates that can have it",
    "isAnnounced": True, "isGated": False, "conflict": "",
    "candidates": [
        {"node": "node2", "state": "ready", "isAble": True},
        {"node": "node1", "state": "drained (spec.unschedulable)", "isAble": True},
    ],
}  # fmt: skip
VACANT = OWNED | {
    "address": "192.0.2.20", "kind": "EgressAddress", "namespace": "", "name": "out", "owner": "",
    "secondsLeft": 0.0, "reason": "no candidate can have it", "isGated": True, "candidates": [],
    "conflict": "02:00:00:00:00:07",
}  # fmt: skip


def shown(monkeypatch: pytest.MonkeyPatch, rows: list[Any], *words: str) -> Result:
    answer = {"version": 1, "decides": True, "addresses": rows}
    monkeypatch.setattr(addresses, "ask", lambda *_: answer)
    return CliRunner().invoke(main, ["addresses", *words])


def test_each_address_has_a_line_with_its_node_and_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shown(monkeypatch, [OWNED, VACANT]).stdout.splitlines() == [
        "ADDRESS     OBJECT             NODE   LEFT  WHY",
        "192.0.2.10  Service shop/web   node2  1.2s  the first of 2 candidates that can have it",
        "192.0.2.20  EgressAddress out  -      -     no candidate can have it",
        "192.0.2.20: another host on the link has it, too: 02:00:00:00:00:07",
    ]


def test_one_address_is_shown_with_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, [OWNED, VACANT], "192.0.2.10").stdout.splitlines() == [
        "192.0.2.10 of Service shop/web: node2 (the first of 2 candidates that can have it)",
        "  ARP: the owner answers",
        "  CANDIDATE",
        "  node2      ready",
        "  node1      drained (spec.unschedulable)",
    ]
    gated = shown(monkeypatch, [OWNED, VACANT], "192.0.2.20").stdout
    assert "192.0.2.20 of EgressAddress out: nobody (no candidate can have it)" in gated
    assert "only the owner's host sends from it" in gated


def test_unknown_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    done = shown(monkeypatch, [OWNED], "192.0.2.99")
    assert done.exit_code == 1
    assert "192.0.2.99 is no address that one node at a time has" in done.stderr


def test_json_is_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(shown(monkeypatch, [OWNED, VACANT], "--json").stdout)
    assert found["addresses"] == [OWNED, VACANT]


def test_cluster_without_such_addresses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, []).stdout == "no address needs one owner at a time\n"
