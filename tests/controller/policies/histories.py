"""Random clusters with policies, and their histories, for property tests."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from controller.desired import Desired
from controller.inventory import Inventory
from controller.sources.objects import Object, from_manifest
from flows.compile import Fragment
from flows.policy import policy_digest
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.events import node_object
from tests.controller.policies.clusters import bridge_port, namespace, pod, policy
from tests.flows.worlds import CLUSTER

Event = Callable[["Told"], None]
NAMESPACES = ("red", "blue")
PODS = {"red/a": "node1", "red/b": "node1", "blue/a": "node2", "blue/b": "node2"}
NODES = {
    name: node_object(name, f"10.244.{number}.0/24", f"172.30.1.{number}")
    for number, name in enumerate(("node1", "node2", "node3"), 1)
}


class Told:
    """Takes events in. Two of them agree if they were told the same, in whatever order."""

    def __init__(self, budget: Callable[[], Any] | None = None) -> None:
        self.inventory = Inventory(CLUSTER)
        self.desired = Desired(self.inventory.view)
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.addresses: dict[str, str] = {}
        """By pod, the address of its port."""
        self.owners: dict[str, Object] = {}
        """By pod with a port, its object, or what it was when it was removed."""
        self._budget = budget
        for node in NODES.values():
            self.put(node)
        self.finish()

    def again(self) -> "Told":
        """Another one that is told only what is there now."""
        other = Told()
        for path, owner in self.owners.items():
            other.put(owner)
            other.plug(path, self.addresses[path])
            other.remove("Pod", *path.split("/"))
        for item in reversed(self.objects.values()):
            other.put(item)
        for path, address in self.addresses.items():
            other.plug(path, address)
        for name in NODES.keys() - {name for kind, _, name in self.objects if kind == "Node"}:
            other.remove("Node", "", name)
        return other

    def put(self, item: Object) -> None:
        metadata = item.metadata
        self.objects[item.kind, metadata.namespace, metadata.name] = item
        path = f"{metadata.namespace}/{metadata.name}"
        if item.kind == "Pod" and path in self.addresses:
            self.owners[path] = item
        self.absorb(self.inventory.set_object(item) | self._settle())

    def remove(self, kind: str, of: str, name: str) -> None:
        self.objects.pop((kind, of, name), None)
        self.absorb(self.inventory.remove_object(kind, of, name) | self._settle())

    def plug(self, path: str, address: str) -> None:
        if self.addresses.get(path) == address:
            return
        self.unplug(path)
        if address in self.addresses.values():
            return
        self.addresses[path] = address
        of, name = path.split("/")
        if owner := self.objects.get(("Pod", of, name)):
            self.owners[path] = owner
        port = bridge_port(path, address)
        self.absorb(self.inventory.set_port(PODS[path], port, self._new_budget()))

    def unplug(self, path: str) -> None:
        if path in self.addresses:
            port = bridge_port(path, self.addresses.pop(path))
            self.owners.pop(path, None)
            self.absorb(self.inventory.remove_port(PODS[path], port.name, self._new_budget()))

    def finish(self) -> None:
        while not self.inventory.is_settled:
            self.absorb(self._settle())

    def absorb(self, touched: set[Key]) -> None:
        """As `controller.compilation` does."""
        changes: dict[str, dict[Key, Fragment | None]] = {}
        for key in touched:
            if key.scope == CLUSTER_SCOPE:
                continue
            of, nodes = self.desired.touch(key)
            for node in nodes:
                changes.setdefault(node, {})[of] = None
        for node, keys in changes.items():
            found = {key: self.desired.fragment(node, key) for key in keys}
            self.desired.update_node(node, found)

    def programs(self) -> dict[str, set[int]]:
        return {n: set(self.desired.program(n).cookies) for n in self.inventory.view.nodes}

    def _settle(self) -> set[Key]:
        return self.inventory.settle(self._new_budget())

    def _new_budget(self) -> Any:
        return self._budget() if self._budget else None


class OneSlice:
    """A budget that one slice uses up."""

    def __init__(self) -> None:
        self.over = False

    def spend(self, _: int) -> None:
        self.over = True


labels = st.dictionaries(st.sampled_from(("app", "tier")), st.sampled_from("xy"), max_size=2)
expressions = st.builds(
    lambda key, operator, values: {
        "key": key,
        "operator": operator,
        **({"values": values} if "In" in operator else {}),
    },
    st.sampled_from(("app", "tier", "kubernetes.io/metadata.name")),
    st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")),
    st.lists(st.sampled_from(("x", "y", "red")), min_size=1, max_size=2),
)
selectors = st.fixed_dictionaries(
    {}, optional={"matchLabels": labels, "matchExpressions": st.lists(expressions, max_size=1)}
)
blocks = st.sampled_from(
    (
        {"cidr": "0.0.0.0/0"},
        {"cidr": "172.30.1.0/24"},
        {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]},
        {"cidr": "172.30.1.2/32", "except": ["10.0.0.0/8"]},
        {"cidr": "x"},
    )
)
peers = st.one_of(
    st.builds(lambda s: {"podSelector": s}, selectors),
    st.builds(lambda s: {"namespaceSelector": s}, selectors),
    st.builds(lambda a, b: {"namespaceSelector": a, "podSelector": b}, selectors, selectors),
    st.builds(lambda b: {"ipBlock": b}, blocks),
)
policy_ports = st.sampled_from(
    (
        {"port": 80},
        {"port": 80, "endPort": 90},
        {"protocol": "UDP"},
        {"port": "http"},
        {"port": "http", "protocol": "UDP"},
        {"port": 0},
    )
)
sides = st.lists(peers, max_size=2)
ports = st.lists(policy_ports, max_size=2)
specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "ingress": st.lists(
            st.builds(lambda a, b: {"from": a, "ports": b}, sides, ports), max_size=2
        ),
        "egress": st.lists(st.builds(lambda a, b: {"to": a, "ports": b}, sides, ports), max_size=2),
        "policyTypes": st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"])),
    },
)
cluster_peers = st.one_of(
    st.builds(lambda s: {"namespaces": s}, selectors),
    st.builds(
        lambda a, b: {"pods": {"namespaceSelector": a, "podSelector": b}}, selectors, selectors
    ),
    st.just({}),
)
protocols = st.sampled_from(
    (
        {"tcp": {"destinationPort": {"number": 80}}},
        {"udp": {"destinationPort": {"range": {"start": 80, "end": 90}}}},
        {"destinationNamedPort": "http"},
    )
)


def cluster_rules(side: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    rule = st.fixed_dictionaries(
        {
            "action": st.sampled_from(("Accept", "Deny", "Pass")),
            side: st.lists(cluster_peers, min_size=1, max_size=2),
        },
        optional={"protocols": st.lists(protocols, min_size=1, max_size=2)},
    )
    return st.lists(rule, max_size=2)


cluster_specs = st.fixed_dictionaries(
    {
        "tier": st.sampled_from(("Admin", "Baseline")),
        "priority": st.integers(1, 3),
        "subject": cluster_peers,
    },
    optional={"ingress": cluster_rules("from"), "egress": cluster_rules("to")},
)


def cluster_policy(name: str, spec: dict[str, Any]) -> Object:
    return from_manifest(
        {
            "apiVersion": "policy.networking.k8s.io/v1beta1",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": spec,
        }
    )


named_ports = st.sampled_from(
    (None, [{"name": "http", "containerPort": 80}], [{"name": "http", "containerPort": 8080}])
)
pods = st.builds(
    lambda path, given, named: pod(path, PODS[path], given, containers=[{"ports": named}]),
    st.sampled_from(sorted(PODS)),
    labels,
    named_ports,
)
namespaces = st.builds(namespace, st.sampled_from(NAMESPACES), labels)
policies = st.builds(
    lambda of, name, spec: policy(f"{of}/{name}", **spec),
    st.sampled_from(NAMESPACES), st.sampled_from("pq"), specs,
)  # fmt: skip
cluster_policies = st.builds(cluster_policy, st.sampled_from("vw"), cluster_specs)
objects = st.one_of(*[pods, policies, cluster_policies] * 2, namespaces)

events: st.SearchStrategy[Event] = st.one_of(
    *[objects.map(lambda item: lambda told: told.put(item))] * 4,
    *[
        st.builds(
            lambda path, last: lambda told: told.plug(path, f"10.244.{PODS[path][-1]}.{last}"),
            st.sampled_from(sorted(PODS)),
            st.sampled_from((5, 6)),
        )
    ]
    * 3,
    st.sampled_from(sorted(PODS)).map(lambda path: lambda told: told.unplug(path)),
    st.sampled_from(sorted(PODS)).map(lambda pod: lambda told: told.remove("Pod", *pod.split("/"))),
    st.sampled_from(NAMESPACES).map(lambda name: lambda told: told.remove("Namespace", "", name)),
    st.builds(
        lambda of, name: lambda told: told.remove("NetworkPolicy", of, name),
        st.sampled_from(NAMESPACES), st.sampled_from("pq"),
    ),
    st.sampled_from("vw").map(lambda n: lambda told: told.remove("ClusterNetworkPolicy", "", n)),
    st.sampled_from(("node1", "node3")).map(lambda n: lambda told: told.remove("Node", "", n)),
    st.sampled_from(("node1", "node3")).map(lambda n: lambda told: told.put(NODES[n])),
)  # fmt: skip


def running(path: str, last: int) -> st.SearchStrategy[list[Event]]:
    """A pod that runs."""
    plug: Event = lambda told: told.plug(path, f"10.244.{PODS[path][-1]}.{last}")  # noqa: E731
    return st.builds(
        lambda given, named: [
            lambda told: told.put(pod(path, PODS[path], given, containers=[{"ports": named}])),
            plug,
        ],
        labels,
        named_ports,
    )


histories: st.SearchStrategy[list[Event]] = st.builds(
    lambda *parts: [event for part in parts for event in part],
    *[running(path, 5 + number % 2) for number, path in enumerate(PODS)],
    st.lists(st.one_of(policies, cluster_policies), min_size=2, max_size=4).map(
        lambda items: [(lambda told, item=item: told.put(item)) for item in items]
    ),
    st.lists(events, max_size=15),
)


def few_digests(text: str) -> int:
    """A digest of so few bits that there are collisions."""
    return policy_digest(text) % 5 + 1
