"""The kinds of objects that cause flows, and how the view holds them.

A feature declares which kinds it writes for: `WRITES = (PEER.by(peer), NODE.by(node))`.
A new kind is one more `Kind` here; there is no other list of kinds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from flows.flow import Flow, Group, Meter
from flows.policy import (
    Direction,
    Isolation,
    PeerMember,
    PeerSet,
    PolicyWalk,
    PortSet,
    set_ref,
)
from flows.refs import CLUSTER, ObjectRef
from flows.view import (
    CLUSTER_SCOPE,
    SOME_SCOPE,
    Attachment,
    Cluster,
    ClusterView,
    EgressAddress,
    EgressMember,
    EgressPod,
    Node,
    Service,
    ServicePort,
    Target,
)

Entry: TypeAlias = Flow | Group | Meter
"""An entry of the switch, as OpenFlow says: a flow, group or meter. Features yield these."""
ScopeType: TypeAlias = Literal["cluster", "some", "node"]
S = TypeVar("S")

MOST_OWNERS: Final = 64
"""The most owners of one fragment. If there are more, it names the first by name."""


_SHARED_SCOPES: Final[Mapping[str, ScopeType]] = {CLUSTER_SCOPE: "cluster", SOME_SCOPE: "some"}


def scope_type(scope: str) -> ScopeType:
    """The type of a `Key`'s scope: every switch, the switches that need it, or one."""
    return _SHARED_SCOPES.get(scope, "node")


@dataclass(frozen=True, eq=False)
class Kind(Generic[S]):
    """Objects of one kind in scopes of one type.

    `name` is `Key.kind` of its keys (`flows.view`). Two kinds may have one name in two scopes.
    All functions get the scope of a key: for scope "node", the name of the node.
    """

    name: str
    scope: ScopeType
    find: Callable[[ClusterView, str, str], S | None]
    """The object of this scope and name, or None."""
    owners: Callable[[ClusterView, S], Iterable[ObjectRef]]
    """The objects that its flows exist for; not empty."""
    names: Callable[[ClusterView, str], Iterable[str]] = lambda _, __: ()
    """The names of all objects of this kind in a scope. For scope "some", `needed_by` has them."""
    directions: Callable[[S], frozenset[Direction]] | None = None
    """The directions of policy that its flows belong to. None: its flows are not policy."""

    def by(self, write: Callable[[Cluster, S], Iterable[Entry]]) -> "Writer":
        """Declares a function of a feature that writes for objects of this kind."""
        return Writer(self, write)


class Writer(NamedTuple):
    """The pure function of one feature that writes for one kind of object."""

    kind: Kind[Any]
    write: Callable[[Cluster, Any], Iterable[Entry]]


class ServiceOnNode(NamedTuple):
    """A Service on a node that has a choice of its own (`ServicePort.nodes_with_a_choice`)."""

    service: Service
    node: str


class PortOfService(NamedTuple):
    """One port of a Service."""

    service: Service
    port: ServicePort


def port_key(port: ServicePort) -> str:
    """The second part of the name of a Service port's key; the first is the name of the Service."""
    return f"{port.name}/{port.protocol}"


def _service_ports(view: ClusterView, _: str) -> Iterable[str]:
    for name, service in view.services.items():
        for port in service.ports:
            yield f"{name} {port_key(port)}"


def _service_port(view: ClusterView, _: str, name: str) -> PortOfService | None:
    of, _, rest = name.partition(" ")
    service = view.services.get(of)
    ports = service.ports if service else ()
    found = next((port for port in ports if port_key(port) == rest), None)
    return PortOfService(service, found) if service and found else None


def _if_known(view: ClusterView, scope: str, names: Iterable[str]) -> Iterable[str]:
    return names if scope in view.nodes else ()


def _attachment(view: ClusterView, scope: str, name: str) -> Attachment | None:
    return view.attachments.get(scope, {}).get(name) if scope in view.nodes else None


