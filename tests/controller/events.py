"""Random clusters and their histories, for property tests.

The pools are small on purpose: nodes that share ranges and addresses, pods that are bound
elsewhere, ports of old sandboxes and of nobody must come up all the time.
"""

from collections.abc import Callable
from ipaddress import IPv4Address

from hypothesis import strategies as st

from controller.cluster import Inventory, Port
from controller.sources.objects import (
    Metadata,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Pod,
    PodSpec,
)
from flows import names
from flows.compile import Program, compile_scope, fragments
from flows.flow import Flow, Meter
from flows.view import CLUSTER_SCOPE, Key
from tests.flows.worlds import CLUSTER

NODES = ("node1", "node2", "node3")
CIDRS = ("10.244.1.0/24", "10.244.2.0/24", "10.244.0.0/22", "10.244.9.0/31", "10.9.0.0/24", "x", "")
ADDRESSES = ("172.30.1.1", "172.30.1.2", "10.244.1.9", "fd00::1", "")

Event = Callable[[Inventory], set[Key]]


def node_object(name: str, cidr: str, address: str, created: str = "", uid: str = "u") -> Node:
    return Node(
        Metadata(name=name, uid=uid, creation_timestamp=created),
        NodeSpec(pod_cidr=cidr),
        NodeStatus([NodeAddress("InternalIP", address)] if address else None),
    )


def pod_object(name: str, node: str, uid: str = "u", host_network: bool = False) -> Pod:
    return Pod(
        Metadata(name=name, namespace="default", uid=uid),
        PodSpec(node_name=node, host_network=host_network),
    )


def port(pod: str, uid: str, sandbox: str, address: str, ofport: int) -> Port:
    return Port(
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
    ),
)
pod_objects = st.builds(
    pod_object,
    st.sampled_from(("a", "b", "c")),
    st.sampled_from(("", "node1", "node1", "node1", "node2")),
    st.sampled_from(("u1", "u2")),
    st.sampled_from((False, False, False, True)),
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


def set_object(item: Node | Pod) -> Event:
    return lambda inventory: inventory.set_object(item) | inventory.settle()


def remove_node(name: str) -> Event:
    return lambda inventory: inventory.remove_object("Node", "", name) | inventory.settle()


def remove_pod(name: str) -> Event:
    return lambda inventory: inventory.remove_object("Pod", "default", name)


def set_port(node: str, new: Port) -> Event:
    return lambda inventory: inventory.set_port(node, new)


def remove_port(node: str, old: Port) -> Event:
    return lambda inventory: inventory.remove_port(node, old.name)


events = st.one_of(
    node_objects.map(set_object),
    pod_objects.map(set_object),
    st.builds(set_port, st.sampled_from(("node1", "node1", "node2")), ports),
    st.builds(set_port, st.just("node1"), ports),
    st.sampled_from(NODES).map(remove_node),
    st.sampled_from(("a", "b", "c")).map(remove_pod),
    st.builds(remove_port, st.sampled_from(NODES[:2]), ports),
)


class Facts:
    """Takes what an inventory takes, and remembers only what is there now."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Node | Pod] = {}
        self.ports: dict[tuple[str, str], Port] = {}

    def settle(self) -> set[Key]:
        return set()

    def set_object(self, item: Node | Pod) -> set[Key]:
        self.objects[type(item).__name__, item.metadata.name] = item
        return set()

    def remove_object(self, kind: str, _: str, name: str) -> set[Key]:
        self.objects.pop((kind, name), None)
        return set()

    def set_port(self, node: str, new: Port) -> set[Key]:
        self.ports[node, new.name] = new
        return set()

    def remove_port(self, node: str, name: str) -> set[Key]:
        self.ports.pop((node, name), None)
        return set()


Contents = tuple[dict[int, Flow], dict[int, Meter], Flow]
"""Flows by cookie, meters by id, and the seal."""


class Incremental:
    """An inventory and its programs, kept up to date event by event."""

    def __init__(self) -> None:
        self.inventory = Inventory(CLUSTER)
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
        """Flows, meters and seal of every scope that has any."""
        return {
            scope: content
            for scope, program in self.programs.items()
            if any((content := contents(program))[:2])
        }

    def oracle(self) -> dict[str, Contents]:
        """The same, compiled from nothing."""
        view = self.inventory.view
        programs = {s: compile_scope(view, s) for s in (CLUSTER_SCOPE, *view.nodes)}
        shared = {flow.key for flow in programs[CLUSTER_SCOPE].flows()}
        for node in view.nodes:
            # On a switch they would take each other's place.
            assert not shared & {flow.key for flow in programs[node].flows()}
        return {
            scope: content
            for scope, program in programs.items()
            if any((content := contents(program))[:2])
        }


def contents(program: Program) -> Contents:
    flows = {cookie: flow for cookie, (flow, _) in program.cookies.items()}
    return flows, dict(program.meters), program.seal
