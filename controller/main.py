"""Wiring only: settings -> source -> reconciler -> switches and API."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import click
import structlog

from controller import garbage, listening, tls, token_review, viewers
from controller.api import Api
from controller.bgp import Announcer
from controller.bgp.passwords import Passwords
from controller.candidate import Candidate
from controller.denial_writer import DenialWriter
from controller.denials import Denials
from controller.enrolment import Enrolment
from controller.inventory import Inventory
from controller.kubernetes_api import connect
from controller.leadership import Leadership
from controller.load_balancers.kept_in_memory import StatusInMemory
from controller.load_balancers.writer import AddressWriter, Status, StatusAtServer
from controller.reconciler import Reconciler
from controller.sources.directory import Directory
from controller.sources.kubernetes import ApiServer
from controller.status_writer import StatusWriter
from flows.family import IPAddress
from flows.view import Cluster
from flows.ways import Mode
from openflow.listener import Bounds
from settings import Controller, Reports, Settings, SettingsError, load, logs
from settings.tls import Identity, read

log = structlog.get_logger()

_NEEDS_API_SERVER: Final = (
    "controller.{}: tokens are reviewed by an API server, and the cluster is read from {}"
)


@click.command()
@click.option(
    "--config", "config", type=click.Path(path_type=Path), required=True, help="The settings file."
)
@click.option(
    "--cluster",
    "directory",
    type=click.Path(path_type=Path),
    help="Read Kubernetes objects from the YAML files of this directory, and watch it, instead"
    " of asking an API server.",
)
def main(config: Path, directory: Path | None) -> None:
    """Learn the cluster, compile flows, and make every node's switch hold them."""
    try:
        settings = load(config)
    except SettingsError as error:
        sys.exit(f"sluice controller: {error}")
    logs.configure(settings.log_level)
    # Some five connections for each node: the usual soft limit of 1,024 is 200 nodes.
    bounds = listening.bounds_for(listening.raise_descriptor_limit())
    why = ""
    try:
        asyncio.run(_run(settings, directory, bounds))
    except* (OSError, ValueError) as errors:
        # Leaving from in here would print the whole group after all.
        why = str(_first(errors))
    if why:
        sys.exit(f"sluice controller: {why}")


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _run(settings: Settings, directory: Path | None, bounds: Bounds) -> None:
    garbage.collect_rarely()
    shared = settings.cluster
    if shared is None:
        raise SettingsError("the settings have no section cluster")
    own = settings.controller
    if own is None:
        raise SettingsError("the settings have no section controller")
    inventory = Inventory(
        Cluster(
            shared.pod_range,
            shared.service_range,
            shared.tunnel_port,
            shared.new_connections_per_second,
            node_local_dns=shared.policy.node_local_dns,
            cut_established=shared.policy.established == "cut",
            log_denials=shared.policy.log_denials,
            mode=Mode(shared.network.mode),
        ),
        [("the host range", network) for network in shared.host_ranges],
        excluded=own.excluded_nodes,
        protected=_protected(settings),
        mirror_pods_as_members=shared.policy.mirror_pods_as_members,
    )
    inventory.egress.mtu = shared.mtu
    directory = directory or own.directory
    # With a directory this controller is the only one.
    leadership = Leadership(elected=directory is None)
    reconciler = Reconciler(inventory, leadership=leadership)
    source, status = _source(own, directory, reconciler)
    enrolment, identity = _identity(own, directory, reconciler)
    passwords = Passwords(
        own.kubernetes.kubeconfig, own.bgp.namespace, has_api_server=directory is None
    )
    announcer = Announcer(reconciler, passwords)
    # With a directory there is no API server to write to.
    denials = None if directory else Denials(inventory)
    api = Api(
        reconciler, shared, enrolment, denials,
        silence=lambda: source.silence,
        announcer=announcer,
    )  # fmt: skip
    election = (
        Candidate(own, api.identity, reconciler, source, tls.for_leader(identity))
        if isinstance(source, ApiServer)
        else None
    )
    async with asyncio.TaskGroup() as group:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped.set)
        tasks = [
            group.create_task(source.run()),
            group.create_task(AddressWriter(reconciler, status).run()),
            group.create_task(_serve_api(api, own, identity, bounds)),
            group.create_task(_serve_switches(reconciler, own, identity, bounds)),
            group.create_task(announcer.run()),
        ]
        if denials is not None:
            kubeconfig = own.kubernetes.kubeconfig
            tasks.append(group.create_task(StatusWriter(reconciler, kubeconfig).run()))
            tasks.append(group.create_task(DenialWriter(denials, kubeconfig, leadership).run()))
        if own.reports and identity:
            tasks.append(group.create_task(_serve_reports(api, own, own.reports, identity)))
        if enrolment:
            tasks.append(group.create_task(enrolment.run()))
        if election is not None:
            tasks.append(group.create_task(election.run()))
        await stopped.wait()
        log.info("stopping; the switches keep their flows")
        if election is not None:
            await election.release()
        for task in tasks:
            task.cancel()


