"""What the features may see of the cluster: frozen values, already checked.

Whatever is refused (a Node whose podCIDR overlaps another's, a port that no pod stands behind)
never gets here; `controller.inventory` sees to that and says why.
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
    """Names one object of the view: what a fragment is made of, and what a change touches.

    `scope` is where the fragment's flows go: `CLUSTER_SCOPE`, `SOME_SCOPE` or a node's name. `kind`
    is the name of a `flows.kinds.Kind`.
    """

    scope: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """What holds for the cluster as a whole."""

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
    """A node that takes part: its tunnel address and the range of its pods."""

    name: str
    uid: str
    address: IPAddress
    pod_cidr: IPNetwork
    further_addresses: tuple[IPAddress, ...] = ()
    """Others of its addresses, which pods must not send tunnel packets to either."""
    zone: str = ""
    """Its label `topology.kubernetes.io/zone`; empty where it has none."""

    @property
    def gateway(self) -> IPAddress:
        """The address of the node's own stack among its pods."""
        return names.gateway_address(self.pod_cidr)

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef.node(self.name)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's interface on a node's bridge, as PORT_STATUS told of it."""

    port: str
    ofport: int
    address: IPAddress
    pod: str
    """`NAMESPACE/NAME`; empty for a container that no pod stands behind."""

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
        """Its Pod; the container where no pod stands behind it."""
        if self.pod:
            return ObjectRef.namespaced("Pod", self.pod)
        return ObjectRef("container", "", self.port)


class Endpoint(NamedTuple):
    """An address and port behind a Service port (discovery/v1 Endpoint)."""

    address: IPAddress
    port: int
    ready: bool = True
    """False: it is terminating and still serves, and counts only where no other is ready."""
    node: str = ""
    """The name of the Node it is on; empty where nobody says."""
    zones: tuple[str, ...] = ()
    """The zones whose clients it is meant for (hints); empty: no hint."""
    nodes: tuple[str, ...] = ()
    """The nodes whose clients it is meant for (hints); empty: no hint."""


class StandIn(NamedTuple):
    """What a node's stack translates one of its addresses to, so that it gets into the switch."""

    node: str
    address: IPAddress
    """One of `names.STAND_INS`."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address and port under which clients know a Service port."""

    address: IPAddress | None
    """None: each node's own (a NodePort)."""
    port: int
    external: bool
    """Whether `externalTrafficPolicy` holds, and not the internal one."""
    sources: tuple[IPNetwork, ...] | None = None
    """Whom it serves (`loadBalancerSourceRanges`); None: everybody."""
    node: str = ""
    """The Node object that names this address as the node's own; empty: none."""
    stand_ins: tuple[StandIn, ...] = ()
    """For each node that has the address on an interface."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service with everything that is behind it.

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
    """Sorted; those only that may ever get a connection."""
    groups: Mapping[str, int]
    internal_local: bool = False
    external_local: bool = False
    affinity: int | None = None
    """Seconds since its last connection for which a client keeps its endpoint; None: not at all."""
    family: Family = IPV4
    """Of all its addresses."""

    def nodes_with_a_choice(self) -> set[str]:
        """The nodes that choose otherwise than all others do, or besides by a stand-in."""
        found = {each.node for frontend in self.frontends for each in frontend.stand_ins}
        if "local" in self.groups:
            found |= {endpoint.node for endpoint in self.endpoints if endpoint.node}
        if "node" in self.groups:
            found |= {node for endpoint in self.endpoints for node in endpoint.nodes}
        return found


class Target(NamedTuple):
    """Where the endpoints of Services are: a port, of any pod or of one other address."""

    network: IPNetwork
    """The pod range, or the one address away from it."""
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
    """A Service that somebody can connect to."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...]
    shared_addresses: frozenset[IPAddress] = frozenset()
    """Of its frontends' addresses, those that other Services have or want ports of."""

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
    """By node, the Services of which it has a choice of its own (see `nodes_with_a_choice`)."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """Of all endpoints, by their text."""
    target_services: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By a target's text, the Services (`NAMESPACE/NAME`) that have endpoints there."""
    needed_by: Mapping[Key, AbstractSet[str]] = field(default_factory=dict)
    """By key of `SOME_SCOPE`, the nodes (of `nodes`) that need its fragment.

    Keep what one key stands for small, for example one member of a set: when it changes, each of
    these nodes' programs takes all of its flows in anew. Keys may share one set of nodes.
    """
