"""Which endpoints of a Service port get new connections: kube-proxy's rules.

After `CategorizeEndpoints` in k8s.io/kubernetes, pkg/proxy/topology.go: those that are ready; where
there is none, those that are terminating and still serve. Hints count only where every ready
endpoint has one, and only for a zone, or node, that one of them names.
"""

from collections.abc import Callable, Iterable
from typing import Final

from flows.flow import MOST_BUCKETS
from flows.view import Endpoint, ServicePort

Endpoints = tuple[Endpoint, ...]

MAX_PARTS: Final = 256
"""Groups that one choice is divided into: 128,000 endpoints. Further ones get no connections."""


def everywhere(port: ServicePort) -> Endpoints:
    """From any node, where no policy or hint says otherwise."""
    return _ready_or_serving(port.endpoints)


def local(port: ServicePort, node: str) -> Endpoints:
    """Where the policy is Local: those on this node, or none."""
    return _ready_or_serving(e for e in port.endpoints if e.node == node)


def zones(port: ServicePort) -> dict[str, Endpoints]:
    """By zone, what its nodes choose from, where hints make that fewer."""
    return _hinted(port, lambda endpoint: endpoint.zones)


def hinted(port: ServicePort, node: str) -> Endpoints:
    """Those that hints mean for this node; empty: it chooses as its zone does."""
    return _hinted(port, lambda endpoint: endpoint.nodes).get(node, ())


def parts(port: ServicePort) -> int:
    """Into how many groups each choice of this port is divided; 0: one holds all.

    A power of two, so that one endpoint more rarely changes it; a part has some 250 endpoints, and
    none comes near to what a group can hold, up to `MAX_PARTS`.
    """
    if len(port.endpoints) <= MOST_BUCKETS:
        return 0
    return min(MAX_PARTS, 1 << (2 * len(port.endpoints) // MOST_BUCKETS - 1).bit_length())


def chosen(port: ServicePort, node: str, zone: str, *, is_local: bool) -> Endpoints:
    """What this node in this zone (empty: none) chooses from; `is_local`: by a policy that is."""
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
