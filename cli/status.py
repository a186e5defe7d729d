"""`sluice status`: whether every switch holds what it should, and what is refused."""

import sys
from typing import Final

import click
import msgspec

from cli.controller import Controller, ask, controller_options, convert
from cli.question import print_json
from controller.cluster_status import NodeStatus

NAMED_AT_MOST: Final = 10
"""Nodes, and problems, that are named; `--json` has all."""


class Status(msgspec.Struct, frozen=True):
    """`controller.cluster_status.ClusterStatus`, whose nodes are not encoded any more."""

    ready: bool
    whole: bool
    nodes: dict[str, NodeStatus]
    problems: dict[str, str]


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def status(as_json: bool, controller: Controller) -> None:
    """Show whether every switch holds what it should, and what is refused.

    Exit code 1 unless the controller has read the whole cluster and every switch is in sync. What
    is refused does not change the exit code.
    """
    answer = ask(controller, "/v1/status", {})
    given = convert(answer, Status)
    if as_json:
        print_json(answer)
    else:
        _show(given)
    in_sync = all(node.in_sync for node in given.nodes.values())
    sys.exit(0 if given.ready and given.whole and in_sync else 1)


def _show(given: Status) -> None:
    nodes = given.nodes
    if not given.ready:
        click.echo("cluster: not read yet")
    elif not given.whole:
        click.echo("cluster: not all of it could be read; nothing is removed from switches")
    connected = sum(node.connected for node in nodes.values())
    in_sync = sum(node.in_sync for node in nodes.values())
    attachments = sum(len(node.attachments) for node in nodes.values())
    click.echo(
        f"switches: {in_sync:,} of {len(nodes):,} in sync, {connected:,} connected;"
        f" {attachments:,} pods attached"
    )
    late = [
        f"  {name} ({node.address}): {'not in sync' if node.connected else 'not connected'}"
        for name, node in sorted(nodes.items())
        if not node.in_sync
    ]
    _lines(late)
    click.echo(f"problems: {len(given.problems):,}" if given.problems else "problems: none")
    _lines([f"  {subject}: {text}" for subject, text in sorted(given.problems.items())])


def _lines(lines: list[str]) -> None:
    for line in lines[:NAMED_AT_MOST]:
        click.echo(click.style(line, fg="red"))
    if len(lines) > NAMED_AT_MOST:
        click.echo(f"  and {len(lines) - NAMED_AT_MOST:,} more; --json has all")
