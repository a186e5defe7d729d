"""A cluster of a few objects of every kind that causes flows."""

from pathlib import Path

from controller.inventory import Inventory
from controller.offline.from_manifests import from_manifests
from controller.offline.manifests import Manifests
from tests.cli.test_policy import MANIFESTS

MORE = """
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: api}]}
status: {podIP: 10.244.1.8}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  clusterIP: 10.96.0.11
  type: NodePort
  sessionAffinity: ClientIP
  externalTrafficPolicy: Local
  externalIPs: [203.0.113.5]
  ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, protocol: UDP, nodePort: 30081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: a, port: 8080}, {name: b, port: 8081, protocol: UDP}]
endpoints: [{addresses: [10.244.1.8], nodeName: n1}, {addresses: [10.244.2.9], nodeName: n2}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: ops}
spec: {podSelector: {}}
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: no-metrics}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - name: metrics
    action: Deny
    from: [{namespaces: {matchLabels: {team: ops}}}]
    protocols: [{tcp: {destinationPort: {number: 9090}}}]
"""


def explained_cluster(folder: Path) -> Inventory:
    """The inventory of these manifests, which are written to a folder."""
    (folder / "cluster.yaml").write_text(MANIFESTS + MORE)
    given = Manifests()
    given.read(folder)
    made = from_manifests(given).inventory
    assert not given.problems
    return made