def _source(
    own: Controller, directory: Path | None, reconciler: Reconciler
) -> tuple[Directory | ApiServer, Status]:
    """Where the cluster comes from, and where the status of Services is kept."""
    if directory:
        in_memory = StatusInMemory(reconciler)
        return Directory(directory, in_memory), in_memory
    kubeconfig = own.kubernetes.kubeconfig
    return ApiServer(kubeconfig, reconciler), StatusAtServer(kubeconfig)


def _protected(settings: Settings) -> dict[IPAddress, str]:
    """The addresses of controllers: no Service may take one, since nodes could not report it."""
    own, agent = settings.controller, settings.agent
    named = [*(agent.controllers if agent else ())]
    if own and own.enrolment:
        named += own.enrolment.addresses
    if own:
        listening_at = [own.openflow, own.api, *([own.reports.address] if own.reports else ())]
        named += [each.rpartition(":")[0] for each in listening_at]
    found: dict[IPAddress, str] = {}
    for text in named:
        # What is a DNS name only the agents resolve; they refuse its addresses by themselves.
        with contextlib.suppress(ValueError):
            address = ip_address(text)
            if not (address.is_unspecified or address.is_loopback):
                found[address] = "the address of a controller"
    return found


def _identity(
    own: Controller, directory: Path | None, reconciler: Reconciler
) -> tuple[Enrolment | None, Callable[[], Identity] | None]:
    """What to ask for our certificate; None for plain TCP. Raises `SettingsError`."""
    if own.reports and directory:
        raise SettingsError(_NEEDS_API_SERVER.format("reports", directory))
    if own.enrolment is not None:
        if directory:
            raise SettingsError(
                f"{_NEEDS_API_SERVER.format('enrolment', directory)}: give `tls` or"
                " `plainTcp: true` instead"
            )
        api_server = partial(connect, own.kubernetes.kubeconfig)
        enrolment = Enrolment(own.enrolment, api_server, reconciler)
        return enrolment, enrolment.identity
    if own.tls is not None:
        return None, partial(read, own.tls, "controller.tls")
    return None, None


async def _serve_switches(
    reconciler: Reconciler, own: Controller, identity: Callable[[], Identity] | None, bounds: Bounds
) -> None:
    """Listen only when the cluster is known."""
    await reconciler.listed.wait()
    garbage.spare_what_is_there()
    context = tls.for_switches(identity) if identity else None
    await listening.serve_switches(reconciler.on_switch, own.openflow, context, bounds)


async def _serve_api(
    api: Api, own: Controller, identity: Callable[[], Identity] | None, bounds: Bounds
) -> None:
    context = tls.for_agents(identity) if identity else None
    await listening.serve_api(api, own.api, own.api_socket, context, bounds)


async def _serve_reports(
    api: Api, own: Controller, reports: Reports, identity: Callable[[], Identity]
) -> None:
    api_server = partial(connect, own.kubernetes.kubeconfig)
    application = viewers.application(
        api.report_routes(),
        viewers.Viewers(reports.namespace, api_server, [_account(s) for s in reports.scrapers]),
    )
    await listening.serve_reports(application, reports.address, tls.for_viewers(identity))


def _account(name: str) -> token_review.Account:
    namespace, _, own = name.partition("/")
    return namespace, own
