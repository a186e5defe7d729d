"""What an object is for the switches: a pod, a node, a Service, a policy."""

from collections.abc import Iterable
from typing import Final

from controller.causes import alike, holders, keys_of
from controller.inventory import Inventory
from controller.load_balancers import report as pool_report
from controller.object_names import UnknownObject
from controller.offline.workloads import workload_of
from controller.policies.slices import SLICE, Slices
from controller.policy_reports import words
from controller.policy_reports.pods import Attached, attached, why_not_attached
from controller.programs import Programs
from controller.references import Reference
from controller.reports.explanation import (
    Explanation,
    Fact,
    PolicyUse,
    ServiceUse,
    TableUse,
)
from controller.service_fields import PROTOCOL_NAMES
from flows.family import IPAddress
from flows.pipeline import LAYOUT
from flows.policy import Direction
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, ClusterView, Frontend
from flows.ways import is_direct

MOST_NODES: Final = 3
"""Nodes that a row names."""
MOST_REASONS: Final = 6
"""Reasons that a row tells."""
MOST_PROBLEMS: Final = 20


def of_object(
    inventory: Inventory, programs: Programs, asked: str, ref: ObjectRef
) -> Slices[Explanation]:
    """What an object is, and the flows that exist because of it. Raises `UnknownObject`."""
    policies: tuple[PolicyUse, ...] = ()
    services: tuple[ServiceUse, ...] = ()
    match ref.kind:
        case "Pod":
            found = attached(inventory, f"{ref.namespace}/{ref.name}")
            if found is None:
                raise UnknownObject(why_not_attached(inventory, f"{ref.namespace}/{ref.name}"))
            kind, sentence, facts = "pod", _pod_sentence(ref, found), _pod_facts(inventory, found)
            policies = tuple(_policies(found))
            services = yield from services_at(inventory.view, found.attachment.address)
        case "Node":
            kind, sentence, facts = "node", *_node(inventory, ref.name)
        case "Service":
            kind, sentence, facts = "service", *_service(inventory, ref)
        case "NetworkPolicy" | "ClusterNetworkPolicy":
            kind, sentence, facts = "policy", *_policy(inventory, ref)
        case "EgressAddress":
            kind, sentence, facts = "object", *_egress(inventory, ref)
        case _:
            kind, sentence, facts = "object", str(ref), []
    tables = yield from tables_of(inventory, programs, ref)
    if not tables:
        sentence += "; no flow exists because of it"
    problems = [each.text for each in inventory.problems.of_subject(ref)]
    return Explanation(
        asked=asked,
        kind=kind,
        sentence=sentence,
        object=Reference.of(ref),
        facts=tuple(Fact(*fact) for fact in facts if fact[1]),
        tables=tables,
        policies=policies,
        services=services,
        problems=tuple(problems[:MOST_PROBLEMS]),
    )


def _egress(inventory: Inventory, ref: ObjectRef) -> tuple[str, list[tuple[str, str]]]:
    known = inventory.view.egress_addresses.get(ref.name)
    if known is None:
        return f"{ref}, which is not used", []
    rule = inventory.egress.rules[ref.name]
    through = f"through Node {known.gateway}" if known.gateway else "through no Node now"
    return f"{ref}: its pods leave from {known.address}, {through}", [
        ("gateways", ", ".join(sorted(rule.candidates))),
        ("pods", str(len(rule.places))),
    ]


def tables_of(
    inventory: Inventory, programs: Programs, ref: ObjectRef
) -> Slices[tuple[TableUse, ...]]:
    """What each table has because of an object."""
    keys = yield from keys_of(inventory, ref)
    flows: dict[int, set[int]] = {}
    reasons: dict[int, dict[str, None]] = {}
    nodes: dict[int, set[str] | None] = {}
    counted: set[tuple[str, int]] = set()
    for number, key in enumerate(keys):
        if number % SLICE == 0:
            yield
        where, same = holders(inventory.view, key), alike(key)
        holder = next(iter(where), "")
        program = programs.shared if key.scope == CLUSTER_SCOPE else programs.program(holder)
        fragment = program.fragments.get(key) if holder or key.scope == CLUSTER_SCOPE else None
        for flow in fragment.flows if fragment is not None else ():
            flows.setdefault(flow.table, set()).add(flow.cookie)
            reasons.setdefault(flow.table, {})[flow.reason] = None
            if key.scope == CLUSTER_SCOPE:
                nodes[flow.table] = None
            elif (same, flow.table) not in counted:
                # Once for all members of a set, of which there may be very many.
                counted.add((same, flow.table))
                if (held := nodes.setdefault(flow.table, set())) is not None:
                    held.update(where)
    return tuple(
        TableUse(
            LAYOUT.by_number[table].name,
            table,
            LAYOUT.by_number[table].doc,
            len(flows[table]),
            tuple(list(reasons[table])[:MOST_REASONS]),
            _nodes_text(nodes[table]),
        )
        for table in sorted(flows)
    )


def _nodes_text(nodes: set[str] | None) -> str:
    if nodes is None:
        return "every node"
    return ", ".join(sorted(nodes)) if len(nodes) <= MOST_NODES else f"{len(nodes):,} nodes"


# --- pods ---


