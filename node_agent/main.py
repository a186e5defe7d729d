"""Wiring only: what the agent is made of, and how it starts and stops."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import structlog
from pyroute2 import AsyncIPRoute

from flows import names
from flows.pipeline import LAYOUT
from node_agent import (
    addresses,
    cni_server,
    denied_pairs,
    descriptors,
    egress_use,
    generation,
    install,
    tls_files,
)
from node_agent.attach import Attachments
from node_agent.audit import audit_loop
from node_agent.bgp import NodeSpeaker
from node_agent.checks import local
from node_agent.checks.facts import decode_wanted
from node_agent.checks.host_facts import Places
from node_agent.connection_limits import ConnectionLimits
from node_agent.controllers import Controllers
from node_agent.denials import Denials
from node_agent.enrolment import stay_enrolled
from node_agent.faults import NodeFault
from node_agent.host_table import HostTable
from node_agent.leases import LeaseError, Leases
from node_agent.link_addresses import LinkAddresses
from node_agent.local_switch import LocalSwitch
from node_agent.node import LocalNode
from node_agent.ovsdb import Ovsdb
from node_agent.peer_routes import PeerRouting
from node_agent.problems import PodProblems, report_loop
from node_agent.questions import answer_loop, answerer
from node_agent.services import LocalServices
from node_agent.stale_cache import StaleCache
from node_agent.sysctl import Sysctls
from node_agent.uninstall import UninstallError, uninstall
from openflow.watch import FlowWatch
from settings import Agent, SettingsError, load, logs

SWEEP_INTERVAL = 5.0

log = structlog.get_logger()


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--config", type=_FILE, metavar="FILE", help="YAML with a section `agent`.")
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Run the node agent of one Kubernetes node.

    The agent sets up the bridge br-int in the Open vSwitch of this node, sets its controllers, and
    attaches pods when the container runtime calls CNI. It gets the podCIDR and the ranges from the
    controller, and needs no Kubernetes credentials.

    \b
    A complete configuration:
        agent:
          node: node1                   # the Node's name in Kubernetes
          controllers: [10.0.0.1]       # dialled by Open vSwitch (6653) and the agent (6654)
          datapath: system              # or netdev: Open vSwitch in userspace
          tls: {key: /etc/sluice/tls.key, certificate: /etc/sluice/tls.crt, ca: /etc/sluice/ca.crt}

    Run it as root in the node's own network namespace. It ends on SIGTERM. While it is stopped,
    running pods keep their network, and new pods wait.
    """  # noqa: D301  click keeps the lines after \b as they are
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise click.UsageError("Missing option '--config'.")
    agent = _settings(config)
    problem = ""
    descriptors.raise_limit()
    try:
        asyncio.run(_run(agent))
    except* (LeaseError, cni_server.SocketInUseError, OSError) as errors:
        # Not raised here: `except*` would wrap it in a group, which click cannot show.
        problem = "; ".join(map(_sentence, _leaves(errors)))
    if problem:
        raise click.ClickException(problem)


@main.command("uninstall")
@click.option("--config", required=True, type=_FILE, metavar="FILE", help="The configuration.")
@click.option("--force", is_flag=True, help="Even if pods lose their network.")
def uninstall_command(config: Path, force: bool) -> None:
    """Remove everything that an agent made on this node, and restore what it changed.

    Stop the agent first. The command can be repeated.
    """
    try:
        asyncio.run(uninstall(_settings(config), force=force))
    except UninstallError as error:
        raise click.ClickException(str(error)) from None


@main.command("check")
@click.option("--wanted", required=True, metavar="JSON", help="What the cluster wants of the node.")
@click.option("--root", type=click.Path(path_type=Path), help="Where the host's root directory is.")
def check_command(wanted: str, root: Path | None) -> None:
    """Print what is wrong with this host as JSON. `sluice check --before` runs this in Pods."""
    places = Places.below(root) if root is not None else Places()
    try:
        found = asyncio.run(local.check(decode_wanted(wanted.encode()), places))
    except (TimeoutError, ValueError) as error:
        raise click.ClickException(str(error) or "the check was not done in time") from None
    click.echo(msgspec.json.encode(found).decode())


