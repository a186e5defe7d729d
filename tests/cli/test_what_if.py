"""`sluice what-if`, asked about manifests: what people, scripts and CI read."""

import json
import re
import textwrap
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.main import main
from controller.what_if.report import WhatIf
from tests.cli.test_policy import MANIFESTS

WORKLOADS = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: report, namespace: shop}
spec:
  jobTemplate: {spec: {template: {metadata: {labels: {app: report}}, spec: {containers: []}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: shop}
spec: {replicas: 1, template: {metadata: {labels: {app: front}}, spec: {containers: []}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: idle, namespace: ops}
spec: {replicas: 0, template: {metadata: {labels: {app: idle}}, spec: {containers: []}}}
"""
ISOLATE_WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
"""
ALLOW_IDLE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: idle, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: idle}}}]
    ports: [{port: 5000, endPort: 5010}, {port: 53, protocol: UDP}]
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "shop.yaml").write_text(MANIFESTS)
    (tmp_path / "cluster" / "workloads.yaml").write_text(WORKLOADS)
    return tmp_path / "cluster"


def sluice(cluster: Path, change: str, *words: str) -> Result:
    file = cluster.parent / "change.yaml"
    file.write_text(change)
    command = ["what-if", "-f", str(file), "--cluster", str(cluster), *words]
    return CliRunner().invoke(main, command)


def answer(cluster: Path, change: str, *words: str) -> WhatIf:
    done = sluice(cluster, change, *words, "--json")
    return msgspec.json.decode(done.stdout, type=WhatIf)


def test_loss_names_workloads_ports_and_rules(cluster: Path) -> None:
    done = sluice(cluster, ISOLATE_WEB)
    *lines, cost = done.stdout.splitlines(keepends=True)
    # How many flows it are is the business of the features.
    assert re.fullmatch(
        r"cost: 1 switch, \d+ flows? added and \d+ removed;"
        r" the longest walk has 0 rules \(before: 2\)\n",
        cost,
    )
    assert (done.exit_code, done.stderr, "".join(lines)) == (
        0,
        "",
        textwrap.dedent("""\
            NetworkPolicy shop/web: changed

                      workload pairs     pod pairs
            loses                  4             3
            gains                  0             0
            keeps                  0             0

            loses  Deployment shop/front, 198.51.100.0/24
                to  StatefulSet shop/web
                at  8080/TCP  (2 pairs)
                to the pod: before, spec.ingress[0] of NetworkPolicy shop/web accepts it
                            after, NetworkPolicy shop/web isolates the pod, and no rule accepts it

            loses  Deployment ops/idle (no pod now), Pod ops/prometheus
                to  StatefulSet shop/web
                at  9090/TCP  (1 pair)
                to the pod: before, spec.ingress[1] of NetworkPolicy shop/web accepts it
                            after, NetworkPolicy shop/web isolates the pod, and no rule accepts it

            judged by their template: CronJob shop/report, Deployment ops/idle

            """),
    )


def test_gain_of_a_workload_without_a_pod_is_judged_by_its_template(cluster: Path) -> None:
    found = answer(cluster, ALLOW_IDLE)
    (row,) = found.gains
    assert [str(share.workload) for share in row.sources] == ["Deployment ops/idle"]
    assert (row.sources[0].pods, row.sources[0].of, row.pairs) == (0, 0, 0)
    assert row.ports == ("5000-5010/TCP", "53/UDP")
    assert row.after.rule == "spec.ingress[0]"
    assert (found.totals.gains.workload_pairs, found.totals.gains.pod_pairs) == (1, 0)
    assert not found.loses


def test_deletion_is_the_reverse(cluster: Path) -> None:
    gone = sluice(cluster, ISOLATE_WEB, "--delete")
    assert gone.stdout.startswith("NetworkPolicy shop/web: deleted\n")
    found = answer(cluster, ISOLATE_WEB, "--delete")
    assert not found.loses
    assert {row.after.reason for row in found.gains} == {"no policy denies it"}
    assert found.cost.longest_walk.after == 0


def test_change_of_nothing_says_so(cluster: Path) -> None:
    same = MANIFESTS[MANIFESTS.rindex("---") :]
    done = sluice(cluster, same)
    assert "warning: NetworkPolicy shop/web: this changes nothing\n" in done.stdout
    missing = sluice(cluster, ISOLATE_WEB.replace("name: web", "name: other"), "--delete")
    assert "NetworkPolicy shop/other: unchanged\n" in missing.stdout
    assert answer(cluster, same).cost.nodes == 0


def test_labels_of_a_namespace_can_be_changed(cluster: Path) -> None:
    found = answer(cluster, """
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: none}}
""")  # fmt: skip
    (row,) = found.loses
    assert [str(share.workload) for share in row.sources] == [
        "Deployment ops/idle", "Pod ops/prometheus",
    ]  # fmt: skip
    assert row.ports == ("9090/TCP",)


def test_workload_of_the_change_itself_is_judged(cluster: Path) -> None:
    new = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec: {template: {metadata: {labels: {app: db}}, spec: {containers: []}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}}
