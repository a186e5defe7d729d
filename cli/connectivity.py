"""`sluice connectivity`: short-lived pods test every kind of traffic within the cluster."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cli.controller import Controller, RequestError, ask, controller_options
from cli.output import print_columns, print_json
from controller.reports.connectivity import Connectivity, Row

if TYPE_CHECKING:
    from cli.connectivity_pods import Answer, Probe

MOST_NODES = 8
EXPLAINED_AT_MOST = 5
"""Pairs of places whose first failure is traced."""


@click.command("connectivity", short_help="Test every kind of traffic with short-lived pods.")
@click.option("--on", "nodes", multiple=True, metavar="NODE",
              help="Test this node; repeat it for several.  [default: two ready ones]")  # fmt: skip
@click.option("--image", metavar="IMAGE",
              help="Of the pods; it needs python3.  [default: that of Sluice's agent]")  # fmt: skip
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until all pods run.",
)
@click.option("--keep", is_flag=True, help="Leave the pods, to look at them.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def connectivity(
    nodes: tuple[str, ...],
    image: str | None,
    timeout: float,
    keep: bool,
    as_json: bool,
    controller: Controller,
) -> None:
    """Test with short-lived pods whether every kind of traffic passes in this cluster.

    The pods are in a namespace of their own, which is removed at the end, also when you interrupt
    the command. They need no internet: their image is Sluice's own. Tested are pods, Services,
    NodePorts, nodes, large packets, the API server, the cluster's DNS, and a NetworkPolicy that
    accepts some and denies others. Each failure is explained by `sluice trace`.

    You need the right to create namespaces, pods, services and networkpolicies and to run programs
    in pods (pods/exec), besides the right to look.

    \b
    After installation, or after a change of the network around the nodes:
      sluice connectivity
    Between these nodes:
      sluice connectivity --on n1 --on n7
    Exit code 1 if anything does not pass.
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if controller.source is not None or controller.lab is not None or controller.socket is not None:
        raise click.UsageError("this needs a cluster: give --kubeconfig")
    if len(nodes) > MOST_NODES:
        raise click.UsageError(f"--on: {MOST_NODES} nodes at most")
    # Its packages take long to load.
    from cli.connectivity_pods import Testbed  # noqa: PLC0415

    with Testbed(controller.cluster, keep=keep) as testbed:
        with _progress("making pods"):
            testbed.make(nodes, image)
        with _progress("waiting until they run"):
            testbed.wait(timeout)
        with _progress("testing"):
            answers = list(testbed.probe())
        rows = list(_rows(controller, answers))
    if as_json:
        print_json(Connectivity(rows=tuple(rows)))
    else:
        _show(rows)
    sys.exit(0 if all(row.passed for row in rows) else 1)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    click.echo(f"{what} ...", err=True)
    yield


def _rows(controller: Controller, answers: "Iterable[Answer]") -> Iterator[Row]:
    traced: set[tuple[str, str]] = set()
    for answer in answers:
        probe = answer.probe
        ends = probe.source, probe.destination
        trace = ""
        if not answer.passed and ends not in traced and len(traced) < EXPLAINED_AT_MOST:
            traced.add(ends)
            trace = _traced(controller, probe)
        yield Row(
            probe.kind, probe.source, probe.destination, answer.passed,
            "" if answer.passed else answer.said, trace,
        )  # fmt: skip


def _traced(controller: Controller, probe: "Probe") -> str:
    """Where the packet ends, in a sentence."""
    query: dict[str, Any] = {**probe.ends, "reply": ""}
    try:
        report = ask(controller, "/v1/trace", query)
        back = report.get("back") or {}
        end = report["there"]["end"]
        cure = report["there"].get("cure") or ""
    except (RequestError, KeyError, TypeError) as error:
        return f"no trace: {error}"
    if report["there"]["delivered"] and back and not back.get("delivered"):
        end = f"the reply: {back.get('end')}"
    if report["there"]["delivered"] and back.get("delivered"):
        return (
            f"{end}, as far as switches and nodes know: the network between them loses it, or the"
            " process does not answer; `sluice check` looks at the network"
        )
    return f"{end}; to change that: {cure}" if cure else str(end)


def _show(rows: list[Row]) -> None:
    lines = [("KIND", "FROM", "TO", "RESULT")]
    lines += [
        (row.kind, row.source, row.destination, "ok" if row.passed else f"FAILED: {row.said}")
        for row in rows
    ]
    print_columns("", lines)
    failed = [row for row in rows if not row.passed]
    for row in failed:
        if row.trace:
            click.echo(f"\n{row.kind}, {row.source} to {row.destination}: {row.trace}")
    click.echo(f"\n{len(rows) - len(failed)} of {len(rows)} passed")
