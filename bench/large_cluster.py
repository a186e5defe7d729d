"""A cluster of any size as an API server would tell it: each object follows from its number.

A Pod has 4.6 KB with all that people, kubelet and API server write into it. Endpoint K of Service N
is a pod, so that pods that come and go change EndpointSlices as they do in a cluster.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address
from typing import Any, Final

from bench.controller import CLUSTER, Manifest, node, node_manifest, pod
from flows.view import Attachment, Node

NODES: Final = "/api/v1/nodes"
PODS: Final = "/api/v1/pods"
SERVICES: Final = "/api/v1/services"
SLICES: Final = "/apis/discovery.k8s.io/v1/endpointslices"
EMPTY: Final = ("/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies")
PORT: Final = 80
TARGET_PORT: Final = 8080
_FIRST_ADDRESS: Final = 256


class LargeCluster:
    """Its size, and its objects in JSON."""

    def __init__(self, nodes: int, pods: int, services: int, endpoints: int) -> None:
        """`pods` are of one node, `endpoints` of one Service."""
        self.nodes, self.pods = nodes, pods
        self.services, self.endpoints = services, endpoints
        self.objects: Mapping[str, Callable[[], Iterator[bytes]]] = {
            NODES: self._nodes,
            PODS: self._pods,
            SERVICES: self._services,
            SLICES: self._slices,
            **{path: lambda: iter(()) for path in EMPTY},
        }
        """By path of the API."""

    def node(self, number: int) -> Node:
        """From 1."""
        return _node(number)

    def pod(self, number: int, of: int) -> tuple[Attachment, Manifest]:
        """Pod `number` of node `of`, both from 1: what it is attached as, and its manifest."""
        return pod(_node(of), number)

    def endpoint(self, service: int, index: int) -> tuple[Node, IPv4Address]:
        """Where an endpoint of a Service is: both are numbers from 0."""
        number = service * self.endpoints + index
        # Neighbours in number are on different nodes, as a scheduler would have them.
        on = _node(1 + number % self.nodes)
        return on, IPv4Address(int(on.gateway) + 1 + number // self.nodes % self.pods)

    def service_of(self, number: int, of: int) -> tuple[int, int] | None:
        """Of which Service a pod is an endpoint, and its index there; None: of none."""
        endpoint = (number - 1) * self.nodes + (of - 1)
        if endpoint >= self.services * self.endpoints:
            return None
        return divmod(endpoint, self.endpoints)

    def service_manifest(self, number: int) -> Manifest:
        """Service `number`, from 0."""
        address = str(IPv4Address(int(CLUSTER.service_range[_FIRST_ADDRESS + number])))
        return {
            "metadata": _metadata(f"service-{number}", f"uid-service-{number}"),
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address,
                "clusterIPs": [address],
                "ipFamilies": ["IPv4"],
                "selector": {"app": f"service-{number}"},
                "ports": [{"name": "", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
            },
            "status": {"loadBalancer": {}},
        }

    def slice_manifest(self, number: int, without: Collection[int] = ()) -> Manifest:
        """The EndpointSlice of Service `number`, without the endpoints of these indexes."""
        chosen = [self.endpoint(number, i) for i in range(self.endpoints) if i not in without]
        metadata = _metadata(f"service-{number}-x1", f"uid-slice-{number}")
        metadata["labels"] = {"kubernetes.io/service-name": f"service-{number}"}
        return {
            "metadata": metadata,
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": "TCP", "port": TARGET_PORT}],
            "endpoints": [
                {
                    "addresses": [str(address)],
                    "nodeName": on.name,
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": str(address)},
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                }
                for on, address in chosen
            ],
        }

    def _nodes(self) -> Iterator[bytes]:
        for number in range(1, self.nodes + 1):
            yield json.dumps(node_manifest(_node(number))).encode()

    def _pods(self) -> Iterator[bytes]:
        for of in range(1, self.nodes + 1):
            on = _node(of)
            for number in range(1, self.pods + 1):
                name = f"pod-{on.name}-{number}"
                yield _POD % {
                    b"name": name.encode(),
                    b"uid": f"uid-{on.name}-{number}".encode(),
                    b"node": on.name.encode(),
                    b"number": str(number).encode(),
                    b"host": str(on.address).encode(),
                    b"address": str(on.gateway + number).encode(),
                }

    def _services(self) -> Iterator[bytes]:
        for number in range(self.services):
            yield json.dumps(self.service_manifest(number)).encode()

    def _slices(self) -> Iterator[bytes]:
        for number in range(self.services):
            yield json.dumps(self.slice_manifest(number)).encode()


_node = cache(node)


def _metadata(name: str, uid: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "default",
        "uid": uid,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }


def _pod() -> bytes:
    """A Pod as it comes from an API server, with room for names and addresses."""
    condition = {"lastProbeTime": None, "lastTransitionTime": "2026-01-01T00:00:05Z"}
    mount = {"name": "kube-api-access-x7h2p", "readOnly": True,
             "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}  # fmt: skip
    entry: dict[str, Any] = {".": {}, "f:name": {}, "f:value": {}}
    managed = {f'k:{{"name":"variable-{number}"}}': entry for number in range(12)}
    content = {
        "metadata": {
            "name": "%(name)s",
            "generateName": "deployment-7c5ddbdf54-",
            "namespace": "default",
            "uid": "%(uid)s",
            "resourceVersion": "100000",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "app-%(number)s"},
            "annotations": {"checksum/config": "3f" * 32},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": True,
                "name": "deployment-%(number)s-7c5ddbdf54", "blockOwnerDeletion": True,
                "uid": "5d6c3a0e-3e3b-4f3c-9b7e-0d3b4a5c6d7e",
            }],
            "managedFields": [
                {"manager": each, "operation": "Update", "apiVersion": "v1",
                 "time": "2026-01-01T00:00:05Z", "fieldsType": "FieldsV1",
                 "fieldsV1": {"f:spec": {"f:containers": {"f:env": managed}}}}
                for each in ("kube-controller-manager", "kubelet")
            ],
        },
        "spec": {
            "nodeName": "%(node)s",
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "volumes": [{"name": mount["name"], "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt",
                               "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "containers": [{
                "name": "main",
                "image": "registry.example/application/main:1.24.3",
                "ports": [{"containerPort": TARGET_PORT, "protocol": "TCP"}],
                "env": [{"name": f"variable-{i}", "value": f"value-{i}"} for i in range(12)],
                "resources": {"limits": {"cpu": "500m", "memory": "256Mi"},
                              "requests": {"cpu": "100m", "memory": "128Mi"}},
                "volumeMounts": [mount],
                "imagePullPolicy": "IfNotPresent",
            }],
            "tolerations": [{"key": f"node.kubernetes.io/{each}", "operator": "Exists",
                             "effect": "NoExecute", "tolerationSeconds": 300}
                            for each in ("not-ready", "unreachable")],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": each, "status": "True", **condition} for each in (
                "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady",
                "PodScheduled")],
            "hostIP": "%(host)s",
            "podIP": "%(address)s",
            "podIPs": [{"ip": "%(address)s"}],
            "startTime": "2026-01-01T00:00:01Z",
            "containerStatuses": [{
                "name": "main", "ready": True, "restartCount": 0, "started": True,
                "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}, "lastState": {},
                "image": "registry.example/application/main:1.24.3",
                "imageID": "registry.example/application/main@sha256:" + "4b" * 32,
                "containerID": "containerd://" + "7e" * 32,
            }],
            "qosClass": "Burstable",
        },
    }  # fmt: skip
    return json.dumps(content, separators=(",", ":")).encode()


_POD: Final = _pod()
