"""What one object, or one switch, costs a controller: measured in this process, for `bench.shards`.

CPU seconds and resident bytes, each divided by the number of pieces of a small cluster.
"""

import asyncio
import gc
import json
import logging
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from bench.controller import CLUSTER
from bench.large_cluster import NODES, PODS, SERVICES, SLICES, LargeCluster
from controller import garbage
from controller.desired import batch_of
from controller.inventory import BridgePort, Inventory
from controller.reconciler import Reconciler
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import NodeObject, PodObject, ServiceObject
from flows import names
from flows.compile import Program, compile_scope, fragments
from flows.diff import Delta, GroupChange
from flows.view import CLUSTER_SCOPE, Cluster, Key
from lab.processes import running
from openflow.batch import Batch
from openflow.server import serve

SIZE: Final = LargeCluster(nodes=200, pods=30, services=400, endpoints=10)
LITTLE: Final = LargeCluster(nodes=200, pods=30, services=1, endpoints=10)
MUCH: Final = LargeCluster(nodes=200, pods=100, services=2000, endpoints=10)
"""What switches are connected with: their shared flows have 0.1 and 3 MB."""
PATIENCE: Final = 60.0
"""Seconds until switches that do not get their flows count as failed."""
CHANGES: Final = 200
UPDATES: Final = 8
_CLUSTER: Final = Cluster(
    CLUSTER.pod_range,
    CLUSTER.service_range,
    CLUSTER.tunnel_port,
    CLUSTER.new_connections_per_second,
)


@dataclass(frozen=True)
class Cost:
    """Of one piece."""

    seconds: float
    """Of CPU."""
    memory: float
    """Bytes that it keeps."""
    wire: float = 0.0
    """Bytes to each switch that gets it."""


@dataclass(frozen=True)
class Costs:
    """All pieces."""

    node: Cost
    """A Node, as a peer of all others."""
    service: Cost
    """A Service with ten endpoints."""
    pod: Cost
    """A Pod, as the API server tells it."""
    port: Cost
    """A pod's port, as its switch tells it."""
    own: Cost
    """The own program of a node, compiled and encoded."""
    session: Cost
    """A connected switch: its handshake, its comparison, and writing its flows, but for bytes."""
    byte: Cost
    """A byte of flows that is written to one more switch."""
    update: Cost
    """A small change of shared flows at one more switch, until it is acknowledged."""
    endpoint: Cost
    """One endpoint of a Service more or less."""
    attached: Cost
    """A pod's flows, at the controller that writes to its switch."""


def measure() -> Costs:
    """Build a cluster piece by piece, then connect simulated switches."""
    garbage.collect_rarely()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    made = _Made(SIZE)
    node = _cost(SIZE.nodes, lambda: made.take(NODES, NodeObject))
    service = _cost(
        SIZE.services,
        lambda: made.take(SERVICES, ServiceObject) + made.take(SLICES, SliceObject),
    )
    pods = SIZE.nodes * SIZE.pods
    pod = _cost(pods, lambda: made.take(PODS, PodObject))
    port = _cost(pods, made.attach)
    own = _cost(SIZE.nodes, made.compile_own)
    endpoint = _cost(CHANGES, made.change_endpoints)
    attached = _cost(CHANGES, made.change_ports)
    (with_little, update), (with_much, _) = (
        asyncio.run(_connect(LITTLE)),
        asyncio.run(_connect(MUCH)),
    )
    more = with_much.wire - with_little.wire
    byte = Cost(max(0.0, with_much.seconds - with_little.seconds) / more, 0.0, 1.0)
    handshake = with_little.seconds - with_little.wire * byte.seconds
    session = Cost(max(0.0, handshake), with_little.memory)
    return Costs(node, service, pod, port, own, session, byte, update, endpoint, attached)


