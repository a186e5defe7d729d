"""`sluice status`: whether every switch holds what it should, and what is refused."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import click

from cli.controller import Controller, RequestError, ask, controller_options, convert
from cli.output import print_json
from controller.reports.status import ClusterStatus

USUAL_WAIT: Final = 300.0
AGENTS_WAIT: Final = 30.0
"""Seconds for agents that have not been heard, when all else is well. Older ones never are."""
PAUSE: Final = 2.0
"""Seconds between two questions of `--wait`."""
SLOWEST: Final = 3
"""Switches that are named."""
NAMED_AT_MOST: Final = 10
"""Nodes, and problems, that are named; `--json` has all."""


@click.command("status", short_help="Show whether every switch holds what it should.")
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
    """Show whether every switch holds what it should, and what is refused, on one screen.

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
    well_since: float | None = None
    said = ""
    while True:
        try:
            given = convert(ask(controller, "/v1/status", {}), ClusterStatus)
            now = _summary(given)
            if not _is_well(given):
                well_since = None
            elif not (silent := _silent(given)):
                return
            else:
                # `check` and `trace` need the agents; they look for a controller now and then.
                well_since = well_since or time.monotonic()
                if time.monotonic() - well_since >= AGENTS_WAIT:
                    return
                now += f"; {silent:,} of {len(given.nodes):,} agents not heard yet"
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


def _silent(given: ClusterStatus) -> int:
    """Agents that the controller has not heard; a controller of an older version does not tell."""
    return sum(not node.agent for node in given.nodes.values()) if given.controllers else 0


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
    for line in _more(given):
        click.echo(line)
    click.echo(f"problems: {len(given.problems):,}" if given.problems else "problems: none")
    _lines([f"  {subject}: {text}" for subject, text in sorted(given.problems.items())])


def _more(given: ClusterStatus) -> Iterator[str]:
    """What a controller of an older version does not tell is left out."""
    nodes = given.nodes
    for each in given.controllers:
        role = "leader" if each.leader else "standby"
        since = _long(time.time() - each.since)
        yield f"controller: {each.name} ({role}, version {each.version}, since {since})"
    if not given.controllers or not nodes:
        return
    late = {name: node.lag for name, node in nodes.items() if node.connected and node.lag}
    yield f"lag: {_slowest(late)}" if late else "lag: none"
    if drift := {name: node.drift for name, node in nodes.items() if node.drift}:
        most = max(drift, key=drift.__getitem__)
        yield (
            f"drift: {sum(drift.values()):,} flows, groups and meters were changed by others and"
            f" repaired, most on {most}"
        )
    else:
        yield "drift: none"
    yield (
        f"versions: Sluice {_versions(n.agent for n in nodes.values())};"
        f" Open vSwitch {_versions(n.open_vswitch for n in nodes.values())}"
    )
    took = {name: node.acknowledged_in for name, node in nodes.items() if node.acknowledged_in}
    if took:
        yield f"slowest switches: {_slowest(took)}"
    oldest = max(nodes, key=lambda name: nodes[name].proven_age)
    yield (
        "last proof that a switch holds what it should: at most"
        f" {_long(nodes[oldest].proven_age)} ago ({oldest})"
    )


def _slowest(seconds: Mapping[str, float]) -> str:
    named = sorted(seconds.items(), key=lambda pair: -pair[1])[:SLOWEST]
    return ", ".join(f"{name} {_long(value)}" for name, value in named)


def _versions(given: Iterable[str]) -> str:
    counts = Counter(each or "unknown" for each in given)
    return ", ".join(
        f"{version} on {count:,}" for version, count in counts.most_common(NAMED_AT_MOST)
    )


def _long(seconds: float) -> str:
    """`12 ms`, `3.1 s`, `5 min`, `2 h`, `4 d`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for size, name, most in ((1, "s", 120), (60, "min", 7_200), (3_600, "h", 172_800)):
        if seconds < most:
            return f"{seconds / size:.{int(size == 1 and seconds < 10)}f} {name}"
    return f"{seconds / 86_400:.0f} d"


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
