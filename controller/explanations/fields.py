"""Which field of which object a flow is made from."""

from collections.abc import Iterable, Iterator
from typing import Final

from controller.inventory import Inventory
from controller.policies.slices import SLICE, Slices
from controller.policy_reports import words
from flows.flow import Flow
from flows.kinds import (
    ATTACHMENT,
    ISOLATION,
    NODE,
    PEER,
    PEER_MEMBER,
    PEER_SET,
    PORT_SET,
    SERVICE,
    SERVICE_PORT,
    TARGET,
    WALK,
)
from flows.pipeline import LAYOUT
from flows.policy import Direction, PolicyStep, PolicyWalk
from flows.view import Key

MOST_FIELDS: Final = 8
"""Fields that are named."""
_OF_SERVICES: Final = {
    "ServiceAddress": "spec.clusterIPs, spec.externalIPs and status.loadBalancer.ingress",
    "ServiceSource": "spec.loadBalancerSourceRanges",
    "ServiceChoice": "spec.ports and the addresses of the Service",
    "AffinityCheck": "spec.sessionAffinity and the endpoints of its EndpointSlices",
    "EndpointChoice": "the endpoints of its EndpointSlices",
    "ServiceNat": "spec.sessionAffinity and the endpoints of its EndpointSlices",
    "Groups": "the endpoints of its EndpointSlices",
    "Direct": "the endpoints of its EndpointSlices",
}
"""By table."""
_OF_NODES: Final = {
    "Topology": "metadata.labels[topology.kubernetes.io/zone]",
    "NodeAddress": "status.addresses",
    "DestinationGuard": "status.addresses",
    "TunnelGuard": "status.addresses and spec.podCIDR",
}
_OTHER_OF_NODES: Final = "spec.podCIDR and status.addresses"


def fields_of(inventory: Inventory, key: Key, flow: Flow) -> Slices[tuple[str, ...]]:
    """The fields that a flow of the fragment with this key is made from."""
    table = LAYOUT.by_number[flow.table].name
    found: tuple[str, ...] = ()
    match key.kind:
        case PEER.name | NODE.name:
            found = (_OF_NODES.get(table, _OTHER_OF_NODES),)
        case SERVICE.name | SERVICE_PORT.name | TARGET.name:
            found = (_OF_SERVICES.get(table, "spec"),)
        case ATTACHMENT.name:
            found = (f"spec.nodeName; address and ofport are those of its port {key.name}",)
        case ISOLATION.name:
            found = tuple(_selecting(inventory, key))
        case WALK.name:
            found = _of_walk(inventory, key, flow)
        case PEER_SET.name | PEER_MEMBER.name | PORT_SET.name:
            found = yield from _of_set(inventory, key)
    return found


def _selecting(inventory: Inventory, key: Key) -> Iterator[str]:
    """The subjects of the policies that select an attachment."""
    group = inventory.policies.group(key.scope, key.name)
    policies = inventory.policies.selecting(group) if group is not None else []
    for policy in policies[:MOST_FIELDS]:
        is_cluster = policy.ref.kind == "ClusterNetworkPolicy"
        yield f"{'spec.subject' if is_cluster else 'spec.podSelector'} of {policy.ref}"
    if len(policies) > MOST_FIELDS:
        yield f"and those of {len(policies) - MOST_FIELDS} more policies"


def _of_walk(inventory: Inventory, key: Key, flow: Flow) -> tuple[str, ...]:
    walk = inventory.view.walks.get(key.name)
    if walk is None:
        return ()
    decided = LAYOUT.registers["DecidedRule"]
    for name, value, _ in flow.match:
        if LAYOUT.by_number[flow.table].name == "PolicyDenials" and name == decided.register:
            return tuple(_rules(inventory, walk, {value}))
    whole = "spec.egress" if walk.direction is Direction.FROM_POD else "spec.ingress"
    return (f"{whole} of {walk.policy}",)


def _of_set(inventory: Inventory, key: Key) -> Slices[tuple[str, ...]]:
    """The rules that use a set of peers or ports."""
    number = int(key.name[:16], 16)
    is_ports = key.kind == PORT_SET.name

    def uses(step: PolicyStep) -> bool:
        return (step.ports if is_ports else step.peers) == number

    found: dict[str, None] = {}
    for at, walk in enumerate(list(inventory.view.walks.values())):
        if at % SLICE == 0:
            yield
        ids = {step.rule for step in walk.steps if uses(step)}
        if not ids:
            continue
        part = "from" if walk.direction is Direction.TO_POD else "to"
        for rule in _rules(inventory, walk, ids, "ports" if is_ports else part):
            if len(found) == MOST_FIELDS:
                return (*found, "and others")
            found[rule] = None
    return tuple(found)


def _rules(
    inventory: Inventory, walk: PolicyWalk, ids: Iterable[int], part: str = ""
) -> Iterator[str]:
    """`spec.ingress[0].from of NetworkPolicy shop/web`, for each rule with one of these ids."""
    policy = inventory.policies.policies.get(walk.policy)
    wanted = {*ids}
    for state in policy.rules.get(walk.direction, ()) if policy is not None else ():
        if state.id in wanted:
            field = words.rule_field(walk.direction, state.rule.number)
            yield f"{field}{'.' + part if part else ''} of {walk.policy}"
