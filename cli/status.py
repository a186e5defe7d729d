"""`sluice status`: whether every switch holds what it should, and what is refused."""

import sys
import time
from typing import Final

import click

from cli.controller import Controller, RequestError, ask, controller_options, convert
from cli.output import print_json
from controller.reports.status import ClusterStatus

USUAL_WAIT: Final = 300.0
PAUSE: Final = 2.0
"""Seconds between two questions of `--wait`."""
NAMED_AT_MOST: Final = 10
"""Nodes, and problems, that are named; `--json` has all."""


@click.command("status")
@click.option("--wait", is_flag=True, help="Wait until all is well, and show what is not yet.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="With --wait: when to give up.  [default: 300]",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def status(wait: bool, timeout: float | None, as_json: bool, controller: Controller) -> None:
    """Show whether every switch holds what it should, and what is refused.

    Exit code 1 unless the controller has read the whole cluster and every switch is in sync. What
    is refused does not change the exit code.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    if wait:
        _wait(controller, USUAL_WAIT if timeout is None else timeout)
    answer = ask(controller, "/v1/status", {})
    given = convert(answer, ClusterStatus)
    if as_json:
        print_json(answer)
    else:
        _show(given)
    sys.exit(0 if _is_well(given) else 1)


def _is_well(given: ClusterStatus) -> bool:
    in_sync = all(node.in_sync for node in given.nodes.values())
    return given.ready and given.whole and in_sync


def _wait(controller: Controller, seconds: float) -> None:
    """Return when all is well, or after so many seconds; say on standard error what is not yet."""
    end = time.monotonic() + seconds
    said = ""
    while True:
        try:
            given = convert(ask(controller, "/v1/status", {}), ClusterStatus)
            if _is_well(given):
                return
            now = _summary(given)
        except RequestError as error:
            # A controller that starts does not answer yet.
            now = error.message
        if now != said:
            click.echo(now, err=True)
            said = now
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(PAUSE, left))


def _show(given: ClusterStatus) -> None:
    nodes = given.nodes
    if not given.ready:
        click.echo("cluster: not read yet")
    elif not given.whole:
        click.echo("cluster: not all of it could be read; nothing is removed from switches")
    click.echo(_summary(given))
    late = [
        f"  {name} ({node.address}): {'not in sync' if node.connected else 'not connected'}"
        for name, node in sorted(nodes.items())
        if not node.in_sync
    ]
    _lines(late)
    click.echo(f"problems: {len(given.problems):,}" if given.problems else "problems: none")
    _lines([f"  {subject}: {text}" for subject, text in sorted(given.problems.items())])


def _summary(given: ClusterStatus) -> str:
    nodes = given.nodes
    connected = sum(node.connected for node in nodes.values())
    in_sync = sum(node.in_sync for node in nodes.values())
    attachments = sum(len(node.attachments) for node in nodes.values())
    return (
        f"switches: {in_sync:,} of {len(nodes):,} in sync, {connected:,} connected;"
        f" {attachments:,} {'pod' if attachments == 1 else 'pods'} attached"
    )


def _lines(lines: list[str]) -> None:
    for line in lines[:NAMED_AT_MOST]:
        click.echo(click.style(line, fg="red"))
    if len(lines) > NAMED_AT_MOST:
        click.echo(f"  and {len(lines) - NAMED_AT_MOST:,} more; --json has all")
