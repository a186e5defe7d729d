"""`sluice policy`, asked about manifests: what people and scripts read."""

import json
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from settings.plain_yaml import documents

MANIFESTS = """
apiVersion: v1
kind: Node
metadata: {name: n1, uid: n1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, uid: n2}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: ops}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  namespace: shop
  labels: {app: web}
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: w, controller: true}]
spec:
  nodeName: n1
  containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]
status: {podIP: 10.244.1.7}
---
apiVersion: v1
kind: Pod
metadata:
  name: front-6b7f-x2x4z
  namespace: shop
  labels: {app: front, pod-template-hash: 6b7f}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: front-6b7f, uid: f, controller: true}
spec: {nodeName: n2}
status: {podIP: 10.244.2.9}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: ops, labels: {app: prometheus}}
spec: {nodeName: n2}
status: {podIP: 10.244.2.8}
---
apiVersion: v1
kind: Pod
metadata: {name: exporter, namespace: ops}
spec: {nodeName: n1, hostNetwork: true}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: www, port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: www, port: 8080}]
endpoints: [{addresses: [10.244.1.7], nodeName: n1}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: front}}
    - ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}
    ports: [{port: http}]
  - from: [{namespaceSelector: {matchLabels: {team: ops}}}]
    ports: [{port: 9090}]
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    return tmp_path


def sluice(cluster: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["policy", *words, "--cluster", str(cluster)])


def test_policies_of_a_pod_in_words(cluster: Path) -> None:
    done = sluice(cluster, "shop/web-0")
    assert (done.exit_code, done.output) == (
        0,
        textwrap.dedent("""\
            Pod shop/web-0  of StatefulSet shop/web, 10.244.1.7 on n1
              labels: app=web
              labels of its namespace: kubernetes.io/metadata.name=shop, team=sales

              from the pod: no policy selects it, so everything may pass

              to the pod: isolated, so only what a rule accepts may pass
                NetworkPolicy shop/web
                  spec.ingress[0]: accept from pods with app=front in namespace shop or 198.51.100.0/24 but 198.51.100.128/25 at port http/TCP
                  spec.ingress[1]: accept from all pods in namespaces with team=ops at 9090/TCP
            """),  # noqa: E501
    )


def test_accepted_connection_names_its_rule(cluster: Path) -> None:
    done = sluice(cluster, "shop/front-6b7f-x2x4z", "shop/web-0", "http")
    assert (done.exit_code, done.output) == (
        0,
        textwrap.dedent("""\
            accepted  TCP from pod shop/front-6b7f-x2x4z (10.244.2.9) to pod shop/web-0 (10.244.1.7:8080)
              from the pod shop/front-6b7f-x2x4z: accepted: no policy selects the pod in this direction
              to the pod shop/web-0: accepted: spec.ingress[0] of NetworkPolicy shop/web accepts it
                → NetworkPolicy shop/web spec.ingress[0]: accept from pods with app=front in namespace shop or 198.51.100.0/24 but 198.51.100.128/25 (peer: yes) at port http/TCP (port: yes)
            """),  # noqa: E501
    )


def missing(cluster: Path, *words: str) -> list[str]:
    """Of a denied connection, the nearest rule and what is missing."""
    answer = json.loads(sluice(cluster, *words, "--json").output)
    assert not answer["accepted"]
    (case,) = answer["cases"]
    (denied,) = (each for each in case["judgements"] if not each["accepted"])
    return [denied["nearest"]["field"], *denied["nearest"]["missing"]]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["shop/front-6b7f-x2x4z", "shop/web-0", "443"],
            [
                "spec.ingress[0]",
                "port: the rule has port http/TCP (8080 on shop/web-0), not 443/TCP",
            ],
        ),
        (
            ["ops/prometheus", "shop/web-0", "http"],
            ["spec.ingress[1]", "port: the rule has 9090/TCP, not 8080/TCP"],
        ),
        (
            ["shop/front-6b7f-x2x4z", "shop/web-0", "9090"],
            [
                "spec.ingress[0]",
                "port: the rule has port http/TCP (8080 on shop/web-0), not 9090/TCP",
            ],
        ),
        (
            ["198.51.100.200", "shop/web-0", "http"],
            ["spec.ingress[0]", "address: 198.51.100.200 is in 198.51.100.128/25, which the rule"
             " excepts"],
        ),
        (
            ["203.0.113.9", "shop/web-0", "http"],
            ["spec.ingress[0]", "address: 203.0.113.9 is not in 198.51.100.0/24 but"
             " 198.51.100.128/25"],
        ),
        (
            ["n2", "shop/web-0", "9090"],
            ["spec.ingress[1]", "n2 (10.244.2.1) is no pod, and the rule has only selectors of"
             " pods"],
        ),
        (
            ["shop/front-6b7f-x2x4z", "shop/web-0", "--protocol", "ICMP"],
            ["spec.ingress[0]", "port: only a rule without ports matches a protocol that has no"
             " ports"],
        ),
    ],
)  # fmt: skip
def test_denial_names_the_nearest_rule_and_what_is_missing(
    cluster: Path, words: list[str], wanted: list[str]
) -> None:
    assert missing(cluster, *words) == wanted


def test_missing_labels_of_pod_and_namespace_are_named(cluster: Path) -> None:
    (cluster / "more.yaml").write_text("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front, namespace: shop}
spec:
  podSelector: {matchLabels: {app: front}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: qa, stage: test}}
      podSelector: {matchExpressions: [{key: role, operator: Exists}]}
    - namespaceSelector: {matchLabels: {team: qa}}
      podSelector: {matchLabels: {app: probe}}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa}}
      podSelector: {matchLabels: {app: probe, role: any}}
""")
    assert missing(cluster, "ops/prometheus", "shop/front-6b7f-x2x4z", "80") == [
        "spec.ingress[0]",
        "namespace label: namespace ops has team=ops, and the rule wants team=qa",
        "label: pod ops/prometheus has app=prometheus, and the rule wants app=probe",
    ]


