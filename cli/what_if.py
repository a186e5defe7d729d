"""`sluice what-if`: what a change of policies would do."""

import gc
import sys
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

import click

from cli.controller import Controller, RequestError, ask_lines
from cli.output import print_json, say_nothing_by_itself
from cli.question import cluster_options, read_cluster
from controller.offline.cluster_copy import CopyError, load
from controller.offline.from_manifests import Offline
from controller.offline.manifests import ManifestError, Manifests
from controller.what_if.connections import Connection, read_connections
from controller.what_if.report import ChangeRow, Share, Total, WhatIf
from controller.what_if.run import CHANGEABLE, what_if

ROWS_SHOWN = 40
"""Rows of losses, and of gains, that are shown; `--json` has all."""
NAMED_AT_MOST = 6
"""Workloads of a row that are named."""
FAILED = 3
"""The exit code with `--fail-on`."""


@click.command("what-if", short_help="Show what a change of policies would do, without making it.")
@click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="The change: a manifest or a directory of them; - for standard input. Can be repeated.",
)
@click.option("--delete", is_flag=True, help="The objects of FILE are deleted, not applied.")
@click.option(
    "--fail-on",
    type=click.Choice(["loses", "gains"]),
    multiple=True,
    help=f"End with exit code {FAILED} if anything loses, or gains, reachability.",
)
@click.option(
    "--connections",
    metavar="DUMP",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Existing connections of a node: the output of `ovs-appctl dpctl/dump-conntrack`. Can be"
    " repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@cluster_options
def what_if_command(
    files: tuple[Path, ...],
    delete: bool,
    fail_on: tuple[Literal["loses", "gains"], ...],
    connections: tuple[Path, ...],
    as_json: bool,
    cluster: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
) -> None:
    """Show what a change of policies would do, without making it.

    FILE has NetworkPolicies, ClusterNetworkPolicies or Namespaces (with other labels). The answer:
    which workloads lose or gain connections to which others, at which ports, and which rule
    decides; what is questionable in the policies; what the change costs the switches.

    The cluster is that of a running controller, or with --cluster that of some manifests. Workloads
    without a pod at this moment (a CronJob, a Deployment with 0 replicas) are judged by their
    template, if FILE or the manifests have it.

    \b
    Who is cut off by this policy?
      sluice what-if -f deny-all.yaml
    And if we remove it again?
      sluice what-if -f deny-all.yaml --delete
    In CI: fail if the policies of this branch cut anybody off, from a dump of the cluster:
      kubectl get nodes,namespaces,pods,netpol,deploy,sts,ds,cronjobs -A -o json > cluster.json
      sluice what-if -f policies/ --cluster cluster.json --fail-on loses
    Which connections of node1 would the new policies not allow?
      ovs-appctl dpctl/dump-conntrack > node1.txt
      sluice what-if -f deny-all.yaml --connections node1.txt
    """  # noqa: D301  click's mark for lines that are to stay as they are
    # One answer, and the process ends: nothing needs to be collected before.
    gc.disable()
    say_nothing_by_itself()
    change = _read_change(files)
    existing = _read_connections(connections) if connections else None
    offline = _cluster(cluster, pod_range, controller, change)
    refs = [identity for identity in change.objects if identity.kind in CHANGEABLE]
    put = [] if delete else [change.objects[identity] for identity in refs]
    answer = what_if(offline, put, refs if delete else (), existing)
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    if any(getattr(answer.totals, word).workload_pairs for word in fail_on):
        sys.exit(FAILED)


def _read_change(files: Iterable[Path]) -> Manifests:
    """The objects of a change; every problem in it ends the command."""
    given = Manifests()
    problems: list[str] = []
    for path in files:
        try:
            given.read(Path("/dev/stdin") if str(path) == "-" else path)
        except ManifestError as error:
            problems.append(str(error))
    problems += given.problems
    ignored: dict[str, int] = dict(given.ignored)
    for identity in given.objects:
        if identity.kind not in CHANGEABLE:
            ignored[identity.kind] = ignored.get(identity.kind, 0) + 1
    if problems:
        raise RequestError("\n  ".join(["the change cannot be read:", *problems]))
    for kind, count in sorted(ignored.items()):
        click.echo(f"ignored: {count} of kind {kind}, on which no policy depends here", err=True)
    if not any(identity.kind in CHANGEABLE for identity in given.objects):
        raise RequestError(f"the change has none of: {', '.join(CHANGEABLE)}")
    return given


def _read_connections(paths: Iterable[Path]) -> list[Connection]:
    found: list[Connection] = []
    for path in paths:
        try:
            found += read_connections(path.read_text(errors="replace"))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    return found


def _cluster(
    path: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
    change: Manifests,
) -> Offline:
    workloads = dict(change.workloads)
    if path is not None:
        offline, manifests = read_cluster(path, pod_range)
        workloads = manifests.workloads | workloads
    else:
        try:
            offline = Offline(load(ask_lines(controller, "/v1/cluster", {})))
        except CopyError as error:
            raise RequestError(str(error)) from error
    offline.add_templates(workloads)
    return offline


# --- the answer ---


def _show(given: WhatIf) -> None:
    for each in given.policies:
        click.echo(f"{click.style(str(each.object), bold=True)}: {each.change}")
    totals = given.totals
    click.echo(f"\n{'':8}{'workload pairs':>16}{'pod pairs':>14}")
    for word, total in (
        ("loses", totals.loses), ("gains", totals.gains), ("keeps", totals.keeps),
    ):  # fmt: skip
        click.echo(_total(word, total))
    _rows("loses", "red", given.loses)
    _rows("gains", "green", given.gains)
    if given.more_rows:
        click.echo(f"\n{given.more_rows} further changes are only counted above")
    if given.without_pods:
        click.echo(f"\njudged by their template: {_names(map(str, given.without_pods))}")
    _show_connections(given)
    for warning in given.warnings:
        click.echo(click.style(f"\nwarning: {warning.subject}: {warning.text}", fg="yellow"))
    cost = given.cost
    click.echo(
        f"\ncost: {_count(cost.nodes, 'switch', 'switches')},"
        f" {_count(cost.flows_added, 'flow', 'flows')} added and {cost.flows_removed:,} removed;"
        f" the longest walk has"
        f" {_count(cost.longest_walk.after, 'rule', 'rules')} (before: {cost.longest_walk.before})"
    )


def _total(word: str, total: Total) -> str:
    return f"{word:8}{total.workload_pairs:>16,}{total.pod_pairs:>14,}"


def _rows(word: str, colour: str, rows: tuple[ChangeRow, ...]) -> None:
    for row in rows[:ROWS_SHOWN]:
        title = click.style(word, fg=colour, bold=True)
        click.echo(f"\n{title}  {_shares(row.sources)}")
        click.echo(f"    to  {_shares(row.destinations)}")
        click.echo(f"    at  {', '.join(row.ports)}  ({_count(row.pairs, 'pair', 'pairs')})")
        click.echo(f"    {row.after.direction}: before, {row.before.reason}")
        click.echo(f"    {'':{len(row.after.direction)}}  after, {row.after.reason}")
    if len(rows) > ROWS_SHOWN:
        click.echo(f"\n{word}: {len(rows) - ROWS_SHOWN} more; --json has all")


def _shares(shares: tuple[Share, ...]) -> str:
    return _names(map(_share, shares))


def _share(share: Share) -> str:
    workload = share.workload
    match workload.kind:
        case "outside":
            return workload.name
        case "nodes":
            return "all nodes" if share.pods == share.of else f"{share.pods} of {share.of} nodes"
    if not share.pods:
        return f"{workload} (no pod now)"
    if share.pods == share.of:
        return f"{workload} ({_count(share.of, 'pod', 'pods')})" if share.of > 1 else str(workload)
    return f"{workload} ({share.pods} of {share.of} pods)"


def _names(given: Iterable[str]) -> str:
    names = list(given)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _show_connections(given: WhatIf) -> None:
    found = given.connections
    if found is None:
        return
    count = len(found.lost) + found.more
    click.echo(
        f"\nexisting connections: {count} of {found.looked_at} would not be allowed any more"
    )
    for each in found.lost[:ROWS_SHOWN]:
        click.echo(f"  {each.source} to {each.destination} at {each.port}/{each.protocol}")
    if count > ROWS_SHOWN:
        click.echo(f"  and {count - ROWS_SHOWN} more")
