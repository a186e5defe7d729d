"""fleet_*, policy_fleet_s: one controller, a thousand switches.

The controller is the real one, out of a directory. The switches are simulated by one other
process (`bench.switches`), which dials by TCP and acknowledges.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import policy_objects as objects
from bench.controller import (
    CLUSTER,
    Manifest,
    StandaloneController,
    node,
    node_manifest,
    pod,
    standalone,
    write_manifests,
)
from bench.figures import Figure
from controller.inventory import BridgePort, Inventory
from controller.sources.objects import from_manifest
from flows import names
from flows.compile import compile_scope
from flows.view import CLUSTER_SCOPE, Cluster, ClusterView
from lab import LabError
from lab.commands import inside
from lab.processes import Process, running
from lab.programs import python

PATIENCE = 120.0
"""Seconds until a fleet that is not in sync counts as failed."""


def measure(
    *, nodes: int = 1000, pods: int = 20, rounds: int = 5, new_nodes: int = 2, policies: int = 2
) -> list[Figure]:
    """Start controller and fleet `rounds` times, and add new policies and nodes to each."""
    sync, policy, new_node, resident = [], [], [], []
    with standalone("fleet") as controller:
        plan = FleetPlan(nodes, pods, new_nodes, policies)
        plan.write(controller.cluster)
        for _ in range(rounds):
            with running_fleet(plan, controller) as fleet:
                sync.append(fleet.said() - fleet.started)
                resident.append(fleet.resident_mb())
                policy += [fleet.add_policy(number) for number in range(policies)]
                new_node += [1000 * fleet.add_node(number) for number in range(new_nodes)]
                controller.wait([each.name for each in plan.nodes])
    return [
        Figure("fleet_sync_s", "s", sync, at_most=20),
        Figure("fleet_new_node_ms", "ms", new_node, at_most=1000),
        Figure("fleet_rss_mb", "MB", resident, at_most=600),
        Figure("policy_fleet_s", "s", policy, at_most=1),
    ]


class FleetPlan:
    """The cluster: what the manifests say, what the switches tell, what they should hold."""

    def __init__(self, nodes: int, pods: int, new_nodes: int, policies: int) -> None:
        everything = [node(number) for number in range(1, nodes + new_nodes + 1)]
        self.nodes, self.new_nodes = everything[:nodes], everything[nodes:]
        self._pods = {
            each.name: [pod(each, number) for number in range(1, pods + 1)] for each in self.nodes
        }
        attachments = {
            name: {attachment.port: attachment for attachment, _ in of_node}
            for name, of_node in self._pods.items()
        }
        cluster = Cluster(
            CLUSTER.pod_range,
            CLUSTER.service_range,
            CLUSTER.tunnel_port,
            CLUSTER.new_connections_per_second,
        )
        view = ClusterView(cluster, {each.name: each for each in self.nodes}, attachments)
        grown = ClusterView(cluster, {each.name: each for each in everything}, {})
        known = compile_scope(view, CLUSTER_SCOPE).cookies
        self.shared = [*known]
        self.for_new: dict[str, list[int]] = {each.name: [] for each in self.new_nodes}
        """By new node the cookies that every switch gets for it."""
        for cookie, (_, owners) in compile_scope(grown, CLUSTER_SCOPE).cookies.items():
            if cookie not in known:
                self.for_new[owners[0].name].append(cookie)
        self.switches = [
            {
                "dpid": names.datapath_id(each.name),
                # As the node agent sets it.
                "max_backoff": 2 + names.datapath_id(each.name) % 2000 / 1000,
                "ports": [
                    (names.TUNNEL_OFPORT, names.TUNNEL_PORT, "02:00:00:00:00:01"),
                    (names.GATEWAY_OFPORT, names.GATEWAY_PORT, names.GATEWAY_MAC),
                    *((a.ofport, a.port, a.mac) for a in attachments[each.name].values()),
                ],
                "expected": [*compile_scope(view, each.name).cookies],
            }
            for each in self.nodes
        ]
        self.policies = [_policy(number) for number in range(1, policies + 1)]
        self.for_policy = [self._of_policy(cluster, each) for each in self.policies]
        """By policy the cookies that every switch gets for it."""

    def _of_policy(self, cluster: Cluster, policy: Manifest) -> list[int]:
        # A pod has the same ofport on each node, so what two nodes get for it all others get too.
        # Only the flow of the pod to itself has its address.
        inventory = Inventory(cluster)
        for each in self.nodes[:2]:
            inventory.set_object(from_manifest(node_manifest(each)))
        inventory.settle()
        for each in self.nodes[:2]:
            for attachment, manifest in self._pods[each.name]:
                inventory.set_object(from_manifest(manifest))
                inventory.set_port(
                    each.name, BridgePort(attachment.port, attachment.ofport, attachment.mac)
                )
        inventory.settle()
        without = {each.name: compile_scope(inventory.view, each.name) for each in self.nodes[:2]}
        inventory.set_object(from_manifest(policy))
        inventory.settle()
        added = [
            compile_scope(inventory.view, name).cookies.keys() - before.cookies.keys()
            for name, before in without.items()
        ]
        return sorted(added[0].intersection(*added[1:]))

    def write(self, directory: Path) -> None:
        """The manifests, one file a node, and what `bench.switches` reads beside them."""
        for each in self.nodes:
            pods = (manifest for _, manifest in self._pods[each.name])
            write_manifests(directory / f"{each.name}.yaml", [node_manifest(each), *pods])
        _switches(directory).write_text(json.dumps(self.switches))


def _policy(number: int) -> Manifest:
    """For the pod with this number of every node: what all pods and a range may do."""
    ingress = [
        objects.from_([objects.namespaces({})], 8080),
        objects.from_([objects.block("192.168.0.0/16", "192.168.7.0/24")], 443),
    ]
    return objects.policy("default", f"app-{number}", {"app": f"app-{number}"}, ingress=ingress)


def _switches(directory: Path) -> Path:
    return directory.with_name("switches.json")


def _policy_path(directory: Path, number: int) -> Path:
    return directory / f"policy-{number}.yaml"


@dataclass
class Fleet:
    plan: FleetPlan
    controller: StandaloneController
    pid: int
    """The controller's."""
    started: float
    process: Process

    def add_node(self, number: int) -> float:
        """Seconds from the manifest of one more Node until every switch has its flows."""
        added = self.plan.new_nodes[number]
        self.expect(self.plan.for_new[added.name])
        path = self.controller.cluster / f"{added.name}.yaml"
        began = time.monotonic()
        write_manifests(path, [node_manifest(added)])
        return self.said() - began

    def add_policy(self, number: int) -> float:
        """Seconds from the manifest of one more policy until every switch has its flows."""
        self.expect(self.plan.for_policy[number])
        path = _policy_path(self.controller.cluster, number)
        began = time.monotonic()
        write_manifests(path, [self.plan.policies[number]])
        return self.said() - began

    def expect(self, cookies: list[int]) -> None:
        """Have the fleet say when every switch holds these too."""
        self.process.say(json.dumps({"expected": cookies}) + "\n")

    def said(self) -> float:
        """When every switch held all that was expected of it. Raises `LabError`."""
        try:
            said: dict[str, Any] = json.loads(self.process.line(PATIENCE))
        except TimeoutError:
            tail = self.controller.daemons.tail("controller")
            raise LabError(f"the fleet is not in sync after {PATIENCE:.0f} s\n{tail}") from None
        return float(said["at"])

    def resident_mb(self) -> float:
        """The controller's resident memory (proc(5), statm, the second number)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def running_fleet(plan: FleetPlan, controller: StandaloneController) -> Iterator[Fleet]:
    """Switches that dial from the moment the controller is started."""
    command = python("bench.switches", controller.address, str(_switches(controller.cluster)))
    for added in plan.new_nodes:
        (controller.cluster / f"{added.name}.yaml").unlink(missing_ok=True)
    for number in range(len(plan.policies)):
        _policy_path(controller.cluster, number).unlink(missing_ok=True)
    with running(inside(controller.netns, command)) as process:
        try:
            started = time.monotonic()
            fleet = Fleet(plan, controller, controller.start(), started, process)
            fleet.expect(plan.shared)
            yield fleet
        finally:
            controller.stop()
