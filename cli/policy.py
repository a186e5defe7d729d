"""`sluice policy`: which policies select a pod, and why a connection may pass or not."""

from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path

import click

from cli.completions import PODS
from cli.controller import Controller, RequestError, ask, convert
from cli.output import print_json, say_nothing_by_itself
from cli.question import cluster_options, read_cluster
from controller.policies.slices import complete
from controller.policy_reports.ends import QuestionError
from controller.policy_reports.pods import pod_policies
from controller.policy_reports.report import (
    CaseRow,
    DirectionRow,
    JudgementRow,
    PodPolicies,
    StepRow,
    Verdict,
)
from controller.policy_reports.verdict import PROTOCOL_WORDS, verdict

SHOWN_AT_MOST = 12
"""Peers or ports of a rule, and rules of a walk, that are shown; `--json` has all."""


@click.command("policy", short_help="Show which policies select a pod, or judge a connection.")
@click.argument(
    "ends",
    metavar="POD | FROM TO PORT",
    nargs=-1,
    required=True,
    shell_complete=PODS,
)
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOL_WORDS], case_sensitive=False),
    help="Of the connection. With ICMP there is no PORT.  [default: TCP]",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@cluster_options
def policy(
    ends: tuple[str, ...],
    protocol: str | None,
    as_json: bool,
    cluster: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
) -> None:
    """Show which policies select a pod, or why a connection may pass or not.

    With one argument: the policies that select POD (NAMESPACE/NAME), and what they allow.

    With FROM, TO and PORT: the verdict of both ends' policies, rule by rule as the switches try
    them. If no rule accepts the connection, you see the nearest rule and what is missing.
    Only new connections are judged: their replies always pass.

    FROM and TO are a pod (NAMESPACE/NAME), a node (its name), or an IPv4 address. TO may also be a
    Service (svc/NAMESPACE/NAME): each of its endpoints is judged. PORT is a number, or the name of
    a port of the pod or of the Service.

    \b
    What may reach the pod web-0, and what may it reach?
      sluice policy shop/web-0
    Why does front not reach the Service web?
      sluice policy shop/front svc/shop/web 80
    May a client at 192.0.2.7 ask the DNS server?
      sluice policy 192.0.2.7 kube-system/coredns-5d78c9869d-abcde 53 --protocol UDP
    The same from a dump of a cluster, without its controller:
      kubectl get nodes,namespaces,pods,netpol,services,endpointslices -A -o json > cluster.json
      sluice policy shop/front shop/web-0 80 --cluster cluster.json
    Exit code 1 where the connection is denied, for scripts:
      sluice policy shop/front shop/web-0 80 --json | jq -e .accepted
    """  # noqa: D301  click's mark for lines that are to stay as they are
    say_nothing_by_itself()
    if len(ends) == 1:
        if protocol is not None:
            raise click.UsageError("--protocol goes with FROM TO PORT")
        _pod(ends[0], cluster, pod_range, controller, as_json=as_json)
        return
    asked = protocol or "TCP"
    if len(ends) == 2 and asked == "ICMP":
        ends = (*ends, "")
    if len(ends) != 3:
        raise click.UsageError("give POD, or FROM TO PORT (FROM TO with --protocol ICMP)")
    _verdict(ends, asked, cluster, pod_range, controller, as_json=as_json)


def _pod(
    pod: str,
    cluster: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
    *,
    as_json: bool,
) -> None:
    pod = pod.removeprefix("pod/") if pod.count("/") == 2 else pod
    if pod.count("/") != 1 or not all(pod.split("/")):
        raise click.UsageError(f"POD: {pod!r} is not of the form NAMESPACE/NAME")
    if cluster is not None:
        made = complete(pod_policies(read_cluster(cluster, pod_range)[0].inventory, pod))
        if isinstance(made, str):
            raise RequestError(made)
        answer = made
    else:
        answer = convert(ask(controller, "/v1/policy", {"pod": pod}), PodPolicies)
    if as_json:
        print_json(answer)
    else:
        _show_pod(answer)


def _verdict(
    ends: tuple[str, ...],
    protocol: str,
    cluster: Path | None,
    pod_range: IPv4Network | None,
    controller: Controller,
    *,
    as_json: bool,
) -> None:
    source, destination, port = ends
    if cluster is not None:
        inventory = read_cluster(cluster, pod_range)[0].inventory
        try:
            answer = complete(verdict(inventory, (source, destination), port, protocol))
        except QuestionError as error:
            raise RequestError(str(error)) from error
    else:
        query = {"from": source, "to": destination, "port": port, "protocol": protocol}
        answer = convert(ask(controller, "/v1/policy", query), Verdict)
    if as_json:
        print_json(answer)
    else:
        _show_verdict(answer)


