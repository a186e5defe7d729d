"""`sluice explain`: what a cookie, a flow, an object or an address is."""

from ipaddress import IPv4Network
from pathlib import Path

import click

from cli.bundle_file import is_bundle
from cli.completions import objects
from cli.controller import Controller, RequestError, ask, convert
from cli.output import print_columns, print_json, say_nothing_by_itself
from cli.question import cluster_options, read_cluster
from controller.explanations import CompiledPrograms, explain
from controller.object_names import UnknownObject
from controller.policies.slices import complete
from controller.reports.explanation import Explanation, FlowFacts, TableUse


@click.command("explain", short_help="Show what a cookie, flow, object or address is, and why.")
@click.argument(
    "what",
    metavar="COOKIE|FLOW|POD|SERVICE|ADDRESS",
    nargs=-1,
    required=True,
    shell_complete=objects,
)
@click.option("--node", metavar="NODE", help="For COOKIE or FLOW: the node whose flow is meant.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@cluster_options
def explain_command(
    what: tuple[str, ...],
    node: str | None,
    as_json: bool,
    cluster: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
) -> None:
    """Show what a cookie, a flow, an object or an address is, and why there are flows for it.

    FLOW is a line as ovs-ofctl dump-flows prints it; the words of a line need no quotes if the
    shell does not change them. Pods with one ofport on different nodes have equal flows: --node
    says which one is meant. An object is KIND/NAMESPACE/NAME: pod/shop/web-0, svc/shop/web,
    networkpolicy/shop/web, clusternetworkpolicy/NAME or node/NAME. Without a kind, NAMESPACE/NAME
    is a pod, else a Service, and a name is a node.

    \b
    Why is there a flow with this cookie?
      sluice explain 0x0272a94a6cee2d75
    And this one of a dump?
      sluice explain "$(ovs-ofctl dump-flows br-int | grep in_port=16 | head -1)"
    What is known of the pod web-0: node, address, ofport, tables, policies, Services?
      sluice explain shop/web-0
    Who has this address?
      sluice explain 10.96.0.10
    The same from a dump of a cluster, without its controller:
      kubectl get nodes,namespaces,pods,netpol,services,endpointslices -A -o json > cluster.json
      sluice explain shop/web-0 --cluster cluster.json
    """  # noqa: D301  click's mark for lines that are to stay as they are
    say_nothing_by_itself()
    text = " ".join(what)
    if cluster is not None:
        inventory = read_cluster(cluster, pod_range)[0].inventory
        if not is_bundle(cluster):
            click.echo("assumed: ofports and names of ports, which manifests do not have", err=True)
        programs = CompiledPrograms(inventory.view)
        try:
            report = complete(explain(inventory, programs, text, node))
        except UnknownObject as error:
            raise RequestError(str(error)) from error
    else:
        query = {"what": text} | ({"node": node} if node is not None else {})
        report = convert(ask(controller, "/v1/explain", query), Explanation)
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: Explanation) -> None:
    click.echo(click.style(report.sentence, bold=True))
    for problem in report.problems:
        click.echo(click.style(f"  problem: {problem}", fg="red"))
    if report.flow is not None:
        _show_flow(report.flow)
    if report.facts:
        print_columns("  ", [(fact.name, fact.value) for fact in report.facts])
    if report.services:
        click.echo("\n  an endpoint of")
        print_columns("    ", [
            (
                str(each.object), each.port, f"{each.endpoint}/{each.protocol}",
                "" if each.ready else "not ready",
            )
            for each in report.services
        ])  # fmt: skip
    if report.policies:
        click.echo("\n  selected by")
        print_columns(
            "    ", [(str(each.object), each.direction, each.tier) for each in report.policies]
        )
    if report.tables:
        click.echo("\n  flows")
        for table in report.tables:
            _show_table(table)


def _show_table(table: TableUse) -> None:
    count = f"{table.flows:,} flow{'s' * (table.flows != 1)} on {table.nodes}"
    title = click.style(f"{table.table} ({table.table_number})", bold=True)
    click.echo(f"    {title}  {count}; the table: {table.purpose}")
    for reason in table.reasons:
        click.echo(f"      {reason or 'no reason given'}")


def _show_flow(flow: FlowFacts) -> None:
    if flow.every_node:
        nodes = "every node"
    else:
        more = flow.node_count - len(flow.nodes)
        nodes = ", ".join(flow.nodes) + (f" and {more:,} more" if more > 0 else "")
    lines = [
        ("match", f"{flow.match or 'anything'} → {flow.actions}"),
        ("table", f"{flow.table} ({flow.table_number}): {flow.purpose}"),
        ("priority", str(flow.priority)),
        ("feature", f"{flow.feature}: {flow.feature_purpose}"),
        ("object", ", ".join(map(str, flow.owners))),
        ("field", "; ".join(flow.fields)),
        ("nodes", nodes),
        ("cookie", flow.cookie),
    ]
    print_columns("  ", [line for line in lines if line[1]])
