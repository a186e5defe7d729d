"""The cluster as features see it: frozen values that are already checked.

The view has no refused objects (a Node whose podCIDR overlaps another one, an OVS port without a
pod). `controller.inventory` refuses them and reports why.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple, Self

from flows import names
from flows.family import IPV4, Family, IPAddress, IPNetwork, family_of
from flows.refs import ObjectRef
from flows.ways import Mode

if TYPE_CHECKING:
    from flows.policy import Isolation, PeerMember, PeerSet, PolicyWalk, PortSet

CLUSTER_SCOPE = ""
"""The scope of fragments whose flows are byte-identical on every node."""
SOME_SCOPE = "*"
"""The scope of fragments that only some nodes need, with the same flows on each of them."""


class Key(NamedTuple):
    """The name of a fragment: its scope, and the object that it exists for.

    `scope` says which switches get the flows: `CLUSTER_SCOPE`, `SOME_SCOPE` or the name of a node.
    `kind` is the name of a `flows.kinds.Kind`.

    In what an inventory reports as changed, a key of a kind of `SOME_SCOPE` may have a node as its
    scope: the node needs that fragment now, or does not need it any more (`ClusterView.needed_by`).
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
    node_local_dns: bool = False
    """Whether policy from the pod lets every pod reach port 53 (UDP, TCP) of its own node."""
    cut_established: bool = False
    """Whether policy cuts established connections that it does not allow any more."""
    log_denials: bool = False
    """Whether switches report packets that policy denies to the agents, a few each second."""
    mode: Mode = Mode.ENCAP
    """Of nodes whose label says nothing else."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of the pods."""
        return (family_of(self.pod_range),)


@dataclass(frozen=True, slots=True)
class Node:
    """An accepted Node: its tunnel address and the range of its pods."""

    name: str
    uid: str
    address: IPAddress
    pod_cidr: IPNetwork
    further_addresses: tuple[IPAddress, ...] = ()
    """All other addresses. Pods must not send tunnel packets to these either."""
    zone: str = ""
    """The label `topology.kubernetes.io/zone`; empty: no label."""
    mode: Mode = Mode.ENCAP
    subnet: IPNetwork | None = None
    """The subnet of `address`; None: unknown. See `flows.ways`."""

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
        """Identifies the sandbox of the pod."""
        return names.attachment_tag(self.port)

    @property
    def ref(self) -> ObjectRef:
        """The Pod, or the container if there is no Pod."""
        if self.pod:
            return ObjectRef.namespaced("Pod", self.pod)
        return ObjectRef("container", "", self.port)


class Endpoint(NamedTuple):
    """An address and port behind a Service port (discovery/v1 Endpoint)."""

    address: IPAddress
    port: int
    ready: bool = True
    """False: it is terminating and still serves. It is used only if no endpoint is ready."""
    node: str = ""
    """The name of the Node; empty: unknown."""
    zones: tuple[str, ...] = ()
    """Hints: the zones whose clients should use it; empty: no hint."""
    nodes: tuple[str, ...] = ()
    """Hints: the nodes whose clients should use it; empty: no hint."""


