"""`sluice egress`: which pods leave from which address, through which node, and by which ports."""

import time

import click

from cli.controller import Controller, ask, completion, controller_options, convert
from cli.output import print_columns, print_json
from controller.reports.egress import EgressList, EgressRow, PodUseRow

NAMED_AT_MOST = 4
"""Pods of which a line gives the names."""
EGRESS = completion("/v1/egress", lambda report: [row["name"] for row in report["egress"]])


@click.command("egress", short_help="Show egress addresses: gateway, pods, source ports in use.")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=EGRESS)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def egress(name: str | None, as_json: bool, controller: Controller) -> None:
    """Show all EgressAddresses in a line each, or one with who uses its source ports.

    GATEWAY is the node that sends from the address now. Each connection to one destination needs
    a source port of its own; PORTS is the largest share of them that one destination uses. The
    gateway tells this every 5 s.

    \b
    Who uses the ports of an address?
      sluice egress shop
    Addresses whose pods cannot reach the outside now:
      sluice egress --json | jq -r '.egress[] | select(.gateway == "").name'
    """  # noqa: D301  click's mark for lines that are to stay as they are
    answer = ask(controller, "/v1/egress", {})
    if as_json:
        print_json(answer)
        return
    report = convert(answer, EgressList)
    if name is None:
        _list(report)
        return
    row = next((each for each in report.egress if each.name == name), None)
    if row is None:
        raise click.ClickException(f"there is no EgressAddress {name}")
    _show(row)


def _list(report: EgressList) -> None:
    if not report.egress:
        click.echo("there are no EgressAddresses")
        return
    lines = [("NAME", "ADDRESS", "GATEWAY", "SINCE", "PODS", "CONNECTIONS", "PORTS")]
    lines += [
        (
            row.name,
            row.address,
            row.gateway or "-",
            _ago(row.since),
            str(row.pod_count),
            "-" if row.connections is None else str(row.connections),
            f"{row.destinations[0].share:.1%}" if row.destinations else "-",
        )
        for row in report.egress
    ]
    print_columns("", lines)
    for row in report.egress:
        if row.problem:
            click.echo(f"{row.name}: {row.problem}")


def _show(row: EgressRow) -> None:
    through = f"through {row.gateway}, for {_ago(row.since)}" if row.gateway else "through no node"
    click.echo(f"{row.name}: from {row.address} {through}")
    if row.problem:
        click.echo(f"  {row.problem}")
    click.echo(f"  may be the gateway: {', '.join(row.candidates) or 'no node'}")
    click.echo(f"  pods {row.pod_selector} of Namespaces {row.namespaces}: {_some(row)}")
    if row.connections is None:
        click.echo("  the gateway has not told yet which ports are in use")
        return
    click.echo(f"  {row.connections} connections to {row.destination_count} destinations")
    if row.destinations:
        lines = [("DESTINATION", "PORTS", "OF ALL", "BY")]
        lines += [
            (each.destination, str(each.ports), f"{each.share:.1%}", _users(each.pods))
            for each in row.destinations
        ]
        print_columns("  ", lines)
        click.echo(f"  most connections: {_users(row.top_pods)}")


def _users(pods: tuple[PodUseRow, ...]) -> str:
    return ", ".join(f"{each.pod} {each.ports}" for each in pods[:NAMED_AT_MOST])


def _some(row: EgressRow) -> str:
    named = ", ".join(row.pods[:NAMED_AT_MOST]) or "none"
    more = row.pod_count - NAMED_AT_MOST
    return f"{named} and {more} more" if more > 0 else named


def _ago(since: float | None) -> str:
    if since is None:
        return "-"
    seconds = max(0, int(time.time() - since))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
