"""`sluice status`: what it shows of a report, its exit code, and reports of other versions."""

import time
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import status
from cli.controller import RequestError
from cli.main import main


def node(address: str, *, connected: bool = True, in_sync: bool = True) -> dict[str, Any]:
    port = {"pod": "default/a", "address": "10.244.1.2", "ofport": 16}
    return {
        "address": address,
        "podCIDR": "10.244.1.0/24",
        "connected": connected,
        "inSync": in_sync,
        "attachments": {"p1": port},
    }


GOOD: dict[str, Any] = {
    "ready": True,
    "whole": True,
    "nodes": {"n1": node("172.30.1.1"), "n2": node("172.30.1.2")},
    "problems": {},
}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(answer: Any, *words: str) -> Result:
        monkeypatch.setattr(status, "ask", lambda *_: answer)
        return CliRunner().invoke(main, ["status", *words])

    return show


def test_cluster_in_sync_is_one_line_and_exit_code_0(shown: Any) -> None:
    done = shown(GOOD)
    assert done.stdout == (
        "switches: 2 of 2 in sync, 2 connected; 2 pods attached\nproblems: none\n"
    )
    assert done.exit_code == 0


def test_switches_that_are_late_are_named(shown: Any) -> None:
    nodes = GOOD["nodes"] | {
        "n2": node("172.30.1.2", in_sync=False),
        "n3": node("172.30.1.3", connected=False, in_sync=False),
    }
    done = shown(GOOD | {"nodes": nodes, "problems": {"Service a/b": "it is refused"}})
    assert done.stdout == (
        "switches: 1 of 3 in sync, 2 connected; 3 pods attached\n"
        "  n2 (172.30.1.2): not in sync\n"
        "  n3 (172.30.1.3): not connected\n"
        "problems: 1\n"
        "  Service a/b: it is refused\n"
    )
    assert done.exit_code == 1


def test_many_switches_are_counted(shown: Any) -> None:
    nodes = {f"n{number}": node("172.30.1.1", in_sync=False) for number in range(1_000)}
    lines = shown(GOOD | {"nodes": nodes}).stdout.splitlines()
    assert lines[0].startswith("switches: 0 of 1,000 in sync, 1,000 connected")
    assert lines[-2] == "  and 990 more; --json has all"
    assert len(lines) == 13


@pytest.mark.parametrize("field", ["ready", "whole"])
def test_cluster_that_was_not_read_is_exit_code_1(shown: Any, field: str) -> None:
    done = shown(GOOD | {field: False})
    assert done.stdout.startswith("cluster: not ")
    assert done.exit_code == 1


def test_json_is_the_report(shown: Any) -> None:
    newer = GOOD | {"new": 1}
    assert msgspec.json.decode(shown(newer, "--json").stdout) == newer


@pytest.mark.parametrize("answer", [{}, [], GOOD | {"nodes": {"n1": {}}}, GOOD | {"ready": 1}])
def test_report_of_another_version_is_said(shown: Any, answer: Any) -> None:
    done = shown(answer)
    assert done.exit_code == 1
    assert done.stderr.startswith(
        "Error: the controller is of another version of Sluice than this program: "
    )


def test_wait_shows_what_is_missing_until_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    late = GOOD | {"nodes": {"n1": node("172.30.1.1", connected=False, in_sync=False)}}
    answers = iter([RequestError("no controller is ready"), late, late, GOOD, GOOD])

    def ask(*_: object) -> Any:
        answer = next(answers)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    monkeypatch.setattr(status, "ask", ask)
    monkeypatch.setattr(status, "PAUSE", 0)
    done = CliRunner().invoke(main, ["status", "--wait"])
    assert done.stderr == (
        "no controller is ready\nswitches: 0 of 1 in sync, 0 connected; 1 pod attached\n"
    )
    assert done.stdout.startswith("switches: 2 of 2 in sync")
    assert done.exit_code == 0


def test_wait_lasts_until_agents_are_heard_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader = {"name": "c1", "leader": True, "version": "0.1.0", "since": 0.0}
    good = GOOD | {"controllers": [leader]}
    heard = {name: each | {"agent": "0.1.0"} for name, each in good["nodes"].items()}
    answers = [good, good, good | {"nodes": heard}]
    asked: list[Any] = []

    def ask(*_: object) -> Any:
        asked.append(answers[min(len(asked), len(answers) - 1)])
        return asked[-1]

    monkeypatch.setattr(status, "ask", ask)
    monkeypatch.setattr(status, "PAUSE", 0)
    done = CliRunner().invoke(main, ["status", "--wait"])
    assert done.exit_code == 0
    assert done.stderr.endswith("; 2 of 2 agents not heard yet\n")
    assert asked[-2:] == [good | {"nodes": heard}] * 2

    asked.clear()
    answers[2] = good
    monkeypatch.setattr(status, "AGENTS_WAIT", 0)
    assert CliRunner().invoke(main, ["status", "--wait"]).exit_code == 0
    assert len(asked) == 2


def test_wait_gives_up(shown: Any) -> None:
    late = GOOD | {"nodes": {"n1": node("172.30.1.1", in_sync=False)}}
    done = shown(late, "--wait", "--timeout", "0")
    assert done.exit_code == 1
    assert "n1 (172.30.1.1): not in sync" in done.stdout
    assert shown(GOOD, "--timeout", "1").exit_code == 2


def test_controllers_lag_drift_versions_and_slowest_switches_are_shown(shown: Any) -> None:
    more = {"agent": "0.1.0", "openVswitch": "3.1.0", "provenAge": 12.0}
    nodes = {
        "n1": node("172.30.1.1") | more | {"acknowledgedIn": 0.012},
        "n2": node("172.30.1.2", in_sync=False) | more | {"lag": 3.06, "acknowledgedIn": 1.5},
        "n3": node("172.30.1.3") | {"drift": 7, "provenAge": 400.0},
    }
    one = {"name": "cp1", "version": "0.1.0", "leader": True, "since": time.time() - 7_300}
    lines = shown(GOOD | {"nodes": nodes, "controllers": [one]}).stdout.splitlines()
    assert lines == [
        "switches: 2 of 3 in sync, 3 connected; 3 pods attached",
        "  n2 (172.30.1.2): not in sync",
        "controller: cp1 (leader, version 0.1.0, since 2 h)",
        "lag: n2 3.1 s",
        "drift: 7 flows, groups and meters were changed by others and repaired, most on n3",
        "versions: Sluice 0.1.0 on 2, unknown on 1; Open vSwitch 3.1.0 on 2, unknown on 1",
        "slowest switches: n2 1.5 s, n1 12 ms",
        "last proof that a switch holds what it should: at most 7 min ago (n3)",
        "problems: none",
    ]