def _pod_sentence(ref: ObjectRef, found: Attached) -> str:
    at = found.attachment
    return f"{ref} has the address {at.address} on Node {found.node}, at ofport {at.ofport}"


def _pod_facts(inventory: Inventory, found: Attached) -> list[tuple[str, str]]:
    at, node = found.attachment, inventory.view.nodes.get(found.node)
    known = inventory.pod(*at.pod.split("/", 1)) if at.pod else None
    return [
        ("node", found.node),
        ("address", str(at.address)),
        ("port", f"{at.port} (ofport {at.ofport})"),
        ("MAC", at.mac),
        ("podCIDR of the node", str(node.pod_cidr) if node else ""),
        ("workload", str(workload_of(known)) if known else ""),
    ]


def _policies(found: Attached) -> Iterable[PolicyUse]:
    for direction in Direction:
        for policy in found.policies(direction):
            yield PolicyUse(
                Reference.of(policy.ref),
                words.TIERS[policy.draft.tier],
                words.DIRECTIONS[direction],
            )


def services_at(view: ClusterView, address: IPAddress) -> Slices[tuple[ServiceUse, ...]]:
    """The Service ports that have an endpoint at an address."""
    found: list[ServiceUse] = []
    looked_at = 0
    for service in list(view.services.values()):
        for port in service.ports:
            looked_at += 1 + len(port.endpoints)
            if looked_at > SLICE:
                yield
                looked_at = 0
            found += [
                ServiceUse(
                    Reference.of(service.ref),
                    port.name,
                    f"{each.address}:{each.port}",
                    PROTOCOL_NAMES[port.protocol],
                    each.ready,
                )
                for each in port.endpoints
                if each.address == address
            ]
    return tuple(found)


# --- nodes, Services, policies ---


def _node(inventory: Inventory, name: str) -> tuple[str, list[tuple[str, str]]]:
    node = inventory.view.nodes.get(name)
    if node is None:
        return f"Node {name} takes no part: {inventory.nodes.reason(name)}", []
    pods = len(inventory.view.attachments.get(name, {}))
    count = len(inventory.view.nodes) - 1
    direct = sum(is_direct(node, peer) for peer in inventory.view.nodes.values() if peer != node)
    return f"Node {name} has the pods of {node.pod_cidr}, and is reached at {node.address}", [
        ("address", str(node.address)),
        ("further addresses", ", ".join(map(str, node.further_addresses))),
        ("podCIDR", str(node.pod_cidr)),
        ("gateway", f"{node.gateway}: the address of its own network stack among its pods"),
        ("zone", node.zone),
        ("mode", f"{node.mode}: {direct} of {count} other nodes are reached without the tunnel"),
        ("subnet", str(node.subnet or "")),
        ("pods attached", str(pods)),
    ]


def _service(inventory: Inventory, ref: ObjectRef) -> tuple[str, list[tuple[str, str]]]:
    name = f"{ref.namespace}/{ref.name}"
    service = inventory.view.services.get(name)
    if service is None:
        why = inventory.services.ignored.get(name) or "it is refused, or has no address"
        return f"{ref} has no flows: {why}", pool_report.facts(
            inventory, inventory.services.service(name), name
        )
    facts = [("address", text) for text in dict.fromkeys(_frontends(inventory, name))]
    ready = sum(each.ready for port in service.ports for each in port.endpoints)
    count = sum(len(port.endpoints) for port in service.ports)
    affinity = next((port.affinity for port in service.ports if port.affinity is not None), None)
    facts.append(("endpoints", f"{ready} ready of {count}"))
    facts += pool_report.facts(inventory, inventory.services.service(name), name)
    if affinity is not None:
        facts.append(("session affinity", f"a client keeps its endpoint for {affinity} s"))
    return f"{ref} has {len(service.ports)} port{'s' * (len(service.ports) != 1)}", facts


def _frontends(inventory: Inventory, name: str) -> Iterable[str]:
    service = inventory.view.services[name]
    for port in service.ports:
        for each in port.frontends:
            at = "every node" if each.address is None else str(each.address)
            yield f"{at}:{each.port}/{PROTOCOL_NAMES[port.protocol]} ({kind_of(each)})"


def kind_of(frontend: Frontend) -> str:
    """What kind of address a frontend of a Service is."""
    if frontend.address is None:
        return "NodePort"
    return "external" if frontend.external else "ClusterIP"


def _policy(inventory: Inventory, ref: ObjectRef) -> tuple[str, list[tuple[str, str]]]:
    policy = inventory.policies.policies.get(ref)
    if policy is None:
        return f"{ref} is not in force: it is invalid, or not decided yet", []
    groups = [*policy.subject.groups] if policy.subject is not None else []
    pods = sum(len(group.attachments) for group in groups)
    nodes = {node for group in groups for node in group.nodes}
    directions = [words.DIRECTIONS[each] for each in policy.rules]
    return (
        f"{ref} selects {pods:,} pod{'s' * (pods != 1)} on {len(nodes):,}"
        f" node{'s' * (len(nodes) != 1)}",
        [
            ("tier", words.TIERS[policy.draft.tier]),
            ("directions", ", ".join(directions)),
            ("rules", str(sum(map(len, policy.rules.values())))),
        ],
    )
