"""policy_api_to_switch_ms: a policy written to the API server until all switches acknowledge it.

A whole lab with an API server, among many policies. The clock starts with the PUT of a policy of
pods on all three nodes, and stops when each switch has reported its new seal and the controller
says that all nodes are in sync.
"""

import asyncio
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle

from bench import in_process
from bench import policy_objects as objects
from bench.api_connection import ApiConnection
from bench.controller import Manifest
from bench.figures import Figure, percentile
from bench.nodes import ofctl, unique
from flows.pipeline import LAYOUT
from lab import Lab, LabError
from lab.layout import NodeLayout

NODES = 3
PATIENCE = 120.0
PAUSE = 0.1
"""Seconds of quiet before what is measured."""
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
CHANGED = 0
"""The number of the policy that is changed."""


def measure(*, policies: int = 1000, rounds: int = 5, changes: int = 40) -> list[Figure]:
    """Write all policies, then change one again and again."""
    milliseconds: list[float] = []
    p99: list[float] = []
    with Lab(unique("polapi")).running(nodes=NODES, source="kube") as lab:
        for number in range(1, NODES + 1):
            lab.pod_add("default", f"pod{number}", f"node{number}", {"app": "server"})
        with closing(ApiConnection(lab.layout)) as api:
            cluster = _PolicyApi(lab, api)
            cluster.fill(policies)
            # In turns two rules and one: the first change is warm-up.
            rules = cycle((2, 1))
            cluster.change(next(rules))
            for _ in range(rounds):
                taken = [1000 * cluster.change(next(rules)) for _ in range(changes)]
                milliseconds += taken
                p99.append(percentile(taken, 0.99))
    return [
        Figure("policy_api_to_switch_ms", "ms", milliseconds, at_most=30),
        Figure("policy_api_to_switch_ms_p99", "ms", p99, at_most=100),
    ]


@dataclass(frozen=True)
class _PolicyApi:
    lab: Lab
    api: ApiConnection

    def fill(self, policies: int) -> None:
        """Write so many policies; return when all switches have them."""
        for number in range(policies):
            self.api.send("POST", POLICIES, _policy(number, 1))
        deadline = time.monotonic() + PATIENCE
        while not all(_walks(node) >= policies for node in self.lab.layout.nodes(NODES)):
            if time.monotonic() > deadline:
                problems = self.lab.status()["problems"]
                raise LabError(f"policies that no switch has after {PATIENCE} s: {problems}")
            time.sleep(1)

    def change(self, rules: int) -> float:
        """Seconds until all switches have another number of rules of one policy."""
        return asyncio.run(self._change(_policy(CHANGED, rules)))

    async def _change(self, manifest: Manifest) -> float:
        path = f"{POLICIES}/{manifest['metadata']['name']}"
        nodes = self.lab.layout.nodes(NODES)
        async with in_process.sealed_anew(nodes) as sealed, asyncio.timeout(PATIENCE):
            await asyncio.sleep(PAUSE)
            began = time.monotonic()
            # In a thread: the switches may have it before the API server's answer is here.
            written = asyncio.create_task(asyncio.to_thread(self.api.send, "PUT", path, manifest))
            await sealed
            while not self._in_sync():  # noqa: ASYNC110 - another process knows
                await asyncio.sleep(0)
            seconds = time.monotonic() - began
            await written
        return seconds

    def _in_sync(self) -> bool:
        status = self.lab.ask("/v1/status")
        return status is not None and all(n["inSync"] for n in status["nodes"].values())


def _policy(number: int, rules: int) -> Manifest:
    """For the pods of all nodes; each rule is for a range of addresses of its own."""
    ingress = [
        objects.from_([objects.block(f"192.{168 + rule}.{number % 256}.0/24")], 8000 + number)
        for rule in range(rules)
    ]
    return objects.policy("default", f"policy-{number}", {"app": "server"}, ingress=ingress)


def _walks(node: NodeLayout) -> int:
    table = LAYOUT.tables["PolicyWalk"].number
    return len(ofctl(node, "--no-stats dump-flows", f"table={table}").splitlines())
