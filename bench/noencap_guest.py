"""The part of `bench.noencap` in the emulated machine: rounds of traffic on both networks.

Both have the same kernel and the same fabric, a client on the first of two nodes and a server on
the second, and one processor for everything. Sluice's controller and agents are stopped meanwhile.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench import routed
from bench.kernel_guest import LONGEST_WAIT, Network, Results, Turn, prepared, rate, serve, stopped
from bench.nodes import unique
from lab import Lab, LabError
from lab.commands import run
from lab.datapath import load_module
from lab.display import Steps

KINDS = ("stream", "rr", "crr")
"""Of traffic (`load.c`)."""
MODULES = ("openvswitch", "geneve", "br_netfilter")


@click.command()
@click.option("--rounds", type=int, required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--results", type=click.Path(path_type=Path), required=True)
def main(rounds: int, seconds: float, results: Path) -> None:
    """Measure, and write down all that was found."""
    report = Steps(Console(width=150, force_terminal=False))
    found = Results()
    load_module("system")
    for module in MODULES:
        run(["modprobe", module])
    with (
        Lab(unique("direct")).running(nodes=2, mode="noEncap", report=report) as lab,
        _rival("routed") as routes,
        _rival("bridged") as bridges,
        ExitStack() as servers,
    ):
        networks = (_sluice(lab), _routed(routes, "routed"), _routed(bridges, "bridged"))
        for network in networks:
            serve(servers, network)
            _await_answer(network)
        with stopped(lab):
            for kind in KINDS:
                for network in networks:
                    rate(network, kind, "direct", seconds)  # neighbours, megaflows
                for number in range(rounds):
                    first = number % len(networks)
                    order = (*networks[first:], *networks[:first])
                    rates = {each.name: rate(each, kind, "direct", seconds) for each in order}
                    found.turns.append(Turn(kind, "direct", 0, dict(sorted(rates.items()))))
                    shown = ", ".join(f"{name} {value:.0f}" for name, value in rates.items())
                    report("turn", f"{kind}: {shown}")
        (results / "results.json").write_bytes(msgspec.json.encode(found))


def _await_answer(network: Network) -> None:
    """Until the servers are there."""
    deadline = time.monotonic() + LONGEST_WAIT
    for kind in KINDS:
        while True:
            try:
                rate(network, kind, "direct", 0.01)
                break
            except LabError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


@contextmanager
def _rival(name: str) -> Iterator[Lab]:
    lab = Lab(unique(name))
    try:
        lab.layout.directory.mkdir(parents=True)
        routed.set_up(lab, lab.layout.nodes(2), bridged=name == "bridged")
        yield lab
    finally:
        lab.down()


def _sluice(lab: Lab) -> Network:
    client, server = (lab.pod_add("default", f"pod{n}", f"node{n}") for n in (1, 2))
    return prepared(lab, Network("sluice", client.netns, server.netns, str(server.address)))


def _routed(lab: Lab, name: str) -> Network:
    nodes = lab.layout.nodes(2)
    client, server = (
        routed.add_pod(lab, node, f"pod{number}", node.pod_cidr[2], bridged=name == "bridged")
        for number, node in enumerate(nodes, 1)
    )
    return prepared(lab, Network(name, client, server, str(nodes[1].pod_cidr[2])))


if __name__ == "__main__":
    main()
