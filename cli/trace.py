"""`sluice trace`: where a packet goes, flow by flow."""

import sys

import click

from cli.completions import ENDS
from cli.controller import Controller, ask, controller_options, convert
from cli.output import print_json
from controller.policy_reports.verdict import PROTOCOL_WORDS
from controller.reports.trace import Hop, TraceReport, Way


@click.command("trace")
@click.argument("opener", metavar="FROM", shell_complete=ENDS)
@click.argument("target", metavar="TO[:PORT]", shell_complete=ENDS)
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOL_WORDS], case_sensitive=False),
    default="TCP",
    show_default=True,
    help="Of the packet. ICMP is an echo request.",
)
@click.option("--reply", is_flag=True, help="Follow the reply, too.")
@click.option(
    "--source-port",
    type=click.IntRange(1, 65_535),
    help="Of the client. With that of a connection that exists, its packets are traced."
    "  [default: a random one]",
)
@click.option("--endpoint", metavar="ADDRESS:PORT", help="What a Service chooses.  [default: any]")
@click.option("--node", metavar="NODE", help="Where a packet from outside arrives.")
@click.option("--flows", "with_flows", is_flag=True, help="Show every flow that the packet meets.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def trace(
    opener: str,
    target: str,
    protocol: str,
    reply: bool,
    source_port: int | None,
    endpoint: str | None,
    node: str | None,
    with_flows: bool,
    as_json: bool,
    controller: Controller,
) -> None:
    """Show where a packet goes from FROM to TO, and who drops it.

    The switches of the nodes themselves are asked, with the connections that they track at this
    moment: no packet is sent. Each line is one thing that happens, with the table and the cookie
    of the flow that decides, and the object that the flow exists for.

    FROM and TO are a pod (NAMESPACE/NAME), a node (its name), an IPv4 address, or `outside`: any
    client or server outside the cluster. TO may be a Service (svc/NAMESPACE/NAME). PORT is a
    number, or the name of a port of the pod or Service; a Service with one port needs none.

    \b
    Why does front not reach the Service web?
      sluice trace shop/front svc/shop/web
    And does the answer come back?
      sluice trace shop/front svc/shop/web --reply
    A client outside, by the NodePort of the Service:
      sluice trace outside svc/shop/web
    A pod asks the DNS server:
      sluice trace shop/front svc/kube-system/kube-dns:53 --protocol UDP

    With --from no switch is asked: the flows are those that there should be, and nobody knows of
    the connections that exist, of hostPorts, of other routes of the nodes, and of their processes.

    \b
    The same from a support bundle, or from manifests:
      sluice trace shop/front svc/shop/web --from bundle.tar.zst

    Exit code 1 if the packet, or with --reply its reply, does not arrive.
    """  # noqa: D301  click's mark for lines that are to stay as they are
    to, port = _destination(target)
    query = {"from": opener, "to": to, "port": port, "protocol": protocol}
    given = {
        "sourcePort": str(source_port) if source_port else "",
        "endpoint": endpoint or "",
        "node": node or "",
    }
    query |= {name: value for name, value in given.items() if value}
    if reply:
        query["reply"] = ""
    answer = ask(controller, "/v1/trace", query)
    report = convert(answer, TraceReport)
    if as_json:
        print_json(answer)
    else:
        for note in report.notes:
            click.echo(click.style(note, dim=True))
        _show(report.there, with_flows=with_flows)
        if report.back is not None:
            click.echo(click.style("The reply", bold=True))
            _show(report.back, with_flows=with_flows)
    sys.exit(0 if report.delivered else 1)


def _destination(text: str) -> tuple[str, str]:
    end, colon, port = text.rpartition(":")
    return (end, port) if colon else (text, "")


def _show(way: Way, *, with_flows: bool) -> None:
    click.echo(click.style(way.packet, bold=True))
    for hop in way.hops:
        click.echo(_line(hop))
        for row in hop.flows if with_flows else ():
            why = ", ".join(map(str, row.objects))
            indent = "  " * row.depth
            click.echo(
                click.style(
                    f"           {indent}{row.table} {row.cookie} {why}: {row.reason}", dim=True
                )
            )
    click.echo(click.style(way.end, fg="green" if way.delivered else "red", bold=True))
    if way.cure:
        click.echo(f"To change that: {way.cure}")


def _line(hop: Hop) -> str:
    where = f"{hop.node} {hop.place}" if hop.node else hop.place
    line = f"  {click.style(where, fg='cyan')}: {hop.text}"
    if hop.table:
        objects = ", ".join(map(str, hop.objects))
        line += click.style(f"  [{hop.table} {hop.cookie} {objects}]", dim=True)
    return line
