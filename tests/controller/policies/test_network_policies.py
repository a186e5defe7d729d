"""NetworkPolicy: what pods go through, for each form of the API."""

import pytest

from flows.policy import Direction
from tests.controller.policies.clusters import PolicyCluster

FROM, TO = Direction.FROM_POD, Direction.TO_POD


@pytest.fixture
def cluster() -> PolicyCluster:
    made = PolicyCluster()
    made.namespace("shop", team="red")
    made.namespace("ops", team="blue")
    made.pod("shop/web", "10.244.1.5", {"app": "web"})
    made.pod("shop/db", "10.244.2.5", {"app": "db"})
    made.pod("ops/mon", "10.244.2.6", {"app": "mon"})
    return made


def policy(spec: str, name: str = "p", namespace: str = "shop") -> str:
    head = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
"""
    return head + "\n".join("  " + line for line in spec.strip().splitlines())


def test_pod_without_policies_is_not_isolated(cluster: PolicyCluster) -> None:
    assert cluster.rules("shop/web", FROM) is None
    assert cluster.rules("shop/web", TO) is None


def test_policy_without_rules_isolates(cluster: PolicyCluster) -> None:
    cluster.apply(policy("podSelector: {matchLabels: {app: db}}"))
    assert cluster.rules("shop/db", TO) == []
    assert cluster.walks("shop/db", TO).isolated  # type: ignore[union-attr]
    assert cluster.rules("shop/db", FROM) is None
    assert cluster.rules("shop/web", TO) is None
    cluster.delete("NetworkPolicy", "shop", "p")
    assert cluster.rules("shop/db", TO) is None


@pytest.mark.parametrize(
    ("peers", "members"),
    [
        ("[{podSelector: {matchLabels: {app: web}}}]", "10.244.1.5"),
        ("[{podSelector: {}}]", "10.244.1.5,10.244.2.5"),
        ("[{namespaceSelector: {matchLabels: {team: blue}}}]", "10.244.2.6"),
        ("[{namespaceSelector: {}}]", "pods"),
        ("[{namespaceSelector: {}, podSelector: {}}]", "pods"),
        ("[{namespaceSelector: {}, podSelector: {matchLabels: {app: mon}}}]", "10.244.2.6"),
        (
            "[{namespaceSelector: {matchLabels: {team: red}},"
            " podSelector: {matchLabels: {app: mon}}}]",
            "nobody",
        ),
        ("[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]", "10.244.2.6"),
        (
            "[{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}]",
            "10.244.2.5",
        ),
        (
            "[{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, x]}]}}]",
            "10.244.1.5",
        ),
        (
            "[{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]",
            "10.244.1.5,10.244.2.5",
        ),
        ("[{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]", "nobody"),
        (
            "[{podSelector: {matchLabels: {app: web}}},"
            " {namespaceSelector: {matchLabels: {team: blue}}}]",
            "10.244.1.5,10.244.2.6",
        ),
        ("[]", "everybody"),
        ("null", "everybody"),
        (
            "[{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]",
            "192.0.2.0/24,!192.0.2.128/25",
        ),
        ("[{ipBlock: {cidr: 172.30.1.2/32}}]", "10.244.2.1,172.30.1.2/32"),
        ("[{ipBlock: {cidr: 0.0.0.0/0}}]", "0.0.0.0/0"),
    ],
)
def test_peers(cluster: PolicyCluster, peers: str, members: str) -> None:
    cluster.apply(
        policy(f"""
podSelector: {{matchLabels: {{app: db}}}}
policyTypes: [Ingress, Egress]
ingress: [{{from: {peers}}}]
egress: [{{to: {peers}}}]
""")
    )
    assert cluster.rules("shop/db", TO) == [f"ACCEPT {members} all"]
    assert cluster.rules("shop/db", FROM) == [f"ACCEPT {members} all"]
    assert cluster.problems() == {}


def test_label_change_moves_a_pod(cluster: PolicyCluster) -> None:
    cluster.apply(
        policy("""
podSelector: {matchLabels: {app: db}}
ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
""")
    )
    cluster.pod("shop/web", "10.244.1.5", {"app": "other"})
    assert cluster.rules("shop/db", TO) == ["ACCEPT nobody all"]
    cluster.pod("shop/web", "10.244.1.5", {"app": "db"})
    assert cluster.rules("shop/web", TO) == ["ACCEPT nobody all"]
    cluster.namespace("shop", team="green")
    cluster.unplug("shop/web")
    assert list(cluster.inventory.view.isolations) == ["node2"]


def test_namespace_label_change_moves_its_pods(cluster: PolicyCluster) -> None:
    cluster.apply(
        policy("""
podSelector: {matchLabels: {app: db}}
ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]
""")
    )
    assert cluster.rules("shop/db", TO) == ["ACCEPT 10.244.2.6 all"]
    cluster.namespace("shop", team="blue")
    cluster.namespace("ops", team="red")
    assert cluster.rules("shop/db", TO) == ["ACCEPT 10.244.1.5,10.244.2.5 all"]