def _service_on_node(view: ClusterView, scope: str, name: str) -> ServiceOnNode | None:
    service = view.services.get(name)
    if service is None or scope not in view.nodes:
        return None
    return ServiceOnNode(service, scope) if name in view.local_services.get(scope, ()) else None


def _target_owners(view: ClusterView, target: Target) -> Iterable[ObjectRef]:
    names = sorted(view.target_services.get(str(target), ()))
    return [ObjectRef.namespaced("Service", name) for name in names[:MOST_OWNERS]] or [CLUSTER]


def _isolation(view: ClusterView, scope: str, name: str) -> Isolation | None:
    return view.isolations.get(scope, {}).get(name) if scope in view.nodes else None


def _peer_member(view: ClusterView, _: str, name: str) -> PeerMember | None:
    of, _, address = name.partition(" ")
    return view.peer_members.get(of, {}).get(address)


def _walk_owners(_: ClusterView, walk: PolicyWalk) -> Iterable[ObjectRef]:
    # The sets as well: if a switch rejects a flow of a set, the walks that use it must go, too.
    yield walk.policy
    yield from {set_ref("PeerSet", step.peers): None for step in walk.steps if step.peers}
    yield from {set_ref("PortSet", step.ports): None for step in walk.steps if step.ports}


def _egress_gateway(view: ClusterView, _: str, name: str) -> Node | None:
    return view.nodes.get(name) if view.egress_gateways.get(name) else None


def _egress_here(view: ClusterView, scope: str, name: str) -> EgressAddress | None:
    here = scope in view.nodes and name in view.egress_gateways.get(scope, ())
    return view.egress_addresses.get(name) if here else None


def _egress_pod(view: ClusterView, scope: str, name: str) -> EgressPod | None:
    return view.egress_pods.get(scope, {}).get(name) if scope in view.nodes else None


def _egress_ref(name: str) -> ObjectRef:
    return ObjectRef("EgressAddress", "", name)


_ALL_DIRECTIONS: Final = frozenset(Direction)
_ONE_DIRECTION: Final = {each: frozenset({each}) for each in Direction}


def _direction(of: PolicyWalk | PeerSet | PeerMember) -> frozenset[Direction]:
    return _ONE_DIRECTION[of.direction]


def _both_directions(_: object) -> frozenset[Direction]:
    return _ALL_DIRECTIONS


