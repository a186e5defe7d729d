"""What features may see of the cluster: frozen values that are already checked.

What is refused (a Node whose podCIDR overlaps another's, an OVS port without a pod) is not in the
view. `controller.inventory` refuses it and says why.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import NamedTuple, Self

from flows import names
from flows.family import IPV4, Family, IPAddress, IPNetwork, family_of
from flows.refs import ObjectRef

CLUSTER_SCOPE = ""
"""The scope of fragments whose flows are byte-identical on every node."""
SOME_SCOPE = "*"
"""The scope of fragments that go to the nodes that need them, and are the same on all of these."""


class Key(NamedTuple):
    """Names one fragment: the object that causes it, and where its flows go.

    `scope` is where the fragment's flows go: `CLUSTER_SCOPE`, `SOME_SCOPE` or a node's name. `kind`
    is the name of a `flows.kinds.Kind`.
    """

    scope: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Settings of the cluster as a whole."""

    pod_range: IPNetwork
    service_range: IPNetwork
    tunnel_port: int
    new_connections_per_second: int

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of its pods."""
        return (family_of(self.pod_range),)


@dataclass(frozen=True, slots=True)
class Node:
    """An accepted Node: its tunnel address and the range of its pods."""

    name: str
    uid: str
    address: IPAddress
    pod_cidr: IPNetwork
    further_addresses: tuple[IPAddress, ...] = ()
    """Its other addresses. Pods must not send tunnel packets to these either."""
    zone: str = ""
    """Its label `topology.kubernetes.io/zone`; empty if it has none."""

    @property
    def gateway(self) -> IPAddress:
        """The address of the node's own network stack in the podCIDR."""
        return names.gateway_address(self.pod_cidr)

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef.node(self.name)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's interface on a node's bridge, as PORT_STATUS reported it."""

    port: str
    ofport: int
    address: IPAddress
    pod: str
    """`NAMESPACE/NAME`; empty for a container without a pod."""

    @property
    def mac(self) -> str:
        """The interface's MAC, on both ends of the veth."""
        return names.mac_of(self.address)

    @property
    def tag(self) -> int:
        """Which sandbox of the pod this is."""
        return names.attachment_tag(self.port)

    @property
    def ref(self) -> ObjectRef:
        """Its Pod, or the container if it has no Pod."""
        if self.pod:
            return ObjectRef.namespaced("Pod", self.pod)
        return ObjectRef("container", "", self.port)


class Endpoint(NamedTuple):
    """An address and port behind a Service port (discovery/v1 Endpoint)."""

    address: IPAddress
    port: int
    ready: bool = True
    """False: it is terminating and still serves. It is used only if no other endpoint is ready."""
    node: str = ""
    """The name of its Node; empty if it is unknown."""
    zones: tuple[str, ...] = ()
    """Hints: the zones whose clients should use it; empty: no hint."""
    nodes: tuple[str, ...] = ()
    """Hints: the nodes whose clients should use it; empty: no hint."""


class StandIn(NamedTuple):
    """What a node's stack translates one of its addresses to, so that it gets into the switch."""

    node: str
    address: IPAddress
    """One of `names.STAND_INS`."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address and port under which clients reach a Service port."""

    address: IPAddress | None
    """None: each node's own (a NodePort)."""
    port: int
    external: bool
    """Whether `externalTrafficPolicy` applies; if not, the internal one does."""
    sources: tuple[IPNetwork, ...] | None = None
    """The clients that it serves (`loadBalancerSourceRanges`); None: all."""
    node: str = ""
    """The Node object that names this address as the node's own; empty: none."""
    stand_ins: tuple[StandIn, ...] = ()
    """For each node that has the address on an interface."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service, with its frontends, endpoints and groups.

    `groups` gives the ids of its groups: "cluster" always; "local", a node's own endpoints, where a
    policy is Local; "node", those that hints mean for a node, where hints name nodes; "zone NAME"
    for each zone that a hint names; and where one group cannot hold all, "part N of ..." for each
    part of each of these. The first two are also what the register `Service` says of a connection
    to it.
    """

    name: str
    protocol: int
    """IANA's number: 6, 17 or 132."""
    frontends: tuple[Frontend, ...]
    endpoints: tuple[Endpoint, ...]
    """Sorted; only those that can get connections."""
    groups: Mapping[str, int]
    internal_local: bool = False
    external_local: bool = False
    affinity: int | None = None
    """Session affinity: how many seconds after its last connection a client keeps its endpoint."""
    family: Family = IPV4
    """The family of all its addresses."""

    def nodes_with_a_choice(self) -> set[str]:
        """The nodes that have flows of their own for it, besides those that all nodes have."""
        found = {each.node for frontend in self.frontends for each in frontend.stand_ins}
        if "local" in self.groups:
            found |= {endpoint.node for endpoint in self.endpoints if endpoint.node}
        if "node" in self.groups:
            found |= {node for endpoint in self.endpoints for node in endpoint.nodes}
        return found


class Target(NamedTuple):
    """A place where Services have endpoints: a port of all pods, or of one other address."""

    network: IPNetwork
    """The pod range; for an endpoint outside of it, its address."""
    protocol: int
    port: int

    @classmethod
    def of(cls, endpoint: Endpoint, protocol: int, pod_range: IPNetwork) -> Self:
        """Where this endpoint is."""
        at = endpoint.address
        return cls(pod_range if at in pod_range else ip_network(at), protocol, endpoint.port)

    def __str__(self) -> str:
        return f"{self.network} {self.protocol} {self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """A Service that clients can connect to."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...]
    shared_addresses: frozenset[IPAddress] = frozenset()
    """Addresses of its frontends of which other Services also claim ports."""

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef("Service", self.namespace, self.name)

    def title(self, port: ServicePort) -> str:
        """`NAMESPACE/NAME`, and the port's name where it has one."""
        return f"{self.namespace}/{self.name}{':' + port.name if port.name else ''}"


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything, for all nodes. `attachments` is by node name, then by port name."""

    cluster: Cluster
    nodes: Mapping[str, Node] = field(default_factory=dict)
    attachments: Mapping[str, Mapping[str, Attachment]] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    """By `NAMESPACE/NAME`."""
    local_services: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By node, the Services for which it has flows of its own (`nodes_with_a_choice`)."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """Of all endpoints, by their text."""
    target_services: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By a target's text, the Services (`NAMESPACE/NAME`) that have endpoints there."""
    needed_by: Mapping[Key, AbstractSet[str]] = field(default_factory=dict)
    """By key of `SOME_SCOPE`, the nodes (of `nodes`) that need its fragment.

    Keep what one key stands for small, for example one member of a set: when it changes, each of
    these nodes' programs takes all of its flows in anew. Keys may share one set of nodes.
    """
