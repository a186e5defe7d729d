"""`sluice drops`: the packets that switches dropped, by reason, newest first."""

import time
from collections.abc import Iterable
from typing import Final

import click
import msgspec

from cli.controller import Controller, RequestError, ask, controller_options, convert
from cli.counters import PAGE, Snapshot, chosen_nodes, new_drops, objects_text, read
from cli.output import print_columns, print_json
from controller.drop_reasons import REASONS
from controller.reports.counters import DenialRow, Denials, DropRow
from controller.reports.drops import Drop, Dropped

MOST_LINES: Final = 20
"""Lines that --follow prints at a time."""


@click.command("drops", short_help="Show which packets switches dropped, and why.")
@chosen_nodes
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice(REASONS),
    help="Only for this reason. Can be repeated.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on, and print what is dropped from now on.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --follow: how often counters are read.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="For scripts; with --follow, a line for each."
)
@controller_options
def drops(
    nodes: tuple[str, ...],
    everything: bool,
    reasons: tuple[str, ...],
    follow: bool,
    interval: float,
    as_json: bool,
    controller: Controller,
) -> None:
    """Show the packets that switches dropped or refused, by reason, newest first.

    The counts are those of the flows that drop, since they were added. Reasons:

    \b
    table miss   no flow matches: the table says what that means
    guard        a sender or a destination that is not allowed, for example a forged address
    policy       NetworkPolicy or ClusterNetworkPolicy denies it
    meter        more than a pod may send of new connections, fragments or ARP
    no endpoint  the Service has none; the node's own stack tells the client
    no route     an address that nobody has, or a kind of traffic that is not carried
    invalid      conntrack finds no connection that it could belong to

    If cluster.policy.logDenials is set, you also see which ends and ports policy denied, and why.

    \b
    What was dropped on node n1, and for whom?
      sluice drops --node n1
    Watch what policy denies from now on:
      sluice drops --follow --reason policy
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if nodes and everything:
        raise click.UsageError("--node does not go with --all")
    wanted = frozenset(reasons or REASONS)
    most = None if everything else PAGE
    if follow:
        try:
            _follow(controller, nodes, wanted, most, interval, as_json=as_json)
        except KeyboardInterrupt:
            # How people end it.
            return
    found = read(controller, nodes, "drops", most=most)
    report = _report(found, wanted, _denied(controller, wanted, 0.0, nodes))
    if as_json:
        print_json(report)
    else:
        _show(report)


def _report(found: Snapshot, wanted: frozenset[str], denials: Denials) -> Dropped:
    rows = [
        _drop(node.node, row, row.packets, node.at)
        for node in found.nodes.values()
        for row in node.drops
        if row.reason in wanted
    ]
    return Dropped(
        read=len(found.nodes),
        of=found.of,
        drops=tuple(sorted(rows, key=lambda row: -(row.last or 0.0))),
        denials=denials.denials,
        denials_enabled=denials.enabled,
        unread=found.unread,
    )


def _drop(node: str, row: DropRow, packets: int, at: float) -> Drop:
    last = None if row.idle is None else at - row.idle
    return Drop(node, row.reason, row.why, row.objects, row.table, packets, last)


def _denied(
    controller: Controller, wanted: frozenset[str], since: float, nodes: Iterable[str]
) -> Denials:
    if "policy" not in wanted:
        return Denials(enabled=False, denials=(), left_out=0)
    given = convert(ask(controller, "/v1/denials", {"since": f"{since:.6f}"}), Denials)
    only = {*nodes}
    rows = tuple(each for each in given.denials if not only or each.node in only)
    return Denials(enabled=given.enabled, denials=rows, left_out=given.left_out)


def _show(report: Dropped) -> None:
    for node, why in sorted(report.unread.items()):
        click.echo(click.style(f"{node}: not read: {why}", fg="red"))
    if not report.drops:
        click.echo(f"nothing was dropped on {report.read:,} of {report.of:,} nodes")
    else:
        print_columns("", [
            ("LAST", "NODE", "REASON", "PACKETS", "BECAUSE"),
            *((_clock(each.last), each.node, each.reason, f"{each.packets:,}", _because(each))
              for each in report.drops),
        ])  # fmt: skip
        if report.read < report.of:
            click.echo(f"{report.read:,} of {report.of:,} nodes were read; --all reads the others")
    if report.denials:
        click.echo("\ndenied by policy")
        for each in report.denials:
            click.echo(f"  {_clock(each.at)}  {each.node}  {each.sentence}")


def _because(row: Drop) -> str:
    given = DropRow(row.reason, row.why, row.table, row.objects, row.packets, 0, None)
    where = f"  [{row.table}]" if row.table else ""
    named = [each for each in row.objects if each.kind != "cluster"]
    return (f"{objects_text(given)}: " if named else "") + row.why + where


def _follow(
    controller: Controller,
    nodes: tuple[str, ...],
    wanted: frozenset[str],
    most: int | None,
    interval: float,
    *,
    as_json: bool,
) -> None:
    """Print what is dropped from now on, until the user ends it."""
    before = read(controller, nodes, "drops", most=most)
    since = max((each.at for each in _denied(controller, wanted, 0.0, nodes).denials), default=0.0)
    while True:
        time.sleep(interval)
        try:
            after = read(controller, nodes or before.nodes, "drops", most=most)
            denials = _denied(controller, wanted, since, nodes).denials
        except RequestError as error:
            # A controller that restarts does not answer for a moment.
            click.echo(error.message, err=True)
            continue
        lines: list[tuple[float, Drop | DenialRow]] = []
        for name, new in after.nodes.items():
            if (old := before.nodes.get(name)) is None:
                continue
            lines += [
                (new.at, _drop(name, row, packets, new.at))
                for row, packets in new_drops(old, new)
                if row.reason in wanted
            ]
        since = max((each.at for each in denials), default=since)
        lines += [(each.at, each) for each in denials]
        # The newest ones, in the order in which they came.
        lines.sort(key=lambda line: line[0])
        if (more := len(lines) - MOST_LINES) > 0 and not as_json:
            click.echo(f"and {more:,} more that are not shown")
        for at, line in lines[-MOST_LINES:]:
            _print_line(at, line, as_json=as_json)
        before = Snapshot({**before.nodes, **after.nodes}, after.unread, after.of)


def _print_line(at: float, line: Drop | DenialRow, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(line).decode())
    elif isinstance(line, DenialRow):
        click.echo(f"{_clock(at)}  {line.node}  policy  {line.sentence}")
    else:
        count = f"{line.packets:,} packet{'s' * (line.packets != 1)}"
        click.echo(f"{_clock(at)}  {line.node}  {line.reason}  {count}  {_because(line)}")


def _clock(at: float | None) -> str:
    return "-" if at is None else time.strftime("%H:%M:%S", time.localtime(at))
