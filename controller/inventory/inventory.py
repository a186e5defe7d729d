"""The inventory: takes in objects and ports, and keeps the view and the problems up to date."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from controller.address_owners import AddressOwners
from controller.address_owners.standing import standing_of
from controller.egress import EgressAddresses, Ledger, Needs
from controller.inventory.kept import KeptKind
from controller.inventory.kind import ObjectKind
from controller.inventory.node_drafts import Range
from controller.inventory.nodes import Nodes
from controller.inventory.pods import Pods, port_prefixes
from controller.inventory.policy_kinds import NamespaceKind, PolicyKind
from controller.inventory.ports import BridgePort, Ports
from controller.inventory.service_kinds import ServiceKind, SliceKind
from controller.load_balancers.balancers import Facts, LoadBalancers
from controller.policies import PolicyInventory
from controller.problems import (
    INVENTORY,
    POLICIES,
    BridgeRef,
    PortRef,
    Problems,
    Reporter,
    ReporterKind,
    Subject,
)
from controller.services import ServiceInventory
from controller.sources.metadata import Metadata
from controller.sources.objects import NodeObject, Object, PodObject
from controller.sources.routed_objects import (
    AddressPoolObject,
    BGPPeerObject,
    EgressAddressObject,
)
from controller.work_budget import WorkBudget
from flows.family import IPAddress
from flows.view import Cluster, ClusterView, Key


class Inventory:
    """Passes each object to its kind, and says which keys of the view changed.

    Objects come from the source, ports from the switches. Both are kept as given. What is accepted
    is in `view`, what is refused is in `problems`. The view depends on the objects and ports,
    not on the order in which they came. The cost of a change depends on the affected objects only.
    """

    def __init__(
        self,
        cluster: Cluster,
        reserved: Iterable[Range] = (),
        problems: Problems | None = None,
        protected: Mapping[IPAddress, str] | None = None,
        excluded: Iterable[str] = (),
        *,
        mirror_pods_as_members: bool = False,
    ) -> None:
        """`reserved` are ranges that no podCIDR may overlap, besides the Service range.

        `protected` are addresses that no Service may take, and what they are. `excluded` are the
        labels of Nodes that Sluice leaves alone, each `KEY` or `KEY=VALUE`.
        `mirror_pods_as_members`: whether selectors of policies match mirror pods as peers.
        """
        self.problems: Final = Problems() if problems is None else problems
        """The registry of all problems, also of those that others report."""
        self.nodes: Final = Nodes(cluster, reserved, excluded, self._note)
        self.pods: Final = Pods(self.nodes, self._note)
        self.ports: Final = Ports(self.nodes, self.pods, self._note)
        self.services: Final = ServiceInventory(cluster, self._note, protected=protected)
        self.nodes.followers.append(self._services_follow_nodes)
        self.address_owners: Final = AddressOwners(self.problems)
        """Which node has an address that one node at a time may have."""
        self.policies: Final = PolicyInventory(
            cluster,
            self._note_policy,
            self.pods.owner,
            self.ports.attachments,
            self.nodes.accepted,
            mirror_pods_as_members=mirror_pods_as_members,
        )
        self.nodes.followers.append(self._policies_follow_nodes)
        self.pods.followers.append(self._policies_follow_pod)
        self.ports.followers.append(self.policies.attachments.changed)
        self.bgp_peers: Final = KeptKind[BGPPeerObject]()
        self.address_pools: Final = KeptKind[AddressPoolObject]()
        self.egress_addresses: Final = KeptKind[EgressAddressObject]()
        self.egress: Final = EgressAddresses(
            self.egress_addresses,
            self.nodes,
            self.policies.groups,
            self.address_owners,
            (
                ("the pod range", cluster.pod_range),
                ("the Service range", cluster.service_range),
            ),
            self.services.addresses.nodes_with,
            self.services.addresses.protected,
            self._note,
        )
        self.services.addresses.on_protected = self.egress.follow_protected
        """Which pods leave from which address."""
        self.egress_ledger: Final = Ledger(self.egress, self.problems)
        """Which connections use their source ports."""
        self.nodes.followers.append(self.egress.follow_accepted)
        self.policies.attachments.followers.append(self.egress.placed)
        self._kinds: Final[dict[str, ObjectKind]] = {
            "Node": self.nodes,
            "Pod": self.pods,
            "Service": ServiceKind(self.services),
            "EndpointSlice": SliceKind(self.services),
            "Namespace": NamespaceKind(self.policies),
            "NetworkPolicy": PolicyKind("NetworkPolicy", self.policies),
            "ClusterNetworkPolicy": PolicyKind("ClusterNetworkPolicy", self.policies),
            "BGPPeer": self.bgp_peers,
            "AddressPool": self.address_pools,
            "EgressAddress": self.egress_addresses,
        }
        self.load_balancers: Final = LoadBalancers(
            Facts(
                self.address_pools,
                self.egress_addresses,
                self.nodes,
                self.policies.namespaces,
                self.services.given,
                self.services.view,
                self.services.addresses,
                self.services.hosts,
                (
                    ("the pod range", cluster.pod_range),
                    ("the Service range", cluster.service_range),
                ),
            ),
            self.address_owners,
            self.problems,
        )
        self.services.followers.append(self.load_balancers.follow_endpoints)
        self.nodes.followers.append(self._load_balancers_follow_nodes)
        self.view: Final = ClusterView(
            cluster,
            self.nodes.accepted,
            self.ports.attachments,
            self.services.view,
            self.services.local,
            self.services.targets.view,
            self.services.targets.services,
            self.policies.attachments.isolations,
            self.policies.walks.view,
            self.policies.peers.view,
            self.policies.peers.members,
            self.policies.ports.view,
            Needs(self.policies.needed_by, self.egress.members, self.egress.nodes_of),
            self.egress.view,
            self.egress.gateways,
            self.egress.pods,
            self.egress.members,
        )

    # --- objects and ports in ---

    def set_object(self, new: Object) -> set[Key]:
        """An object was added or changed."""
        if isinstance(new, NodeObject):
            self.address_owners.set_standing(new.metadata.name, standing_of(new))
        touched = self._kinds[new.kind].put(new)
        self.load_balancers.follow(new.kind, new.metadata.namespace, new.metadata.name)
        if new.kind == "Node":
            self.egress.follow_node(new.metadata.name)
        return touched

    def remove_object(self, kind: str, namespace: str, name: str) -> set[Key]:
        """An object was removed."""
        if kind == "Node":
            self.address_owners.set_standing(name, None)
        touched = self._kinds[kind].remove(namespace, name)
        self.load_balancers.follow(kind, namespace, name)
        if kind == "Node":
            self.egress.follow_node(name)
        return touched

    def settle(self, budget: WorkBudget | None = None) -> set[Key]:
        """Decide what depends on several objects, once after any number of changes.

        With a budget, policies are decided as far as it reaches: call it again until `is_settled`.
        """
        touched = self.nodes.settle() | self.services.settle()
        return touched | self._settle_pods(budget)

    def _settle_pods(self, budget: WorkBudget | None) -> set[Key]:
        return self.policies.settle(budget) | self.egress.settle(budget)

    @property
    def is_settled(self) -> bool:
        """Whether the view is what the objects and ports say."""
        return self.policies.is_settled and self.egress.is_settled

    @property
    def is_consistent(self) -> bool:
        """Whether the view is in one state of the policies, though newer objects may wait."""
        return self.policies.is_consistent

    def node_connected(
        self, node: str, address: IPAddress, budget: WorkBudget | None = None
    ) -> set[Key]:
        """A node's switch opened a session from this address, which counts until the next one."""
        self.nodes.connected(node, address)
        return self.settle(budget)

    def set_ports(
        self, node: str, ports: Iterable[BridgePort], budget: WorkBudget | None = None
    ) -> set[Key]:
        """All ports of a node's bridge, after its switch connected."""
        return self.ports.put_all(node, ports) | self._settle_pods(budget)

    def set_port(self, node: str, port: BridgePort, budget: WorkBudget | None = None) -> set[Key]:
        """A port was added or changed."""
        return self.ports.put(node, port) | self._settle_pods(budget)

    def remove_port(self, node: str, name: str, budget: WorkBudget | None = None) -> set[Key]:
        """A port was removed."""
        return self.ports.remove(node, name) | self._settle_pods(budget)

    def report_addresses(self, node: str, addresses: Iterable[IPAddress]) -> None:
        """What a node's agent has found on the host's interfaces; `settle` has to follow."""
        if node in self.nodes.accepted:
            self.services.report_addresses(node, addresses)

    def _services_follow_nodes(self, changed: Collection[str]) -> set[Key]:
        touched = {
            Key(name, "service", service)
            for name in changed
            for service in self.services.local.get(name, ())
        }
        self.services.set_node_addresses(dict(self.nodes.addresses))
        return touched

    def _load_balancers_follow_nodes(self, _: Collection[str]) -> set[Key]:
        self.load_balancers.follow_nodes()
        return set()

    def _policies_follow_nodes(self, changed: Collection[str]) -> set[Key]:
        self.policies.nodes_changed(changed)
        return set()

    def _policies_follow_pod(self, old: PodObject | None, new: PodObject | None) -> set[Key]:
        concerned = {
            (pod.spec.node_name, prefix)
            for pod in (old, new)
            if pod is not None
            for prefix in port_prefixes(pod)
        }
        for node, prefix in concerned:
            for port in self.ports.with_prefix(node, prefix):
                self.policies.attachments.changed(node, port)
        return set()

    # --- what others ask ---

    def node_of(self, dpid: int) -> str | None:
        """The name of the Node, accepted or refused, whose bridge has this datapath id."""
        return self.nodes.name_of(dpid)

    def knows_node(self, name: str) -> bool:
        """Whether the source holds such a Node, accepted or refused."""
        return name in self.nodes.objects

    @property
    def node_objects(self) -> Mapping[str, NodeObject]:
        """Every Node of the source by its name, accepted or refused."""
        return self.nodes.objects

    def pod(self, namespace: str, name: str) -> PodObject | None:
        """A Pod of the source, whether it has an attachment or not."""
        return self.pods.get(namespace, name)

    def pod_of(self, node: str, port: str) -> PodObject | None:
        """The Pod on this node that a port of this name belongs to."""
        return self.pods.owner(node, port)

    def metadata(self, kind: str, namespace: str, name: str) -> Metadata | None:
        """Of an object of the source, accepted or refused; None also for an unknown kind."""
        known = self._kinds.get(kind)
        found = known.get(namespace, name) if known else None
        return found.metadata if found else None

    def _note_policy(self, subject: Subject, problem: str) -> None:
        self.problems.set(POLICIES, subject, problem)

    def _note(self, subject: Subject, problem: str) -> None:
        # Problems of a node's ports are bounded for each node, and end with its session.
        reporter = INVENTORY
        if isinstance(subject, PortRef | BridgeRef):
            reporter = Reporter(ReporterKind.PORTS, subject.node)
        self.problems.set(reporter, subject, problem)
