"""noencap_*_vs_routed: what packets cost without the tunnel, over a plainly routed pair of hosts.

`make noencap-bench` boots an emulated machine as `bench.kernel` does, with the kernel's datapath.
Its clock counts instructions, so the ratios do not depend on what else runs here.
"""

import sys
import tempfile
from pathlib import Path

import click
import msgspec
from rich.console import Console

from bench.figures import Figure, show, versus, write
from bench.kernel import UNITS
from bench.kernel_guest import LOAD, Results
from bench.nodes import compiled
from bench.noencap_guest import KINDS
from lab import LabError
from lab.guest import RESULTS, ROOT, Guest
from lab.interrupt import one_interrupt

ROUNDS = 7
SECONDS = 0.1
"""Of the guest's clock, for each rate."""
LONGEST = 50 * 60
"""Seconds of this machine's clock, for everything."""
AIMS = {"routed": 0.95, "bridged": None}
"""By rival (`bench.routed`): the pods have routes, or are on a bridge as with flannel."""
RESULT = ROOT / "build" / "noencap-bench.json"


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True)
@click.option("--seconds", type=float, default=SECONDS, show_default=True)
def main(rounds: int, seconds: float) -> None:
    """Measure the mode noEncap in the kernel's datapath: see docs/benchmarks.md."""
    console = Console(width=max(Console().width, 100))
    with one_interrupt():
        try:
            figures = measure(rounds, seconds)
        except LabError as error:
            sys.exit(f"noencap-bench: {error}")
    show(console, figures)
    write(RESULT, figures)
    console.print(f"Samples: {RESULT}", highlight=False)


def measure(rounds: int, seconds: float) -> list[Figure]:
    """Boot the guest, and read what it measured. Raises `LabError`."""
    with tempfile.TemporaryDirectory(prefix="sluice-noencap-bench-") as name:
        files = {str(LOAD): compiled("load.c", Path(name) / "load")}
        command = [".venv/bin/python", "-m", "bench.noencap_guest", f"--results={RESULTS}"]
        command += [f"--rounds={rounds}", f"--seconds={seconds}"]
        guest = Guest(
            "noencap-bench", command, files=files, longest_run=LONGEST, counts_instructions=True
        )
        if guest.run():
            raise LabError(f"the measurement failed; see {guest.output}/console.log")
    return figures_of((guest.output / "results.json").read_bytes())


def figures_of(results: bytes) -> list[Figure]:
    """The figure of each kind of traffic. Raises `LabError`."""
    found = msgspec.json.decode(results, type=Results)
    figures: list[Figure] = []
    for kind in KINDS:
        turns = [turn.rates for turn in found.turns if turn.kind == kind]
        if not turns:
            raise LabError(f"not measured: {kind}")
        ours = [rates["sluice"] for rates in turns]
        for rival, aim in AIMS.items():
            theirs = [rates[rival] for rates in turns]
            name = f"noencap_{kind}_vs_{rival}"
            figures += versus(name, UNITS[kind], ours, (rival, theirs), at_least=aim)
    return figures


if __name__ == "__main__":
    main()
