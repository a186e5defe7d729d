"""`sluice services`: what each Service is, and where its connections go."""

from collections.abc import Sequence
from urllib.parse import quote

import click

from cli.completions import SERVICES
from cli.controller import Controller, ask, controller_options, convert
from cli.output import print_columns, print_json
from controller.reports.pools import BalancerRow, announced_text
from controller.reports.services import (
    ChoiceRow,
    EndpointRow,
    PortDetail,
    PortRow,
    ServiceDetail,
    ServiceList,
    ServiceRow,
)

NAMED_AT_MOST = 6
"""Nodes and endpoints of which a line gives the names."""
WIDEST_NAME = 34
"""Characters of NAMESPACE/NAME in the list; a longer one moves only its own line."""


def _namespaced(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and (value.count("/") != 1 or not all(value.split("/"))):
        raise click.BadParameter(f"{value!r} is not of the form NAMESPACE/NAME")
    return value


@click.command("services", short_help="Show Services: endpoints, and which node sends what where.")
@click.argument(
    "service",
    metavar="[NAMESPACE/NAME]",
    required=False,
    callback=_namespaced,
    shell_complete=SERVICES,
)
@click.option("--node", metavar="NODE", help="Of one Service: only what this node does.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def services(service: str | None, node: str | None, as_json: bool, controller: Controller) -> None:
    """Show all Services in a line each, or one: its endpoints, and which node sends what where.

    READY are the endpoints that get connections, of all that a Service has. Whatever of a Service
    or of its EndpointSlices is refused is said with the field that is wrong.

    \b
    Why does nobody answer at the NodePort of default/web on node2?
      sluice services default/web --node node2
    Names of Services that something is wrong with:
      sluice services --json | jq -r '.services[] | select(.problems != {}).name'
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if node is not None and service is None:
        raise click.UsageError("--node goes with NAMESPACE/NAME")
    path = "/v1/services" + (f"/{quote(service)}" if service else "")
    answer = ask(controller, path, {"node": node} if node else {})
    if as_json:
        print_json(answer)
    elif service is None:
        _list(convert(answer, ServiceList).services)
    else:
        _show(convert(answer, ServiceDetail), node)


# --- all of them ---


def _list(rows: tuple[ServiceRow, ...]) -> None:
    if not rows:
        click.echo("there are no Services")
        return
    table = [("NAMESPACE/NAME", "TYPE", "ADDRESS", "READY", "PORTS", "")]
    table += [
        (
            f"{row.namespace}/{row.name}",
            row.type or "-",
            _address(row),
            _ready(row),
            ",".join(map(_port, row.ports)) or "-",
            _remark(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    widths[0] = min(widths[0], WIDEST_NAME)
    for number, (*cells, ports, remark) in enumerate(table):
        # Nothing is cut, however narrow the terminal: what is cut cannot be copied or searched.
        head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo(
            click.style(f"{head}  {ports}", bold=number == 0)
            + (click.style(f"  {remark}", fg="red" if rows[number - 1].problems else None)
               if remark else "")
        )  # fmt: skip


def _address(row: ServiceRow) -> str:
    """Its ClusterIP, else another; and how many more there are."""
    addresses = list(
        dict.fromkeys(
            frontend.address
            for port in row.ports
            for frontend in port.frontends
            if frontend.address
        )
    )
    return f"{addresses[0]}{f' +{len(addresses) - 1}' * (len(addresses) > 1)}" if addresses else "-"


def _ready(row: ServiceRow) -> str:
    counts = [f"{port.ready}/{port.ready + port.terminating}" for port in row.ports]
    return ",".join(dict.fromkeys(counts)) or "-"


def _port(port: PortRow) -> str:
    by_kind = {frontend.kind: frontend.port for frontend in port.frontends}
    node_port = by_kind.pop("NodePort", None)
    shown = [str(next(iter(by_kind.values())))] if by_kind else []
    shown += [str(node_port)] if node_port else []
    return f"{':'.join(shown)}/{port.protocol}"


def _remark(row: ServiceRow) -> str:
    if row.nothing_to_do:
        return "nothing to do"
    if row.problems:
        count = len(row.problems)
        return f"{count} problem{'s' * (count > 1)}"
    return ""


# --- one of them ---


def _show(row: ServiceDetail, node: str | None) -> None:
    title = f"Service {row.namespace}/{row.name}"
    if row.nothing_to_do:
        click.echo(f"{click.style(title, bold=True)}: nothing to do here, {row.nothing_to_do}")
        return
    facts = [row.type]
    policies = {
        "internalTrafficPolicy": row.internal_traffic_policy,
        "externalTrafficPolicy": row.external_traffic_policy,
    }
    facts += [f"{field}: Local" for field, policy in policies.items() if policy == "Local"]
    if row.affinity_seconds is not None:
        facts.append(f"a client keeps its endpoint for {row.affinity_seconds} s")
    click.echo(f"{click.style(title, bold=True)}  {', '.join(facts)}")
    for subject, sentence in row.problems.items():
        click.echo(click.style(f"  refused: {subject}: {sentence}", fg="red"))
    if row.balancer:
        _show_balancer(row.balancer, {*row.problems.values()})
    if not row.ports:
        click.echo("  nothing of it is served")
    for port in row.ports:
        _show_port(port, node)


def _show_balancer(row: BalancerRow, said: set[str]) -> None:
    if not row.address:
        why = "" if row.why in said else f", {row.why}"
        click.echo(f"  load balancer address: none{why}")
        return
    click.echo(f"  load balancer address {row.address} of AddressPool {row.pool}: {row.why}")
    if row.shared_with:
        click.echo(f"    shared with Service {_some(row.shared_with, 'Services')}")
    click.echo(f"    announced: {announced_text(row)}")


def _show_port(port: PortDetail, node: str | None) -> None:
    click.echo(f"\n  {click.style(port.name or 'port', bold=True)}  {port.protocol}")
    frontends = [
        (
            f"{frontend.address or 'every node'}:{frontend.port}",
            frontend.kind,
            "" if frontend.sources is None
            else f"for {', '.join(frontend.sources) or 'nobody'} alone",
        )
        for frontend in port.frontends
    ]  # fmt: skip
    print_columns("    ", frontends)
    click.echo("    endpoints" if port.endpoints else "    no endpoints")
    endpoints = [
        (
            _place(endpoint),
            endpoint.state,
            endpoint.node or "no node",
            endpoint.zone,
            _hint(endpoint),
        )
        for endpoint in port.endpoints
    ]
    print_columns("      ", endpoints)
    usual = {_place(endpoint) for endpoint in port.endpoints if endpoint.state == "ready"}
    for way in dict.fromkeys((choice.to, choice.whence) for choice in port.choices):
        to, whence = way
        address = "its ClusterIP" if to == "ClusterIP" else "its other addresses"
        click.echo(f"    to {address}, from {whence}")
        alike = [each for each in port.choices if (each.to, each.whence) == way]
        lines = [
            (
                "every node" if len(alike) == 1 and not node else _some(choice.nodes, "nodes"),
                "→ " + _target(choice, usual),
            )
            for choice in alike
        ]
        print_columns("      ", lines)


def _target(choice: ChoiceRow, usual: set[str]) -> str:
    endpoints = choice.endpoints
    if not endpoints:
        dropped = choice.otherwise == "dropped"
        return "dropped: the policy is Local" if dropped else "refused: there is no endpoint"
    if set(endpoints) == usual and len(usual) > 1:
        return f"all {len(usual)} that are ready"
    return _some(endpoints, "endpoints")


def _hint(endpoint: EndpointRow) -> str:
    hints = [f"zone {zone}" for zone in endpoint.hint_zones]
    hints += [f"node {node}" for node in endpoint.hint_nodes]
    return f"meant for {', '.join(hints)}" if hints else ""


def _place(endpoint: EndpointRow) -> str:
    return f"{endpoint.address}:{endpoint.port}"


def _some(words: Sequence[str], what: str) -> str:
    if len(words) <= NAMED_AT_MOST:
        return ", ".join(words)
    return (
        f"{', '.join(words[: NAMED_AT_MOST - 1])} and {len(words) - NAMED_AT_MOST + 1} {what} more"
    )
