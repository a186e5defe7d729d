"""`python -m bench`: measure, print a table, write build/bench.json."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
from rich.console import Console

from bench import (
    asking,
    bgp,
    cni,
    explain,
    failover,
    fleet,
    flow_push,
    kube_proxy,
    kubelets,
    large_fleet,
    memory,
    pod_ready,
    pods,
    policies,
    policy_api,
    policy_scale,
    service_size,
    services,
    takeover,
    traffic,
    what_if,
)
from bench.figures import Figure, show, write
from lab import LabError
from lab.interrupt import one_interrupt

FAMILIES: Mapping[str, Callable[[], list[Figure]]] = {
    "flow_push": flow_push.measure,
    "cni": cni.measure,
    "pod_ready": pod_ready.measure,
    "pods": pods.measure,
    "traffic": traffic.measure,
    "service_size": service_size.measure,
    "services": services.measure,
    "kube_proxy": kube_proxy.measure,
    "policies": policies.measure,
    "policy_api": policy_api.measure,
    "policy_scale": policy_scale.measure,
    "what_if": what_if.measure,
    "explain": explain.measure,
    "asking": asking.measure,
    "takeover": takeover.measure,
    "failover": failover.measure,
    "bgp": bgp.measure,
    "fleet": fleet.measure,
    "fleet5k": large_fleet.measure,
    "memory": memory.measure,
    "kubelets": kubelets.measure,
}
"""In the order in which they run; each function measures all figures of its family."""

RESULT = Path(__file__).parents[1] / "build" / "bench.json"


@click.command()
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*FAMILIES]),
    help="Measure only this family of figures. Can be repeated.",
)
@click.option("--list", "listing", is_flag=True, help="List the families, and measure nothing.")
def main(only: tuple[str, ...], listing: bool) -> None:
    """Measure Sluice and compare it with others. docs/benchmarks.md explains each figure."""
    if listing:
        sys.stdout.write("\n".join(FAMILIES) + "\n")
        return
    console = Console()
    figures: list[Figure] = []
    failed = []
    with one_interrupt():
        for family in only or FAMILIES:
            began = time.monotonic()
            try:
                figures += FAMILIES[family]()
            except LabError as error:
                failed.append(family)
                console.print(f"{family}: {error}", style="red", markup=False)
            console.print(f"{family}: {time.monotonic() - began:.0f} s", highlight=False)
    show(console, figures)
    write(RESULT, figures)
    console.print(f"Samples: {RESULT}", highlight=False)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
