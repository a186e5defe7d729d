"""`sluice lab`: a cluster on this machine, each node a network namespace."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import click
from rich.console import Console

from lab import Lab, LabError
from lab.display import Steps, show_status
from lab.interrupt import one_interrupt
from lab.layout import MOST_CONTROLLERS, MOST_NODES, MOST_SUBNETS
from lab.spec import Options

named = click.option("--name", default="lab", metavar="NAME", show_default=True, help="Which lab.")


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End with the error's own text, and with 130 when interrupted, as shells have it."""
    try:
        with one_interrupt():
            yield
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(130) from None


@click.group(short_help="Run a cluster on this machine, for demos and tests.")
def lab() -> None:
    """Run a cluster on this machine, for a demo, tests and trying things out.

    Each node is a network namespace with an Open vSwitch of its own. Nothing outside the lab's
    namespaces is touched. Needs root.
    """


@lab.command()
@named
@click.option(
    "--nodes",
    type=click.IntRange(1, MOST_NODES),
    help=f"How many, up to {MOST_NODES}.  [default: 3]",
)
@click.option(
    "--controllers",
    type=click.IntRange(1, MOST_CONTROLLERS),
    help=f"How many, up to {MOST_CONTROLLERS}: one leads, the others are its standbys. More than"
    " one with --source kube or --kubelets.  [default: 1]",
)
@click.option(
    "--tunnel", type=click.Choice(["geneve", "vxlan"]), help="Between nodes.  [default: geneve]"
)
@click.option(
    "--mode",
    type=click.Choice(["encap", "noEncap", "hybrid"]),
    help="How packets of pods get from node to node: cluster.network.mode.  [default:"
    " $SLUICE_MODE, or encap]",
)
@click.option(
    "--subnets",
    type=click.IntRange(1, MOST_SUBNETS),
    help=f"The nodes are in these in turn, up to {MOST_SUBNETS}, with a router between them."
    "  [default: 1]",
)
@click.option(
    "--fabric",
    type=click.Choice(["bridge", "bgp"]),
    help="What joins the nodes: one router, or two that learn the pods' ranges and the addresses of"
    " Services by BGP, FRR and BIRD, with half of 4 nodes behind each, and --mode noEncap."
    "  [default: bridge]",
)
@click.option(
    "--source",
    type=click.Choice(["dir", "kube"]),
    help="The cluster's objects: manifests in a directory, or a kube-apiserver.  [default: dir]",
)
@click.option(
    "--kubelets",
    is_flag=True,
    default=None,
    help="A whole Kubernetes: each node has a containerd and a kubelet, and runs pods.",
)
@click.option(
    "--no-sluice",
    "sluice",
    flag_value=False,
    default=None,
    help="Start no controller and no agents: somebody deploys them. With --kubelets.",
)
@click.option(
    "--datapath",
    type=click.Choice(["netdev", "system"]),
    help="Open vSwitch's own in userspace, or the kernel's, which needs its modules openvswitch "
    "and geneve.  [default: $SLUICE_DATAPATH, or netdev]",
)
@click.option(
    "--tls",
    is_flag=True,
    default=None,
    help="Switches and agents speak to the controller by mutual TLS.  [default: plain TCP]",
)
def up(name: str, **asked: Unpack[Options]) -> None:
    """Bring a lab up. If it is up already, start again what has died of it."""
    with clear_errors():
        ours = Lab(name)
        with Steps(Console()) as steps:
            made = ours.up(report=steps, **asked)
        click.echo(f"lab {name} is {'up' if made else 'up already'}")


@lab.command()
@named
def down(name: str) -> None:
    """Take a lab down, whatever state it is in."""
    with clear_errors():
        found = Lab(name).down(lambda part, doing, **_: click.echo(f"{part}: {doing}"))
        click.echo(f"lab {name} is down" if found else f"there is no lab {name}")


@lab.command()
@named
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def status(name: str, as_json: bool) -> None:
    """Show what there is of a lab."""
    with clear_errors():
        described = Lab(name).status()
        if as_json:
            click.echo(json.dumps(described, indent=2))
        else:
            show_status(Console(), described)


@lab.group()
def pod() -> None:
    """Add and remove pods: network namespaces, plugged in by the real CNI call."""


def pod_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """NAMESPACE/NAME, as one word."""
    return click.argument("pod", metavar="NAMESPACE/NAME", callback=_namespaced)(command)


def _namespaced(_: click.Context, __: click.Parameter, value: str) -> tuple[str, str]:
    namespace, slash, name = value.partition("/")
    if not (namespace and slash and name):
        raise click.BadParameter(f"{value!r} is not of the form NAMESPACE/NAME")
    return namespace, name


def _label(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE")
    return dict(value.split("=", 1) for value in values)


@pod.command()
@pod_argument
@click.option("--node", metavar="NODE", required=True, help="The node to run on: node1, node2, ...")
@click.option("--label", "labels", metavar="K=V", multiple=True, callback=_label,
              help="Of the pod; can be repeated.")  # fmt: skip
@named
def add(pod: tuple[str, str], node: str, labels: dict[str, str], name: str) -> None:
    """Write a Pod, plug it in, and write its status."""
    with clear_errors():
        made = Lab(name).pod_add(*pod, node, labels)
        click.echo(f"{made.key} on {made.node} has {made.address}")


@pod.command("del")
@pod_argument
@named
def delete(pod: tuple[str, str], name: str) -> None:
    """Unplug a pod and remove it."""
    with clear_errors():
        Lab(name).pod_del(*pod)
        click.echo(f"{'/'.join(pod)} is gone")


@lab.command("exec")
@click.argument("where")
@click.argument("argv", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@named
def execute(where: str, argv: tuple[str, ...], name: str) -> None:
    """Run a command in a part of the lab.

    WHERE is a pod's NAMESPACE/NAME, a node's name, or outside, fabric or control, where the API
    server and the first controller are; the next controller is in control2. In a node,
    ovs-vsctl, ovs-ofctl and ovs-appctl speak to that node's Open vSwitch.
    """
    with clear_errors():
        command = Lab(name).command(where, argv)
    # In our place, so that terminal, signals and exit code are the command's own.
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
