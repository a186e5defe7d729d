"""`sluice bgp`: peers, sessions, and what is announced to whom and why."""

import time
from collections.abc import Iterator, Sequence

import click

from cli.controller import Controller, ask, completion, controller_options, convert
from cli.output import print_columns, print_json
from controller.reports.bgp import BGPReport, PeerRow, RouteRow, SessionRow

NAMED_AT_MOST = 4
"""Next hops and nodes of which a line gives the names."""
CONTROLLERS = "Controllers"
"""The source of a peer whose sessions are the controllers'."""
PEERS = completion("/v1/bgp", lambda report: [row["name"] for row in report["peers"]])


@click.command("bgp", short_help="Show BGP peers, their sessions, and what they are told and why.")
@click.option("--peer", metavar="NAME", help="One BGPPeer, with every route.", shell_complete=PEERS)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def bgp(peer: str | None, as_json: bool, controller: Controller) -> None:
    """Show all BGPPeers in a line each, or one: its sessions, and every route with its reason.

    A BGPPeer is a router of your network. Sluice tells it which node packets to a pod range, or to
    an address of a Service, go to; it uses no route that the router announces. A session is
    `Established`, or the line says what is in the way. PATHS is the number of next hops of all
    routes that the peer was told, RECEIVED the number of prefixes that it announced.

    Every controller has sessions of its own, and tells all peers the same. Only those of the
    controller that answers are shown: the last line names it, and `--address` or `--socket` asks a
    certain one. With `from: Nodes` the sessions are the nodes', and all of them are shown.

    \b
    Why does the router not know the address 192.0.2.10 of a Service?
      sluice bgp --peer leaf1
    Which peers are not up?
      sluice bgp --json | jq -r '.peers[] | select(.problem != "") | .name + ": " + .problem'
    """  # noqa: D301  click's mark for lines that are to stay as they are
    answer = ask(controller, "/v1/bgp", {"peer": peer} if peer is not None else {})
    if as_json:
        print_json(answer)
        return
    report = convert(answer, BGPReport)
    now = time.time()
    if peer is None:
        _list(report, now)
    for row in report.peers if peer is not None else ():
        _show(row, report.controller, now)


# --- all of them ---


def _list(report: BGPReport, now: float) -> None:
    if not report.peers:
        click.echo("there are no BGPPeers")
        return
    lines = [("PEER", "ADDRESS", "AS", "SESSIONS", "FOR", "ROUTES", "PATHS", "RECEIVED")]
    lines += [
        (
            row.name,
            row.address,
            str(row.asn),
            _state(row),
            _age(row, now),
            str(row.route_count),
            _number(each.told for each in row.sessions),
            _number(each.received for each in row.sessions),
        )
        for row in report.peers
    ]
    print_columns("", lines)
    for row in report.peers:
        if row.problem:
            click.echo(click.style(f"{row.name}: {row.problem}", fg="red"))
    if any(row.source == CONTROLLERS and row.used for row in report.peers):
        click.echo(
            f"sessions of controller {report.controller}; another controller has its own, which"
            " are not shown"
        )


def _state(row: PeerRow) -> str:
    sessions = row.sessions
    if not sessions:
        return "none" if row.used else "refused"
    if len(sessions) == 1:
        return sessions[0].state
    up = sum(each.state == "Established" for each in sessions)
    return f"{up} of {len(sessions)} Established"


def _age(row: PeerRow, now: float) -> str:
    return _duration(now - max(each.since for each in row.sessions)) if row.sessions else "-"


def _number(numbers: Iterator[int]) -> str:
    found = set(numbers)
    if not found:
        return "-"
    return str(min(found)) if len(found) == 1 else f"{min(found)} to {max(found)}"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


# --- one of them ---


def _show(row: PeerRow, controller: str, now: float) -> None:
    click.echo(
        f"{click.style(f'BGPPeer {row.name}', bold=True)}  {row.address} port {row.port}, AS"
        f" {row.asn}; ours is AS {row.local_asn}; from {row.source}"
    )
    if row.problem:
        click.echo(click.style(f"  {row.problem}", fg="red"))
    if not row.used:
        return
    for session in row.sessions:
        click.echo(f"  {_session(session, controller, now)}")
    click.echo(f"  announces {', '.join(row.announce) or 'nothing'}")
    if row.left_out:
        click.echo(f"  {row.left_out} routes are too many, and left out")
    if not row.routes:
        click.echo("  there is no route")
        return
    # Where a peer takes only one next hop, that is what it was told.
    several = any(each.add_path for each in row.sessions)
    click.echo()
    print_columns(
        "  ",
        [("PREFIX", "NEXT HOPS", "BECAUSE OF"), *(_route(each, several) for each in row.routes)],
    )


def _session(session: SessionRow, controller: str, now: float) -> str:
    where = f"node {session.node}" if session.node else f"controller {controller}"
    text = f"session of {where}: {session.state} for {_duration(now - session.since)}"
    if session.state == "Established":
        takes = (
            "several next hops" if session.add_path else "one next hop of each prefix (no ADD-PATH)"
        )
        text += f", takes {takes}, was told {session.told} paths"
        text += f", announced {session.received} prefixes, which are not used"
    elif session.reason:
        text += f"; {session.reason}"
    if session.ended:
        text += f"; {session.ended} sessions ended in the last 10 min"
    return text


def _route(route: RouteRow, several: bool) -> tuple[str, str, str]:
    hops = [
        f"{address} ({node})" for address, node in zip(route.next_hops, route.nodes, strict=False)
    ]
    text = _some(hops)
    if len(hops) > 1 and not several:
        text = f"{hops[0]}, of {len(hops)}"
    reasons = [
        f"{each.kind} {each.namespace}/{each.name}"
        if each.namespace
        else f"{each.kind} {each.name}"
        for each in route.reasons
    ]
    return route.prefix, text, "; ".join(filter(None, (", ".join(reasons), route.note)))


def _some(hops: Sequence[str]) -> str:
    more = f" and {len(hops) - NAMED_AT_MOST} more" if len(hops) > NAMED_AT_MOST else ""
    return ", ".join(hops[:NAMED_AT_MOST]) + more
