"""stream_, rr_ and crr_vs_bare, crr_service_vs_direct, crr_policy_vs_none: what packets cost.

Across nodes. The rival is a bridge with one flow, NORMAL, and the same tunnel, between the same
kind of nodes and the same kind of pods; a Service's is the way to the same pod without it. That of
policies is a pair of pods that no policy selects; many policies select both pods of the other pair,
in both directions, and only the last one allows the connection. All have the userspace datapath, so
only the ratio means anything.
"""

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import policy_objects as objects
from bench import service_objects
from bench.controller import Manifest, write_manifests
from bench.figures import Figure, versus
from bench.nodes import bare_lab, compiled, ofctl, unique, vsctl
from flows import names
from flows.pipeline import LAYOUT
from lab import Lab, LabError
from lab.commands import inside, run
from lab.layout import POD_RANGE
from lab.network import configure, create_namespace
from lab.patience import PROGRAM_TIMEOUT

PORT = "5201"
ENDPOINT_PORT = "5202"
PATIENCE = 120.0
MTU = 1500 - names.ENCAPSULATION_OVERHEAD


@dataclass(frozen=True)
class Pair:
    """Two pods on two nodes: their namespaces, and the second one's address."""

    client: str
    server: str
    address: str
    port: str = PORT


def measure(*, rounds: int = 15, seconds: float = 1.0, policies: int = 1000) -> list[Figure]:
    """Alternate between the two, and in who comes first."""
    with (
        Lab(unique("traffic")).running(nodes=2) as lab,
        bare_lab("bare", 2) as rival,
    ):
        load = compiled("load.c", lab.layout.directory / "load")
        ours, bare = _sluice(lab), _bare(rival)
        selected = _selected(lab, policies)
        for pair in (ours, bare, selected):
            for netns in (pair.client, pair.server):
                # A server's TIME_WAIT would stall the client when ports come round again.
                run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0"], netns=netns)
        service, endpoint = _by_service(lab, ours, load)
        crr = _transactions(load, "crr")
        figures: list[Figure] = []
        for name, unit, once, pairs, whose, aim in (
            ("stream_vs_bare", "Mbit/s", _stream, (ours, bare), "bare", 0.97),
            ("rr_vs_bare", "transactions/s", _transactions(load, "rr"), (ours, bare), "bare", 0.97),
            ("crr_vs_bare", "transactions/s", crr, (ours, bare), "bare", 0.85),
            ("crr_service_vs_direct", "transactions/s", crr, (service, ours), "direct", 0.9),
            # Directly, but to a port at which Services have endpoints: flows/features/direct.py.
            ("crr_endpoint_vs_direct", "transactions/s", crr, (endpoint, ours), "direct", None),
            ("crr_policy_vs_none", "transactions/s", crr, (selected, ours), "none", 0.95),
        ):
            for pair in pairs:
                once(pair, min(seconds, 1.0))  # neighbours, megaflows
            rates: dict[Pair, list[float]] = {pair: [] for pair in pairs}
            for turn in range(rounds):
                for pair in pairs if turn % 2 else reversed(pairs):
                    rates[pair].append(once(pair, seconds))
            first, second = (rates[pair] for pair in pairs)
            figures += versus(name, unit, first, (whose, second), at_least=aim)
        return figures


def _sluice(lab: Lab) -> Pair:
    client, server = (lab.pod_add("default", f"pod{n}", f"node{n}") for n in (1, 2))
    return Pair(client.netns, server.netns, str(server.address))


def _selected(lab: Lab, policies: int) -> Pair:
    """Two more pods, and so many policies that select both."""
    client, server = (
        lab.pod_add("default", f"selected{n}", f"node{n}", {"app": "selected"}) for n in (1, 2)
    )
    pair = Pair(client.netns, server.netns, str(server.address))
    write_manifests(lab.layout.cluster / "policies.yaml", map(_policy, range(policies)))
    deadline = time.monotonic() + PATIENCE
    table = LAYOUT.tables["PolicyWalk"].number
    for node in lab.layout.nodes(2):
        # One in each direction, and what every node has.
        while len(ofctl(node, "dump-flows", f"table={table}").splitlines()) < 2 * policies:
            if time.monotonic() > deadline:
                raise LabError(f"policies that no switch has: {lab.status()['problems']}")
            time.sleep(1)
    return pair


