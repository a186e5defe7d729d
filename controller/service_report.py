"""Reports about Services, for people.

They are made from the view, with the same code (`flows.topology`) that makes the flows.
"""

from collections.abc import Generator, Iterable, Mapping

from controller.inventory import Inventory
from controller.load_balancers.report import of_service
from controller.problems import Subject
from controller.reports.services import (
    ChoiceRow,
    EndpointRow,
    FrontendRow,
    PortDetail,
    PortRow,
    ServiceDetail,
    ServiceList,
    ServiceRow,
)
from controller.service_fields import PROTOCOL_NAMES
from controller.slice_drafts import service_of
from controller.sources.objects import ServiceObject
from flows import topology
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import ClusterView, Endpoint, Frontend, ServicePort


def listed(inventory: Inventory) -> Generator[None, None, ServiceList]:
    """A short report of every Service, sorted by namespace and name."""
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
        rows.append(_in_short(inventory, name, by_service.get(name, {})))
    return ServiceList(services=tuple(rows))


def detailed(
    inventory: Inventory, name: str, node: str | None = None
) -> Generator[None, None, ServiceDetail | None]:
    """One Service with its endpoints, and which of them each node chooses, for all nodes or one.

    None if there is no such Service. Raises `KeyError` for a node that the view does not hold.
    """
    services = inventory.services
    if name not in services.names and name not in services.ignored:
        return None
    view = inventory.view
    own = {p.title: p.text for p in inventory.problems if _concerned(inventory, p.subject) == name}
    zones = {each.name: each.zone for each in view.nodes.values()}
    if node is not None:
        zones = {node: zones[node]}
    in_short = _in_short(inventory, name, own)
    service = view.services.get(name)
    ports = []
    for port, row in zip(service.ports if service else (), in_short.ports, strict=True):
        endpoints = []
        for endpoint in port.endpoints:
            yield
            endpoints.append(_endpoint(view, endpoint))
        choices: list[ChoiceRow] = []
        for to, whence, is_local in _ways(port):
            choices += yield from _choices(port, to, whence, zones, is_local=is_local)
        ports.append(
            PortDetail(
                row.name, row.protocol, row.frontends, row.ready, row.terminating,
                tuple(endpoints), tuple(choices),
            )
        )  # fmt: skip
    return ServiceDetail(
        namespace=in_short.namespace,
        name=in_short.name,
        type=in_short.type,
        nothing_to_do=in_short.nothing_to_do,
        internal_traffic_policy=in_short.internal_traffic_policy,
        external_traffic_policy=in_short.external_traffic_policy,
        affinity_seconds=in_short.affinity_seconds,
        ports=tuple(ports),
        problems=in_short.problems,
        balancer=in_short.balancer,
    )


def _concerned(inventory: Inventory, subject: Subject) -> str:
    """Which Service a problem is about; empty: none."""
    match subject:
        case ObjectRef("Service", namespace, name):
            return f"{namespace}/{name}"
        case ObjectRef("EndpointSlice", namespace, name):
            found = inventory.services.endpoint_slice(f"{namespace}/{name}")
            return service_of(found) if found else ""
    return ""


def _in_short(inventory: Inventory, name: str, problems: dict[str, str]) -> ServiceRow:
    services = inventory.services
    given, made = services.service(name), services.view.get(name)
    namespace, _, rest = name.partition("/")
    ports = made.ports if made else ()
    return ServiceRow(
        namespace=namespace,
        name=rest,
        type=given.spec.type if given else "",
        nothing_to_do=services.ignored.get(name, ""),
        internal_traffic_policy=_policy(port.internal_local for port in ports),
        external_traffic_policy=_policy(port.external_local for port in ports),
        affinity_seconds=next((port.affinity for port in ports), None),
        ports=tuple(
            PortRow(
                name=port.name,
                protocol=PROTOCOL_NAMES[port.protocol],
                frontends=tuple(_frontend(given, each) for each in port.frontends),
                ready=sum(endpoint.ready for endpoint in port.endpoints),
                terminating=sum(not endpoint.ready for endpoint in port.endpoints),
            )
            for port in ports
        ),
        problems=problems,
        balancer=of_service(inventory, name),
    )


def _policy(local: Iterable[bool]) -> str:
    return "Local" if any(local) else "Cluster"


def _frontend(given: ServiceObject | None, frontend: Frontend) -> FrontendRow:
    balancers = given.status.load_balancer.ingress if given else None
    if frontend.address is None:
        kind = "NodePort"
    elif not frontend.external:
        kind = "ClusterIP"
    elif str(frontend.address) in {each.ip for each in balancers or ()}:
        kind = "LoadBalancer"
    else:
        kind = "ExternalIP"
    sources = None if frontend.sources is None else tuple(map(str, frontend.sources))
    return FrontendRow(kind, _text(frontend.address), frontend.port, sources)


def _text(address: IPAddress | None) -> str | None:
    return None if address is None else str(address)


def _endpoint(view: ClusterView, endpoint: Endpoint) -> EndpointRow:
    node = view.nodes.get(endpoint.node)
    return EndpointRow(
        address=str(endpoint.address),
        port=endpoint.port,
        state="ready" if endpoint.ready else "terminating",
        node=endpoint.node,
        zone=node.zone if node else "",
        hint_zones=endpoint.zones,
        hint_nodes=endpoint.nodes,
    )


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
) -> Generator[None, None, list[ChoiceRow]]:
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
        rows.append(
            ChoiceRow(
                to=to,
                whence=whence,
                nodes=tuple(nodes),
                endpoints=tuple(f"{each.address}:{each.port}" for each in endpoints),
                # Refused: there is no endpoint at all. Dropped: other nodes may have one.
                otherwise="" if endpoints else "dropped" if port.endpoints else "refused",
            )
        )
    return rows
