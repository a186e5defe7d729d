"""The demo: a cluster from nothing, who reaches whom in it, and one node's flows.

`python -m lab.demo`, or `make demo`.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import click
from rich.console import Console

from lab import Lab, LabError
from lab.display import Steps, show_matrix
from lab.interrupt import one_interrupt
from lab.layout import OUTSIDE_ADDRESS
from lab.patience import PROGRAM_TIMEOUT
from lab.pods import LabPod
from lab.programs import python

PODS_PER_NODE = 2


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab up, and say how to look around.")
@click.option("--source", type=click.Choice(["dir", "kube"]), default="dir", show_default=True)
@click.option(
    "--tunnel", type=click.Choice(["geneve", "vxlan"]), default="geneve", show_default=True
)
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--name", default="demo", show_default=True, help="What to call the lab.")
def main(
    keep: bool,
    source: Literal["dir", "kube"],
    tunnel: Literal["geneve", "vxlan"],
    nodes: int,
    name: str,
) -> None:
    """Bring up a cluster on this machine, plug in pods, and let all of them ping each other."""
    console = Console()
    reached = False
    try:
        with one_interrupt():
            lab = Lab(name)
            with Steps(console) as steps:
                found = not lab.up(nodes=nodes, tunnel=tunnel, source=source, report=steps)
            try:
                with Steps(console) as steps:
                    pods = add_pods(lab, nodes, steps)
                if source == "kube":
                    console.rule("kubectl get nodes,pods -A -o wide", align="left")
                    run(console, lab.kubectl("get", "nodes,pods", "-A", "-o", "wide"))
                reached = ping_all(console, lab, [f"node{n + 1}" for n in range(nodes)], pods)
                console.rule("The flows of node1", align="left")
                run(console, python("cli.main", "flows", "node1", "--name", name))
            except BaseException:
                keep = False
                raise
            finally:
                # A lab that was up before stays up: somebody may use it.
                keep = keep or found
                if not keep:
                    console.print("Taking it down again.")
                    lab.down()
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(130)
    if keep:
        show_hints(console, lab, pods[0], kubernetes=source == "kube")
    sys.exit(0 if reached else 1)


def add_pods(lab: Lab, nodes: int, report: Steps) -> list[LabPod]:
    """Two pods on each node, `a1` and `b1` on node1; all nodes at the same time."""

    def add(number: int) -> Iterator[LabPod]:
        node = f"node{number}"
        for letter in "ab"[:PODS_PER_NODE]:
            name = f"{letter}{number}"
            report(node, f"plugging in pod default/{name}")
            try:
                yield lab.pod("default", name)  # of a demo that was kept
            except LabError:
                yield lab.pod_add("default", name, node, {"app": letter})
        report(node, f"is ready, with {PODS_PER_NODE} pods", done=True)

    with ThreadPoolExecutor(max_workers=4) as pool:
        added = pool.map(lambda number: list(add(number)), range(1, nodes + 1))
        return [pod for of_node in added for pod in of_node]


def ping_all(console: Console, lab: Lab, nodes: Sequence[str], pods: Sequence[LabPod]) -> bool:
    """Ping from every pod and node to every pod and to the outside; whether nothing was lost."""
    addresses = {f"{pod.name}@{pod.node}": pod.address or "" for pod in pods}
    places = {f"{pod.name}@{pod.node}": pod.key for pod in pods} | {node: node for node in nodes}
    columns = [*addresses, "outside"]
    addresses["outside"] = str(OUTSIDE_ADDRESS)
    pairs = [(row, column) for row in places for column in columns if row != column]
    with console.status("pinging"), ThreadPoolExecutor(max_workers=12) as pool:
        times = pool.map(lambda pair: ping(lab, places[pair[0]], addresses[pair[1]]), pairs)
        matrix = dict(zip(pairs, times, strict=True))
    console.rule("Who reaches whom: round-trip times in milliseconds", align="left")
    show_matrix(console, list(places), columns, matrix)
    lost = [f"{row} to {column}" for (row, column), time in matrix.items() if time is None]
    if lost:
        console.print(f"[bold red]{len(lost)} of {len(pairs)} lost[/]: {', '.join(lost)}")
    else:
        console.print(f"[green]all {len(pairs)} reached[/]")
    return not lost


def ping(lab: Lab, where: str, address: str) -> float | None:
    """The mean round-trip time of three pings in milliseconds; None if one of them was lost."""
    # With -w, ping continues until it has this many answers. Its summary counts requests as lost
    # whose answers are still on their way.
    command = ["ping", "-n", "-c3", "-i0.2", "-w10", address]
    done = lab.exec(where, command, check=False)
    times = dict(re.findall(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+)", done.stdout))
    if times.keys() != {"1", "2", "3"}:
        return None
    return sum(map(float, times.values())) / 3


def run(console: Console, command: Sequence[str]) -> None:
    """Show a command's output as it is. Raises `LabError` if it fails."""
    # Our own output comes before the command's.
    console.file.flush()
    try:
        failed = subprocess.run(command, timeout=PROGRAM_TIMEOUT, check=False).returncode
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        raise LabError(f"`{' '.join(command)}` failed")


def show_hints(console: Console, lab: Lab, pod: LabPod, *, kubernetes: bool) -> None:
    """What one can do with a lab that is left up."""
    sluice, option = ".venv/bin/sluice", f"--name {lab.name}"
    hints = [
        ("what there is", f"{sluice} lab status {option}"),
        ("flows, with the object of each", f"{sluice} flows node1 {option}"),
        (
            "the same, by hand",
            f"{sluice} lab exec {option} node1 -- ovs-ofctl --names dump-flows br-int",
        ),
        ("a shell in a pod", f"{sluice} lab exec {option} {pod.key} -- bash"),
        ("add a pod", f"{sluice} lab pod add default/c1 --node node1 {option}"),
        ("remove it", f"{sluice} lab pod del default/c1 {option}"),
    ]
    if kubernetes:
        hints.append(
            (
                "ask the API server",
                f"{sluice} lab exec {option} control -- kubectl get pods -o wide",
            )
        )
    hints.append(("take it down", f"{sluice} lab down {option}"))
    console.rule("It is still up. Look around", align="left")
    for what, command in hints:
        console.print(f"  {what + ':':<32} {command}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
