"""`sluice check` without agents: this machine, and what only the API server knows."""

import json
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cli.check_pods import cluster_findings, pod_of
from cli.main import main
from node_agent.checks.facts import decode_wanted, encode_wanted
from tests.node_agent.test_findings import BEFORE
from wire.findings import MAX_FINDINGS, Severity


def node(name: str, cidr: str | None, address: str = "192.0.2.1") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"pod_cidr": cidr},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


HEALTHY = [node("n1", "10.244.0.0/24"), node("n2", "10.244.1.0/24", "192.0.2.2")]


def test_nothing_is_wrong_with_a_healthy_cluster() -> None:
    others = [("kube-system", "node-problem-detector"), ("monitoring", "node-exporter")]
    assert cluster_findings(HEALTHY, others, BEFORE).findings == ()


@pytest.mark.parametrize(
    ("nodes", "sets", "subject", "text"),
    [
        ([node("n3", None)], [], "Node n3", "spec.podCIDR is missing"),
        ([node("n3", "fd00::/64")], [], "Node n3", "is not an IPv4 range"),
        ([node("n3", "10.1.0.0/24")], [], "Node n3", "is outside cluster.podRange 10.244.0.0/16"),
        ([node("n3", "10.244.1.0/25")], [], "Node n3", "overlaps 10.244.1.0/24 of Node n2"),
        ([node("n3", "10.244.3.0/24", "10.100.0.1")], [], "Node n3", "in cluster.serviceRange"),
        ([node("n3", "10.244.3.0/24", "10.244.9.1")], [], "Node n3", "lies in cluster.podRange"),
        ([], [("kube-system", "kube-proxy")], "DaemonSet kube-system/kube-proxy", "kube-proxy"),
        ([], [("kube-flannel", "kube-flannel-ds")], "DaemonSet kube-flannel/kube-flannel-ds",
         "runs Flannel"),
    ],
)  # fmt: skip
def test_planted_fault_of_the_cluster_is_found(
    nodes: list[dict[str, Any]], sets: list[tuple[str, str]], subject: str, text: str
) -> None:
    (one,) = cluster_findings([*HEALTHY, *nodes], sets, BEFORE).findings
    assert one.subject == subject
    assert text in one.text
    assert one.cure


def test_range_of_services_that_is_anothers_is_found() -> None:
    assert cluster_findings(HEALTHY, [], BEFORE, ["10.96.0.0/12", "fd00::/108"]).findings == ()
    (one,) = cluster_findings(HEALTHY, [], BEFORE, ["10.43.0.0/16"]).findings
    assert one.subject == "cluster.serviceRange"
    assert "10.43.0.0/16" in one.text


def test_cluster_with_sluice_is_warned_about_what_is_its_own() -> None:
    sets = [("sluice-system", "sluice-agent")]
    (one,) = cluster_findings(HEALTHY, sets, BEFORE).findings
    assert (one.severity, one.subject) == (
        Severity.WARNING, "DaemonSet sluice-system/sluice-agent",
    )  # fmt: skip
    assert "without --before" in one.cure


def test_findings_about_ten_thousand_nodes_are_bounded() -> None:
    made = cluster_findings([node(f"n{n}", None) for n in range(10_000)], [], BEFORE)
    assert len(made.findings) == MAX_FINDINGS
    assert made.left_out == 10_000 - MAX_FINDINGS


def test_pod_of_a_check_can_change_nothing_of_the_node() -> None:
    spec = pod_of("x", "n1", "image", BEFORE)["spec"]
    (container,) = spec["containers"]
    assert container["volumeMounts"] == [{"name": "host", "mountPath": "/host", "readOnly": True}]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert "privileged" not in container["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["activeDeadlineSeconds"] > 0


def test_what_is_wanted_of_a_node_survives_its_way_into_a_pod() -> None:
    assert decode_wanted(encode_wanted(BEFORE)) == BEFORE


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--peer", "192.0.2.1"], "--peer goes with --before"),
        (["--image", "x"], "--image goes with --before"),
        (["--before", "n1"], "is about this machine: give no NODE"),
        (["--before", "--peer", "nowhere"], "Expected 4 octets in 'nowhere'"),
        (["--before", "--image", "x", "--peer", "192.0.2.1"], "do not go with --image"),
        (["--before", "--config", "/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, ["check", *words])
    assert done.exit_code in {1, 2}
    assert sentence in done.output


def test_this_machine_is_checked() -> None:
    done = CliRunner().invoke(main, ["check", "--before", "--json"])
    report = json.loads(done.stdout)
    (found,) = report["nodes"]
    assert done.exit_code == any(each["severity"] == "error" for each in found["findings"])
    assert msgspec.json.encode(report)
