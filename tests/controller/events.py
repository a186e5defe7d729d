"""Random clusters and their histories, for property tests.

The pools are small on purpose: nodes that share ranges and addresses, pods that are bound
elsewhere, ports of old sandboxes and of nobody must come up all the time.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address

from hypothesis import strategies as st

from controller.group_ids import GroupIds
from controller.inventory import BridgePort, Inventory
from controller.inventory.node_drafts import NodeRefusedError, draft_of
from controller.sources.objects import (
    NodeMetadata,
    NodeObject,
    NodeObjectAddress,
    NodeSpec,
    NodeStatus,
    Object,
    OwnerReference,
    PodAnnotations,
    PodMetadata,
    PodObject,
    PodSpec,
)
from flows import names
from flows.compile import Program, compile_scope, fragments
from flows.flow import Flow, Group, Meter
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.flows.worlds import CLUSTER

NODES = ("node1", "node2", "node3")
CIDRS = ("10.244.1.0/24", "10.244.2.0/24", "10.244.0.0/22", "10.244.9.0/31", "10.9.0.0/24", "x", "")
ADDRESSES = ("172.30.1.1", "172.30.1.2", "10.244.1.9", "fd00::1", "")

Event = Callable[[Inventory], set[Key]]


def node_object(
    name: str,
    cidr: str,
    address: str,
    created: str = "",
    uid: str = "u",
    zone: str = "",
    others: tuple[str, ...] = (),
    external: tuple[str, ...] = (),
) -> NodeObject:
    labels = {"topology.kubernetes.io/zone": zone} if zone else None
    addresses = [NodeObjectAddress("InternalIP", each) for each in (address, *others)]
    addresses += [NodeObjectAddress("ExternalIP", each) for each in external]
    return NodeObject(
        NodeMetadata(name=name, uid=uid, creation_timestamp=created, labels=labels),
        NodeSpec(pod_cidr=cidr),
        NodeStatus(addresses if address else None),
    )


def pod_object(
    name: str, node: str, uid: str = "u", host_network: bool = False, created: str | None = None
) -> PodObject:
    return PodObject(
        PodMetadata(name=name, namespace="default", uid=uid, creation_timestamp=created),
        PodSpec(node_name=node, host_network=host_network),
    )


def mirror_pod(name: str, node: str, static_uid: str, node_uid: str = "u") -> PodObject:
    """As a kubelet creates it for a static pod."""
    annotations = PodAnnotations(config_hash=static_uid, config_mirror=static_uid)
    owner = OwnerReference("Node", node, node_uid, controller=True)
    metadata = PodMetadata(
        name=name,
        namespace="default",
        uid=f"mirror-{static_uid}",
        annotations=annotations,
        owner_references=[owner],
    )
    return PodObject(metadata, PodSpec(node_name=node))


def port(pod: str, uid: str, sandbox: str, address: str, ofport: int) -> BridgePort:
    return BridgePort(
        names.port_name("default", pod, uid, "eth0", sandbox),
        ofport,
        names.mac_of(IPv4Address(address)),
    )


node_objects = st.one_of(
    # Most are as they should be, or no port would ever be believed.
    *[
        st.sampled_from(NODES[:2]).map(
            lambda n: node_object(n, f"10.244.{n[-1]}.0/24", f"172.30.1.{n[-1]}")
        )
    ]
    * 2,
    st.builds(
        node_object,
        st.sampled_from(NODES),
        st.sampled_from(CIDRS),
        st.sampled_from(ADDRESSES),
        st.sampled_from(("2026-01-01", "2026-01-02")),
        st.sampled_from(("u", "u", "new")),
        st.sampled_from(("", "a")),
        st.lists(st.sampled_from(ADDRESSES[:3]), max_size=2).map(tuple),
    ),
)
pod_objects = st.one_of(
    *[
        st.builds(
            pod_object,
            st.sampled_from(("a", "b", "c")),
            st.sampled_from(("", "node1", "node1", "node1", "node2")),
            st.sampled_from(("u1", "u2")),
            st.sampled_from((False, False, False, True)),
            st.sampled_from((None, "2026-01-01", "2026-01-02")),
        )
    ]
    * 4,
    st.builds(
        mirror_pod,
        st.sampled_from(("a", "b", "c")),
        st.sampled_from(("node1", "node2")),
        st.sampled_from(("u1", "u2")),
        st.sampled_from(("u", "u", "older")),
    ),
)
ports = st.builds(
    port,
    st.sampled_from(("a", "b", "c")),
    st.sampled_from(("u1", "u2")),
    st.sampled_from(("s1", "s2")),
    st.sampled_from(
        ("10.244.1.5", "10.244.1.5", "10.244.1.6", "10.244.2.5", "10.244.1.1", "10.9.0.5")
    ),
    st.sampled_from((16, 17, 18, 0xFEFF, 1)),
)
SERVICES = ("s", "t", "u")
SLICES = ("s-1", "s-2", "t-1")
EXTERNAL = ("198.51.100.1", "198.51.100.1", "198.51.100.2", "172.30.1.1", "10.244.9.9", "fd00::9")
service_ports = st.fixed_dictionaries(
    {
        "name": st.sampled_from(("", "b")),
        "port": st.sampled_from((53, 53, 80, 80, 0)),
        "protocol": st.sampled_from(("TCP", "UDP")),
    },
    optional={"nodePort": st.sampled_from((30080, 30081, 6081))},
)
service_fields = st.fixed_dictionaries(
    {
        "clusterIP": st.sampled_from(
            (*["10.96.0.1", "10.96.0.2"] * 3, "10.97.0.1", "fd00::1", "None")
        ),
        "ports": st.lists(service_ports, min_size=1, max_size=3),
        "type": st.sampled_from(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")),
        "created": st.sampled_from((None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
    },
    optional={
        "externalIPs": st.lists(st.sampled_from(EXTERNAL), max_size=2),
        "ingress": st.lists(st.sampled_from(EXTERNAL).map(lambda a: {"ip": a}), max_size=2),
        "loadBalancerSourceRanges": st.lists(st.sampled_from(("10.0.0.0/8", "x")), max_size=2),
        "externalTrafficPolicy": st.sampled_from(("Local", "Cluster")),
        "internalTrafficPolicy": st.sampled_from(("Local", "Cluster", "x")),
        "healthCheckNodePort": st.sampled_from((30080, 30099)),
        "sessionAffinity": st.sampled_from(("None", "ClientIP")),
        "labels": st.sampled_from(({}, {}, {}, {"service.kubernetes.io/service-proxy-name": "x"})),
    },
)
services = st.builds(
    lambda name, fields: service(name, **fields), st.sampled_from(SERVICES), service_fields
)
endpoints = st.builds(
    lambda address, node, fields: endpoint(address, node, **fields),
    st.sampled_from(
        (*["10.244.1.5", "10.244.2.5", "10.244.2.6", "172.30.1.1"] * 2, "172.30.1.2", "127.0.0.1")
    ),
    st.sampled_from((*NODES[:2], "node9")),
    st.fixed_dictionaries(
        {},
        optional={
            "ready": st.sampled_from((True, False, None)),
            "terminating": st.booleans(),
            "serving": st.booleans(),
            "zones": st.lists(st.sampled_from(("a", "b")), min_size=1, max_size=2),
            "nodes": st.lists(st.sampled_from(NODES), min_size=1, max_size=2),
        },
    ),
)
slices = st.builds(
    lambda name, of, made, ports, kind: endpoint_slice(name, of, made, ports, addressType=kind),
    st.sampled_from(SLICES),
    st.sampled_from(("s", "s", "t", None)),
    st.lists(endpoints, max_size=4),
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(("", "b")),
                "port": st.sampled_from((8080, 8080, 6081, 0)),
                "protocol": st.sampled_from(("TCP", "UDP")),
            }
        ),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from(("IPv4", "IPv4", "IPv4", "IPv4", "IPv6")),
)


def set_object(item: Object) -> Event:
    return lambda inventory: inventory.set_object(item) | inventory.settle()


def remove_node(name: str) -> Event:
    return lambda inventory: inventory.remove_object("Node", "", name) | inventory.settle()


def remove_pod(name: str) -> Event:
    return lambda inventory: inventory.remove_object("Pod", "default", name) | inventory.settle()


def remove_service(name: str) -> Event:
    return lambda inventory: (
        inventory.remove_object("Service", "default", name) | inventory.settle()
    )


def remove_slice(name: str) -> Event:
    return lambda inventory: (
        inventory.remove_object("EndpointSlice", "default", name) | inventory.settle()
    )


def connect(node: str, address: IPv4Address) -> Event:
    return lambda inventory: inventory.node_connected(node, address)


def set_port(node: str, new: BridgePort) -> Event:
    return lambda inventory: inventory.set_port(node, new)


def remove_port(node: str, old: BridgePort) -> Event:
    return lambda inventory: inventory.remove_port(node, old.name)


connections = st.builds(
    lambda node, address: connect(node, IPv4Address(address)),
    st.sampled_from(NODES),
    st.sampled_from((*ADDRESSES[:2], "192.0.2.1")),
)
service_events = st.one_of(
    *[services.map(set_object), slices.map(set_object)] * 3,
    node_objects.map(set_object),
    st.sampled_from(NODES).map(remove_node),
    st.sampled_from(SERVICES).map(remove_service),
    st.sampled_from(SLICES).map(remove_slice),
)
events = st.one_of(
    node_objects.map(set_object),
    pod_objects.map(set_object),
    st.builds(set_port, st.sampled_from(("node1", "node1", "node2")), ports),
    st.builds(set_port, st.just("node1"), ports),
    connections,
    st.sampled_from(NODES).map(remove_node),
    st.sampled_from(("a", "b", "c")).map(remove_pod),
    st.builds(remove_port, st.sampled_from(NODES[:2]), ports),
    services.map(set_object),
    slices.map(set_object),
    st.sampled_from(SERVICES).map(remove_service),
    st.sampled_from(SLICES).map(remove_slice),
)


class Facts:
    """Takes what an inventory takes, and remembers only what matters now.

    That is what is there; for each port the Pod that it has or had, because an attachment ends with
    its port; for each Node its last usable state, and where its switch connected from.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.ports: dict[tuple[str, str], BridgePort] = {}
        self.owners: dict[tuple[str, str], PodObject] = {}
        self.usable: dict[str, NodeObject] = {}
        self.sessions: dict[str, IPv4Address] = {}

    def replay(self) -> Iterator[Event]:
        """The shortest history that leads to the same."""
        for usable in self.usable.values():
            yield set_object(usable)
        for key, owner in self.owners.items():
            yield set_object(owner)
            yield set_port(key[0], self.ports[key])
            yield remove_pod(owner.metadata.name)
        for item in self.objects.values():
            yield set_object(item)
        for name, address in self.sessions.items():
            yield connect(name, address)
        for (node, _), port in self.ports.items():
            yield set_port(node, port)

    def settle(self) -> set[Key]:
        return set()

    def set_object(self, item: Object) -> set[Key]:
        old = self.objects.get((item.kind, item.metadata.name))
        self.objects[item.kind, item.metadata.name] = item
        if old is not None and item.kind == "Pod" and old.metadata.uid == item.metadata.uid:
            self.owners = {key: pod for key, pod in self.owners.items() if pod is not old}
        if isinstance(item, NodeObject):
            self._take_node(item)
        return self._follow()

    def _take_node(self, item: NodeObject) -> None:
        name = item.metadata.name
        usable = self.usable.get(name)
        if usable is not None and usable.metadata.uid != item.metadata.uid:
            del self.usable[name]
        with suppress(NodeRefusedError):
            draft_of(item, CLUSTER, [("the Service range", CLUSTER.service_range)])
            self.usable[name] = item

    def remove_object(self, kind: str, _: str, name: str) -> set[Key]:
        self.objects.pop((kind, name), None)
        if kind == "Node":
            self.usable.pop(name, None)
            self.sessions.pop(name, None)
        return set()

    def node_connected(self, node: str, address: IPv4Address) -> set[Key]:
        if ("Node", node) in self.objects:
            self.sessions[node] = address
        return set()

    def set_port(self, node: str, new: BridgePort) -> set[Key]:
        if self.ports.get((node, new.name)) != new:
            self.owners.pop((node, new.name), None)
        self.ports[node, new.name] = new
        return self._follow()

    def remove_port(self, node: str, name: str) -> set[Key]:
        self.ports.pop((node, name), None)
        self.owners.pop((node, name), None)
        return set()

    def _follow(self) -> set[Key]:
        pods = [each for each in self.objects.values() if isinstance(each, PodObject)]
        for node, name in self.ports:
            node_object = self.objects.get(("Node", node))
            node_uid = node_object.metadata.uid if node_object else None
            owners = [pod for pod in pods if self._owns(pod, node, node_uid, name)]
            if owners:
                self.owners[node, name] = min(
                    owners,
                    key=lambda p: (p.metadata.creation_timestamp or "never", p.metadata.name),
                )
        return set()

    @staticmethod
    def _owns(pod: PodObject, node: str, node_uid: str | None, port: str) -> bool:
        if pod.spec.node_name != node or pod.spec.host_network:
            return False
        uids = [pod.metadata.uid]
        if pod.mirrored and pod.mirrored[1] == node_uid:
            uids.append(pod.mirrored[0])
        return any(
            port.startswith(names.pod_port_prefix("default", pod.metadata.name, uid))
            for uid in uids
        )


