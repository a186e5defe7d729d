"""memory_*: what one more pod, Service and switch take in the controller's memory.

The controller takes objects in as a watch does, from bytes, and compiles them. Counted are
the bytes and the blocks that Python allocates; both are the same in each run. What the kernel keeps
for a connection is not in them.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from bench.controller import CLUSTER
from bench.figures import Figure
from bench.large_cluster import NODES, PODS, SERVICES, SLICES, LargeCluster
from controller.desired import Desired
from controller.inventory import BridgePort, Inventory
from controller.session import Session
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import NodeObject, Object, PodObject, ServiceObject
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, Cluster, Key
from openflow.switch import Switch

KINDS: Final[dict[str, type[Object]]] = {
    NODES: NodeObject,
    PODS: PodObject,
    SERVICES: ServiceObject,
    SLICES: SliceObject,
}
WARM: Final = 5
"""Nodes and Services that come first: what is shared with all later ones is made for them."""
NUMBER: Final = 20
"""Nodes that are counted, and a tenth of the Services."""
PODS_OF_NODE, ENDPOINTS = 30, 10


class Taken(NamedTuple):
    """Memory of one."""

    size: float
    """Bytes."""
    blocks: float


def measure() -> list[Figure]:
    """One figure for each part, in KB."""
    return [
        Figure(f"memory_kb.{name}", "KB", [taken.size / 1000]) for name, taken in parts().items()
    ]


def parts() -> dict[str, Taken]:
    """By name what one more takes."""
    return asyncio.run(_Growth().parts())


class _Growth:
    def __init__(self) -> None:
        nodes, services = WARM + NUMBER, 10 * (WARM + NUMBER)
        self._cluster = LargeCluster(nodes, PODS_OF_NODE, services, ENDPOINTS)
        self._inventory = Inventory(
            Cluster(
                CLUSTER.pod_range,
                CLUSTER.service_range,
                CLUSTER.tunnel_port,
                CLUSTER.new_connections_per_second,
            )
        )
        self._desired = Desired(self._inventory.view)
        self._desired.source_complete = True
        self._sessions: list[Session] = []
        self._source = {path: self._cluster.objects[path]() for path in KINDS}
        self._connected = 0
        self._touched: set[Key] = set()
        self._taken: dict[str, Taken] = {}

    async def parts(self) -> dict[str, Taken]:
        tracemalloc.start()
        try:
            self._grow(WARM)
            self._taken.clear()
            self._grow(NUMBER)
        finally:
            tracemalloc.stop()
        return self._taken

    def _grow(self, nodes: int) -> None:
        services, pods = 10 * nodes, PODS_OF_NODE * nodes
        with self._counted("a switch: Node", nodes):
            self._take(NODES, nodes)
        with self._counted("a switch: its flows at all others", nodes):
            self._compile()
        with self._counted("a pod: Pod", pods):
            self._take(PODS, pods)
        with self._counted("a pod: its port", pods):
            touched = self._attach(nodes)
        with self._counted("a pod: its flows", pods):
            self._compile_own(touched)
        first = self._connected
        names = [self._cluster.node(1 + number).name for number in range(first, first + nodes)]
        with self._counted("a switch: its own flows, without pods", nodes):
            for name in names:
                keys = self._desired.keys(name) - self._desired.program(name).fragments.keys()
                self._compile_own(keys)
        with self._counted("a switch: session", nodes):
            self._sessions += [self._session(name) for name in names]
        self._connected += nodes
        with self._counted("a Service: Service and EndpointSlice", services):
            self._take(SERVICES, services)
            self._take(SLICES, services)
        with self._counted("a Service: its flows", services):
            self._compile()
        # These are of all that there are.
        with self._counted("a Service: the bytes of its flows", 10 * self._connected):
            for part in self._desired.everything_shared().parts:
                _ = part.data
        self._desired._everything = None  # noqa: SLF001 - or it goes when something else is counted

    @contextmanager
    def _counted(self, name: str, number: int) -> Iterator[None]:
        gc.collect()
        size, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
        yield
        gc.collect()
        more = tracemalloc.get_traced_memory()[0] - size, sys.getallocatedblocks() - blocks
        self._taken[name] = Taken(more[0] / number, more[1] / number)

    def _take(self, path: str, number: int) -> None:
        """As `controller.sources.kubernetes` does it."""
        for content in islice(self._source[path], number):
            self._touched |= self._inventory.set_object(
                msgspec.json.decode(content, type=KINDS[path])
            )
        self._touched |= self._inventory.settle()

    def _compile(self) -> None:
        """The shared part of what changed."""
        keys = {key for key in self._touched if key.scope == CLUSTER_SCOPE}
        self._touched.clear()
        changes = {key: self._desired.fragment(CLUSTER_SCOPE, key) for key in keys}
        self._desired.update_shared(changes)
        self._desired.forget_changes(self._desired.shared.version)

    def _attach(self, nodes: int) -> set[Key]:
        """The ports of the next nodes."""
        touched: set[Key] = set()
        for number in range(self._connected + 1, self._connected + nodes + 1):
            made = [self._cluster.pod(pod, number)[0] for pod in range(1, PODS_OF_NODE + 1)]
            ports = [BridgePort(each.port, each.ofport, each.mac) for each in made]
            touched |= self._inventory.set_ports(self._cluster.node(number).name, ports)
        return touched

    def _compile_own(self, keys: Iterable[Key]) -> None:
        by_node: dict[str, dict[Key, None]] = {}
        for key in keys:
            if key.scope not in (CLUSTER_SCOPE, SOME_SCOPE):
                by_node.setdefault(key.scope, {})[key] = None
        for node, own in by_node.items():
            self._desired.update_node(node, {key: self._desired.fragment(node, key) for key in own})

    def _session(self, node: str) -> Session:
        session = Session(node, Switch(lambda _: None, lambda _, __: None), self._desired)
        # As if it had acknowledged them.
        session._cookies = set(self._desired.program(node).cookies)  # noqa: SLF001
        return session
