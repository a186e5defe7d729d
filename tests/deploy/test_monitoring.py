"""Alerts and dashboard: promtool takes them, their metrics exist, each alert has its runbook."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from controller import metrics
from lab.patience import PROGRAM_TIMEOUT
from tests.deploy.conftest import objects
from tests.deploy.helm import CHART, NAMESPACE, ROOT, built, run, template

ALERTS = CHART / "monitoring" / "alerts.yaml"
DASHBOARD = CHART / "monitoring" / "dashboard.json"
CASES = Path(__file__).parent / "alerts.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
# Made by Prometheus itself.
OF_PROMETHEUS = {"up"}

METRIC = re.compile(r"\b(?:sluice|kubeproxy|process|python)_[a-z0-9_]+|\bup\b")


@pytest.fixture(scope="module")
def promtool() -> Path:
    return built("promtool")


def check(promtool: Path, *arguments: str | Path, stdin: bytes = b"") -> str:
    """What promtool says; it must find no fault."""
    done = subprocess.run(
        [promtool, *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    assert not done.returncode, done.stdout.decode()
    return done.stdout.decode()


def test_promtool_finds_no_fault_in_the_rules(promtool: Path) -> None:
    said = check(promtool, "check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert f"{len(RULES)} rules found" in said


def test_each_alert_fires_when_it_should(promtool: Path) -> None:
    check(promtool, "test", "rules", CASES)
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        each["alertname"]
        for case in cases
        for each in case.get("alert_rule_test", ())
        if each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_each_alert_has_its_section_in_the_runbook(helm: Path) -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    text = template(helm, "--set=monitoring.rules.enabled=true,monitoring.rules.runbook=http://a/r")
    made = objects(text)["PrometheusRule", NAMESPACE, "sluice"]["spec"]["groups"][0]["rules"]
    assert [rule["annotations"].pop("runbook_url") for rule in made] == [
        f"http://a/r#{rule['alert'].lower()}" for rule in RULES
    ]
    assert made == RULES


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def test_each_metric_exists() -> None:
    known = OF_PROMETHEUS | {metric.name for metric in metrics.WITH_NAMES}
    for metric in REGISTRY.collect():
        known |= {sample.name for sample in metric.samples}
    used = {name for each in expressions() for name in METRIC.findall(each)}
    assert used <= known
    assert "sluice_node_proven_age_seconds" in used


def test_expressions_of_the_dashboard_can_be_evaluated(promtool: Path, tmp_path: Path) -> None:
    # Grafana replaces its variables.
    rules = [
        {"record": f"panel:number{number}", "expr": each.replace("$__rate_interval", "5m")}
        for number, each in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check(promtool, "check", "rules", file)


def test_panels_do_not_overlap_and_explain_themselves() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_promtool_finds_no_fault_in_the_metrics(promtool: Path) -> None:
    names = (
        "kubeproxy_sync_proxy_rules_endpoint_changes",
        "kubeproxy_sync_proxy_rules_service_changes",
    )
    of_kube_proxy = [
        f'{name}_total non-counter metrics should not have "_total" suffix' for name in names
    ]
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(),
        capture_output=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    assert done.stderr.decode().splitlines() == of_kube_proxy


def test_metrics_without_a_token_have_no_names() -> None:
    labels = {
        (sample.name, name, value)
        for metric in REGISTRY.collect()
        if metric.name.startswith(("sluice_", "kubeproxy_"))
        for sample in metric.samples
        for name, value in sample.labels.items()
        if name != "le"
    }
    assert {name for _, name, _ in labels} == {"kind", "reporter", "outcome", "phases", "speaker"}
    assert len(labels) < 60


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"address": "127.0.0.1:6655", "scrapers": ["a/b"]}, "address that Prometheus reaches"),
        ({"address": "0.0.0.0:6655"}, "settings.controller.reports.scrapers: the ServiceAccount"),
        (None, "monitoring.serviceMonitor.nodes needs settings.controller.reports"),
        ({"scrapers": ["prometheus"]}, "at '/settings/controller/reports/scrapers/0'"),
    ],
)
def test_metrics_of_nodes_need_a_listener_and_a_scraper(helm: Path, values: Any, said: str) -> None:
    done = run(
        helm, "template", "sluice", CHART,
        f"--set-json=settings.controller.reports={json.dumps(values)}",
        "--set=monitoring.serviceMonitor.enabled=true,monitoring.serviceMonitor.nodes.enabled=true",
    )  # fmt: skip
    assert done.returncode
    assert said in done.stderr
