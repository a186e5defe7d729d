"""stream_, rr_ and crr_vs_bare: what the pipeline costs packets, across nodes.

The rival is a bridge with one flow, NORMAL, and the same tunnel, between the same kind of nodes
and the same kind of pods. Both have the userspace datapath, so only the ratio means anything.
"""

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Figure, versus
from bench.nodes import bare_lab, compiled, unique, vsctl
from flows import names
from lab import Lab, LabError
from lab.commands import inside, run
from lab.layout import POD_RANGE
from lab.network import configure, create_namespace

PORT = "5201"
MTU = 1500 - names.ENCAPSULATION_OVERHEAD


@dataclass(frozen=True)
class Pair:
    """Two pods on two nodes: their namespaces, and the second one's address."""

    client: str
    server: str
    address: str


def measure(*, rounds: int = 15, seconds: float = 1.0) -> list[Figure]:
    """Alternate between the two, and in who comes first."""
    with (
        Lab(unique("traffic")).running(nodes=2) as lab,
        bare_lab("bare", 2) as rival,
    ):
        load = compiled("load.c", lab.layout.directory / "load")
        pairs = _sluice(lab), _bare(rival)
        for pair in pairs:
            for netns in (pair.client, pair.server):
                # A server's TIME_WAIT would stall the client when ports come round again.
                run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0"], netns=netns)
        figures: list[Figure] = []
        for name, unit, once, aim in (
            ("stream_vs_bare", "Mbit/s", _stream, 0.97),
            ("rr_vs_bare", "transactions/s", _transactions(load, "rr"), 0.97),
            ("crr_vs_bare", "transactions/s", _transactions(load, "crr"), 0.85),
        ):
            for pair in pairs:
                once(pair, min(seconds, 1.0))  # neighbours, megaflows
            rates: dict[Pair, list[float]] = {pair: [] for pair in pairs}
            for turn in range(rounds):
                for pair in pairs if turn % 2 else reversed(pairs):
                    rates[pair].append(once(pair, seconds))
            ours, bare = (rates[pair] for pair in pairs)
            figures += versus(name, unit, ours, ("bare", bare), at_least=aim)
        return figures


def _sluice(lab: Lab) -> Pair:
    client, server = (lab.pod_add("default", f"pod{n}", f"node{n}") for n in (1, 2))
    return Pair(client.netns, server.netns, str(server.address))


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
        with _serving(pair, [str(load), "serve", PORT]):
            command = [str(load), kind, pair.address, PORT, str(seconds)]
            return float(run(command, netns=pair.client, timeout=seconds + 30))

    return once


def _stream(pair: Pair, seconds: float) -> float:
    with _serving(pair, ["iperf3", "--server", "--port", PORT]):
        command = ["iperf3", "--client", pair.address, "--port", PORT]
        command += ["--time", str(math.ceil(seconds)), "--json"]
        told = json.loads(run(command, netns=pair.client, timeout=seconds + 30))
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6


@contextmanager
def _serving(pair: Pair, command: list[str]) -> Iterator[None]:
    """A server in the second pod, from when it listens until the end of the context."""
    server = subprocess.Popen(inside(pair.server, command), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not run(["ss", "-Hltn", f"sport = :{PORT}"], netns=pair.server):
            if server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{command[0]} does not listen")
            time.sleep(0.02)
        yield
    finally:
        server.kill()
        server.wait()
