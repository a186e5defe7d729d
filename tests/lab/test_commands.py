"""`sluice services`, `sluice policy` and `sluice what-if`: what a controller answers to people."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab
from lab.processes import running
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


def sluice(
    lab: Lab, *words: str, columns: int = 80, command: str = "services"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", command, "--name", lab.name, *words],
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


# --- policies ---

POLICIES = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: front}}}]
    ports: [{port: 8080}]
"""
DENY_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""


@pytest.fixture(scope="module")
def shop(lab: Lab) -> Iterator[Lab]:
    pods = ("web", "front", "other")
    (lab.layout.cluster / "policies.yaml").write_text(POLICIES)
    for name in pods:
        lab.pod_add("shop", name, "node1", {"app": name})
    wait_until(lambda: "isolated" in sluice(lab, "shop/web", command="policy").stdout)
    yield lab
    (lab.layout.cluster / "policies.yaml").unlink()
    for name in pods:
        lab.pod_del("shop", name)


def connects(lab: Lab, pod: str, address: str, port: int) -> bool:
    """Whether a pod reaches a server that answers at this address."""
    argv = [sys.executable, "-c", CONNECT, address, str(port)]
    done = subprocess.run(lab.command(pod, argv), check=False, timeout=30, capture_output=True)
    return done.returncode == 0


CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as server:
    assert server.recv(2) == b"ok"
"""
SERVE = """
import socket, sys
listening = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
while True:
    client, _ = listening.accept()
    client.sendall(b"ok")
    client.close()
"""


def test_verdicts_are_what_packets_do(shop: Lab) -> None:
    web = shop.pod("shop", "web").address
    with running(shop.command("shop/web", [sys.executable, "-c", SERVE, "8080"])) as server:
        assert server.line() == "listening"
        for pod in ("shop/front", "shop/other"):
            done = sluice(shop, pod, "shop/web", "8080", "--json", command="policy")
            assert json.loads(done.stdout)["accepted"] == connects(shop, pod, web, 8080)


def test_denial_on_a_live_cluster_says_what_is_missing(shop: Lab) -> None:
    done = sluice(shop, "shop/other", "shop/web", "8080", command="policy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("denied  TCP from pod shop/other (")
    assert done.stdout.endswith(
        "    nearest: spec.ingress[0] of NetworkPolicy shop/web; missing:\n"
        "      label: pod shop/other has app=other, and the rule wants app=front\n"
    )


def test_change_is_judged_on_a_live_cluster_and_not_made(shop: Lab, tmp_path: Path) -> None:
    (tmp_path / "deny.yaml").write_text(DENY_ALL)
    words = ("-f", str(tmp_path / "deny.yaml"), "--fail-on", "loses")
    dump = tmp_path / "connections.txt"
    node = shop.command("node1", ["ovs-appctl", "dpctl/dump-conntrack"])
    dump.write_text(
        subprocess.run(node, check=True, capture_output=True, text=True, timeout=60).stdout
    )
    done = sluice(shop, *words, "--connections", str(dump), command="what-if")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("NetworkPolicy shop/deny-all: added\n")
    assert (
        "\nloses  Pod shop/front\n    to  Pod shop/web\n    at  8080/TCP  (1 pair)\n" in done.stdout
    )
    assert "\nexisting connections: " in done.stdout
    assert "deny-all" not in sluice(shop, "shop/front", command="policy").stdout


def test_problem_of_a_policy_is_in_the_status_and_at_its_pods(shop: Lab) -> None:
    file = shop.layout.cluster / "bad.yaml"
    file.write_text("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad, namespace: shop}
spec: {podSelector: {matchLabels: {app: other}}, ingress: [{ports: [{port: 70000}]}]}
""")
    problem = "spec.ingress[0].ports[0].port: 70000 is not from 1 to 65535"
    try:
        wait_until(lambda: problem in sluice(shop, "shop/other", command="policy").stdout)
        status = shop.ask("/v1/status")
        assert status
        assert status["problems"]["NetworkPolicy shop/bad"] == problem
    finally:
        file.unlink()
