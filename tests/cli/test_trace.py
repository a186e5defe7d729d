"""`sluice trace --from`: where a packet would go, without switches."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from tests.cli.test_policy import MANIFESTS


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    return tmp_path


def trace(source: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--from", str(source), "trace", *words])


FRONT, WEB = "shop/front-6b7f-x2x4z", "svc/shop/web"


def test_trace_of_manifests_follows_a_connection_and_its_reply(manifests: Path) -> None:
    done = trace(manifests, FRONT, WEB, "--reply", "--source-port", "40000")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:3] == [
        "no switch was asked: these are the flows that there should be, without the connections"
        " that exist now",
        "no node was asked: hostPorts, other routes and the processes that listen are unknown",
        "TCP 10.244.2.9:40000 > 10.96.0.10:80",
    ]
    assert "Service shop/web sends it to 10.244.1.7:8080 (pod shop/web-0)" in done.stdout
    assert "the tunnel carries it from node n2 to node n1" in done.stdout
    assert "spec.ingress[0] of NetworkPolicy shop/web accepts it" in done.stdout
    assert "delivered to pod shop/web-0 on node n1\nThe reply\n" in done.stdout
    assert done.stdout.endswith(f"delivered to pod {FRONT} on node n2\n")


def test_trace_of_manifests_says_who_drops_it_and_why(manifests: Path) -> None:
    done = trace(manifests, "ops/prometheus", WEB)
    assert done.exit_code == 1
    assert "dropped by the switch of node n1: policy to the pod denied 8080/TCP" in done.stdout
    assert "To change that: NetworkPolicy shop/web spec.ingress[1]: port" in done.stdout


def test_trace_of_manifests_has_every_flow(manifests: Path) -> None:
    done = trace(manifests, FRONT, WEB, "--json")
    report = json.loads(done.stdout)
    flows = [row for hop in report["there"]["hops"] for row in hop["flows"]]
    assert {"Classifier", "EndpointChoice", "PolicyToPodVerdict", "Output"} <= {
        row["table"] for row in flows
    }
    assert "not desired" not in {row["reason"] for row in flows}
    assert any(note.startswith("no switch was asked") for note in report["notes"])


def test_process_of_a_node_is_not_known(manifests: Path) -> None:
    done = trace(manifests, FRONT, "n1:22")
    assert done.exit_code == 0
    assert "delivered to node n1 itself, if a process listens there" in done.stdout


def test_reply_to_a_client_outside_is_not_translated(manifests: Path) -> None:
    """The connection came in untranslated; what masquerades sees first packets only."""
    done = trace(manifests, "198.51.100.9", "shop/web-0:8080", "--reply")
    assert done.exit_code == 0
    assert done.stdout.endswith("it leaves node n1 by its uplink from 10.244.1.7\n")


def test_endpoint_that_the_service_does_not_have_is_refused(manifests: Path) -> None:
    done = trace(manifests, FRONT, WEB, "--endpoint", "10.244.1.7:8080")
    assert done.exit_code == 0
    done = trace(manifests, FRONT, WEB, "--endpoint", "10.244.1.8:8080")
    assert done.exit_code == 1
    assert "10.244.1.8:8080 is no endpoint that the Service chooses here" in done.stderr


def test_pod_that_is_not_there_is_refused(manifests: Path) -> None:
    done = trace(manifests, "shop/nobody", WEB)
    assert (done.exit_code, done.stderr) == (1, "Error: there is no Pod shop/nobody\n")


def test_help_tells_what_is_not_known_without_switches() -> None:
    done = CliRunner().invoke(main, ["trace", "--help"])
    assert "With --from no switch is asked" in done.stdout
