"""The endpoints of a Service port that get new connections, by the rules of kube-proxy.

The rules are those of `CategorizeEndpoints` in k8s.io/kubernetes, pkg/proxy/topology.go. Ready
endpoints get connections; if there are none, endpoints that are terminating and still serve. Hints
count only if every ready endpoint has one, and only for a zone, or node, that one of them names.
"""

from collections.abc import Callable, Iterable
from typing import Final

from flows.flow import MOST_BUCKETS
from flows.view import Endpoint, ServicePort

Endpoints = tuple[Endpoint, ...]

MAX_PARTS: Final = 256
"""The most groups that one choice is divided into: 128,000 endpoints. More get no connections."""


def everywhere(port: ServicePort) -> Endpoints:
    """The endpoints for a node without a policy Local and without hints."""
    return _ready_or_serving(port.endpoints)


def local(port: ServicePort, node: str) -> Endpoints:
    """The endpoints on this node, for the policy Local."""
    return _ready_or_serving(e for e in port.endpoints if e.node == node)


def zones(port: ServicePort) -> dict[str, Endpoints]:
    """By zone, the endpoints hinted for it."""
    return _hinted(port, lambda endpoint: endpoint.zones)


def hinted(port: ServicePort, node: str) -> Endpoints:
    """The endpoints hinted for this node; empty: its zone decides."""
    return _hinted(port, lambda endpoint: endpoint.nodes).get(node, ())


def parts(port: ServicePort) -> int:
    """The number of groups that each choice of this port is divided into; 0: one group holds all.

    It is a power of two, so that one more endpoint rarely changes it. Up to `MAX_PARTS`, a part has
    about 250 endpoints and fewer than 400, well below `MOST_BUCKETS`.
    """
    if len(port.endpoints) <= MOST_BUCKETS:
        return 0
    return min(MAX_PARTS, 1 << (2 * len(port.endpoints) // MOST_BUCKETS - 1).bit_length())


def chosen(port: ServicePort, node: str, zone: str, *, is_local: bool) -> Endpoints:
    """The endpoints for a node in this zone (empty: none); `is_local`: with the policy Local."""
    if is_local:
        return local(port, node)
    zoned = zones(port).get(zone, ()) if zone else ()
    return hinted(port, node) or zoned or everywhere(port)


def _ready_or_serving(endpoints: Iterable[Endpoint]) -> Endpoints:
    found = tuple(endpoints)
    return tuple(e for e in found if e.ready) or found


def _hinted(port: ServicePort, hints: Callable[[Endpoint], Iterable[str]]) -> dict[str, Endpoints]:
    ready = [endpoint for endpoint in port.endpoints if endpoint.ready]
    found: dict[str, list[Endpoint]] = {}
    for endpoint in ready:
        if not hints(endpoint):
            return {}
        for name in hints(endpoint):
            found.setdefault(name, []).append(endpoint)
    return {name: tuple(endpoints) for name, endpoints in sorted(found.items())}
