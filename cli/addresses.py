"""`sluice addresses`: which node has which address of Services and egress, and why."""

from collections.abc import Iterable

import click

from cli.controller import Controller, ask, controller_options, convert
from cli.output import print_columns, print_json
from controller.reports.addresses import AddressList, AddressRow


@click.command("addresses", short_help="Show which node has which address on the link, and why.")
@click.argument("which", metavar="[ADDRESS]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def addresses(which: str | None, as_json: bool, controller: Controller) -> None:
    """Show the addresses that one node at a time has, or one of them with all candidates.

    The owner answers ARP for the address. LEFT is the time until its right ends; its agent renews
    it every 0.3 s. An owner keeps an address until it cannot have it any more: because it dies, is
    drained, not ready or excluded, or because it serves the Service no longer.

    \b
    Why has node2 this address, and who is next?
      sluice addresses 192.0.2.10
    Addresses that nobody has:
      sluice addresses --json | jq -r '.addresses[] | select(.owner == "").address'
    """  # noqa: D301  click's mark for lines that are to stay as they are
    answer = ask(controller, "/v1/addresses", {})
    found = convert(answer, AddressList)
    rows = [row for row in found.addresses if which in {None, row.address}]
    if which is not None and not rows:
        raise click.ClickException(f"{which} is no address that one node at a time has")
    if as_json:
        print_json(answer)
    elif which is not None:
        _show(rows[0])
    elif not rows:
        click.echo("no address needs one owner at a time")
    else:
        _list(rows)


def _list(rows: Iterable[AddressRow]) -> None:
    table = [("ADDRESS", "OBJECT", "NODE", "LEFT", "WHY")]
    table += [(row.address, _object(row), row.owner or "-", _left(row), row.reason) for row in rows]
    print_columns("", table)
    for row in rows:
        if row.conflict:
            click.echo(f"{row.address}: another host on the link has it, too: {row.conflict}")


def _show(row: AddressRow) -> None:
    click.echo(f"{row.address} of {_object(row)}: {row.owner or 'nobody'} ({row.reason})")
    click.echo(f"  ARP: {'the owner answers' if row.is_announced else 'nobody answers'}")
    if row.is_gated:
        click.echo("  only the owner's host sends from it")
    if row.conflict:
        click.echo(f"  another host on the link has it, too: {row.conflict}")
    print_columns("  ", [("CANDIDATE", ""), *((each.node, each.state) for each in row.candidates)])
    if row.more_candidates:
        click.echo(f"and {row.more_candidates} more")


def _object(row: AddressRow) -> str:
    return f"{row.kind} {row.namespace}/{row.name}" if row.namespace else f"{row.kind} {row.name}"


def _left(row: AddressRow) -> str:
    return f"{row.seconds_left:.1f}s" if row.owner else "-"
