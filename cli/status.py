"""`sluice status`: whether every switch holds what it should, and what is refused."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from cli.controller import Controller, ask, controller_options
from cli.question import print_json

NAMED_AT_MOST: Final = 10
"""Nodes, and problems, that are named; `--json` has all."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def status(as_json: bool, controller: Controller) -> None:
    """Show whether every switch holds what it should, and what is refused.

    Exit code 1 unless the controller has read the whole cluster and every switch is in sync. What
    is refused does not change the exit code.
    """
    answer = ask(controller, "/v1/status", {})
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    in_sync = all(node["inSync"] for node in answer["nodes"].values())
    sys.exit(0 if answer["ready"] and answer["whole"] and in_sync else 1)


def _show(answer: Mapping[str, Any]) -> None:
    nodes: Mapping[str, Any] = answer["nodes"]
    if not answer["ready"]:
        click.echo("cluster: not read yet")
    elif not answer["whole"]:
        click.echo("cluster: not all of it could be read; nothing is removed from switches")
    connected = sum(node["connected"] for node in nodes.values())
    in_sync = sum(node["inSync"] for node in nodes.values())
    attachments = sum(len(node["attachments"]) for node in nodes.values())
    click.echo(
        f"switches: {in_sync:,} of {len(nodes):,} in sync, {connected:,} connected;"
        f" {attachments:,} pods attached"
    )
    late = [
        f"  {name} ({node['address']}): {'not in sync' if node['connected'] else 'not connected'}"
        for name, node in sorted(nodes.items())
        if not node["inSync"]
    ]
    _lines(late)
    problems: Mapping[str, str] = answer["problems"]
    click.echo(f"problems: {len(problems):,}" if problems else "problems: none")
    _lines([f"  {subject}: {text}" for subject, text in sorted(problems.items())])


def _lines(lines: list[str]) -> None:
    for line in lines[:NAMED_AT_MOST]:
        click.echo(click.style(line, fg="red"))
    if len(lines) > NAMED_AT_MOST:
        click.echo(f"  and {len(lines) - NAMED_AT_MOST:,} more; --json has all")