def _settings(config: Path) -> Agent:
    try:
        settings = load(config)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if settings.agent is None:
        raise click.ClickException(f"{config}: agent: the section is missing")
    logs.configure(settings.log_level)
    return settings.agent


async def _run(agent: Agent) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(descriptors.exception_handler())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    leases = Leases(agent.state / "leases.sqlite", agent.node, agent.quarantine)
    ovsdb = Ovsdb(agent.ovsdb)
    newest = generation.NewestGeneration(generation.file_of(agent))
    switch = LocalSwitch(agent, ovsdb, newest)
    mgmt = agent.ovs_run / f"{names.INTEGRATION_BRIDGE}.mgmt"
    denied = [denied_pairs.DeniedPairs() for _ in agent.controllers]
    denials = Denials(leases.all, *denied)
    watch = FlowWatch(mgmt, LAYOUT.tables["Classifier"].number, denials.packet)
    try:
        async with (
            AsyncIPRoute() as netlink,
            Controllers(agent) as controllers,
            watch,
            asyncio.TaskGroup() as tasks,
        ):
            table = HostTable(leases, Sysctls.of(agent))
            services = LocalServices(agent, netlink, table)
            peers = PeerRouting(agent, netlink)
            node = LocalNode(agent, ovsdb, netlink, leases, watch, services, peers)
            link = LinkAddresses(agent, controllers, netlink, node.config, on_gated=services.route)
            await link.restore()
            pods = PodProblems()
            attachments = Attachments(
                agent, node, ovsdb, netlink, leases, watch, switch, table, pods
            )
            speaker = NodeSpeaker()
            install.install_shim(agent)
            async with cni_server.serve(agent.socket, attachments):
                answers = answerer(agent, netlink, table, leases, node.config)
                running = [
                    tasks.create_task(ovsdb.run()),
                    tasks.create_task(switch.run()),
                    tasks.create_task(newest.save_loop()),
                    tasks.create_task(ConnectionLimits(agent, switch).run()),
                    tasks.create_task(node.run(controllers)),
                    tasks.create_task(services.run(controllers)),
                    tasks.create_task(peers.run(controllers)),
                    tasks.create_task(speaker.run(controllers)),
                    tasks.create_task(link.run()),
                    tasks.create_task(_sweep_loop(attachments)),
                    tasks.create_task(addresses.report_loop(controllers, node.addresses)),
                    tasks.create_task(denied_pairs.report_loop(controllers, denied)),
                    tasks.create_task(egress_use.report_loop(controllers, agent, link.sending)),
                    tasks.create_task(audit_loop(agent, controllers, mgmt, newest)),
                    tasks.create_task(answer_loop(controllers, agent.ovs_run, answers)),
                    tasks.create_task(
                        report_loop(
                            controllers,
                            lambda: "; ".join(filter(None, (node.problem(), link.problem()))),
                            pods,
                            services.problems,
                        )
                    ),
                ]
                if agent.datapath == "netdev":
                    running.append(tasks.create_task(StaleCache(agent.ovs_run).run()))
                if agent.tls is not None:
                    running.append(tasks.create_task(tls_files.follow(agent, agent.tls)))
                if agent.enrolment is not None:
                    stays = stay_enrolled(agent, agent.enrolment, node.report_enrolment)
                    running.append(tasks.create_task(stays))
                await stop.wait()
            for task in running:
                task.cancel()
    finally:
        leases.close()


def _sentence(error: BaseException) -> str:
    if isinstance(error, PermissionError) and error.filename is None:
        return f"{error.strerror}: the agent needs root, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    return str(error)


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _sweep_loop(attachments: Attachments) -> None:
    problem = ""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL)
        try:
            await attachments.sweep()
            problem = ""
        except (OSError, NodeFault) as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("attachments not checked", reason=problem)
