"""fleet5k_*: one controller, 5,000 switches, 150,000 pods, 10,000 Services with ten endpoints.

Three processes beside the one that measures: the real controller, the bytes of an API server
(`bench.api_server`) and the simulated switches (`bench.switches`). What each of them costs is told
by itself. docs/scale.md has the curve.

    python -m bench.large_fleet --nodes 500 --nodes 1000 --churn 60
"""

import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from bench.controller import CLUSTER, StandaloneController, node_manifest, standalone
from bench.figures import Figure, percentile
from bench.large_cluster import NODES, PODS, SLICES, LargeCluster
from bench.ticking import lags
from controller.inventory import BridgePort, Inventory
from controller.sources.objects import from_manifest
from flows import names
from flows.compile import COMPILER, compile_scope
from flows.view import CLUSTER_SCOPE, Attachment, Cluster, Key
from lab import LabError
from lab.commands import inside
from lab.processes import Process, running
from lab.programs import python

PORT: Final = 8001
"""Where the API server listens, in the controller's namespace."""
PATIENCE: Final = 600.0
"""Seconds until a step that is not done counts as failed."""
GLANCE: Final = 2.0
"""Seconds between looks whether the controller still runs."""
SAMPLED: Final = 20
"""Nodes whose own flows are known one by one."""
CHURN_STEP: Final = 0.05
"""Seconds between two orders in which pods change."""
SERVICES_OF_NODE, PODS_OF_NODE, ENDPOINTS = 2, 30, 10


def measure(
    *,
    nodes: int = 5_000,
    pods: int = PODS_OF_NODE,
    services: int | None = None,
    new_nodes: int = 5,
    changes: int = 20,
    churn: float = 60.0,
    rate: int = 100,
    prefix: str = "fleet5k",
) -> list[Figure]:
    """One start, and all changes to what has started. `churn`: seconds of `rate` pod changes."""
    services = SERVICES_OF_NODE * nodes if services is None else services
    cluster = LargeCluster(nodes, pods, services, ENDPOINTS)
    oracle = Oracle(cluster)
    with standalone("fleet5k") as controller, running_fleet(oracle, controller) as fleet:
        return _measured(fleet, prefix, new_nodes, changes, churn, rate)


def _measured(
    fleet: "Fleet", prefix: str, new_nodes: int, changes: int, churn: float, rate: int
) -> list[Figure]:
    sync = fleet.wait_for_all() - fleet.started
    costs = fleet.costs()
    fleet.say(f"in sync after {sync:.1f} s; CPU s: {costs}; {fleet.resident_mb():.0f} MB")
    figures = [
        Figure(f"{prefix}_sync_s", "s", [sync], at_most=120),
        *(Figure(f"{prefix}_sync_s.cpu_{name}", "s", [cost]) for name, cost in costs.items()),
    ]
    fleet.settle()
    fleet.note("start")
    added = [1000 * fleet.add_node() for _ in range(new_nodes)]
    fleet.say(f"new nodes, ms: {_rounded(added)}")
    fleet.note("new_node")
    endpoints = [1000 * each for number in range(changes) for each in fleet.change_endpoint(number)]
    fleet.say(f"endpoint, ms: {_rounded([percentile(endpoints, q) for q in (0.5, 0.99, 1)])}")
    fleet.note("endpoint")
    resident = fleet.resident_mb()
    figures += [
        Figure(f"{prefix}_new_node_ms", "ms", added, at_most=1000),
        Figure(f"{prefix}_endpoint_ms_p99", "ms", [percentile(endpoints, 0.99)], at_most=250),
        Figure(f"{prefix}_endpoint_ms_p99.median", "ms", [percentile(endpoints, 0.5)]),
        Figure(f"{prefix}_rss_mb", "MB", [resident], at_most=1500),
    ]
    for name, with_services in (("churn", False), ("churn_endpoints", True)):
        if churn:
            before = fleet.resident_mb()
            delays = fleet.churn(churn, rate, with_services=with_services)
            fleet.note(name)
            third = len(delays) // 3
            first, last = (percentile(part, 0.99) for part in (delays[:third], delays[-third:]))
            figures += [
                Figure(f"{prefix}_{name}_ms_p99", "ms", [1000 * percentile(delays, 0.99)]),
                Figure(f"{prefix}_{name}_growth", "ratio", [last / first], at_most=2),
                Figure(f"{prefix}_{name}_more_mb", "MB", [fleet.resident_mb() - before]),
            ]
    reconnect = fleet.reconnect()
    fleet.say(f"all reconnected after {reconnect:.1f} s; {fleet.resident_mb():.0f} MB")
    fleet.note("reconnect")
    figures.append(Figure(f"{prefix}_reconnect_s", "s", [reconnect], at_most=60))
    every = [each for late in fleet.lags.values() for each in late]
    figures.append(Figure(f"{prefix}_loop_lag_ms_p99", "ms", [percentile(every, 0.99)], at_most=20))
    for name, late in fleet.lags.items():
        figures.append(Figure(f"{prefix}_loop_lag_ms_p99.{name}", "ms", [percentile(late, 0.99)]))
        figures.append(Figure(f"{prefix}_loop_lag_ms_max.{name}", "ms", [max(late)]))
    return figures


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before[name], 1) for name in after}


