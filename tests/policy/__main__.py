"""`make fuzz`: random clusters with policies, judged by evaluator and switches, as long as wanted.

Ends with 1 at the first counterexample, and prints what repeats it: the seed, and the smallest
cluster that shows it.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import click
import structlog

from tests.policy.fuzz import CounterexampleError, Fuzz
from tests.policy.generator import NODES
from tests.policy.switches import switches_for


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--seed", default=None, type=int, help="The first seed; by default the time.")
@click.option("--traces", default=3, show_default=True, help="Packets of each cluster to trace.")
@click.option("--clusters", default=None, type=int, help="How many clusters at most.")
@click.option("--small/--whole", default=True, help="Whether to make a counterexample small.")
def main(seconds: float, seed: int | None, traces: int, clusters: int | None, small: bool) -> None:
    """Examine random clusters until the time is over."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    first = int(time.time()) * 1000 if seed is None else seed
    click.echo(f"the first seed is {first}")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="sluice-fuzz-") as directory,
        switches_for(Path(directory), NODES[:2]) as switches,
    ):
        fuzz = Fuzz(switches, traces=traces, small=small)
        try:
            if clusters is None:
                fuzz.until(began + seconds, first)
            else:
                fuzz.examine_all(range(first, first + clusters))
        except CounterexampleError as error:
            sys.exit(str(error))
    done = fuzz.examined
    click.echo(
        f"{done.clusters} clusters, {done.pairs} pairs, {done.traces} of them also traced, in"
        f" {time.monotonic() - began:.0f} s: evaluator and switches agree"
    )


if __name__ == "__main__":
    main()
