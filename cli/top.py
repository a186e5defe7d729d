"""`sluice top`: live rates of pods, Services, nodes and dropped packets."""

import sys
import time
from typing import Final

import click
import msgspec

from cli.controller import Controller, RequestError, controller_options
from cli.counters import PAGE, Snapshot, chosen_nodes, rates, read
from cli.output import print_columns, print_json
from controller.reports.top import Top

_UNITS: Final = (("G", 1e9), ("M", 1e6), ("k", 1e3))


@click.command("top", short_help="Show which pods, Services and nodes have the most traffic.")
@chosen_nodes
@click.option(
    "--interval",
    type=click.FloatRange(min=1, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure.",
)
@click.option("--rows", type=click.IntRange(min=1), default=10, show_default=True,
              help="Rows of each kind that are shown.")  # fmt: skip
@click.option("--once", is_flag=True, help="Measure once, and end.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: an object for each measure.")
@controller_options
def top(
    nodes: tuple[str, ...],
    everything: bool,
    interval: float,
    rows: int,
    once: bool,
    as_json: bool,
    controller: Controller,
) -> None:
    """Show which pods, Services and nodes have the most traffic, and what is dropped.

    The rates come from the counters of flows: the controller reads those of a few switches, each
    at most once a second. Of a Service you see its new connections: packets of established ones
    do not pass the flows of a Service. Open vSwitch brings its counters up to date each half a
    second, so very short intervals are rough.

    \b
    Who uses the network of node n1?
      sluice top --node n1
    Which reason drops packets now, in the whole cluster?
      sluice top --once --all --json | jq '.drops'
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if nodes and everything:
        raise click.UsageError("--node does not go with --all")
    most = None if everything else PAGE
    before = read(controller, nodes, most=most)
    try:
        while True:
            time.sleep(interval)
            try:
                after = read(controller, nodes or before.nodes, most=most)
            except RequestError as error:
                # A controller that restarts does not answer for a moment.
                if once:
                    raise
                click.echo(error.message, err=True)
                continue
            _tell(rates(before, after), rows, once=once, as_json=as_json)
            if once:
                return
            before = _merged(before, after)
    except KeyboardInterrupt:
        # How people end it.
        return


def _tell(measured: Top, rows: int, *, once: bool, as_json: bool) -> None:
    if as_json and once:
        print_json(measured)
    elif as_json:
        click.echo(msgspec.json.encode(measured).decode())
    else:
        if not once and sys.stdout.isatty():
            click.clear()
        _show(measured, rows)


def _merged(before: Snapshot, after: Snapshot) -> Snapshot:
    """The next one to compare with. A switch that was away for a moment keeps its last counters."""
    return Snapshot({**before.nodes, **after.nodes}, after.unread, after.of)


def _show(given: Top, rows: int) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(given.at))
    click.echo(
        click.style(
            f"{clock}  {given.read:,} of {given.of:,} nodes, over {given.seconds:.1f} s", bold=True
        )
    )
    for node, why in sorted(given.unread.items())[:rows]:
        click.echo(click.style(f"  {node}: not read: {why}", fg="red"))
    for node, tables in sorted(given.left_out.items())[:rows]:
        click.echo(f"  {node}: not read, because they are too large: {', '.join(tables)}")
    _section("PODS", ("", "NODE", "SENT", "RECEIVED", "PACKETS"), [
        (
            str(row.object), row.node, _bits(row.sent_bytes), _bits(row.received_bytes),
            _count(row.sent_packets + row.received_packets),
        )
        for row in given.pods[:rows]
    ])  # fmt: skip
    _section(
        "SERVICES",
        ("", "NEW CONNECTIONS"),
        [(str(row.object), _count(row.connections)) for row in given.services[:rows]],
    )
    _section("NODES", ("", "PODS SENT", "PODS RECEIVED", "BY TUNNEL", "BY GATEWAY", "DROPPED"), [
        (
            row.node, _bits(row.pods_sent_bytes), _bits(row.pods_received_bytes),
            _bits(row.tunnel_sent_bytes + row.tunnel_received_bytes),
            _bits(row.gateway_sent_bytes + row.gateway_received_bytes),
            _count(row.dropped_packets),
        )
        for row in given.nodes[:rows]
    ])  # fmt: skip
    _section("DROPPED", ("", "PACKETS", "MOST AT", "BECAUSE"), [
        (row.reason, _count(row.packets), row.most_node, row.most_why)
        for row in given.drops[:rows]
    ])  # fmt: skip


def _section(title: str, heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    click.echo()
    if not lines:
        click.echo(f"{title}: none")
        return
    print_columns("", [(title, *heads[1:]), *lines])


def _bits(given: float) -> str:
    """Bytes each second as `12.3 Mbit/s`."""
    return f"{_scaled(given * 8)}bit/s"


def _count(given: float) -> str:
    return f"{_scaled(given).rstrip()}/s"


def _scaled(given: float) -> str:
    for unit, size in _UNITS:
        if given >= size:
            return f"{given / size:.1f} {unit}"
    return f"{given:.1f} " if given < 10 else f"{given:.0f} "
