"""The part of `bench.kernel` that runs in the emulated machine: rounds of traffic on both networks.

Both have the same kernel and the same fabric, a client on the first of two nodes and a server on
the second, and one processor for everything. Sluice's controller and agents are stopped (SIGSTOP)
meanwhile. So are flanneld and kube-proxy, as it were: only what they have set up is there.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench import flannel, service_objects
from bench.controller import Manifest, write_manifests
from bench.nodes import ofctl, unique
from flows.pipeline import LAYOUT
from lab import Lab, LabError, control, node
from lab.commands import complete, inside, run
from lab.datapath import load_module
from lab.display import Steps
from lab.layout import NodeLayout
from lab.patience import PATIENCE

MEASURED = (
    ("stream", "direct"),
    ("rr", "direct"),
    ("crr", "direct"),
    ("stream", "service"),
    ("rr", "service"),
    ("crr", "service"),
    ("crr", "endpoint"),
)
"""Kinds of traffic (`load.c`), and the routes to the server: by its address, by a ClusterIP, and by
its address to a port where a Service has endpoints (`flows.features.direct`)."""
SERVERS = {"stream": "sink", "rr": "serve", "crr": "serve"}
"""How `load.c` serves each kind."""
PORTS = {"sink": 5201, "serve": 5202}
ENDPOINT_PORTS = {"sink": 5211, "serve": 5212}
"""Of the first two Services, in this order, and of their endpoints."""
MODULES = ("openvswitch", "geneve", "vxlan", "br_netfilter")
MOST_CONNECTIONS = 1 << 18
"""That all conntrack tables hold: as kube-proxy sets it where there are eight processors."""
LOAD, RULES, RESULTS = (Path("build/kernel-bench") / name for name in ("load", "rules", "results"))
LONGEST_WAIT = 120.0 * PATIENCE


@dataclass(frozen=True)
class Network:
    """Two pods on two nodes: their namespaces, and the second one's address."""

    name: str
    client: str
    server: str
    address: str

    def target(self, kind: str, route: str) -> tuple[str, str]:
        """Address and port at which a kind of traffic finds its server."""
        how = SERVERS[kind]
        if route == "direct":
            return self.address, str(PORTS[how])
        service = str(service_objects.cluster_ip(list(ENDPOINT_PORTS).index(how)))
        return service if route == "service" else self.address, str(ENDPOINT_PORTS[how])


class Turn(msgspec.Struct, frozen=True):
    """What each network has done, by its name, one right after the other: a rate."""

    kind: str
    route: str
    services: int
    rates: Mapping[str, float]


class Lookups(msgspec.Struct, frozen=True):
    """What Sluice's two datapaths have done for one run of traffic."""

    kind: str
    route: str
    services: int
    transactions: float
    hits: int
    misses: int
    """Lookups of flows that found one, and that asked ovs-vswitchd."""


class Results(msgspec.Struct):
    """What the guest hands back."""

    turns: list[Turn] = []
    lookups: list[Lookups] = []


def manifests(nodes: Sequence[NodeLayout], address: str, services: range) -> Iterator[Manifest]:
    """Services and their slices: the first two lead to the measured pod, others to ten others."""
    for number in services:
        if number >= len(ENDPOINT_PORTS):
            yield from service_objects.both(nodes, number)
            continue
        port = list(ENDPOINT_PORTS.values())[number]
        yield service_objects.service(number, port)
        yield service_objects.endpoint_slice(number, [(nodes[1], address)], port)


def server_address(nodes: Sequence[NodeLayout]) -> str:
    """That of the pod on flannel's second node."""
    return str(nodes[1].pod_cidr[2])


@click.command()
@click.option("--services", type=int, multiple=True, required=True)
@click.option("--rounds", type=int, required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--results", type=click.Path(path_type=Path), required=True)
def main(services: tuple[int, ...], rounds: int, seconds: float, results: Path) -> None:
    """Measure with each number of Services, and write down all that was found after each turn."""
    # Lines, as they come: the guest's console is a terminal that nobody sits at.
    report = Steps(Console(width=150, force_terminal=False))
    found = Results()
    load_module("system")
    for module in MODULES:
        run(["modprobe", module])
    run(["sysctl", "-qw", f"net.netfilter.nf_conntrack_max={MOST_CONNECTIONS}"])
    with (
        Lab(unique("kernel")).running(nodes=2, report=report) as lab,
        _rival() as other,
        ExitStack() as servers,
    ):
        networks = (_sluice(lab), _flannel(other))
        for network in networks:
            serve(servers, network)
        for count in services:
            report("services", f"loading {count}")
            _load_services(lab, networks[0], count)
            _load_rules(other, count)
            for network in networks:
                _await_answer(network)
            with stopped(lab):
                for turn in _measured(networks, count, rounds, seconds):
                    found.turns.append(turn)
                    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in turn.rates.items())
                    report("turn", f"{turn.kind} {turn.route}, {count} Services: {rates}")
                found.lookups += _lookups(lab, networks[0], count, seconds)
                _describe(lab, results, count)
            (results / "results.json").write_bytes(msgspec.json.encode(found))


@contextmanager
def _rival() -> Iterator[Lab]:
    lab = Lab(unique("flannel"))
    try:
        lab.layout.directory.mkdir(parents=True)
        flannel.set_up(lab, lab.layout.nodes(2))
        yield lab
    finally:
        lab.down()


def _sluice(lab: Lab) -> Network:
    client, server = (lab.pod_add("default", f"pod{n}", f"node{n}") for n in (1, 2))
    return prepared(lab, Network("sluice", client.netns, server.netns, str(server.address)))


