"""kernel_*_vs_flannel: what packets cost in the kernel datapath, which users run.

`make kernel-bench` boots an emulated machine (`lab.guest`) that has two networks of two nodes side
by side: Sluice, and flannel's way with kube-proxy's rules (`bench.flannel`). `bench.kernel_guest`
runs there. kube-proxy itself runs here, against a real API server with the same Services, and its
rules are taken over: nftables' rules do not depend on the machine, and Go is slow under emulation.

The machine's clock counts instructions. So the ratios say how many instructions each network takes
for a packet, with the kernel that users have; they do not see caches, and the rates themselves
mean nothing.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench import kernel_guest, kube_proxy, service_objects
from bench.api_connection import ApiConnection
from bench.figures import Figure, show, versus, write
from bench.kernel_guest import LOAD, MEASURED, RULES, Lookups, Results
from bench.nodes import compiled, unique
from lab import Lab, LabError
from lab.commands import run
from lab.control import built
from lab.guest import RESULTS, ROOT, Guest
from lab.interrupt import one_interrupt
from lab.layout import NodeLayout

FEW, MANY = 10, 1000
"""Services."""
ROUNDS = 7
SECONDS = 0.1
"""Of the guest's clock, for each rate."""
LONGEST = 60 * 60
"""Seconds of this machine's clock, for everything."""
AIMS = {
    "kernel_stream_vs_flannel": 1.0,
    "kernel_rr_vs_flannel": 1.0,
    "kernel_crr_vs_flannel": 1.0,
    "kernel_crr_service_vs_flannel": 1.2,
}
UNITS = {"stream": "Mbit/s", "rr": "transactions/s", "crr": "transactions/s"}
RESULT = ROOT / "build" / "kernel-bench.json"
AT_ONCE = 4
"""Connections that fill an API server."""
LONGEST_WAIT = 120.0


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True)
@click.option("--seconds", type=float, default=SECONDS, show_default=True)
@click.option("--services", type=click.IntRange(min=2), multiple=True, default=(FEW, MANY))
def main(rounds: int, seconds: float, services: tuple[int, ...]) -> None:
    """Measure Sluice's kernel datapath against flannel's: see docs/benchmarks.md."""
    console = Console(width=max(Console().width, 100))
    with one_interrupt():
        try:
            figures = measure(services, rounds, seconds)
        except LabError as error:
            sys.exit(f"kernel-bench: {error}")
    show(console, figures)
    write(RESULT, figures)
    console.print(f"Samples: {RESULT}", highlight=False)


def measure(services: Sequence[int], rounds: int, seconds: float) -> list[Figure]:
    """Have the rules written, boot the guest, and read what it measured. Raises `LabError`."""
    with tempfile.TemporaryDirectory(prefix="sluice-kernel-bench-") as name:
        scratch = Path(name)
        files = {str(LOAD): compiled("load.c", scratch / "load")}
        for path in proxy_rules(scratch, services):
            files[str(RULES / path.name)] = path
        command = [".venv/bin/python", "-m", "bench.kernel_guest", f"--results={RESULTS}"]
        command += [f"--rounds={rounds}", f"--seconds={seconds}"]
        guest = Guest(
            "kernel-bench",
            [*command, *(f"--services={count}" for count in services)],
            files=files,
            longest_run=LONGEST,
            counts_instructions=True,
        )
        if guest.run():
            raise LabError(f"the measurement failed; see {guest.output}/console.log")
    return figures_of((guest.output / "results.json").read_bytes(), most=max(services))


def figures_of(results: bytes, *, most: int) -> list[Figure]:
    """All figures; those with `most` Services have no number in their names. Raises `LabError`."""
    found = msgspec.json.decode(results, type=Results)
    figures: list[Figure] = []
    for count in sorted({turn.services for turn in found.turns}, reverse=True):
        for kind, route in MEASURED:
            here = (kind, route, count)
            turns = [t for t in found.turns if (t.kind, t.route, t.services) == here]
            if not turns:
                raise LabError(f"not measured: {kind}, {route}, {count} Services")
            words = ["kernel", kind]
            words += [route] if route != "direct" else []
            words += [str(count)] if count != most else []
            name = "_".join(words) + "_vs_flannel"
            ours, theirs = ([t.rates[who] for t in turns] for who in ("sluice", "flannel"))
            rival = ("flannel", theirs)
            figures += versus(name, UNITS[kind], ours, rival, at_least=AIMS.get(name))
            for seen in found.lookups:
                if kind != "stream" and (seen.kind, seen.route, seen.services) == here:
                    figures += _per_transaction(name, seen)
    return figures


def _per_transaction(name: str, seen: Lookups) -> list[Figure]:
    """What explains a rate: how often the two datapaths look a packet up, and ask ovs-vswitchd."""
    lookups = (seen.hits + seen.misses) / seen.transactions
    upcalls = seen.misses / seen.transactions
    return [
        Figure(f"{name}.lookups", "a transaction", [lookups]),
        Figure(f"{name}.upcalls", "a transaction", [upcalls]),
    ]


def proxy_rules(directory: Path, services: Sequence[int]) -> list[Path]:
    """What kube-proxy writes on each of two nodes, in a file each. Raises `LabError`."""
    program = built("--rival") / "kube-proxy"
    lab = Lab(unique("rules"))
    paths = []
    try:
        lab.layout.directory.mkdir(parents=True)
        nodes = lab.layout.nodes(2)
        plane = kube_proxy.start_api(lab, nodes)
        proxies = [kube_proxy.start_proxy(plane, node, program) for node in nodes]
        done = 0
        for count in sorted(services):
            _create(lab, nodes, range(done, count))
            done = count
            for node, proxy in zip(nodes, proxies, strict=True):
                path = directory / f"{count}-{node.name}.nft"
                path.write_text(_rules(node, count))
                paths.append(path)
                proxy.check()
    finally:
        lab.down()
    return paths


def _create(lab: Lab, nodes: Sequence[NodeLayout], services: range) -> None:
    address = kernel_guest.server_address(nodes)

    def create(part: range) -> None:
        with closing(ApiConnection(lab.layout)) as api:
            for manifest in kernel_guest.manifests(nodes, address, part):
                where = kube_proxy.SERVICES
                if manifest["kind"] == "EndpointSlice":
                    where = kube_proxy.SLICES
                api.send("POST", where, manifest)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(create, services[first::AT_ONCE]) for first in range(AT_ONCE)]:
            done.result()


def _rules(node: NodeLayout, count: int) -> str:
    """Once all Services are there, with endpoints: kube-proxy writes each in one transaction."""
    deadline = time.monotonic() + LONGEST_WAIT
    addresses = [f"{service_objects.cluster_ip(number)} ." for number in range(count)]
    while True:
        time.sleep(1)
        rules = run(["nft", "list", "table", "ip", "kube-proxy"], netns=node.netns)
        verdicts = rules.partition("map service-ips")[2].partition("}")[0]
        if all(address in verdicts for address in addresses):
            return rules
        if time.monotonic() > deadline:
            raise LabError(f"{node.name}: kube-proxy has not written {count} Services")


if __name__ == "__main__":
    main()
