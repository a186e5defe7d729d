"""What a change of a Service affects: keys of the view, groups, nodes with their own choice."""

from controller.slice_drafts import PortEndpoints
from flows import topology
from flows.kinds import port_key
from flows.view import CLUSTER_SCOPE, Endpoint, Key, Service, ServicePort


def changed_keys(name: str, old: Service | None, new: Service | None) -> set[Key]:
    """The shared keys of a Service that changed: those of its ports, and its own."""
    before = {port_key(port): port for port in (old.ports if old else ())}
    after = {port_key(port): port for port in (new.ports if new else ())}
    touched = {
        Key(CLUSTER_SCOPE, "service-port", f"{name} {key}")
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }
    if _without_endpoints(old) != _without_endpoints(new):
        touched.add(Key(CLUSTER_SCOPE, "service", name))
    return touched


def _without_endpoints(service: Service | None) -> object:
    """The parts of a Service that do not depend on its endpoints."""
    return service and (service.shared_addresses, [_front(port) for port in service.ports])


def _front(port: ServicePort) -> tuple[object, ...]:
    groups = port.groups["cluster"], port.groups.get("local")
    policies = port.internal_local, port.external_local, port.affinity is None
    return port.name, port.protocol, port.frontends, groups, policies


def group_variants(port: ServicePort, found: PortEndpoints) -> list[str]:
    """See `flows.view.ServicePort`."""
    variants = ["cluster"]
    if port.internal_local or port.external_local:
        variants.append("local")
    if found.has_node_hints:
        variants.append("node")
    variants += [f"zone {zone}" for zone in sorted(found.zones)]
    parts = range(topology.parts(port))
    return variants + [f"part {part} of {variant}" for variant in variants for part in parts]


def node_choices(service: Service | None) -> dict[str, list[object]]:
    """By node with its own choice: everything that its choice can depend on."""
    found: dict[str, list[object]] = {}
    for port in service.ports if service else ():
        nodes = port.nodes_with_a_choice()
        if not nodes:
            continue
        # Whether hints are used depends on all ready endpoints.
        hinted = [bool(e.nodes) for e in port.endpoints if e.ready] if "node" in port.groups else []
        shared = (
            port.name,
            port.protocol,
            port.frontends,
            port.groups,
            port.internal_local,
            port.external_local,
            port.affinity,
            bool(hinted) and all(hinted),
        )
        own: dict[str, list[Endpoint]] = {node: [] for node in nodes}
        for endpoint in port.endpoints:
            for node in {endpoint.node, *endpoint.nodes}:
                if node in own:
                    own[node].append(endpoint)
        for node, endpoints in own.items():
            found.setdefault(node, []).append((shared, endpoints))
    return found