def _policy(number: int) -> Manifest:
    """It allows its pods one range of addresses; the policy that is tried last: one another."""
    labels = {"app": "selected"}
    outside = objects.block(f"192.{168 + number // 256}.{number % 256}.0/24")
    peer = objects.pods(labels) if number == 0 else outside
    ports = [{"protocol": "TCP", "port": int(PORT)}]
    return objects.policy(
        "default",
        # Walks are tried in the order of names.
        f"policy-{9999 - number}",
        labels,
        ingress=[{"from": [peer], "ports": ports}],
        egress=[{"to": [peer], "ports": ports}],
    )


def _by_service(lab: Lab, direct: Pair, load: Path) -> tuple[Pair, Pair]:
    """The same two pods by a ClusterIP, whose only endpoint is the second one; and directly."""
    to_server = [(lab.layout.node(2), direct.address)]
    manifests = [
        service_objects.service(0, int(ENDPOINT_PORT)),
        service_objects.endpoint_slice(0, to_server, int(ENDPOINT_PORT)),
    ]
    write_manifests(lab.layout.cluster / "service.yaml", manifests)
    pair = Pair(direct.client, direct.server, str(service_objects.cluster_ip(0)), ENDPOINT_PORT)
    with _serving(pair, [str(load), "serve", pair.port]):
        _until_answered(pair)
    return pair, replace(direct, port=ENDPOINT_PORT)


def _until_answered(pair: Pair) -> None:
    """Until the address leads somewhere: until then it is refused."""
    deadline = time.monotonic() + 10
    command = ["timeout", "1", "bash", "-c", f": < /dev/tcp/{pair.address}/{pair.port}"]
    while subprocess.run(
        inside(pair.client, command), capture_output=True, check=False, timeout=PROGRAM_TIMEOUT
    ).returncode:
        if time.monotonic() > deadline:
            raise LabError(f"{pair.address} does not answer")
        time.sleep(0.1)


def _bare(lab: Lab) -> Pair:
    nodes = lab.layout.nodes(2)
    pods = [lab.layout.pod_netns("default", f"pod{number}") for number in (1, 2)]
    addresses = [POD_RANGE[number] for number in (1, 2)]
    for node, peer, pod, address in zip(nodes, reversed(nodes), pods, addresses, strict=True):
        create_namespace(pod)
        configure(
            node.netns,
            [
                f"link add pod mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod}",
                "link set pod up",
            ],
        )
        configure(pod, ["link set eth0 up", f"addr add {address}/{POD_RANGE.prefixlen} dev eth0"])
        run(["ethtool", "-K", "eth0", "tx", "off"], netns=pod)
        bridge = names.INTEGRATION_BRIDGE
        vsctl(
            node,
            *("add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=netdev"),
            *("--", "add-port", bridge, "pod", "--", "add-port", bridge, "tunnel"),
            *("--", "set", "Interface", "tunnel", "type=geneve", "options:key=1"),
            f"options:remote_ip={peer.address}",
            f"options:local_ip={node.address}",
            "options:csum=false",
        )
    return Pair(pods[0], pods[1], str(addresses[1]))


def _transactions(load: Path, kind: str) -> Callable[[Pair, float], float]:
    def once(pair: Pair, seconds: float) -> float:
        with _serving(pair, [str(load), "serve", pair.port]):
            command = [str(load), kind, pair.address, pair.port, str(seconds)]
            return float(run(command, netns=pair.client, timeout=seconds + 30))

    return once


def _stream(pair: Pair, seconds: float) -> float:
    with _serving(pair, ["iperf3", "--server", "--port", pair.port]):
        command = ["iperf3", "--client", pair.address, "--port", pair.port]
        command += ["--time", str(math.ceil(seconds)), "--json"]
        told = json.loads(run(command, netns=pair.client, timeout=seconds + 30))
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6


@contextmanager
def _serving(pair: Pair, command: list[str]) -> Iterator[None]:
    """A server in the second pod, from when it listens until the end of the context."""
    server = subprocess.Popen(inside(pair.server, command), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not run(["ss", "-Hltn", f"sport = :{pair.port}"], netns=pair.server):
            if server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{command[0]} does not listen")
            time.sleep(0.02)
        yield
    finally:
        server.kill()
        server.wait(timeout=60)