EVERY_NODE: Final = Kind[Cluster](
    "cluster", "cluster",
    names=lambda _, __: [""],
    find=lambda view, _, __: view.cluster,
    owners=lambda _, __: [CLUSTER],
)  # fmt: skip
"""The cluster as a whole: flows that every node has, for any objects."""
PEER: Final = Kind[Node](
    "peer", "cluster",
    names=lambda view, _: view.nodes,
    find=lambda view, _, name: view.nodes.get(name),
    owners=lambda _, node: [node.ref],
)  # fmt: skip
"""A node, as every node sees it."""
SERVICE: Final = Kind[Service](
    "service", "cluster",
    names=lambda view, _: view.services,
    find=lambda view, _, name: view.services.get(name),
    owners=lambda _, service: [service.ref],
)  # fmt: skip
SERVICE_PORT: Final = Kind[PortOfService](
    "service-port", "cluster",
    names=_service_ports,
    find=_service_port,
    owners=lambda _, found: [found.service.ref],
)  # fmt: skip
"""A port of a Service with its endpoints; its name is `NAMESPACE/NAME` and `port_key`."""
TARGET: Final = Kind[Target](
    "target", "cluster",
    names=lambda view, _: view.targets,
    find=lambda view, _, name: view.targets.get(name),
    owners=_target_owners,
)  # fmt: skip
NODE: Final = Kind[Node](
    "node", "node",
    names=lambda view, scope: _if_known(view, scope, [scope]),
    find=lambda view, scope, _: view.nodes.get(scope),
    owners=lambda _, node: [node.ref],
)  # fmt: skip
"""A node, for its own switch."""
ATTACHMENT: Final = Kind[Attachment](
    "attachment", "node",
    names=lambda view, scope: _if_known(view, scope, view.attachments.get(scope, ())),
    find=_attachment,
    owners=lambda _, attachment: [attachment.ref],
)  # fmt: skip
SERVICE_ON_NODE: Final = Kind[ServiceOnNode](
    "service", "node",
    names=lambda view, scope: _if_known(view, scope, view.local_services.get(scope, ())),
    find=_service_on_node,
    owners=lambda _, found: [found.service.ref],
)  # fmt: skip
ISOLATION: Final = Kind[Isolation](
    "isolation", "node",
    names=lambda view, scope: _if_known(view, scope, view.isolations.get(scope, ())),
    find=_isolation,
    owners=lambda _, found: [found.attachment.ref],
    directions=_both_directions,
)  # fmt: skip
"""The policies of an attachment; its name is the attachment's. Both are published together."""
WALK: Final = Kind[PolicyWalk](
    "policy-walk", "some",
    find=lambda view, _, name: view.walks.get(name),
    owners=_walk_owners,
    directions=_direction,
)  # fmt: skip
PEER_SET: Final = Kind[PeerSet](
    "policy-peers", "some",
    find=lambda view, _, name: view.peer_sets.get(name),
    owners=lambda _, found: [set_ref("PeerSet", found.id), *found.users],
    directions=_direction,
)  # fmt: skip
"""The blocks of a peer set."""
PEER_MEMBER: Final = Kind[PeerMember](
    "policy-member", "some",
    find=_peer_member,
    owners=lambda _, found: [found.owner, set_ref("PeerSet", found.peer_set)],
    directions=_direction,
)  # fmt: skip
"""One member of a peer set; its name is the set's, a space, and the address."""
PORT_SET: Final = Kind[PortSet](
    "policy-ports", "some",
    find=lambda view, _, name: view.port_sets.get(name),
    owners=lambda _, found: [set_ref("PortSet", found.id), *found.users],
    directions=_both_directions,
)  # fmt: skip
EGRESS: Final = Kind[EgressAddress](
    "egress", "cluster",
    names=lambda view, _: view.egress_addresses,
    find=lambda view, _, name: view.egress_addresses.get(name),
    owners=lambda _, found: [found.ref],
)  # fmt: skip
EGRESS_GATEWAY: Final = Kind[Node](
    "egress-gateway", "cluster",
    names=lambda view, _: view.egress_gateways,
    find=_egress_gateway,
    owners=lambda view, node: [
        *map(_egress_ref, sorted(view.egress_gateways[node.name])[: MOST_OWNERS - 1]), node.ref,
    ],
)  # fmt: skip
"""A node that is the gateway of an egress address, as every node sees it."""
EGRESS_HERE: Final = Kind[EgressAddress](
    "egress", "node",
    names=lambda view, scope: _if_known(view, scope, view.egress_gateways.get(scope, ())),
    find=_egress_here,
    owners=lambda _, found: [found.ref],
)  # fmt: skip
"""An egress address, at its gateway."""
EGRESS_POD: Final = Kind[EgressPod](
    "egress-pod", "node",
    names=lambda view, scope: _if_known(view, scope, view.egress_pods.get(scope, ())),
    find=_egress_pod,
    owners=lambda _, found: [found.attachment.ref, _egress_ref(found.name)],
)  # fmt: skip
"""An attachment that has an egress address; its name is the attachment's. Both are published
together: before that, the pod would leave from its node's address."""
EGRESS_MEMBER: Final = Kind[EgressMember](
    "egress-member", "some",
    find=lambda view, _, name: view.egress_members.get(name),
    owners=lambda _, found: [found.pod, _egress_ref(found.name)],
)  # fmt: skip
"""A pod that has an egress address, at the nodes that may be its gateway; its name is its
address."""
