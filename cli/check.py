"""`sluice check`: what is wrong with nodes, before and after installation."""

import asyncio
import socket
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

import click
import msgspec

from cli.completions import NODES
from cli.controller import (
    Controller,
    RequestError,
    ask,
    controller_options,
    convert,
)
from cli.output import print_json, say_nothing_by_itself
from cli.question import network
from controller.reports.check import CheckReport
from settings import Settings, SettingsError, load
from wire.findings import MAX_NODES, Finding, NodeFindings, Peer, Severity

COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def _addresses(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[IPv4Address, ...]:
    try:
        return tuple(map(IPv4Address, values))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("check", short_help="Find what is wrong with nodes, also before installation.")
@click.argument(
    "nodes",
    metavar="[NODE]...",
    nargs=-1,
    shell_complete=NODES,
)
@click.option(
    "--before",
    is_flag=True,
    help="Check this machine, or with --image a cluster, which has no Sluice yet.",
)
@click.option(
    "--image",
    metavar="IMAGE",
    help="With --before: check all nodes of the kubeconfig's cluster, or each NODE, by Pods with"
    " this image, which is that of the agent.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --before: the configuration file that Sluice will have.",
)
@click.option(
    "--pod-range", metavar="CIDR", callback=network,
    help="With --before: the range of all pods.  [default: of --config, or 10.244.0.0/16]",
)  # fmt: skip
@click.option(
    "--service-range", metavar="CIDR", callback=network,
    help="With --before: the range of Services.  [default: of --config, or 10.96.0.0/12]",
)  # fmt: skip
@click.option(
    "--node-address", "own", metavar="ADDRESS",
    help="With --before: this node's address (InternalIP).  [default: by which --peer is reached]",
)  # fmt: skip
@click.option(
    "--peer", "peers", metavar="ADDRESS", multiple=True, callback=_addresses,
    help="With --before: the address of another node, to which full packets are sent. Can be"
    " repeated.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@controller_options
def check(
    nodes: tuple[str, ...],
    before: bool,
    image: str | None,
    config: Path | None,
    pod_range: IPv4Network | None,
    service_range: IPv4Network | None,
    own: str | None,
    peers: tuple[IPv4Address, ...],
    as_json: bool,
    controller: Controller,
) -> None:
    """Find what is wrong with nodes: each finding names the object and its cure.

    The agents of all nodes, or of each NODE, look at the same time: at versions (kernel, its
    modules, Open vSwitch, nftables), ranges that overlap, ports that are taken or blocked, the MTU
    of the path to other nodes, clocks, certificates, and what kube-proxy and other networks have
    left.

    With --before and --image it looks at each node of a cluster that has no Sluice yet, by a
    short-lived Pod in the host network that sees the node's files read-only; this needs the rights
    of an administrator. The Pods also send each other packets to the tunnel's port.

    With --before alone it looks at this machine, as root, with the packages of `sluice[agent]`. It
    changes nothing, and sends packets only to the controllers of FILE and to each --peer.

    \b
    Is anything wrong on any node?
      sluice check
    Is this machine fit to be a node?
      sluice check --before
    With the configuration that it will have, and the path to another node?
      sluice check --before --config sluice.yaml --peer 10.0.0.12
    Are all nodes of a cluster, before there is any Sluice?
      sluice check --before --image registry.example/sluice-agent:0.1.0 --config sluice.yaml

    Exit code 1 if an error was found, or a node gave no answer. A warning does not change the exit
    code.
    """  # noqa: D301  click's mark for lines that are to stay as they are
    given = {
        "--image": image,
        "--config": config,
        "--pod-range": pod_range,
        "--service-range": service_range,
        "--peer": peers,
    }
    say_nothing_by_itself()
    if not before:
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise click.UsageError(f"{wrong[0]} goes with --before")
        report = ask_agents(controller, nodes)
    elif image is not None:
        if own is not None or peers:
            raise click.UsageError("--node-address and --peer do not go with --image")
        report = _by_pods(controller, image, nodes, (config, pod_range, service_range))
    elif nodes:
        raise click.UsageError("without --image, --before is about this machine: give no NODE")
    else:
        report = CheckReport(
            nodes=(_here(config, pod_range, service_range, own, peers),), unanswered={}
        )
    if as_json:
        print_json(report)
    else:
        _show(report)
    failed = any(f.severity is Severity.ERROR for node in report.nodes for f in node.findings)
    sys.exit(1 if failed or report.unanswered else 0)


# --- the nodes of a cluster ---


def ask_agents(controller: Controller, nodes: tuple[str, ...]) -> CheckReport:
    """What the agents of all nodes, or of these, find. Raises `RequestError`."""
    names = sorted(nodes or ask(controller, "/v1/status", {})["nodes"])
    found: list[NodeFindings] = []
    unanswered: dict[str, str] = {}
    for start in range(0, len(names), MAX_NODES):
        if start:
            click.echo(f"{start:,} of {len(names):,} nodes", err=True)
        some = names[start : start + MAX_NODES]
        report = convert(ask(controller, "/v1/check", {"node": some}), CheckReport)
        found += report.nodes
        unanswered |= report.unanswered
    return CheckReport(nodes=tuple(found), unanswered=unanswered)


# --- nodes without Sluice ---


def _by_pods(
    controller: Controller,
    image: str,
    nodes: tuple[str, ...],
    given: tuple[Path | None, IPv4Network | None, IPv4Network | None],
) -> CheckReport:
    # Their packages take long to load.
    from cli.check_pods import check_nodes  # noqa: PLC0415
    from node_agent.checks.wanted import wanted_before  # noqa: PLC0415

    config, pod_range, service_range = given
    settings = _settings(config)
    click.echo("Pods look at the nodes; this takes about half a minute ...", err=True)
    return check_nodes(
        controller.cluster,
        image,
        nodes,
        lambda name: wanted_before(name, settings, pod_range, service_range),
    )


def _settings(config: Path | None) -> Settings:
    try:
        return load(config) if config is not None else Settings()
    except SettingsError as error:
        raise RequestError(str(error)) from error


# --- this machine ---


def _here(
    config: Path | None,
    pod_range: IPv4Network | None,
    service_range: IPv4Network | None,
    own: str | None,
    peers: tuple[IPv4Address, ...],
) -> NodeFindings:
    try:
        # Of the extra `agent`, which a laptop has no use for.
        from node_agent.checks import host_facts, local  # noqa: PLC0415
        from node_agent.checks.wanted import wanted_before  # noqa: PLC0415
    except ImportError as error:
        raise RequestError(
            f"to check this machine, install `sluice[agent]` on it: {error}"
        ) from error
    try:
        address = _own_address(own, peers)
    except ValueError as error:
        raise RequestError(str(error)) from error
    settings = _settings(config)
    wanted = msgspec.structs.replace(
        wanted_before(socket.gethostname(), settings, pod_range, service_range),
        address=address,
        peers=tuple(Peer(str(each), each) for each in peers),
    )
    agent = settings.agent
    places = local.places_of(agent) if agent is not None else host_facts.Places()
    try:
        return asyncio.run(local.check(wanted, places))
    except TimeoutError:
        raise RequestError(
            "the check was not done in time: look at what this machine does"
        ) from None


def _own_address(given: str | None, peers: Iterable[IPv4Address]) -> IPv4Address | None:
    """The address from which this machine sends to its peers."""
    if given is not None:
        return IPv4Address(given)
    for peer in peers:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            try:
                # This sends nothing (udp(7)).
                way.connect((str(peer), 9))
            except OSError:
                continue
            return IPv4Address(way.getsockname()[0])
    return None


# --- the answer ---


def _show(report: CheckReport) -> None:
    for node in report.nodes:
        _show_node(node)
    for name, why in sorted(report.unanswered.items()):
        click.echo(click.style(f"{name}: not checked: {why}", fg="red"))


def _show_node(given: NodeFindings) -> None:
    errors = sum(each.severity is Severity.ERROR for each in given.findings)
    warnings = len(given.findings) - errors
    counts = [_count(errors, "error"), _count(warnings, "warning")]
    found = ", ".join(filter(None, counts)) or "nothing is wrong"
    click.echo(f"{click.style(given.node, bold=True)}: {found}")
    for each in given.findings:
        _show_finding(each)
    if given.left_out:
        click.echo(f"  and {given.left_out} more")
    for sentence in given.unchecked:
        click.echo(click.style(f"  not checked: {sentence}", dim=True))


def _show_finding(given: Finding) -> None:
    word = click.style(given.severity.value, fg=COLOURS[given.severity])
    click.echo(f"  {word}  {given.subject}: {given.text}")
    click.echo(f"         cure: {given.cure}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number > 1)}" if number else ""