Contents = tuple[dict[int, Flow], dict[int, Meter], dict[int, Group], Flow]
"""Flows by cookie, meters and groups by id, and the seal."""


class Incremental:
    """An inventory and its programs, kept up to date event by event."""

    def __init__(self) -> None:
        self.inventory = Inventory(CLUSTER)
        # So few ids that they are in each other's way.
        self.inventory.services._groups = GroupIds(range(1, 60))
        self.programs: dict[str, Program] = {}
        self.absorb({Key(CLUSTER_SCOPE, "cluster", "")})

    def take(self, event: Event) -> None:
        self.absorb(event(self.inventory))

    def absorb(self, touched: set[Key]) -> None:
        for scope in {key.scope for key in touched}:
            keys = [key for key in touched if key.scope == scope]
            program = self.programs.setdefault(scope, Program(scope))
            program.update(fragments(self.inventory.view, keys))

    def state(self) -> dict[str, Contents]:
        """Flows, meters, groups and seal of every scope that has any."""
        return {
            scope: content
            for scope, program in self.programs.items()
            if any((content := contents(program))[:3])
        }

    def oracle(self) -> dict[str, Contents]:
        """The same, compiled from nothing."""
        view = self.inventory.view
        programs = {s: compile_scope(view, s) for s in (CLUSTER_SCOPE, *view.nodes)}
        shared = {flow.key for flow in programs[CLUSTER_SCOPE].flows()}
        for node in view.nodes:
            # On a switch they would take each other's place.
            assert not shared & {flow.key for flow in programs[node].flows()}
            assert not programs[CLUSTER_SCOPE].groups.keys() & programs[node].groups.keys()
        return {
            scope: content
            for scope, program in programs.items()
            if any((content := contents(program))[:3])
        }


def contents(program: Program) -> Contents:
    flows = {cookie: flow for cookie, (flow, _) in program.cookies.items()}
    return flows, dict(program.meters), dict(program.groups), program.seal


def assert_same_in_any_order(
    world: type[Incremental], history: list[Event], chance: random.Random
) -> None:
    """Flows, problems and view do not depend on the order of the events, which is shuffled."""
    one, two = world(), world()
    for event in history:
        one.take(event)
    chance.shuffle(history)
    for event in history:
        two.take(event)
    assert one.state() == two.state()
    assert one.inventory.problems.texts() == two.inventory.problems.texts()
    assert one.inventory.view == two.inventory.view
