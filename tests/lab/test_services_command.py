"""`sluice services`: what people and scripts read."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from lab import Lab
from tests.waiting import wait_until

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: node1}
- {addresses: [10.244.1.3], nodeName: node1, conditions: {ready: false, terminating: true}}
- {addresses: [10.96.0.99], nodeName: node2}
---
apiVersion: v1
kind: Service
metadata: {name: queue, namespace: default}
spec: {clusterIP: 10.96.0.12, sessionAffinity: ClientIP, ports: [{port: 5672}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: default}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: a-name-that-is-as-long-as-they-get-with-many-ports, namespace: kube-system}
spec:
  clusterIP: 10.96.0.13
  ports: [{name: a, port: 50001}, {name: b, port: 50002}, {name: c, port: 50003},
          {name: d, port: 50004}, {name: e, port: 50005}, {name: f, port: 50006}]
"""


def sluice(lab: Lab, *words: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "services", "--name", lab.name, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=os.environ | {"COLUMNS": str(columns)},
    )


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    assert sluice(lab).stdout == "there are no Services\n"
    (lab.layout.cluster / "services.yaml").write_text(MANIFESTS)
    wait_until(lambda: "kube-system" in sluice(lab).stdout)
    return lab


def test_each_service_has_a_line(lab: Lab) -> None:
    done = sluice(lab)
    assert (done.returncode, done.stderr) == (0, "")
    # The longest name moves its own line alone.
    assert done.stdout == textwrap.dedent("""\
        NAMESPACE/NAME                      TYPE       ADDRESS     READY  PORTS
        default/peers                       -          -           -      -  nothing to do
        default/queue                       ClusterIP  10.96.0.12  0/0    5672/TCP
        default/web                         NodePort   10.96.0.10  1/2    80:30080/TCP  1 problem
        kube-system/a-name-that-is-as-long-as-they-get-with-many-ports  ClusterIP  10.96.0.13  0/0    50001/TCP,50002/TCP,50003/TCP,50004/TCP,50005/TCP,50006/TCP
        """)  # noqa: E501
    # Nothing depends on how wide the terminal is, or on whether there is one.
    assert {sluice(lab, columns=columns).stdout for columns in (1, 40, 200)} == {done.stdout}


def test_one_service_with_its_endpoints_and_nodes(lab: Lab) -> None:
    done = sluice(lab, "default/web")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == textwrap.dedent("""\
        Service default/web  NodePort, externalTrafficPolicy: Local
          refused: EndpointSlice default/web-1: endpoints[2].addresses: 10.96.0.99 is inside the Service range 10.96.0.0/16

          http  TCP
            10.96.0.10:80     ClusterIP
            every node:30080  NodePort
            endpoints
              10.244.1.2:8080  ready        node1
              10.244.1.3:8080  terminating  node1
            to its ClusterIP, from anywhere
              every node  → 10.244.1.2:8080
            to its other addresses, from outside
              node1  → 10.244.1.2:8080
              node2  → dropped: the policy is Local
            to its other addresses, from pods and nodes
              every node  → 10.244.1.2:8080
        """)  # noqa: E501
    alone = sluice(lab, "default/web", "--node", "node2").stdout
    assert "      node2  → dropped: the policy is Local" in alone
    assert "node1  →" not in alone
    assert "every node  →" not in alone


def test_service_without_endpoints_says_so(lab: Lab) -> None:
    text = sluice(lab, "default/queue").stdout
    assert text.startswith("Service default/queue  ClusterIP, a client keeps its endpoint for 10")
    assert "    no endpoints\n" in text
    assert "every node  → refused: there is no endpoint" in text
    done = sluice(lab, "default/peers")
    assert done.returncode == 0
    assert done.stdout.startswith("Service default/peers: nothing to do here, it is headless: cl")


def test_json_holds_everything(lab: Lab) -> None:
    rows = json.loads(sluice(lab, "--json").stdout)["services"]
    assert [row["name"] for row in rows if row["problems"]] == ["web"]
    one = json.loads(sluice(lab, "default/web", "--json").stdout)
    assert one["ports"][0]["choices"][1] == {
        "to": "external",
        "from": "outside",
        "nodes": ["node1"],
        "endpoints": ["10.244.1.2:8080"],
        "otherwise": "",
    }


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["default/no"], 1, "Error: there is no Service default/no"),
        (["default/web", "--node", "node7"], 1, "Error: Node node7: it is unknown"),
        (["--name", "nowhere"], 1, "Error: no lab nowhere is up"),
        (["web"], 2, "'web' is not of the form NAMESPACE/NAME"),
        (["--node", "node1"], 2, "Error: --node goes with NAMESPACE/NAME"),
    ],
)
def test_mistakes_get_one_sentence(lab: Lab, words: list[str], code: int, sentence: str) -> None:
    done = sluice(lab, *words)
    assert done.returncode == code
    assert sentence in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1
