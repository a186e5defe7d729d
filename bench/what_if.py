"""what_if_s: what a change of one policy would do, asked of a large cluster.

The cluster is in a controller's own inventory, and its API serves it on a unix socket. The clock
runs for the whole command `sluice what-if`, from the start of its process until it has ended.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from aiohttp import web

from bench.controller import Manifest
from bench.figures import Figure
from controller.api import Api
from controller.inventory import BridgePort, Inventory
from controller.reconciler import Reconciler
from controller.sources.objects import from_manifest
from flows import names
from flows.view import Cluster
from lab import LabError
from lab.layout import SERVICE_RANGE
from settings import ClusterSettings

POD_RANGE = IPv4Network("10.244.0.0/16")
NODES = 100
PER_NAMESPACE = 10
"""Applications of a namespace. Each has a policy of its own."""


def measure(*, policies: int = 1_000, pods: int = 10_000, rounds: int = 5) -> list[Figure]:
    """Ask about a policy of one application, and about one of all pods of the cluster."""
    inventory = cluster_inventory(policies, pods)
    one = _policy(policies // 2)
    del one["spec"]["ingress"][0]
    everywhere = {
        "apiVersion": "policy.networking.k8s.io/v1beta1",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "no-metrics"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "ingress": [
                {
                    "name": "metrics",
                    "action": "Deny",
                    "from": [{"namespaces": {"matchLabels": {"team": "team-0"}}}],
                    "protocols": [{"tcp": {"destinationPort": {"number": 9090}}}],
                }
            ],
        },
    }
    return asyncio.run(_asked(inventory, {"what_if_s": one, "what_if_s.everywhere": everywhere},
                              rounds))  # fmt: skip


async def _asked(inventory: Inventory, changes: dict[str, Manifest], rounds: int) -> list[Figure]:
    reconciler = Reconciler(inventory)
    reconciler.listed.set()
    settings = ClusterSettings(pod_range=POD_RANGE, service_range=SERVICE_RANGE)
    runner = web.AppRunner(Api(reconciler, settings).application(local=True))
    await runner.setup()
    samples: dict[str, list[float]] = {name: [] for name in changes}
    try:
        with tempfile.TemporaryDirectory() as directory:
            socket = Path(directory) / "api.sock"
            await web.UnixSite(runner, str(socket)).start()
            for name, change in changes.items():
                (Path(directory) / f"{name}.json").write_text(json.dumps(change))
            for _ in range(rounds):
                for name, seconds in samples.items():
                    command = [sys.executable, "-m", "cli.main", "what-if", "--json"]
                    command += ["--socket", str(socket), "-f", f"{directory}/{name}.json"]
                    began = time.monotonic()
                    process = await asyncio.create_subprocess_exec(
                        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
                    )
                    out, problem = await process.communicate()
                    seconds.append(time.monotonic() - began)
                    if process.returncode:
                        raise LabError(f"sluice what-if: {problem.decode()}")
                    if not json.loads(out)["totals"]["loses"]["podPairs"]:
                        raise LabError(f"{name}: the change loses nothing, so it measures nothing")
    finally:
        await runner.cleanup()
    return [
        Figure(name, "s", seconds, at_most=2.0 if name == "what_if_s" else None)
        for name, seconds in samples.items()
    ]


def cluster_inventory(policies: int, pods: int) -> Inventory:
    """So many applications with a policy each, and their pods on `NODES` nodes."""
    made = Inventory(Cluster(POD_RANGE, SERVICE_RANGE, 6081, 4_000))
    for number in range(NODES):
        made.set_object(from_manifest(_node(number)))
    for number in range(-(-policies // PER_NAMESPACE)):
        made.set_object(from_manifest(_namespace(number)))
    made.settle()
    ports: dict[str, list[BridgePort]] = {}
    for pod, address, ofport in _pods(policies, pods):
        made.set_object(from_manifest(pod))
        metadata = pod["metadata"]
        name = names.port_name(
            metadata["namespace"], metadata["name"], metadata["uid"], "eth0", "sandbox"
        )
        port = BridgePort(name, ofport, names.mac_of(address))
        ports.setdefault(pod["spec"]["nodeName"], []).append(port)
    for node, some in ports.items():
        made.set_ports(node, some)
    for number in range(policies):
        made.set_object(from_manifest(_policy(number)))
    made.settle()
    return made


def _node(number: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number}", "uid": f"node-{number}"},
        "spec": {"podCIDR": f"10.244.{number}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"172.30.1.{number + 1}"}]},
    }


def _namespace(number: int) -> Manifest:
    labels = {"team": f"team-{number % 10}"}
    metadata = {"name": f"ns-{number}", "uid": f"ns-{number}", "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _pods(applications: int, pods: int) -> Iterator[tuple[Manifest, IPv4Address, int]]:
    for number in range(pods):
        application, node, place = number % applications, number % NODES, number // NODES
        owner = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{application}-5d8f",
            "uid": "r", "controller": True,
        }  # fmt: skip
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"app-{application}-5d8f-{number}",
                "namespace": f"ns-{application // PER_NAMESPACE}",
                "uid": f"pod-{number}",
                "labels": {"app": f"app-{application}", "pod-template-hash": "5d8f"},
                "ownerReferences": [owner],
            },
            "spec": {
                "nodeName": f"node-{node}",
                "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 80}]}],
            },
        }
        yield pod, IPv4Network(f"10.244.{node}.0/24")[2 + place], 16 + place


def _policy(application: int) -> Manifest:
    """Its neighbour and a team may reach it; it may reach its namespace, DNS and the outside."""
    first = application - application % PER_NAMESPACE
    neighbour = first + (application + 1) % PER_NAMESPACE
    ports: list[dict[str, Any]] = [{"port": "http"}, {"port": 1000 + application}]
    team = {"namespaceSelector": {"matchLabels": {"team": f"team-{application % 10}"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"app-{application}",
            "namespace": f"ns-{application // PER_NAMESPACE}",
            "uid": f"policy-{application}",
        },
        "spec": {
            "podSelector": {"matchLabels": {"app": f"app-{application}"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": f"app-{neighbour}"}}}],
                    "ports": ports,
                },
                {"from": [team], "ports": [{"port": 9090}]},
            ],
            "egress": [
                {"to": [{"podSelector": {}}, {"namespaceSelector": {}}]},
                {
                    "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}],
                    "ports": [{"port": 443}],
                },
                {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]},
            ],
        },
    }
