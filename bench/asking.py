"""trace_ms, status_1000_ms, loop_lag_ms_p99: what it costs to ask a running cluster.

`trace_ms` is a packet and its reply through a Service on another node, in a lab with agents and
real switches: from the request on the controller's unix socket to the answer. `status_1000_ms` is
the report over a thousand simulated switches with 20 pods each (`bench.fleet`). Meanwhile somebody
else asks the same controller for `/healthz` again and again: `loop_lag_ms_p99` is how long that
takes at most in 99 of 100 cases, so it is the lag of the event loop, and the way there and back.
"""

import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.controller import standalone
from bench.figures import Figure, percentile
from bench.fleet import FleetPlan, running_fleet
from bench.nodes import unique
from lab import Lab, LabError
from lab.processes import running

TRACE = "/v1/trace?from=default/a&to=svc/default/web&port=80&protocol=TCP&reply="
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
}
PAUSE = 0.002
"""Seconds between two questions for `/healthz`."""
PATIENCE = 60.0


def measure(*, traces: int = 50, nodes: int = 1_000, reports: int = 20) -> list[Figure]:
    """Trace in a lab, then ask a controller with a fleet."""
    trace = _traces(traces)
    status, lag = _status(nodes, reports)
    return [
        Figure("trace_ms", "ms", trace, at_most=300),
        Figure(f"status_{nodes}_ms", "ms", status, at_most=1000),
        Figure("loop_lag_ms_p99", "ms", lag, at_most=20),
    ]


def _traces(number: int) -> list[float]:
    taken = []
    with Lab(unique("asking")).running(nodes=2) as lab:
        lab.pod_add("default", "a", "node1")
        lab.pod_add("default", "b", "node2")
        endpoint = {"addresses": [str(lab.pod("default", "b").address)], "nodeName": "node2"}
        lab.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "web-1",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            }
        )
        lab.apply(SERVICE)
        end = time.monotonic() + PATIENCE
        while b"delivered to pod default/b" not in (_ask(lab.layout.api_socket, TRACE) or b""):
            if time.monotonic() > end:
                raise LabError("the trace is not delivered")
            time.sleep(0.2)
        for _ in range(number):
            began = time.monotonic()
            answer = _ask(lab.layout.api_socket, TRACE)
            taken.append(1000 * (time.monotonic() - began))
            if answer is None:
                raise LabError("the trace has no answer")
    return taken


def _status(nodes: int, number: int) -> tuple[list[float], list[float]]:
    taken: list[float] = []
    lag: list[float] = []
    with standalone("asking") as controller:
        plan = FleetPlan(nodes, 20, 0, 0)
        plan.write(controller.cluster)
        with running_fleet(plan, controller) as fleet:
            fleet.said()
            controller.wait([each.name for each in plan.nodes])
            path = controller.lab.layout.api_socket
            for _ in range(number):
                with _asking_for_health(path) as health:
                    began = time.monotonic()
                    if _ask(path, "/v1/status") is None:
                        raise LabError("the controller does not answer")
                    taken.append(1000 * (time.monotonic() - began))
                lag.append(percentile(health, 0.99))
    return taken, lag


@contextmanager
def _asking_for_health(path: Path) -> Iterator[list[float]]:
    """Milliseconds that each answer takes, in the list once the context has ended.

    By a process of its own, which does nothing else, on one connection.
    """
    taken: list[float] = []
    with running([sys.executable, "-c", HEALTH, str(path), str(PAUSE)]) as process:
        process.line(PATIENCE)
        yield taken
        process.say("end\n")
        taken += json.loads(process.line(PATIENCE))


HEALTH = """
import json, select, socket, sys, time
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
taken = []
def ask():
    began = time.monotonic()
    client.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: controller\\r\\n\\r\\n")
    while not client.recv(4096).endswith(b"ok\\n"):
        pass
    taken.append(1000 * (time.monotonic() - began))
ask()
print("ready", flush=True)
taken.clear()
while not select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
    ask()
print(json.dumps(taken), flush=True)
"""


def _ask(path: Path, what: str) -> bytes | None:
    """The answer of the controller; None if it is no success."""
    connection = http.client.HTTPConnection("controller", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PATIENCE)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", what)
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        return None
    finally:
        connection.close()
    return content if answer.status == http.client.OK else None
