"""Reports of a controller of another version, and what the command line needs to read reports."""

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from cli import flows, services
from cli.controller import RequestError, convert
from cli.main import main
from controller.reports import VERSION
from controller.reports.flows import FlowReport

FLOW = {
    "table": "Arp", "tableNumber": 20, "priority": 0, "cookie": "0x01", "packets": 0, "bytes": 0,
    "state": "installed", "feature": "arp", "object": "cluster", "reason": "no reason",
    "owners": [{"kind": "cluster", "namespace": "", "name": ""}],
    "match": "arp", "actions": "drop", "groups": [],
}  # fmt: skip
REPORT: dict[str, Any] = {"node": "n1", "flows": [FLOW], "groups": []}


def test_unknown_fields_are_ignored() -> None:
    newer = REPORT | {"later": 1, "flows": [FLOW | {"later": [1]}], "version": VERSION}
    assert convert(newer, FlowReport).flows[0].reason == "no reason"


def test_report_without_a_version_is_read() -> None:
    """A controller of the release before reports had versions."""
    assert convert(REPORT, FlowReport).node == "n1"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (REPORT | {"version": VERSION + 1}, "take the command of the controller's version"),
        (REPORT | {"version": "x"}, "take the command of the controller's version"),
        ({"flows": []}, "missing required field `node`"),
        ({"node": "n1", "flows": [{"table": 1}], "groups": []}, "Expected `str`, got `int`"),
        ([], "Expected `object`, got `array`"),
        (None, "got `null`"),
    ],
)
def test_report_of_another_version_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    for module, *words in ((flows, "flows", "n1"), (services, "services", "a/b")):
        monkeypatch.setattr(module, "ask", lambda *_: answer)
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert done.stderr.count("\n") == 1
        assert "the controller" in done.stderr
    with pytest.raises(RequestError, match=why.replace("[", r"\[")):
        convert(answer, FlowReport)


def test_flows_need_a_node_or_a_pod() -> None:
    done = CliRunner().invoke(main, ["flows"])
    assert "give NODE, or --pod" in done.stderr
    done = CliRunner().invoke(main, ["flows", "n1", "--node", "n2"])
    assert "NODE does not go with --node" in done.stderr


def test_filters_are_sent_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def ask(_: object, path: str, query: dict[str, str]) -> Any:
        asked.append((path, query))
        return REPORT

    monkeypatch.setattr(flows, "ask", ask)
    for words in (["--pod", "a/b", "--raw"], ["n1", "--table", "Arp"], ["--node", "n1"]):
        assert CliRunner().invoke(main, ["flows", *words]).exit_code == 0
    assert asked == [
        ("/v1/flows", {"pod": "a/b"}),
        ("/v1/nodes/n1/flows", {"table": "Arp", "names": ""}),
        ("/v1/nodes/n1/flows", {"names": ""}),
    ]


def test_reports_are_read_without_the_controllers_packages() -> None:
    """The extra `[cli]` has no os-ken."""
    modules = "flows", "services", "status"
    code = (
        f"import sys; from cli import {', '.join(modules)};"
        "sys.exit(any(name in sys.modules for name in ('os_ken', 'prometheus_client', 'openflow')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
