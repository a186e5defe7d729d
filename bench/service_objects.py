"""Services as they are typical, and their EndpointSlices, as manifests: one port, TCP, by number.

Each is at an address of its own. Endpoints are shared out over the nodes and need no pods: to
whoever makes flows of them an address is an address.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Any

from bench.controller import Manifest
from lab.layout import SERVICE_RANGE, NodeLayout

ENDPOINTS = 10
"""Of a Service, where nothing else is said."""
PORT = 80
_FIRST_TARGET_PORT = 8080
NAMESPACE = "default"
_FIRST_ADDRESS = 256
"""The addresses below are left to those of the cluster itself (`kubernetes`, DNS)."""


def name(number: int) -> str:
    """Of a Service, and of its slice."""
    return f"service-{number}"


def cluster_ip(number: int) -> IPv4Address:
    """The address of the Service with this number, from 0."""
    return SERVICE_RANGE[_FIRST_ADDRESS + number]


_ADDRESSES = 250
"""Of one node that are endpoints."""


def target_port(number: int) -> int:
    """The port of a Service's endpoints: no two Services have one in common, whatever shares it."""
    return _FIRST_TARGET_PORT + number // _ADDRESSES


def endpoint(nodes: Sequence[NodeLayout], number: int, index: int) -> tuple[NodeLayout, str]:
    """The node and the address of one endpoint of a Service; they differ for up to 500."""
    at = nodes[index % len(nodes)]
    return at, str(at.pod_cidr[2 + (number + index // len(nodes)) % _ADDRESSES])


def service(number: int, port: int = PORT, **spec: Any) -> Manifest:
    """The Service; `spec` adds to its fields."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(number), "namespace": NAMESPACE, "uid": f"uid-{number}"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": str(cluster_ip(number)),
            "clusterIPs": [str(cluster_ip(number))],
            "selector": {"app": name(number)},
            "ports": [{"name": "", "protocol": "TCP", "port": port, "targetPort": port}],
            **spec,
        },
    }


def endpoint_slice(number: int, endpoints: Iterable[tuple[NodeLayout, str]], port: int) -> Manifest:
    """The only slice of that Service, with these endpoints."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name(number),
            "namespace": NAMESPACE,
            "uid": f"uid-slice-{number}",
            "labels": {"kubernetes.io/service-name": name(number)},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": port}],
        "endpoints": [
            {
                "addresses": [address],
                "nodeName": node.name,
                "conditions": {"ready": True, "serving": True, "terminating": False},
            }
            for node, address in endpoints
        ],
    }


def slice_of(nodes: Sequence[NodeLayout], number: int, endpoints: int = ENDPOINTS) -> Manifest:
    """The slice with so many endpoints."""
    chosen = [endpoint(nodes, number, index) for index in range(endpoints)]
    return endpoint_slice(number, chosen, target_port(number))


def both(nodes: Sequence[NodeLayout], number: int, endpoints: int = ENDPOINTS) -> list[Manifest]:
    """A Service and its slice."""
    return [service(number), slice_of(nodes, number, endpoints)]