class HostDnatAddress(NamedTuple):
    """The DNAT address that a node's stack uses for one address of the node.

    The stack translates packets to that address, so that they go into the switch.
    """

    node: str
    address: IPAddress
    """From `names.HOST_DNAT_RANGE`."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address and port under which clients reach a Service port."""

    address: IPAddress | None
    """None: every address of each node (a NodePort)."""
    port: int
    external: bool
    """Whether `externalTrafficPolicy` applies; if not, `internalTrafficPolicy` does."""
    sources: tuple[IPNetwork, ...] | None = None
    """The clients that are served (`loadBalancerSourceRanges`); None: all."""
    node: str = ""
    """The Node that has this address in its status; empty: none."""
    host_dnat: tuple[HostDnatAddress, ...] = ()
    """One for each node that has the address on an interface."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service, with its frontends, endpoints and groups.

    `groups` gives the ids of its groups by variant:

    - "cluster": always;
    - "local": the endpoints of one node, if a policy is Local;
    - "node": the endpoints hinted for a node, if hints name nodes;
    - "zone NAME": for each zone that a hint names;
    - "part N of VARIANT": for each part of a variant that one group cannot hold.

    The register field `Service` has the id of "cluster" or "local".
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
    """Session affinity: a client keeps its endpoint so many seconds after its last connection."""
    family: Family = IPV4
    """The family of all addresses of the port."""

    def nodes_with_a_choice(self) -> set[str]:
        """The nodes with flows of their own for this port, besides the flows of all nodes."""
        found = {each.node for frontend in self.frontends for each in frontend.host_dnat}
        if "local" in self.groups:
            found |= {endpoint.node for endpoint in self.endpoints if endpoint.node}
        if "node" in self.groups:
            found |= {node for endpoint in self.endpoints for node in endpoint.nodes}
        return found


class Target(NamedTuple):
    """A destination of endpoints: a port in the pod range, or of one address outside."""

    network: IPNetwork
    """The pod range; for an endpoint outside of it, its address."""
    protocol: int
    port: int

    @classmethod
    def of(cls, endpoint: Endpoint, protocol: int, pod_range: IPNetwork) -> Self:
        """The target that contains this endpoint."""
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
    """Frontend addresses at which other Services have ports, too."""

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef("Service", self.namespace, self.name)

    def title(self, port: ServicePort) -> str:
        """`NAMESPACE/NAME`, with `:PORT` if the port has a name."""
        return f"{self.namespace}/{self.name}{':' + port.name if port.name else ''}"


def egress_number(address: IPAddress) -> int:
    """The last 24 bits of an egress address, which stand for it in registers and connections."""
    return int(address) & 0xFF_FFFF


@dataclass(frozen=True, slots=True)
class EgressAddress:
    """An address by which pods leave the cluster, and its gateway at the moment."""

    name: str
    address: IPAddress
    gateway: str = ""
    """The name of the Node that has the address now; empty: none has."""
    tunnel_address: IPAddress | None = None
    """That Node's tunnel address."""

    @property
    def number(self) -> int:
        """See `egress_number`."""
        return egress_number(self.address)

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef("EgressAddress", "", self.name)


@dataclass(frozen=True, slots=True)
class EgressPod:
    """An attachment that an EgressAddress selects."""

    attachment: Attachment
    name: str
    """Of the EgressAddress."""
    address: IPAddress

    @property
    def number(self) -> int:
        """See `egress_number`."""
        return egress_number(self.address)


@dataclass(frozen=True, slots=True)
class EgressMember:
    """A pod that an EgressAddress selects, as the nodes that may be its gateway see it."""

    pod: ObjectRef
    pod_address: IPAddress
    name: str
    """Of the EgressAddress."""
    address: IPAddress

    @property
    def number(self) -> int:
        """See `egress_number`."""
        return egress_number(self.address)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything, for all nodes. `attachments` is by node name, then by port name."""

    cluster: Cluster
    nodes: Mapping[str, Node] = field(default_factory=dict)
    attachments: Mapping[str, Mapping[str, Attachment]] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    """By `NAMESPACE/NAME`."""
    local_services: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By node, the Services for which the node has flows of its own (`nodes_with_a_choice`)."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """The targets of all endpoints, by their text."""
    target_services: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By a target's text, the Services (`NAMESPACE/NAME`) that have endpoints there."""
    isolations: Mapping[str, Mapping[str, "Isolation"]] = field(default_factory=dict)
    """By node and port name, the attachments that a policy selects."""
    walks: Mapping[str, "PolicyWalk"] = field(default_factory=dict)
    """By id, as 16 hexadecimal digits. So are the sets."""
    peer_sets: Mapping[str, "PeerSet"] = field(default_factory=dict)
    peer_members: Mapping[str, Mapping[str, "PeerMember"]] = field(default_factory=dict)
    """By set, then by address."""
    port_sets: Mapping[str, "PortSet"] = field(default_factory=dict)
    needed_by: Mapping[Key, AbstractSet[str]] = field(default_factory=dict)
    """By key of `SOME_SCOPE`, the nodes (of `nodes`) that need its fragment.

    Keep the fragment of one key small, for example one member of a set: if it changes, the program
    of each of these nodes processes all flows of the key again. Keys may share one set of nodes.
    """
    egress_addresses: Mapping[str, EgressAddress] = field(default_factory=dict)
    """By the name of the object."""
    egress_gateways: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    """By node, the egress addresses that it is the gateway of now."""
    egress_pods: Mapping[str, Mapping[str, EgressPod]] = field(default_factory=dict)
    """By node and port name, the attachments with an egress address."""
    egress_members: Mapping[str, EgressMember] = field(default_factory=dict)
    """The pods with an egress address, by their own address."""