# --- the policies of a pod ---


def _show_pod(given: PodPolicies) -> None:
    title = click.style(str(given.pod), bold=True)
    of = "" if given.workload == given.pod else f"of {given.workload}, "
    click.echo(f"{title}  {of}{given.address} on {given.node}")
    click.echo(f"  labels: {_labels(given.labels)}")
    click.echo(f"  labels of its namespace: {_labels(given.namespace_labels)}")
    for problem in given.problems:
        click.echo(click.style(f"  problem: {problem}", fg="red"))
    for direction in given.directions:
        click.echo(f"\n  {click.style(direction.direction, bold=True)}: {_in_short(direction)}")
        for row in direction.policies:
            note = "" if row.tier == "NetworkPolicy" else f"  {row.tier}, priority {row.priority}"
            click.echo(f"    {row.object}{note}")
            for problem in row.problems:
                click.echo(click.style(f"      problem: {problem}", fg="red"))
            for rule in row.rules[:SHOWN_AT_MOST]:
                way = "to" if direction.direction == "from the pod" else "from"
                peers, ports = _some(rule.peers, " or "), _some(rule.ports, ", ")
                click.echo(f"      {rule.field}: {rule.action} {way} {peers} at {ports}")
            if len(row.rules) > SHOWN_AT_MOST:
                click.echo(f"      and {len(row.rules) - SHOWN_AT_MOST} more rules")
            if not row.rules:
                click.echo("      no rules")


def _in_short(given: DirectionRow) -> str:
    if given.refused:
        return "nothing may pass: its policies do not fit into the switch"
    if given.isolated:
        return "isolated, so only what a rule accepts may pass"
    if given.policies:
        return "no NetworkPolicy isolates it; what these rules do not decide may pass"
    return "no policy selects it, so everything may pass"


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "none"


# --- a verdict ---


def _show_verdict(given: Verdict) -> None:
    for number, case in enumerate(given.cases):
        if number:
            click.echo()
        _show_case(case, given.protocol)
    for note in given.notes:
        click.echo(f"note: {note}")
    if len(given.cases) > 1:
        accepted = sum(case.accepted for case in given.cases)
        click.echo(f"\n{accepted} of {len(given.cases)} endpoints can be reached")


def _show_case(case: CaseRow, protocol: str) -> None:
    port = f":{case.destination.port}" if case.destination.port is not None else ""
    word = click.style(*(("accepted",) if case.accepted else ("denied",)),
                       fg="green" if case.accepted else "red", bold=True)  # fmt: skip
    ends = [
        f"{end.kind} {end.name} ({end.address}{mark})"
        for end, mark in ((case.source, ""), (case.destination, port))
    ]
    click.echo(f"{word}  {protocol} from {ends[0]} to {ends[1]}")
    for each in case.judgements:
        _show_judgement(each)


def _show_judgement(given: JudgementRow) -> None:
    way = f"{given.direction}{f' {given.pod}' if given.pod else ''}: " if given.direction else ""
    verb = click.style(
        "accepted" if given.accepted else "denied", fg=None if given.accepted else "red"
    )
    click.echo(f"  {way}{verb}: {given.because}")
    for step in _few(given.steps):
        click.echo(f"    {_step(step, given.direction)}")
    if len(given.steps) > SHOWN_AT_MOST:
        click.echo(f"    ({len(given.steps)} rules in all; --json has every one)")
    if given.nearest is not None:
        nearest = given.nearest
        click.echo(f"    nearest: {nearest.field} of {nearest.policy}; missing:")
        for missing in nearest.missing:
            click.echo(f"      {missing}")


def _few(steps: tuple[StepRow, ...]) -> Iterable[StepRow]:
    """The first steps and the last one, which may decide."""
    return steps if len(steps) <= SHOWN_AT_MOST else (*steps[: SHOWN_AT_MOST - 1], steps[-1])


def _step(step: StepRow, direction: str) -> str:
    way = "to" if direction == "from the pod" else "from"
    mark = "→" if step.decides else " "
    peer = "yes" if step.peer_matched else "no"
    port = "yes" if step.port_matched else "no"
    return (
        f"{mark} {step.policy} {step.field}: {step.action} {way} {_some(step.peers, ' or ')}"
        f" (peer: {peer}) at {_some(step.ports, ', ')} (port: {port})"
    )


def _some(texts: tuple[str, ...], between: str) -> str:
    shown = between.join(texts[:SHOWN_AT_MOST])
    more = len(texts) - SHOWN_AT_MOST
    return f"{shown} and {more} more" if more > 0 else shown
