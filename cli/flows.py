"""`sluice flows`: what a node's switch holds, and why."""

import itertools
from urllib.parse import quote

import click

from cli.completions import NODES, PODS, SERVICES
from cli.controller import Controller, ask, controller_options, convert
from cli.output import print_json
from controller.reports.flows import FlowReport, FlowRow, GroupRow
from flows.pipeline import LAYOUT

STATE_COLOURS = {
    "installed": None,
    "desired": None,
    "altered": "red",
    "missing": "red",
    "stale": "yellow",
    "learned": "cyan",
    "foreign": "magenta",
}
MAX_NAMED_ENDPOINTS = 16
"""Endpoints of a group; `--json` has all."""


def _tables(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    return [name for name in LAYOUT.tables if name.lower().startswith(begun.lower())]


@click.command("flows", short_help="Show the flows of a node, each with the objects it is for.")
@click.argument(
    "node_argument",
    metavar="[NODE]",
    required=False,
    shell_complete=NODES,
)
@click.option("--node", metavar="NODE", shell_complete=NODES, help="The same as the argument NODE.")
@click.option(
    "--table",
    metavar="TABLE",
    shell_complete=_tables,
    help="Only this table, by name or number; docs/pipeline.md has all of them.",
)
@click.option(
    "--pod",
    metavar="NAMESPACE/NAME",
    shell_complete=PODS,
    help="Only flows that exist for this pod. NODE may be left out: it is the pod's.",
)
@click.option(
    "--service",
    metavar="NAMESPACE/NAME",
    shell_complete=SERVICES,
    help="Only flows that exist for this Service, also those that the switch learned.",
)
@click.option(
    "--policy",
    metavar="[NAMESPACE/]NAME",
    help="Only flows of this NetworkPolicy (NAMESPACE/NAME) or ClusterNetworkPolicy (NAME).",
)
@click.option(
    "--cookie", metavar="COOKIE[/MASK]", help="Only flows with this cookie, for example 0x7/0xff."
)
@click.option("--raw", is_flag=True, help="Registers and ofports as Open vSwitch prints them.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def flows(
    node_argument: str | None,
    node: str | None,
    raw: bool,
    as_json: bool,
    controller: Controller,
    **only: str | None,
) -> None:
    """Show the flows on NODE by table, each with the objects that it exists for.

    The flows are read from the switch at this moment. The switch is asked only for those that are
    wanted. States of a flow:

    \b
    missing   it should be there, and is not
    altered   somebody changed it; it is shown as it is now
    stale     it belongs to Sluice, but no object needs it any more
    learned   the switch made it, to remember the endpoint of a client
    foreign   it is not managed by Sluice

    Below a flow that leads to a group, you see what the group holds. Register fields, ofports and
    Service ports have names; flows that are altered, stale, learned or foreign are shown as they
    are on the switch.

    \b
    What does the switch hold for the pod web-0?
      sluice flows --pod shop/web-0
    How does node n1 choose an endpoint of the Service web?
      sluice flows n1 --service shop/web --table EndpointChoice
    Which flow has this cookie, as Open vSwitch shows it?
      sluice flows n1 --cookie 0x72a94a6cee2d75a --raw
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if node_argument is not None and node is not None:
        raise click.UsageError("NODE does not go with --node")
    node = node_argument or node
    if node is None and only["pod"] is None:
        raise click.UsageError("give NODE, or --pod")
    query = {name: value for name, value in only.items() if value is not None}
    if not raw:
        query["names"] = ""
    path = "/v1/flows" if node is None else f"/v1/nodes/{quote(node)}/flows"
    answer = ask(controller, path, query)
    if as_json:
        print_json(answer)
        return
    report = convert(answer, FlowReport)
    if node is None:
        click.echo(f"on node {report.node}\n")
    _show(report)


def _show(report: FlowReport) -> None:
    if not report.flows and not report.groups:
        click.echo(f"no such flows on {report.node}")
    groups = {group.id: group for group in report.groups}
    for number, rows in itertools.groupby(report.flows, lambda row: row.table_number):
        stage = LAYOUT.by_number.get(number)
        title = click.style(f"{stage.name} ({number})" if stage else str(number), bold=True)
        click.echo(f"{title}  {stage.doc if stage else ''}")
        for row in rows:
            click.echo(_line(row))
            for at in row.groups:
                _show_group(groups, at)
        click.echo()
    # What no flow leads to.
    for group in groups.values():
        click.echo(_group_line(group, ""))


def _show_group(groups: dict[int, GroupRow], at: int, indent: str = " " * 9) -> None:
    """A group, and below it those that it chooses among. They are taken out of `groups`."""
    if (group := groups.pop(at, None)) is not None:
        click.echo(_group_line(group, indent))
        for bucket in group.buckets:
            if bucket.group is not None:
                _show_group(groups, bucket.group, indent + "  ")


def _group_line(group: GroupRow, indent: str) -> str:
    state = group.state
    weights: dict[str, int] = {}
    for bucket in group.buckets:
        to = bucket.endpoint or bucket.actions.replace("group:", "group ")
        weights[to] = weights.get(to, 0) + bucket.weight
    # Only where they are not alike does a share say anything.
    total = sum(weights.values()) if len({*weights.values()}) > 1 else 0
    shares = sorted(weights.items())
    named = [f"{to} ({weight / total:.0%})" if total else to for to, weight in shares]
    shown = ", ".join(named[:MAX_NAMED_ENDPOINTS])
    if len(named) > MAX_NAMED_ENDPOINTS:
        shown += f" and {len(named) - MAX_NAMED_ENDPOINTS} more"
    line = f"{indent}group {group.id}: "
    if state != "installed":
        line += f"[{state}] {_because(group)}: "
    return click.style(line + (shown or "no buckets"), fg=STATE_COLOURS.get(state))


def _because(row: FlowRow | GroupRow) -> str:
    if row.object:
        return f"{row.object}: {row.reason}" if row.reason else row.object
    if row.state == "foreign":
        return "not managed by Sluice"
    return "no object needs it any more"


def _line(row: FlowRow) -> str:
    state = row.state
    mark = "" if state == "installed" else f"[{state}] "
    head = f"  {row.priority:>5}  {row.match or 'anything'} → {row.actions}"
    because = _because(row)
    return click.style(head, fg=STATE_COLOURS.get(state)) + click.style(
        f"\n         {mark}{because}  [{row.feature or row.cookie}, {row.packets} packets]",
        dim=state == "installed",
        fg=STATE_COLOURS.get(state),
    )