def _rounded(samples: Sequence[float]) -> list[float]:
    return [round(each, 1) for each in samples]


class Oracle:
    """What switches should hold, by full compilation of a copy of the cluster."""

    def __init__(self, cluster: LargeCluster) -> None:
        self.cluster = cluster
        settings = Cluster(
            CLUSTER.pod_range,
            CLUSTER.service_range,
            CLUSTER.tunnel_port,
            CLUSTER.new_connections_per_second,
        )
        self._inventory = inventory = Inventory(settings)
        for number in range(1, cluster.nodes + 1):
            inventory.set_object(
                from_manifest(_of_kind("Node", node_manifest(_node(cluster, number))))
            )
        for number in range(cluster.services):
            for kind, made in (
                ("Service", cluster.service_manifest(number)),
                ("EndpointSlice", cluster.slice_manifest(number)),
            ):
                inventory.set_object(from_manifest(_of_kind(kind, made)))
        inventory.settle()
        if problems := inventory.problems.texts():
            raise LabError(f"the cluster has problems: {[*problems.items()][:3]}")
        view = inventory.view
        self._cookies = {key: self._compiled(key) for key in COMPILER.keys(view, CLUSTER_SCOPE)}
        self.shared = sorted(set().union(*self._cookies.values()))

    def _compiled(self, key: Key) -> frozenset[int]:
        found = COMPILER.fragment(self._inventory.view, key)
        return frozenset(flow.cookie for flow in found.flows) if found else frozenset()

    def change(self, kind: str, manifest: Any) -> list[int]:
        """The cookies that every switch gets for a changed object."""
        touched = self._inventory.set_object(from_manifest(_of_kind(kind, manifest)))
        touched |= self._inventory.settle()
        new: set[int] = set()
        for key in touched:
            if key.scope == CLUSTER_SCOPE:
                cookies = self._compiled(key)
                new |= cookies - self._cookies.get(key, frozenset())
                self._cookies[key] = cookies
        return sorted(new)

    def own(self, number: int) -> list[int]:
        """The cookies of a node's own flows."""
        name = self.cluster.node(number).name
        inventory = self._inventory
        made = [self.cluster.pod(pod, number) for pod in range(1, self.cluster.pods + 1)]
        for attachment, manifest in made:
            inventory.set_object(from_manifest(manifest))
            port = BridgePort(attachment.port, attachment.ofport, attachment.mac)
            inventory.set_port(name, port)
        inventory.settle()
        found = [*compile_scope(inventory.view, name).cookies]
        inventory.set_ports(name, [])
        for _, manifest in made:
            inventory.remove_object("Pod", "default", manifest["metadata"]["name"])
        return found

    def attachment(self, node: str, attachment: Attachment, manifest: Any) -> list[int]:
        """The cookies of the flows of a pod that comes."""
        inventory = self._inventory
        inventory.set_object(from_manifest(manifest))
        inventory.set_port(node, BridgePort(attachment.port, attachment.ofport, attachment.mac))
        inventory.settle()
        found = self._compiled(Key(node, "attachment", attachment.port))
        inventory.remove_port(node, attachment.port)
        inventory.remove_object("Pod", "default", manifest["metadata"]["name"])
        return sorted(found)

    def write(self, path: Path) -> None:
        """What `bench.switches` reads."""
        cluster = self.cluster
        every = range(1, cluster.nodes + 1)
        step = max(1, cluster.nodes // SAMPLED)
        own = {number: self.own(number) for number in every[::step]}
        least = min(map(len, own.values())) + len(self.shared) + 2
        switches = []
        for number in every:
            attachments = [cluster.pod(pod, number)[0] for pod in range(1, cluster.pods + 1)]
            dpid = names.datapath_id(cluster.node(number).name)
            switches.append({
                "dpid": dpid,
                "max_backoff": 2 + dpid % 2000 / 1000,
                "ports": [
                    (names.TUNNEL_OFPORT, names.TUNNEL_PORT, "02:00:00:00:00:01"),
                    (names.GATEWAY_OFPORT, names.GATEWAY_PORT, names.GATEWAY_MAC),
                    *((a.ofport, a.port, a.mac) for a in attachments),
                ],
                "expected": own.get(number, []),
                # Two of them are the seals.
                "least": least,
            })  # fmt: skip
        path.write_text(json.dumps(switches))


def _node(cluster: LargeCluster, number: int) -> Any:
    return cluster.node(number)


def _of_kind(kind: str, manifest: Any) -> Any:
    group = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
    return {"apiVersion": group, "kind": kind, **manifest}


@dataclass
class Fleet:
    """What runs, and what was seen of it."""

    oracle: Oracle
    controller: StandaloneController
    processes: dict[str, int]
    """Process ids by name."""
    started: float
    switches: Process
    api_server: Process
    lag_file: Path
    lags: dict[str, list[float]] = field(default_factory=dict)
    """By step, milliseconds that the event loop was late."""
    _unchanged: list[tuple[int, int]] = field(default_factory=list)
    """Pods that were not changed yet: each only once."""
    _noted: float = 0.0
    _added: int = 0

    # --- what is asked of the fleet ---

    def expect(self, cookies: Sequence[int], *, times: bool = False) -> None:
        """Have the switches say when all of them hold these too."""
        self.switches.say(json.dumps({"expected": cookies, "times": times}) + "\n")

    def wait_for_all(self) -> float:
        """When every switch held what was expected. Raises `LabError`."""
        return float(self._heard(self.switches)["at"])

    def _heard(self, process: Process) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                line = process.line(GLANCE)
            except TimeoutError:
                if self.controller.daemons.pid("controller") is None:
                    break
                continue
            if not line:
                raise LabError("a simulation has ended")
            heard: dict[str, Any] = json.loads(line)
            return heard
        tail = self.controller.daemons.tail("controller")
        raise LabError(f"the fleet is not in sync\n{tail}")

    def tell(self, events: Sequence[tuple[str, str, Any]]) -> float:
        """Have the API server tell of these; when it did."""
        self.api_server.say(json.dumps({"events": events}) + "\n")
        return float(self._heard(self.api_server)["at"])

    # --- steps ---

    def add_node(self) -> float:
        """Seconds from one more Node until every switch has its flows."""
        self._added += 1
        cluster = self.oracle.cluster
        manifest = node_manifest(cluster.node(cluster.nodes + self._added))
        self.expect(self.oracle.change("Node", manifest))
        told = self.tell([(NODES, "ADDED", manifest)])
        return self.wait_for_all() - told

    def change_endpoint(self, number: int) -> list[float]:
        """An endpoint of a Service goes: seconds until the switches have it, one by one."""
        manifest = self.oracle.cluster.slice_manifest(number, without=[0])
        self.expect(self.oracle.change("EndpointSlice", manifest), times=True)
        told = self.tell([(SLICES, "MODIFIED", manifest)])
        return [at - told for at in self._heard(self.switches)["times"]]

    def churn(self, seconds: float, rate: int, *, with_services: bool) -> list[float]:
        """So many changes of pods a second: seconds that each that came took, in their order.

        Half of them go, half of them come, under new names and with new sandboxes.
        """
        steps = self._churn_steps(int(seconds / CHURN_STEP), rate * CHURN_STEP, with_services)
        took: list[float] = []
        began = shown = time.monotonic()
        before = self.costs()
        for number, (events, ports) in enumerate(steps):
            time.sleep(max(0.0, began + number * CHURN_STEP - time.monotonic()))
            self.tell(events)
            self.switches.say(json.dumps({"ports": ports}) + "\n")
            if time.monotonic() - shown >= 5:
                shown = time.monotonic()
                waiting, some = self._awaited()
                took += some
                worst = 1000 * percentile(some, 0.99) if some else 0.0
                self.say(
                    f"{shown - began:.0f} s of changes: {len(some)} pods, p99 {worst:.0f} ms,"
                    f" {waiting} waiting, {self.resident_mb():.0f} MB"
                )
        end = time.monotonic() + PATIENCE
        while waiting := self._take_awaited(took):
            if time.monotonic() > end:
                raise LabError(f"{waiting} pods have no flows")
            time.sleep(0.5)
        self.say(f"CPU s: {_since(before, self.costs())}")
        return took

    def _take_awaited(self, took: list[float]) -> int:
        waiting, some = self._awaited()
        took += some
        return waiting

    def _awaited(self) -> tuple[int, list[float]]:
        self.switches.say(json.dumps({"awaited": True}) + "\n")
        heard = self._heard(self.switches)
        return int(heard["waiting"]), heard["took"]

    def _churn_steps(
        self, steps: int, changes: float, with_services: bool
    ) -> list[tuple[list[Any], list[Any]]]:
        """Events of the API server and of ports, step by step."""
        cluster = self.oracle.cluster
        number = int(steps * changes) // 2
        pairs, self._unchanged = self._unchanged[:number], self._unchanged[number:]
        gone: dict[int, set[int]] = {}
        made: list[tuple[list[Any], list[Any]]] = []
        delay = int(1 / CHURN_STEP)
        each = max(1, int(changes) // 2)
        for step in range(steps + delay):
            events: list[Any] = []
            ports: list[Any] = []
            for of, number in pairs[step * each : (step + 1) * each]:
                attachment, manifest = cluster.pod(number, of)
                dpid = names.datapath_id(cluster.node(of).name)
                events.append((PODS, "DELETED", manifest))
                port = attachment.ofport, attachment.port, attachment.mac
                ports.append({"dpid": dpid, "reason": 1, "port": port, "cookies": []})
                if with_services and (endpoint := cluster.service_of(number, of)):
                    self._endpoint(events, gone, endpoint, is_gone=True)
            back = step - delay
            for of, number in pairs[back * each : (back + 1) * each] if back >= 0 else ():
                name = cluster.node(of).name
                attachment, manifest = _renewed(cluster, number, of)
                cookies = self.oracle.attachment(name, attachment, manifest)
                events.append((PODS, "ADDED", manifest))
                port = attachment.ofport, attachment.port, attachment.mac
                dpid = names.datapath_id(name)
                ports.append({"dpid": dpid, "reason": 0, "port": port, "cookies": cookies})
                if with_services and (endpoint := cluster.service_of(number, of)):
                    self._endpoint(events, gone, endpoint, is_gone=False)
            made.append((events, ports))
        return made

    def _endpoint(
        self,
        events: list[Any],
        gone: dict[int, set[int]],
        endpoint: tuple[int, int],
        *,
        is_gone: bool,
    ) -> None:
        service, index = endpoint
        missing = gone.setdefault(service, set())
        (missing.add if is_gone else missing.discard)(index)
        manifest = self.oracle.cluster.slice_manifest(service, without=missing)
        events.append((SLICES, "MODIFIED", manifest))

    def reconnect(self) -> float:
        """Seconds from the end of all connections until all switches are in sync again."""
        nodes = self.oracle.cluster.nodes
        began = time.monotonic()
        synced = self._metric("sluice_switch_syncs_total")
        self.switches.say(json.dumps({"drop": True}) + "\n")
        end = began + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.5)
            if (
                self._metric("sluice_switch_syncs_total") >= synced + nodes
                and self._metric("sluice_switches_in_sync") >= nodes
            ):
                return time.monotonic() - began
        raise LabError(f"not all switches are back after {PATIENCE:.0f} s")

    def settle(self) -> None:
        """Until all switches are in sync in the controller's own opinion."""
        end = time.monotonic() + PATIENCE
        while self._metric("sluice_switches_in_sync") < self.oracle.cluster.nodes:
            if time.monotonic() > end:
                raise LabError("the controller does not take its switches for in sync")
            time.sleep(0.5)

    # --- what it costs ---

    def resident_mb(self) -> float:
        """The controller's resident memory (proc(5), statm, the second number)."""
        pages = int(Path(f"/proc/{self.processes['controller']}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def costs(self) -> dict[str, float]:
        """Seconds of CPU of each process (proc(5), stat, utime and stime)."""
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for name, pid in self.processes.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            found[name] = round((int(fields[11]) + int(fields[12])) / tick, 2)
        return found

    def note(self, step: str) -> None:
        """Remember how late the loop was since the step before."""
        time.sleep(1.1)  # until the clock has written what it saw
        now = time.monotonic()
        found = [1000 * late for late in lags(self.lag_file, self._noted or self.started, now)]
        self._noted = now
        self.lags[step] = found
        shares = [percentile(found, q) for q in (0.5, 0.99, 0.999, 1)]
        self.say(f"{step}: the loop is late by {_rounded(shares)} ms (p50, p99, p99.9, most)")

    def _metric(self, name: str) -> float:
        path = self.controller.lab.layout.api_socket
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(
                b"GET /metrics HTTP/1.1\r\nHost: controller\r\nConnection: close\r\n\r\n"
            )
            answer = b"".join(iter(lambda: client.recv(1 << 16), b"")).decode()
        for line in answer.splitlines():
            if line.startswith(f"{name} "):
                return float(line.partition(" ")[2])
        raise LabError(f"the controller has no metric {name}")

    def say(self, text: str) -> None:
        """Progress, for people."""
        since = time.monotonic() - self.started
        sys.stderr.write(f"fleet of {self.oracle.cluster.nodes}, {since:.0f} s: {text}\n")


def _renewed(cluster: LargeCluster, number: int, of: int) -> tuple[Attachment, Any]:
    """The pod that replaces another one at its place: another uid, another port."""
    attachment, manifest = cluster.pod(number, of)
    metadata = manifest["metadata"]
    name, uid = f"{metadata['name']}-b", f"{metadata['uid']}-b"
    port = names.port_name("default", name, uid, "eth0", uid)
    made = Attachment(port, attachment.ofport + 256, attachment.address, f"default/{name}")
    return made, {**manifest, "metadata": {**metadata, "name": name, "uid": uid}}


KUBECONFIG: Final = """apiVersion: v1
kind: Config
current-context: bench
clusters: [{{name: bench, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: bench, user: {{}}}}]
contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]
"""


@contextmanager
def running_fleet(oracle: Oracle, controller: StandaloneController) -> Iterator[Fleet]:
    """API server, switches and controller; the switches dial from the controller's start on."""
    cluster = oracle.cluster
    directory = controller.lab.layout.directory
    path, kubeconfig = directory / "switches.json", directory / "kubeconfig"
    lag_file = directory / "lags"
    oracle.write(path)
    kubeconfig.write_text(KUBECONFIG.format(port=PORT))
    size = (cluster.nodes, cluster.pods, cluster.services, cluster.endpoints)
    served = python("bench.api_server", str(PORT), *map(str, size))
    simulated = python("bench.switches", controller.address, str(path))
    with ExitStack() as stack:
        api_server = stack.enter_context(running(inside(controller.netns, served)))
        api_server.line(PATIENCE)
        switches = stack.enter_context(running(inside(controller.netns, simulated)))
        stack.callback(controller.stop)
        if keep := os.environ.get("FLEET_LOG"):
            stack.callback(lambda: shutil.copy(controller.daemons.log("controller"), keep))
        started = time.monotonic()
        pid = controller.start(kubeconfig=kubeconfig, lags=lag_file)
        processes = {
            "controller": pid,
            "switches": switches.popen.pid,
            "api_server": api_server.popen.pid,
        }
        fleet = Fleet(oracle, controller, processes, started, switches, api_server, lag_file)
        places = [(of, n) for of in range(1, cluster.nodes + 1) for n in range(1, cluster.pods + 1)]
        random.Random(0).shuffle(places)  # noqa: S311 - the same in each run
        fleet._unchanged = places  # noqa: SLF001
        fleet.expect(oracle.shared)
        yield fleet


@click.command()
@click.option("--nodes", multiple=True, type=int, default=[500], show_default=True)
@click.option("--churn", type=float, default=20.0, show_default=True, help="Seconds of changes.")
@click.option("--changes", type=int, default=20, show_default=True, help="Endpoints that go.")
@click.option("--new-nodes", type=int, default=5, show_default=True)
def _main(nodes: tuple[int, ...], churn: float, changes: int, new_nodes: int) -> None:
    """Measure fleets of these sizes, one after the other; prints one line of JSON for each."""
    for number in nodes:
        figures = measure(
            nodes=number,
            churn=churn,
            changes=changes,
            new_nodes=new_nodes,
            prefix=f"fleet{number}",
        )
        values = {each.name: round(each.value, 2) for each in figures}
        sys.stdout.write(json.dumps({"nodes": number, **values}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
