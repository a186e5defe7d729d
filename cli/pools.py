"""`sluice pools`: address pools, what is free, and which Services have which address."""

import click

from cli.controller import Controller, ask, completion, controller_options, convert
from cli.output import print_columns, print_json
from controller.reports.pools import PoolList, PoolRow

NAMED_AT_MOST = 4
"""Nodes and Services of which a line gives the names."""
POOLS = completion("/v1/pools", lambda report: [row["name"] for row in report["pools"]])


@click.command("pools", short_help="Show address pools: what is free, who has which address.")
@click.argument("pool", metavar="[NAME]", required=False, shell_complete=POOLS)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def pools(pool: str | None, as_json: bool, controller: Controller) -> None:
    """Show all AddressPools in a line each, or one with all addresses that Services have.

    FREE is the number of addresses that a Service can still get. OWNER is the node that answers ARP
    for an address; NODES are those that can serve it, whether they are up or not.

    \b
    Which Services wait for an address, and why?
      sluice pools --json | jq .waiting
    """  # noqa: D301  click's mark for lines that are to stay as they are
    answer = ask(controller, "/v1/pools", {})
    if as_json:
        print_json(answer)
        return
    report = convert(answer, PoolList)
    if pool is None:
        _list(report)
        return
    row = next((each for each in report.pools if each.name == pool), None)
    if row is None:
        raise click.ClickException(f"there is no AddressPool {pool}")
    _show(row)


def _list(report: PoolList) -> None:
    if not report.pools:
        click.echo("there are no AddressPools")
    else:
        lines = [("POOL", "FREE", "OF", "GIVES", "ANNOUNCE", "NAMESPACES", "RANGES")]
        lines += [
            (
                row.name,
                str(row.free),
                str(row.size),
                "by itself" if row.auto_assign else "on request",
                ",".join(row.announce) or "-",
                row.namespaces or "-",
                _some(row.ranges),
            )
            for row in report.pools
        ]
        print_columns("", lines)
    for row in report.pools:
        if row.problem:
            click.echo(click.style(f"AddressPool {row.name}: {row.problem}", fg="red"))
    for service, why in report.waiting.items():
        click.echo(click.style(f"Service {service}: {why}", fg="red"))


def _show(row: PoolRow) -> None:
    title = click.style(f"AddressPool {row.name}", bold=True)
    click.echo(f"{title}  {row.free} of {row.size} free")
    if row.problem:
        click.echo(click.style(f"  {row.problem}", fg="red"))
    facts = [
        ("ranges", ", ".join(row.ranges) or "none"),
        ("for namespaces", row.namespaces),
        ("nodes", f"{row.node_selector}: {row.node_count}"),
        ("announced by", ", ".join(row.announce) or "nothing"),
    ]
    print_columns("  ", facts)
    if not row.users:
        click.echo("  no Service has an address of it")
        return
    lines = [("ADDRESS", "OWNER", "NODES", "SERVICES")]
    lines += [
        (each.address, each.owner or "-", _some(each.nodes) or "-", _some(each.services))
        for each in row.users
    ]
    print_columns("  ", lines)


def _some(words: tuple[str, ...]) -> str:
    if len(words) <= NAMED_AT_MOST:
        return ", ".join(words)
    return f"{', '.join(words[: NAMED_AT_MOST - 1])} and {len(words) - NAMED_AT_MOST + 1} more"