"""
    found = answer(cluster, new)
    assert "StatefulSet shop/db" in map(str, found.without_pods)
    (row,) = found.loses
    assert [str(share.workload) for share in row.destinations] == ["StatefulSet shop/db"]


@pytest.mark.parametrize(
    ("change", "fail_on", "code"),
    [
        (ISOLATE_WEB, ["loses"], 3),
        (ISOLATE_WEB, ["gains"], 0),
        (ALLOW_IDLE, ["loses"], 0),
        (ALLOW_IDLE, ["gains"], 3),
        (ALLOW_IDLE, ["loses", "gains"], 3),
    ],
)
def test_exit_code_for_ci(cluster: Path, change: str, fail_on: list[str], code: int) -> None:
    words = [word for each in fail_on for word in ("--fail-on", each)]
    assert sluice(cluster, change, *words).exit_code == code


def test_named_port_that_no_pod_has_is_a_warning(cluster: Path) -> None:
    done = sluice(cluster, ALLOW_IDLE.replace("port: 5000, endPort: 5010", "port: grpc"))
    assert (
        '\nwarning: NetworkPolicy shop/idle: spec.ingress[0]: no selected pod has a port "grpc"\n'
        in done.stdout
    )
    # From the pod, it is a port of the peers.
    change = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front, namespace: shop}
spec:
  podSelector: {matchLabels: {app: front}}
  egress:
  - to: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: http}, {port: grpc}]
  - to: [{podSelector: {matchLabels: {app: nobody}}}]
  - to: [{ipBlock: {cidr: 192.0.2.0/24}}]
"""
    assert [warning.text for warning in answer(cluster, change).warnings] == [
        "spec.egress[1]: no pod that there is now is a peer",
        'spec.egress[0]: none of its peers has a port "grpc"',
    ]
    nobody = change.replace("{app: front}", "{app: nobody}")
    first, *_ = answer(cluster, nobody).warnings
    assert first.text == "it selects no pod that there is now"


CONNTRACK = """
tcp,orig=(src=10.244.2.9,dst=10.96.0.10,sport=40000,dport=80),reply=(src=10.244.1.7,dst=10.244.2.9,sport=8080,dport=40000),zone=1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.244.2.9,dst=10.96.0.10,sport=40000,dport=80),reply=(src=10.244.1.7,dst=10.244.2.9,sport=8080,dport=40000),zone=1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=198.51.100.7,dst=10.244.1.7,sport=50000,dport=8080),reply=(src=10.244.1.7,dst=198.51.100.7,sport=8080,dport=50000),zone=1,protoinfo=(state=ESTABLISHED)
udp,orig=(src=10.244.1.7,dst=192.0.2.53,sport=33333,dport=53),reply=(src=192.0.2.53,dst=10.244.1.7,sport=53,dport=33333),zone=1
icmp,orig=(src=10.244.2.9,dst=10.244.1.7,id=1,type=8,code=0),reply=(src=10.244.1.7,dst=10.244.2.9,id=1,type=0,code=0),zone=1
some other text
"""


def test_existing_connections_under_a_loss_are_listed(cluster: Path) -> None:
    dump = cluster.parent / "dump.txt"
    dump.write_text(CONNTRACK)
    done = sluice(cluster, ISOLATE_WEB, "--connections", str(dump))
    front = "Deployment shop/front (shop/front-6b7f-x2x4z, 10.244.2.9)"
    web = "StatefulSet shop/web (shop/web-0, 10.244.1.7)"
    assert (
        "existing connections: 2 of 3 would not be allowed any more\n"
        f"  {front} to {web} at 8080/TCP\n"
        f"  198.51.100.7 to {web} at 8080/TCP\n"
    ) in done.stdout
    assert answer(cluster, ALLOW_IDLE, "--connections", str(dump)).connections is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("", "the change has none of: NetworkPolicy, ClusterNetworkPolicy, Namespace"),
        ("kind: [", "change.yaml cannot be read: while parsing a flow node"),
        (
            ISOLATE_WEB.replace("{podSelector: {matchLabels: {app: web}}}", "{podSelector: 7}"),
            "NetworkPolicy web: Expected `object | null`, got `int` - at `$.spec.podSelector`",
        ),
        (
            ISOLATE_WEB.replace("networking.k8s.io/v1", "extensions/v1beta1"),
            "NetworkPolicy web: apiVersion: 'extensions/v1beta1' is not 'networking.k8s.io/v1'",
        ),
    ],
)
def test_change_that_cannot_be_read_is_refused(cluster: Path, change: str, sentence: str) -> None:
    done = sluice(cluster, change)
    assert done.exit_code == 1
    assert sentence in done.output


def test_every_mistake_of_a_change_is_told(cluster: Path) -> None:
    bad = ISOLATE_WEB.replace("{matchLabels: {app: web}}", "7")
    done = sluice(cluster, f"{bad}\n---\n{bad.replace('name: web', 'name: other')}")
    assert "NetworkPolicy web: Expected" in done.output
    assert "NetworkPolicy other: Expected" in done.output


def test_other_kinds_in_a_change_are_named_and_ignored(cluster: Path) -> None:
    done = sluice(cluster, MANIFESTS)
    assert "ignored: 3 of kind Pod, on which no policy depends here\n" not in done.output
    assert "ignored: 4 of kind Pod" in done.stderr
    assert "ignored: 1 of kind Service" in done.stderr


def test_json_is_complete(cluster: Path) -> None:
    found = json.loads(sluice(cluster, ISOLATE_WEB, "--json").stdout)
    assert found["version"] == 1
    assert found["loses"][0]["from"][0]["workload"] == {
        "kind": "Deployment", "namespace": "shop", "name": "front",
    }  # fmt: skip
    assert found["cost"]["longestWalk"] == {"before": 2, "after": 0}
