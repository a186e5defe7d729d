"""Which nodes can serve an address of Services. Pure functions of the view and the Node objects.

Whether a node is up at the moment is not looked at here: that changes more often.
"""

from collections.abc import Iterable, Mapping

from controller.address_owners.standing import EXCLUDED_LABEL
from controller.policies.selectors import EVERYTHING, Selector, matches
from controller.sources.objects import NodeObject
from flows.view import Service, ServicePort


def selected_nodes(
    accepted: Iterable[str], objects: Mapping[str, NodeObject], selector: Selector = EVERYTHING
) -> frozenset[str]:
    """The accepted Nodes that a selector matches.

    Those with the label `EXCLUDED_LABEL` only if there is no other: kubeadm gives that label to
    Nodes of the control plane, and a cluster may have no other Node.
    """
    found = {
        name: labels
        for name in accepted
        if matches(selector, labels := objects[name].metadata.labels or {})
    }
    return frozenset(
        name for name, labels in found.items() if EXCLUDED_LABEL not in labels
    ) or frozenset(found)


def serving_nodes(
    services: Iterable[Service | None], nodes: frozenset[str], *, external: bool = True
) -> frozenset[str]:
    """Those of the nodes that can serve an address of all of these Services; None: it is refused.

    `external`: the traffic policy of external addresses applies, as load balancer addresses have
    it; otherwise that of a ClusterIP. With the policy Cluster all nodes serve, also while there is
    no endpoint: then clients are refused at once instead of waiting. With the policy Local those
    do that have an endpoint; one that terminates counts only while none is ready on any node.
    """
    found: set[str] = set()
    for service in services:
        if service is None:
            continue
        ports = [port for port in service.ports if _has_frontend(port, external=external)]
        if any(not _is_local(port, external=external) for port in ports):
            return nodes
        endpoints = [endpoint for port in ports for endpoint in port.endpoints]
        ready = {endpoint.node for endpoint in endpoints if endpoint.ready}
        found |= nodes & (ready or {endpoint.node for endpoint in endpoints})
    return frozenset(found)


def _has_frontend(port: ServicePort, *, external: bool) -> bool:
    return any(
        frontend.external is external and frontend.address is not None
        for frontend in port.frontends
    )


def _is_local(port: ServicePort, *, external: bool) -> bool:
    return port.external_local if external else port.internal_local
