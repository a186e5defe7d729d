"""Which fragments exist because of an object, and which switches should hold them."""

from collections.abc import Collection, Iterable
from typing import Final

from controller.inventory import Inventory
from controller.policies.slices import SLICE, Slices
from controller.slice_drafts import service_of
from flows.kinds import (
    ATTACHMENT,
    EGRESS,
    EGRESS_GATEWAY,
    EGRESS_HERE,
    EGRESS_MEMBER,
    EGRESS_POD,
    ISOLATION,
    NODE,
    PEER,
    PEER_MEMBER,
    PEER_SET,
    PORT_SET,
    SERVICE,
    SERVICE_ON_NODE,
    SERVICE_PORT,
    TARGET,
    WALK,
    port_key,
)
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, ClusterView, Key, Target

POLICY_KINDS: Final = frozenset(("NetworkPolicy", "ClusterNetworkPolicy"))


def keys_of(inventory: Inventory, ref: ObjectRef) -> Slices[list[Key]]:
    """The keys of all fragments that exist because of an object; none: it causes no flows."""
    found: Iterable[Key]
    name = f"{ref.namespace}/{ref.name}"
    match ref.kind:
        case "Pod":
            found = yield from _of_pod(inventory, name)
        case "Node":
            known = ref.name in inventory.view.nodes
            found = _of_node(inventory.view, ref.name) if known else ()
        case "Service":
            found = _of_service(inventory.view, name)
        case "EndpointSlice":
            given = inventory.services.endpoint_slice(name)
            found = _of_service(inventory.view, service_of(given)) if given else ()
        case "EgressAddress":
            found = yield from _of_egress(inventory, ref.name)
        case kind if kind in POLICY_KINDS:
            found = yield from _of_policy(inventory, ref)
        case _:
            found = ()
    return list(dict.fromkeys(found))


def alike(key: Key) -> str:
    """Keys for which this is the same have the same holders: members of one set, for example."""
    return f"{key.scope} {key.kind} {key.name.partition(' ')[0]}" if key.scope else ""


def holders(view: ClusterView, key: Key) -> Collection[str]:
    """The nodes whose switches should hold the fragment of a key."""
    if key.scope == CLUSTER_SCOPE:
        return view.nodes
    if key.scope == SOME_SCOPE:
        return view.needed_by.get(key, ())
    return (key.scope,) if key.scope in view.nodes else ()


def _of_pod(inventory: Inventory, name: str) -> Slices[list[Key]]:
    view = inventory.view
    known = inventory.pod(*name.split("/", 1))
    nodes = [known.spec.node_name] if known else [*view.attachments]
    found: list[Key] = []
    addresses: set[str] = set()
    for number, node in enumerate(nodes):
        if number % SLICE == 0:
            yield
        for port, attachment in view.attachments.get(node, {}).items():
            if attachment.pod != name:
                continue
            found.append(Key(node, ATTACHMENT.name, port))
            addresses.add(str(attachment.address))
            if port in view.isolations.get(node, {}):
                found.append(Key(node, ISOLATION.name, port))
            if port in view.egress_pods.get(node, {}):
                found.append(Key(node, EGRESS_POD.name, port))
    found += [
        Key(SOME_SCOPE, EGRESS_MEMBER.name, address)
        for address in addresses
        if address in view.egress_members
    ]
    for number, peers in enumerate([*view.peer_members]):
        if number % SLICE == 0:
            yield
        members = view.peer_members.get(peers, {})
        found += [
            Key(SOME_SCOPE, PEER_MEMBER.name, f"{peers} {address}")
            for address in addresses
            if address in members
        ]
    return found


def _of_node(view: ClusterView, name: str) -> list[Key]:
    found = [Key(CLUSTER_SCOPE, PEER.name, name), Key(name, NODE.name, name)]
    if name in view.egress_gateways:
        found.append(Key(CLUSTER_SCOPE, EGRESS_GATEWAY.name, name))
    return found


def _of_egress(inventory: Inventory, name: str) -> Slices[list[Key]]:
    known, rule = inventory.view.egress_addresses.get(name), inventory.egress.rules.get(name)
    if known is None or rule is None:
        return []
    found = [Key(CLUSTER_SCOPE, EGRESS.name, name)]
    if known.gateway:
        found.append(Key(CLUSTER_SCOPE, EGRESS_GATEWAY.name, known.gateway))
        found.append(Key(known.gateway, EGRESS_HERE.name, name))
    for number, place in enumerate([*rule.places]):
        if number % SLICE == 0:
            yield
        if (pod := inventory.view.egress_pods.get(place.node, {}).get(place.port)) is not None:
            found.append(Key(place.node, EGRESS_POD.name, place.port))
            found.append(Key(SOME_SCOPE, EGRESS_MEMBER.name, str(pod.attachment.address)))
    return found


def _of_service(view: ClusterView, name: str) -> list[Key]:
    service = view.services.get(name)
    if service is None:
        return []
    found = [Key(CLUSTER_SCOPE, SERVICE.name, name)]
    nodes: set[str] = set()
    for port in service.ports:
        found.append(Key(CLUSTER_SCOPE, SERVICE_PORT.name, f"{name} {port_key(port)}"))
        nodes |= port.nodes_with_a_choice()
        targets = (
            Target.of(each, port.protocol, view.cluster.pod_range) for each in port.endpoints
        )
        found += [
            Key(CLUSTER_SCOPE, TARGET.name, text)
            for text in dict.fromkeys(map(str, targets))
            if text in view.targets
        ]
    found += [Key(node, SERVICE_ON_NODE.name, name) for node in nodes if node in view.nodes]
    return found


def _of_policy(inventory: Inventory, ref: ObjectRef) -> Slices[list[Key]]:
    view = inventory.view
    policy = inventory.policies.policies.get(ref)
    if policy is None:
        return []
    ids = [each.key for each in policy.walks.values()]
    found = [Key(SOME_SCOPE, WALK.name, name) for name in ids]
    steps = [step for name in ids if name in view.walks for step in view.walks[name].steps]
    for peers in dict.fromkeys(f"{each.peers:016x}" for each in steps if each.peers):
        if peers in view.peer_sets:
            found.append(Key(SOME_SCOPE, PEER_SET.name, peers))
        for number, address in enumerate([*view.peer_members.get(peers, ())]):
            if number % SLICE == 0:
                yield
            found.append(Key(SOME_SCOPE, PEER_MEMBER.name, f"{peers} {address}"))
    found += [
        Key(SOME_SCOPE, PORT_SET.name, ports)
        for ports in dict.fromkeys(f"{each.ports:016x}" for each in steps)
        if ports in view.port_sets
    ]
    # Also of a policy without rules, which has no walk.
    for group in [*policy.subject.groups] if policy.subject is not None else ():
        yield
        found += [Key(place.node, ISOLATION.name, place.port) for place in group.attachments]
    return found
