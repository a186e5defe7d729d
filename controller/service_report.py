"""Reports about Services, for people.

They are made from the view, with the same code (`flows.topology`) that makes the flows.
"""

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import msgspec

from controller.inventory import Inventory
from controller.problems import Subject
from controller.service_fields import PROTOCOL_NAMES
from controller.slice_drafts import service_of
from controller.sources.objects import ServiceObject
from flows import topology
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import ClusterView, Endpoint, Frontend, ServicePort


def listed(inventory: Inventory) -> Generator[None, None, list[msgspec.Raw]]:
    """A short report of every Service, encoded, sorted by namespace and name."""
    services = inventory.services
    by_service: dict[str, dict[str, str]] = {}
    for problem in inventory.problems:
        if name := _concerned(inventory, problem.subject):
            by_service.setdefault(name, {})[problem.title] = problem.text
    yield
    rows = []
    for name in sorted({*services.names, *services.ignored}, key=lambda n: n.split("/")):
        yield
        if name not in services.names and name not in services.ignored:
            continue  # it has gone meanwhile
        row = _in_short(inventory, name, by_service.get(name, {}))
        rows.append(msgspec.Raw(msgspec.json.encode(row)))
    return rows


def detailed(
    inventory: Inventory, name: str, node: str | None = None
) -> Generator[None, None, dict[str, Any] | None]:
    """One Service with its endpoints, and which of them each node chooses, for all nodes or one.

    The rows of a port are encoded. None if there is no such Service. Raises `KeyError` for a node
    that the view does not hold.
    """
    services = inventory.services
    if name not in services.names and name not in services.ignored:
        return None
    view = inventory.view
    own = {p.title: p.text for p in inventory.problems if _concerned(inventory, p.subject) == name}
    zones = {each.name: each.zone for each in view.nodes.values()}
    if node is not None:
        zones = {node: zones[node]}
    report = _in_short(inventory, name, own)
    service = view.services.get(name)
    for port, row in zip(service.ports if service else (), report["ports"], strict=True):
        row["endpoints"] = []
        for endpoint in port.endpoints:
            yield
            encoded = msgspec.json.encode(_endpoint(view, endpoint))
            row["endpoints"].append(msgspec.Raw(encoded))
        row["choices"] = []
        for to, whence, is_local in _ways(port):
            row["choices"] += yield from _choices(port, to, whence, zones, is_local=is_local)
    return report


def _concerned(inventory: Inventory, subject: Subject) -> str:
    """Which Service a problem is about; empty: none."""
    match subject:
        case ObjectRef("Service", namespace, name):
            return f"{namespace}/{name}"
        case ObjectRef("EndpointSlice", namespace, name):
            found = inventory.services.endpoint_slice(f"{namespace}/{name}")
            return service_of(found) if found else ""
    return ""


def _in_short(inventory: Inventory, name: str, problems: Mapping[str, str]) -> dict[str, Any]:
    services = inventory.services
    given, made = services.service(name), services.view.get(name)
    namespace, _, rest = name.partition("/")
    ports = made.ports if made else ()
    return {
        "namespace": namespace,
        "name": rest,
        "type": given.spec.type if given else "",
        "nothingToDo": services.ignored.get(name, ""),
        "internalTrafficPolicy": _policy(port.internal_local for port in ports),
        "externalTrafficPolicy": _policy(port.external_local for port in ports),
        "affinitySeconds": next((port.affinity for port in ports), None),
        "ports": [
            {
                "name": port.name,
                "protocol": PROTOCOL_NAMES[port.protocol],
                "frontends": [_frontend(given, each) for each in port.frontends],
                "ready": sum(endpoint.ready for endpoint in port.endpoints),
                "terminating": sum(not endpoint.ready for endpoint in port.endpoints),
            }
            for port in ports
        ],
        "problems": problems,
    }


def _policy(local: Iterable[bool]) -> str:
    return "Local" if any(local) else "Cluster"


def _frontend(given: ServiceObject | None, frontend: Frontend) -> dict[str, Any]:
    balancers = given.status.load_balancer.ingress if given else None
    if frontend.address is None:
        kind = "NodePort"
    elif not frontend.external:
        kind = "ClusterIP"
    elif str(frontend.address) in {each.ip for each in balancers or ()}:
        kind = "LoadBalancer"
    else:
        kind = "ExternalIP"
    return {
        "kind": kind,
        "address": _text(frontend.address),
        "port": frontend.port,
        "sources": None if frontend.sources is None else [str(each) for each in frontend.sources],
    }


def _text(address: IPAddress | None) -> str | None:
    return None if address is None else str(address)


def _endpoint(view: ClusterView, endpoint: Endpoint) -> dict[str, Any]:
    node = view.nodes.get(endpoint.node)
    return {
        "address": str(endpoint.address),
        "port": endpoint.port,
        "state": "ready" if endpoint.ready else "terminating",
        "node": endpoint.node,
        "zone": node.zone if node else "",
        "hintZones": endpoint.zones,
        "hintNodes": endpoint.nodes,
    }


def _ways(port: ServicePort) -> Iterable[tuple[str, str, bool]]:
    """The kinds of frontends of a port, where clients are, and whether the policy is Local."""
    if any(not frontend.external for frontend in port.frontends):
        yield "ClusterIP", "anywhere", port.internal_local
    if any(frontend.external for frontend in port.frontends):
        if port.external_local:
            yield "external", "outside", True
            yield "external", "pods and nodes", False
        else:
            yield "external", "anywhere", False


def _choices(
    port: ServicePort, to: str, whence: str, zones: Mapping[str, str], *, is_local: bool
) -> Generator[None, None, list[msgspec.Raw]]:
    """The endpoints that nodes choose from, in one row for all nodes with the same choice."""
    own = port.nodes_with_a_choice()
    alike: dict[str, topology.Endpoints] = {}
    """By zone, the choice of the nodes without a choice of their own."""
    found: dict[topology.Endpoints, list[str]] = {}
    for node, zone in sorted(zones.items()):
        yield
        if node in own:
            endpoints = topology.chosen(port, node, zone, is_local=is_local)
        else:
            if zone not in alike:
                alike[zone] = topology.chosen(port, node, zone, is_local=is_local)
            endpoints = alike[zone]
        found.setdefault(endpoints, []).append(node)
    rows = []
    for endpoints, nodes in found.items():
        yield
        row = {
            "to": to,
            "from": whence,
            "nodes": nodes,
            "endpoints": [f"{each.address}:{each.port}" for each in endpoints],
            # Refused: there is no endpoint at all. Dropped: other nodes may have one.
            "otherwise": "" if endpoints else "dropped" if port.endpoints else "refused",
        }
        rows.append(msgspec.Raw(msgspec.json.encode(row)))
    return rows