class _Made:
    """A controller's view and programs, without a loop."""

    def __init__(self, size: LargeCluster) -> None:
        self._size = size
        self._inventory = Inventory(_CLUSTER)
        self._shared = Program(CLUSTER_SCOPE)
        self._own: dict[str, Program] = {}
        self._kept: list[Batch] = []

    def take(self, path: str, kind: type[Any]) -> int:
        """Objects as the API server sends them; bytes for each switch."""
        touched: set[Key] = set()
        for raw in self._size.objects[path]():
            touched |= self._inventory.set_object(msgspec.json.decode(raw, type=kind))
        return self._publish(touched | self._inventory.settle())

    def _publish(self, touched: set[Key]) -> int:
        keys = sorted(key for key in touched if key.scope == CLUSTER_SCOPE)
        if not keys:
            return 0
        delta = self._shared.update(fragments(self._inventory.view, keys))
        return _wire(batch_of(delta, self._shared.seal, sealed=True))

    def attach(self) -> int:
        for of in range(1, self._size.nodes + 1):
            made = [self._size.pod(number, of)[0] for number in range(1, self._size.pods + 1)]
            ports = [BridgePort(each.port, each.ofport, each.mac) for each in made]
            self._inventory.set_ports(self._size.node(of).name, ports)
        self._inventory.settle()
        return 0

    def compile_own(self) -> int:
        wire = 0
        for of in range(1, self._size.nodes + 1):
            name = self._size.node(of).name
            self._own[name] = program = compile_scope(self._inventory.view, name)
            everything = Delta(
                adds=tuple(program.flows()),
                groups_set=tuple(map(GroupChange, program.groups.values())),
            )
            batch = batch_of(everything, program.seal, sealed=True)
            wire += _wire(batch)
        return wire

    def change_endpoints(self) -> int:
        wire = 0
        for number in range(CHANGES):
            manifest = self._size.slice_manifest(number, without=[0])
            raw = json.dumps(manifest).encode()
            touched = self._inventory.set_object(msgspec.json.decode(raw, type=SliceObject))
            wire += self._publish(touched | self._inventory.settle())
        return wire

    def change_ports(self) -> int:
        """A pod goes and comes back: the cost of the pair counts as two changes."""
        wire = 0
        for number in range(CHANGES // 2):
            node = self._size.node(1 + number).name
            made, _ = self._size.pod(1, 1 + number)
            port = BridgePort(made.port, made.ofport, made.mac)
            wire += self._publish_own(node, self._inventory.remove_port(node, made.port))
            wire += self._publish_own(node, self._inventory.set_port(node, port))
        return wire

    def _publish_own(self, node: str, touched: set[Key]) -> int:
        program = self._own[node]
        keys = sorted(key for key in touched | self._inventory.settle() if key.scope == node)
        delta = program.update(fragments(self._inventory.view, keys))
        return _wire(batch_of(delta, program.seal, sealed=True))


async def _connect(size: LargeCluster) -> tuple[Cost, Cost]:
    """Connect a simulated switch for each node: a session with its shared flows, and an update."""
    reconciler = Reconciler(Inventory(_CLUSTER))
    kinds: tuple[tuple[str, type[Any]], ...] = (
        (NODES, NodeObject), (SERVICES, ServiceObject), (SLICES, SliceObject),
    )  # fmt: skip
    for path, kind in kinds:
        given = [msgspec.json.decode(raw, type=kind) for raw in size.objects[path]()]
        reconciler.update(given, [])
    reconciler.source_complete(True)
    await _until(lambda: reconciler.is_idle)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    switches = [_simulated(size, number) for number in range(1, size.nodes + 1)]
    wire = _wire(reconciler.desired.everything_shared())
    async with serve("127.0.0.1", port, reconciler.on_switch):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(switches))
            file.flush()
            seconds, memory = time.process_time(), _resident()
            command = [sys.executable, "-m", "bench.switches", f"127.0.0.1:{port}", file.name]
            # It starts in no time compared with what is measured.
            with running(command, stdout=subprocess.DEVNULL) as run:
                run.say('{"expected": []}\n')
                await _until(partial(_in_sync, reconciler, size.nodes))
                seconds, memory = time.process_time() - seconds, _resident() - memory
                updates = time.process_time()
                for without in range(UPDATES):
                    raw = json.dumps(size.slice_manifest(0, without=[without])).encode()
                    reconciler.update([msgspec.json.decode(raw, type=SliceObject)], [])
                    await _until(partial(_in_sync, reconciler, size.nodes))
                updates = time.process_time() - updates
                run.close_input()
    session = Cost(seconds / size.nodes, max(0, memory) / size.nodes, wire)
    return session, Cost(updates / UPDATES / size.nodes, 0.0)


def _in_sync(reconciler: Reconciler, switches: int) -> bool:
    sessions = reconciler.sessions
    in_sync = all(each.in_sync for each in sessions.values())
    return reconciler.is_idle and in_sync and len(sessions) == switches


def _simulated(size: LargeCluster, number: int) -> dict[str, Any]:
    ports = [
        (names.TUNNEL_OFPORT, names.TUNNEL_PORT, "02:00:00:00:00:01"),
        (names.GATEWAY_OFPORT, names.GATEWAY_PORT, names.GATEWAY_MAC),
    ]
    dpid = names.datapath_id(size.node(number).name)
    return {"dpid": dpid, "max_backoff": 1, "ports": ports, "expected": []}


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def _cost(pieces: int, work: Callable[[], int]) -> Cost:
    gc.collect()
    memory, seconds = _resident(), time.process_time()
    wire = work()
    seconds = time.process_time() - seconds
    gc.collect()
    return Cost(seconds / pieces, max(0, _resident() - memory) / pieces, wire / pieces)


def _wire(batch: Batch) -> int:
    return sum(len(part.data) + len(part.commit) for part in batch.parts)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
