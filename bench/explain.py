"""explain_ms: what a flow, a pod, a Service, a policy or an address is, in a large cluster.

The cluster is that of `bench.what_if`, with Services. Every node's program is compiled, and a
controller's API serves it on a unix socket. The clock runs from the request to the whole answer.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import msgspec
from aiohttp import ClientSession, UnixConnector, web

from bench.figures import Figure
from bench.what_if import NODES, PER_NAMESPACE, POD_RANGE, cluster_inventory
from controller.api import Api
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.reports.explanation import Explanation
from controller.sources.objects import from_manifest
from lab import LabError
from lab.layout import SERVICE_RANGE
from settings import ClusterSettings

SERVICES = 1_000
ENDPOINTS = 10
"""Of each Service."""
AT_MOST = 50.0


def measure(*, rounds: int = 10) -> list[Figure]:
    """Ask each kind of question, about another object in each round."""
    inventory = cluster_inventory(policies=1_000, pods=10_000)
    _add_services(inventory)
    return asyncio.run(_asked(inventory, rounds))


def _add_services(inventory: Inventory) -> None:
    for number in range(SERVICES):
        namespace = f"ns-{number // PER_NAMESPACE}"
        metadata = {"name": f"svc-{number}", "namespace": namespace, "uid": f"svc-{number}"}
        address = str(SERVICE_RANGE[100 + number])
        endpoints = [
            {"addresses": [f"10.244.{(number + each) % NODES}.{2 + each}"]}
            for each in range(ENDPOINTS)
        ]
        for manifest in (
            {
                "apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"clusterIP": address, "ports": [{"port": 80}]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": f"svc-{number}-1", "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": f"svc-{number}"},
                },
                "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
            },
        ):  # fmt: skip
            inventory.set_object(from_manifest(manifest))
    inventory.settle()


async def _asked(inventory: Inventory, rounds: int) -> list[Figure]:
    reconciler = Reconciler(inventory)
    reconciler.compilation.touch(reconciler.desired.keys(""))
    reconciler.source_complete(True)
    async with asyncio.timeout(60):
        await reconciler.listed.wait()
    for node in inventory.view.nodes:
        await reconciler.compilation.compiled(node)
    settings = ClusterSettings(pod_range=POD_RANGE, service_range=SERVICE_RANGE)
    runner = web.AppRunner(Api(reconciler, settings).application(local=True))
    await runner.setup()
    samples: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as directory:
            socket = str(Path(directory) / "api.sock")
            await web.UnixSite(runner, socket).start()
            async with ClientSession(connector=UnixConnector(socket)) as session:
                for number in range(rounds):
                    for kind, text in _questions(reconciler, number).items():
                        began = time.monotonic()
                        url = f"http://localhost/v1/explain?what={quote(text, safe='')}"
                        async with session.get(url) as response:
                            body = await response.text()
                        took = (time.monotonic() - began) * 1_000
                        if response.status != 200 or not _is_whole(body):
                            raise LabError(f"explain {text}: {body}")
                        samples.setdefault(kind, []).append(took)
    finally:
        await runner.cleanup()
    slowest = max(samples.values(), key=statistics.median)
    return [
        Figure("explain_ms", "ms", slowest, at_most=AT_MOST),
        *(Figure(f"explain_ms.{kind}", "ms", taken) for kind, taken in samples.items()),
    ]


def _is_whole(body: str) -> bool:
    """Whether the answer has what takes long to find."""
    report = msgspec.json.decode(body, type=Explanation)
    return report.flow is not None or len(report.tables) > 2


def _questions(reconciler: Reconciler, round_number: int) -> dict[str, str]:
    number = 97 * round_number
    namespace = number % 1_000 // PER_NAMESPACE
    program = reconciler.desired.program(f"node-{NODES - 1}")
    cookies = list(program.cookies)
    shared = list(reconciler.desired.shared.cookies)
    return {
        "cookie": f"{cookies[number % len(cookies)]:#x}",
        "shared_cookie": f"{shared[number % len(shared)]:#x}",
        "pod": f"pod/ns-{namespace}/app-{number % 1_000}-5d8f-{number}",
        "service": f"svc/ns-{namespace}/svc-{number % 1_000}",
        "policy": f"networkpolicy/ns-{namespace}/app-{number % 1_000}",
        "address": str(SERVICE_RANGE[100 + number]),
    }
