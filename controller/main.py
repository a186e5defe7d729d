"""Wiring only: settings -> source -> reconciler -> switches and API."""

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import structlog
from aiohttp import web

from controller import garbage, tls
from controller.api import Api
from controller.enrolment import Enrolment
from controller.inventory import Inventory
from controller.kubernetes_api import connect
from controller.outward import Outward
from controller.reconciler import Reconciler
from controller.sources.directory import Directory
from controller.sources.kubernetes import ApiServer
from flows.view import Cluster
from openflow.server import serve
from settings import Controller, Settings, SettingsError, load, logs
from settings.tls import Identity, read

log = structlog.get_logger()

LONGEST_SILENCE = 75.0
"""Seconds that an HTTP connection may be open without a whole request. An agent's asks each 30."""


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
    # Two connections a node: the usual soft limit of 1,024 is 500 nodes.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    why = ""
    try:
        asyncio.run(_run(settings, directory))
    except* (OSError, ValueError) as errors:
        # Leaving from in here would print the whole group after all.
        why = str(_first(errors))
    if why:
        sys.exit(f"sluice controller: {why}")


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _run(settings: Settings, directory: Path | None) -> None:
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
        ),
        [("the host range", network) for network in shared.host_ranges],
    )
    reconciler = Reconciler(inventory)
    directory = directory or own.directory
    source = (
        Directory(directory, reconciler)
        if directory
        else ApiServer(own.kubernetes.kubeconfig, reconciler)
    )
    enrolment, identity = _identity(own, directory, reconciler)
    async with asyncio.TaskGroup() as group:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped.set)
        tasks = [
            group.create_task(source.run()),
            group.create_task(_serve_api(Api(reconciler, shared, enrolment), own, identity)),
            group.create_task(_serve_switches(reconciler, own, identity)),
        ]
        if not directory:
            # A directory has nobody who could be told.
            tasks.append(group.create_task(Outward(reconciler, own.kubernetes.kubeconfig).run()))
        if enrolment:
            tasks.append(group.create_task(enrolment.run()))
        await stopped.wait()
        log.info("stopping; the switches keep their flows")
        for task in tasks:
            task.cancel()


def _identity(
    own: Controller, directory: Path | None, reconciler: Reconciler
) -> tuple[Enrolment | None, Callable[[], Identity] | None]:
    """What to ask for our certificate; None for plain TCP. Raises `SettingsError`."""
    if own.enrolment is not None:
        if directory:
            raise SettingsError(
                "controller.enrolment: tokens are reviewed by an API server, and the cluster is"
                f" read from {directory}: give `tls` or `plainTcp: true` instead"
            )
        api_server = partial(connect, own.kubernetes.kubeconfig)
        enrolment = Enrolment(own.enrolment, api_server, reconciler)
        return enrolment, enrolment.identity
    if own.tls is not None:
        return None, partial(read, own.tls, "controller.tls")
    return None, None


async def _serve_switches(
    reconciler: Reconciler, own: Controller, identity: Callable[[], Identity] | None
) -> None:
    """Listen only when there is something to tell."""
    await reconciler.listed.wait()
    garbage.spare_what_is_there()
    host, port = _host_port(own.openflow)
    context = tls.for_switches(identity) if identity else None
    async with serve(host, port, reconciler.on_switch, ssl=context):
        log.info("listening for switches", address=own.openflow, tls=identity is not None)
        await asyncio.Event().wait()


async def _serve_api(api: Api, own: Controller, identity: Callable[[], Identity] | None) -> None:
    context = tls.for_agents(identity) if identity else None
    runner, local = (
        web.AppRunner(
            api.application(local=local),
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=LONGEST_SILENCE,
            # Who has gone does not go on waiting.
            handler_cancellation=True,
        )
        for local in (False, True)
    )
    await runner.setup()
    await local.setup()
    host, port = _host_port(own.api)
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        if own.api_socket:
            await web.SockSite(local, _local_socket(own.api_socket)).start()
        log.info("serving the API", address=own.api, tls=identity is not None)
        if identity is None:
            log.warning("without TLS anybody who reaches the controller can pass for a node")
        await asyncio.Event().wait()
    finally:
        await local.cleanup()
        await runner.cleanup()


def _local_socket(path: Path) -> socket.socket:
    """For root alone from its first moment on. Raises `SettingsError` if somebody listens there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        made.connect(str(path))
        raise SettingsError(f"controller.apiSocket: {path}: another controller listens there")
    if path.is_socket():
        path.unlink()
    try:
        made.bind(str(path))
    except OSError as error:
        raise SettingsError(f"controller.apiSocket: {path}: {error.strerror}") from error
    path.chmod(0o600)
    return made


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"{text!r} is not HOST:PORT")
    return host, int(port)
