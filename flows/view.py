"""What the features may see of the cluster: frozen values, already checked.

Whatever is refused (a Node whose podCIDR overlaps another's, a port that no pod stands behind)
never gets here; `controller.cluster` sees to that and says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Literal, NamedTuple

from flows import names

CLUSTER_SCOPE = ""
"""The scope of fragments whose flows are byte-identical on every node."""


class Key(NamedTuple):
    """Names one object of the view: what a fragment is made of, and what a change touches.

    `scope` is `CLUSTER_SCOPE` or a node's name: where the fragment's flows go.
    """

    scope: str
    kind: Literal["cluster", "peer", "node", "attachment"]
    name: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """What holds for the cluster as a whole."""

    pod_range: IPv4Network
    service_range: IPv4Network
    tunnel_port: int
    new_connections_per_second: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node that takes part: its tunnel address and the range of its pods."""

    name: str
    uid: str
    address: IPv4Address
    pod_cidr: IPv4Network
    further_addresses: tuple[IPv4Address, ...] = ()
    """Others of its addresses, which pods must not send tunnel packets to either."""

    @property
    def gateway(self) -> IPv4Address:
        """The address of the node's own stack among its pods."""
        return names.gateway_address(self.pod_cidr)

    def __str__(self) -> str:
        return f"Node {self.name}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's interface on a node's bridge, as PORT_STATUS told of it."""

    port: str
    ofport: int
    address: IPv4Address
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

    def __str__(self) -> str:
        return f"Pod {self.pod}" if self.pod else f"container on port {self.port}"


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything, for all nodes. `attachments` is by node name, then by port name."""

    cluster: Cluster
    nodes: Mapping[str, Node] = field(default_factory=dict)
    attachments: Mapping[str, Mapping[str, Attachment]] = field(default_factory=dict)

    def shared_keys(self) -> set[Key]:
        """The keys of all fragments that every node holds."""
        peers = {Key(CLUSTER_SCOPE, "peer", name) for name in self.nodes}
        return {Key(CLUSTER_SCOPE, "cluster", ""), *peers}

    def node_keys(self, node: str) -> set[Key]:
        """The keys of the fragments that this node alone holds."""
        if node not in self.nodes:
            return set()
        attachments = self.attachments.get(node, {})
        return {Key(node, "node", node), *(Key(node, "attachment", port) for port in attachments)}
