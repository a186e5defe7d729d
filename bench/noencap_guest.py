"""The part of `bench.noencap` in the emulated machine: rounds of traffic on both networks.

Both have the same kernel and the same fabric, a client on the first of two nodes and a server on
the second, and one processor for everything. Sluice's controller and agents are stopped meanwhile.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench import routed
from bench.kernel_guest import Network, Results, Turn, prepared, rate, serve, stopped
from bench.nodes import unique
from lab import Lab
from lab.commands import run
from lab.datapath import load_module
from lab.display import Steps

KINDS = ("stream", "rr", "crr")
"""Of traffic (`load.c`)."""
MODULES = ("openvswitch", "geneve")


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
        _rival() as other,
        ExitStack() as servers,
    ):
        networks = (_sluice(lab), _routed(other))
        for network in networks:
            serve(servers, network)
        with stopped(lab):
            for kind in KINDS:
                for network in networks:
                    rate(network, kind, "direct", seconds)  # neighbours, megaflows
                for number in range(rounds):
                    order = networks if number % 2 else networks[::-1]
                    rates = {each.name: rate(each, kind, "direct", seconds) for each in order}
                    found.turns.append(Turn(kind, "direct", 0, dict(sorted(rates.items()))))
                    shown = ", ".join(f"{name} {value:.0f}" for name, value in rates.items())
                    report("turn", f"{kind}: {shown}")
        (results / "results.json").write_bytes(msgspec.json.encode(found))


@contextmanager
def _rival() -> Iterator[Lab]:
    lab = Lab(unique("routed"))
    try:
        lab.layout.directory.mkdir(parents=True)
        routed.set_up(lab, lab.layout.nodes(2))
        yield lab
    finally:
        lab.down()


def _sluice(lab: Lab) -> Network:
    client, server = (lab.pod_add("default", f"pod{n}", f"node{n}") for n in (1, 2))
    return prepared(lab, Network("sluice", client.netns, server.netns, str(server.address)))


def _routed(lab: Lab) -> Network:
    nodes = lab.layout.nodes(2)
    client, server = (
        routed.add_pod(lab, node, f"pod{number}", node.pod_cidr[2])
        for number, node in enumerate(nodes, 1)
    )
    return prepared(lab, Network("routed", client, server, str(nodes[1].pod_cidr[2])))


if __name__ == "__main__":
    main()
