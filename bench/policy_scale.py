"""policy_scale_*: 75,000 policies of 100,000 pods in 25,000 Namespaces, compiled for 100 nodes.

The cluster is the one of Antrea's TestInitXLargeScaleWithSmallNamespaces (its
networkpolicy_controller_perf_test.go, which says 5.8 to 6.4 s and 1,522 to 1,708 MB): each
Namespace has two pods of each of two applications, a policy that denies everything in both
directions, and a policy for each application, whose pods may reach one another.

The controller is its own code in a process of its own, without switches. Its Pods and their ports
are there. The clock starts with the Namespaces and policies, decoded, and ends when the programs of
all nodes have them. The programs have the flows of policy alone: those for the connectivity of so
many pods would take more memory than all of this.

    python -m bench.policy_scale NAMESPACES NODES    one line of JSON, {"seconds": S, "mb": N, ...}
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from bench import policy_objects as objects
from bench.controller import CLUSTER, FIRST_NODE_ADDRESS, Manifest, node_manifest
from bench.figures import Figure
from controller import garbage
from controller.inventory import BridgePort, Inventory
from controller.reconciler import Reconciler
from controller.sources.objects import Object, from_manifest
from flows.compile import FEATURES, Compiler
from flows.features import policy
from flows.kinds import Writer
from flows.view import Cluster, Node
from lab import LabError
from lab.commands import run
from lab.programs import python

APPLICATIONS = ("app-1", "app-2")
REPLICAS = 2
"""Pods of an application in a Namespace."""
POD_CIDR_LENGTH = 22
"""Room for the 1,000 pods of a node."""
PATIENCE = 300


def measure(*, namespaces: int = 25_000, nodes: int = 100, rounds: int = 5) -> list[Figure]:
    """A new process for each round, so that its memory is that of one."""
    command = python("bench.policy_scale", str(namespaces), str(nodes))
    # The last line: the controller's log comes before it.
    told = [json.loads(run(command, timeout=PATIENCE).splitlines()[-1]) for _ in range(rounds)]
    return [
        Figure("policy_scale_s", "s", [each["seconds"] for each in told], at_most=6),
        Figure("policy_scale_s.pods", "s", [each["pods_seconds"] for each in told]),
        Figure("policy_scale_mb", "MB", [each["mb"] for each in told], at_most=1500),
        Figure("policy_scale_flows", "flows", [each["flows"] for each in told]),
    ]


async def _measure(namespaces: int, nodes: int) -> dict[str, float]:
    garbage.collect_rarely()
    cluster = Cluster(
        CLUSTER.pod_range,
        CLUSTER.service_range,
        CLUSTER.tunnel_port,
        CLUSTER.new_connections_per_second,
    )
    everyone = [_node(number) for number in range(nodes)]
    reconciler = Reconciler(Inventory(cluster), Compiler([policy.WRITES, _without_policy()]))
    reconciler.update([from_manifest(node_manifest(each)) for each in everyone], [])
    reconciler.source_complete(True)
    pods, ports, policies = _objects(namespaces, everyone)

    began = time.monotonic()
    reconciler.update(pods, [])
    await _idle(reconciler)
    for name, some in ports.items():
        reconciler.compilation.touch(reconciler.inventory.set_ports(name, some))
    for node in everyone:
        await reconciler.compilation.compiled(node.name)
    await _idle(reconciler)
    with_pods = time.monotonic()
    garbage.spare_what_is_there()

    without = _flows(reconciler, everyone)
    began_policies = time.monotonic()
    reconciler.update(policies, [])
    await _idle(reconciler)
    ended = time.monotonic()
    if problems := reconciler.problems.texts():
        raise LabError(f"policies with problems: {problems}")
    return {
        "seconds": ended - began_policies,
        "pods_seconds": with_pods - began,
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "flows": _flows(reconciler, everyone) - without,
    }


def _without_policy() -> list[Writer]:
    """For every kind of object of the other features: no flows."""
    ours = {kind for kind, _ in policy.WRITES}
    others = dict.fromkeys(kind for feature in FEATURES for kind, _ in feature if kind not in ours)
    return [kind.by(lambda _, __: ()) for kind in others]


async def _idle(reconciler: Reconciler) -> None:
    while not reconciler.is_idle:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)


def _flows(reconciler: Reconciler, nodes: Sequence[Node]) -> int:
    return sum(len(reconciler.desired.program(node.name).cookies) for node in nodes)


def _node(number: int) -> Node:
    size = 1 << (32 - POD_CIDR_LENGTH)
    first = int(CLUSTER.pod_range[0]) + (number + 1) * size
    address = FIRST_NODE_ADDRESS + number
    name = f"node-{number}"
    return Node(name, f"uid-{name}", address, IPv4Network((first, POD_CIDR_LENGTH)))


def _objects(
    namespaces: int, nodes: Sequence[Node]
) -> tuple[list[Object], dict[str, list[BridgePort]], list[Object]]:
    """The Pods, the ports by node, and the Namespaces with their policies."""
    pods: list[Object] = []
    policies: list[Object] = []
    ports: dict[str, list[BridgePort]] = {node.name: [] for node in nodes}
    for number in range(namespaces):
        name = f"ns-{number}"
        for place in range(len(APPLICATIONS) * REPLICAS):
            application = APPLICATIONS[place // REPLICAS]
            node = nodes[len(pods) % len(nodes)]
            pod = objects.pod(node.name, name, f"pod-{place}", {application: application})
            of_node = ports[node.name]
            address = IPv4Address(int(node.gateway) + 1 + len(of_node))
            of_node.append(objects.port(pod, address, len(of_node)))
            pods.append(from_manifest(pod))
        policies += map(from_manifest, _policies(name))
    return pods, ports, policies


def _policies(namespace: str) -> list[Manifest]:
    """A Namespace and its policies."""
    made = [
        objects.namespace(namespace, {"app": namespace}),
        objects.policy(namespace, "default-deny-all", {}, ingress=[], egress=[]),
    ]
    for name in APPLICATIONS:
        labels = {name: name}
        rules = [objects.from_([objects.pods(labels)])]
        made.append(objects.policy(namespace, name, labels, ingress=rules, egress=[]))
    return made


def _main() -> None:
    namespaces, nodes = map(int, sys.argv[1:])
    sys.stdout.write(json.dumps(asyncio.run(_measure(namespaces, nodes))) + "\n")


if __name__ == "__main__":
    _main()