def _flannel(lab: Lab) -> Network:
    nodes = lab.layout.nodes(2)
    client = flannel.add_pod(lab, nodes[0], "pod1", nodes[0].pod_cidr[2])
    server = flannel.add_pod(lab, nodes[1], "pod2", nodes[1].pod_cidr[2])
    return prepared(lab, Network("flannel", client, server, server_address(nodes)))


def prepared(lab: Lab, network: Network) -> Network:
    """The network, ready to be measured."""
    # The fabric is a wire. Only nodes that load br_netfilter have their bridges filtered.
    fabric = lab.layout.netns("fabric")
    run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"], netns=fabric)
    for netns in (network.client, network.server):
        # A server's TIME_WAIT would stall the client when ports come round again.
        run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0"], netns=netns)
    return network


def serve(stack: ExitStack, network: Network) -> None:
    """Start the servers in the network's second pod."""
    for how, port in (*PORTS.items(), *ENDPOINT_PORTS.items()):
        command = inside(network.server, [str(LOAD), how, str(port)])
        stack.callback(stack.enter_context(subprocess.Popen(command)).kill)


def _load_services(lab: Lab, ours: Network, count: int) -> None:
    nodes = lab.layout.nodes(2)
    listed = manifests(nodes, ours.address, range(count))
    write_manifests(lab.layout.cluster / "services.yaml", listed)
    table = f"table={LAYOUT.tables['ServiceChoice'].number}"
    deadline = time.monotonic() + LONGEST_WAIT
    for at in nodes:
        while len(ofctl(at, "dump-flows", table).splitlines()) < count:
            if time.monotonic() > deadline:
                raise LabError(f"Services that {at.name} does not have: {lab.status()['problems']}")
            time.sleep(2)


def _load_rules(lab: Lab, count: int) -> None:
    """As kube-proxy has written them: `bench.kernel.proxy_rules`."""
    for at in lab.layout.nodes(2):
        rules = (RULES / f"{count}-{at.name}.nft").read_text()
        anew = "table ip kube-proxy {}\ndelete table ip kube-proxy\n"
        run(["nft", "-f", "-"], netns=at.netns, stdin=anew + rules, timeout=120)


def _await_answer(network: Network) -> None:
    """Until both Services lead to the server, and the server is there."""
    deadline = time.monotonic() + LONGEST_WAIT
    for kind, route in MEASURED:
        command = [str(LOAD), kind, *network.target(kind, route), "0.01"]
        while complete(inside(network.client, command)).returncode:
            if time.monotonic() > deadline:
                raise LabError(f"{network.name}: no {kind} by {route}")
            time.sleep(0.5)


@contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """Stop the controller and the agents until the end of the context."""
    pids = [control.daemons(lab.layout.controller(1)).pids()["controller"]]
    pids += [node.daemons(at).pids()["agent"] for at in lab.layout.nodes(2)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _measured(
    networks: Sequence[Network], count: int, rounds: int, seconds: float
) -> Iterator[Turn]:
    """Alternate between the two, and in who comes first."""
    for kind, route in MEASURED:
        for network in networks:
            rate(network, kind, route, seconds)  # neighbours, megaflows
        for number in range(rounds):
            order = networks if number % 2 else networks[::-1]
            rates = {network.name: rate(network, kind, route, seconds) for network in order}
            yield Turn(kind, route, count, dict(sorted(rates.items())))


def rate(network: Network, kind: str, route: str, seconds: float) -> float:
    """The rate of one run of traffic. Raises `LabError`."""
    command = [str(LOAD), kind, *network.target(kind, route), str(seconds)]
    return float(run(command, netns=network.client, timeout=seconds + 60))


def _lookups(lab: Lab, ours: Network, count: int, seconds: float) -> Iterator[Lookups]:
    for kind, route in MEASURED:
        before = _counted(lab)
        measured = rate(ours, kind, route, seconds)
        hits, misses = (b - a for a, b in zip(before, _counted(lab), strict=True))
        yield Lookups(kind, route, count, measured * seconds, hits, misses)


def _counted(lab: Lab) -> tuple[int, int]:
    """Lookups of the datapaths so far: hits and misses."""
    shown = [hits_and_misses(_asked(at, "dpctl/show")) for at in lab.layout.nodes(2)]
    return sum(hits for hits, _ in shown), sum(misses for _, misses in shown)


def hits_and_misses(shown: str) -> tuple[int, int]:
    """From what `ovs-appctl dpctl/show` prints of one datapath. Raises `ValueError`."""
    for line in shown.splitlines():
        name, _, rest = line.strip().partition(": ")
        if name == "lookups":
            counts = dict(word.split(":") for word in rest.split())
            return int(counts["hit"]), int(counts["missed"])
    raise ValueError(f"no lookups: {shown!r}")


def _asked(at: NodeLayout, *command: str) -> str:
    pid = node.daemons(at).pids()["ovs-vswitchd"]
    return run(["ovs-appctl", f"--target={at.ovs_run}/ovs-vswitchd.{pid}.ctl", *command])


def _describe(lab: Lab, results: Path, count: int) -> None:
    """What the switches and the kernel say of themselves, for people."""
    commands: Iterable[Callable[[NodeLayout], str]] = [
        *(
            lambda at, words=words: _asked(at, *words)
            for words in (
                ("dpctl/dump-flows", "-m"),
                ("dpctl/show",),
                ("upcall/show",),
                ("coverage/show",),
            )
        ),
        lambda at: run(["cat", "/proc/net/stat/nf_conntrack"], netns=at.netns),
        lambda at: run(["nft", "list", "ruleset"], netns=at.netns),
        lambda at: run(["ip", "-d", "link"], netns=at.netns),
    ]
    for at in lab.layout.nodes(2):
        text = "\n\n".join(told(at) for told in commands)
        (results / f"stages-{count}-{at.name}.txt").write_text(text)


if __name__ == "__main__":
    main()
