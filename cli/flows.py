"""`sluice flows`: what a node's switch holds, and why."""

import itertools
from typing import Any
from urllib.parse import quote

import click
import msgspec

from cli.controller import Controller, ask, completion, controller_options
from flows.pipeline import LAYOUT

STATE_COLOURS = {
    "installed": None,
    "altered": "red",
    "missing": "red",
    "stale": "yellow",
    "learned": "cyan",
    "foreign": "magenta",
}
MAX_NAMED_ENDPOINTS = 16
"""Endpoints of a group; `--json` has all."""


@click.command("flows")
@click.argument(
    "node", shell_complete=completion("/v1/status", lambda report: report["nodes"].keys())
)
@click.option("--table", help="Only this table, by name; see docs/pipeline.md for all of them.")
@click.option("--raw", is_flag=True, help="Registers and ofports as Open vSwitch prints them.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def flows(node: str, table: str | None, raw: bool, as_json: bool, controller: Controller) -> None:
    """Show the flows on NODE by table, each with the objects that it exists for.

    The flows are read from the switch at this moment. States of a flow:

    \b
    missing   it should be there, and is not
    altered   somebody changed it; it is shown as it is now
    stale     it belongs to Sluice, but no object needs it any more
    learned   the switch made it, to remember the endpoint of a client
    foreign   it is not managed by Sluice

    Below a flow that leads to a group, you see what the group holds. Register fields, ofports and
    Service ports have names; flows that are altered, stale, learned or foreign are shown as they
    are on the switch.
    """  # noqa: D301  click's mark for lines that are to stay as they are
    query = {"table": table} if table else {}
    if not raw:
        query["names"] = ""
    answer = ask(controller, f"/v1/nodes/{quote(node)}/flows", query)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    groups = {group["id"]: group for group in answer["groups"]}
    for number, rows in itertools.groupby(answer["flows"], lambda row: row["tableNumber"]):
        stage = LAYOUT.by_number.get(number)
        title = click.style(f"{stage.name} ({number})" if stage else str(number), bold=True)
        click.echo(f"{title}  {stage.doc if stage else ''}")
        for row in rows:
            click.echo(_line(row))
            for at in row["groups"]:
                _show_group(groups, at)
        click.echo()
    # What no flow leads to.
    for group in groups.values():
        click.echo(_group_line(group, ""))


def _show_group(groups: dict[int, Any], at: int, indent: str = " " * 9) -> None:
    """A group, and below it those that it chooses among. They are taken out of `groups`."""
    if (group := groups.pop(at, None)) is not None:
        click.echo(_group_line(group, indent))
        for bucket in group["buckets"]:
            _show_group(groups, bucket["group"], indent + "  ")


def _group_line(group: dict[str, Any], indent: str) -> str:
    state = group["state"]
    weights: dict[str, int] = {}
    for bucket in group["buckets"]:
        to = bucket["endpoint"] or bucket["actions"].replace("group:", "group ")
        weights[to] = weights.get(to, 0) + bucket["weight"]
    # Only where they are not alike does a share say anything.
    total = sum(weights.values()) if len({*weights.values()}) > 1 else 0
    shares = sorted(weights.items())
    named = [f"{to} ({weight / total:.0%})" if total else to for to, weight in shares]
    shown = ", ".join(named[:MAX_NAMED_ENDPOINTS])
    if len(named) > MAX_NAMED_ENDPOINTS:
        shown += f" and {len(named) - MAX_NAMED_ENDPOINTS} more"
    line = f"{indent}group {group['id']}: "
    if state != "installed":
        line += f"[{state}] {_because(group)}: "
    return click.style(line + (shown or "no buckets"), fg=STATE_COLOURS[state])


def _because(row: dict[str, Any]) -> str:
    if row["object"]:
        return f"{row['object']}: {row['reason']}" if row["reason"] else str(row["object"])
    if row["state"] == "foreign":
        return "not managed by Sluice"
    return "no object needs it any more"


def _line(row: dict[str, Any]) -> str:
    state = row["state"]
    mark = "" if state == "installed" else f"[{state}] "
    head = f"  {row['priority']:>5}  {row['match'] or 'anything'} → {row['actions']}"
    because = _because(row)
    return click.style(head, fg=STATE_COLOURS[state]) + click.style(
        f"\n         {mark}{because}  [{row['feature'] or row['cookie']},"
        f" {row['packets']} packets]",
        dim=state == "installed",
        fg=STATE_COLOURS[state],
    )