def test_policy_without_rules_has_no_nearest_rule(cluster: Path) -> None:
    (cluster / "more.yaml").write_text("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: ops}
spec: {podSelector: {}, policyTypes: [Egress]}
""")
    done = sluice(cluster, "ops/prometheus", "n2", "53", "--protocol", "udp")
    assert done.output == textwrap.dedent("""\
        denied  UDP from pod ops/prometheus (10.244.2.8) to node n2 (192.0.2.12:53)
          from the pod ops/prometheus: denied: NetworkPolicy ops/deny isolates the pod, and no rule accepts this connection
          to the pod: accepted: n2 is no pod, so no policy selects it
        """)  # noqa: E501


def test_service_is_judged_by_its_endpoints(cluster: Path) -> None:
    for to, port in (("svc/shop/web", "80"), ("shop/web", "www"), ("service/shop/web", "80")):
        done = sluice(cluster, "shop/front-6b7f-x2x4z", to, port)
        assert done.output.startswith(
            "accepted  TCP from pod shop/front-6b7f-x2x4z (10.244.2.9) to pod shop/web-0"
            " (10.244.1.7:8080)\n"
        )


def test_what_policies_never_decide_about(cluster: Path) -> None:
    own_node = sluice(cluster, "n1", "shop/web-0", "1").output
    assert "    a node can always reach its own pods" in own_node.replace("accepted: ", "    ")
    assert own_node.startswith("accepted")
    itself = sluice(cluster, "shop/web-0", "10.244.1.7", "1").output
    assert "a pod can always reach itself" in itself


def test_pod_on_the_host_network_is_its_node(cluster: Path) -> None:
    done = sluice(cluster, "ops/exporter", "shop/web-0", "8080")
    assert done.output.startswith("accepted  TCP from node n1 (10.244.1.1) to pod shop/web-0")
    alone = sluice(cluster, "ops/exporter")
    assert alone.exit_code == 1
    assert "Pod ops/exporter uses the network of its node: no policy selects it" in alone.output


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["shop/nobody"], 1, "Error: there is no Pod shop/nobody"),
        (["web"], 2, "POD: 'web' is not of the form NAMESPACE/NAME"),
        (["shop/web-0", "shop/web-0"], 2, "give POD, or FROM TO PORT"),
        (["shop/web-0", "--protocol", "UDP"], 2, "--protocol goes with FROM TO PORT"),
        (["shop/web-0", "nowhere", "80"], 1, "nowhere: neither NAMESPACE/NAME of a pod, nor an IP"),
        (["svc/shop/web", "shop/web-0", "80"], 1, "a Service opens no connections"),
        (
            ["n1", "svc/shop/web", "81"],
            1,
            "PORT 81: Service shop/web has no such port; it has 80/T",
        ),
        (["n1", "svc/shop/no", "81"], 1, "there is no Service shop/no with an address"),
        (
            ["n1", "10.96.0.10", "80"],
            1,
            "10.96.0.10 is in the Service range: ask about the Service",
        ),
        (["n1", "shop/web-0", "0"], 1, "PORT 0: not from 1 to 65535"),
        (
            ["n1", "shop/web-0", "https"],
            1,
            "PORT https: shop/web-0 has no port of this name for TC",
        ),
        (
            ["n1", "shop/web-0", "80", "--protocol", "ICMP"],
            1,
            "PORT 80: this protocol has no ports",
        ),
    ],
)
def test_mistakes_get_one_sentence(
    cluster: Path, words: list[str], code: int, sentence: str
) -> None:
    done = sluice(cluster, *words)
    assert done.exit_code == code
    assert sentence in done.output


def test_pods_without_nodes_get_invented_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("""
apiVersion: v1
kind: Pod
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {nodeName: elsewhere}
status: {podIP: 10.1.2.3}
""")
    done = CliRunner().invoke(
        main, ["policy", "default/a", "default/b", "80", "--cluster", str(tmp_path)]
    )
    assert done.stdout.startswith("accepted  TCP from pod default/a (10.244.0.2) to pod default/b")
    assert done.stderr == (
        "assumed: 1 more node, because none is given\n"
        "assumed: another address for 1 pod: status.podIP is not in spec.podCIDR of its Node, so"
        " ipBlocks do not match its real one\n"
    )


def test_unreadable_objects_are_named_and_the_rest_is_judged(cluster: Path) -> None:
    (cluster / "bad.yaml").write_text("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad, namespace: shop}
spec: {podSelector: {matchLabels: [1]}}
""")
    done = sluice(cluster, "shop/web-0")
    assert done.exit_code == 0
    assert (
        "ignored: bad.yaml: NetworkPolicy bad: Expected `object | null`, got `array`" in done.output
    )
    assert "Pod shop/web-0  of StatefulSet shop/web" in done.output


def test_json_and_yaml_of_kubectl_are_read(cluster: Path, tmp_path: Path) -> None:
    items = list(documents(MANIFESTS))
    dump = tmp_path / "dump"
    dump.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    assert sluice(dump, "shop/web-0").output == sluice(cluster, "shop/web-0").output
