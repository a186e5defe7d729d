"""The controller's sockets: for switches, the API on TCP and on a unix socket, reports.

Each port has a bound on its connections (`openflow.listener`), and all together leave descriptors
for files, the API server and the unix socket: whatever strangers do, `/healthz` and the command
line are answered.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.api import Api
from openflow.listener import Bounds, bound_socket, listen
from openflow.server import OnSwitch, serve
from settings import SettingsError

log = structlog.get_logger()

MAX_SILENCE: Final = 75.0
"""Seconds that an HTTP connection may be open without a request. An agent asks every 30 s."""
MAX_LOCAL: Final = 64
"""Connections to the unix socket."""
MAX_VIEWERS: Final = 64
"""Connections of viewers. One more ends the oldest."""
RESERVED: Final = 64 + MAX_LOCAL + MAX_VIEWERS
"""Descriptors that connections of switches and agents never take."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard limit, and return it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def bounds_for(descriptors: int) -> Bounds:
    """The bounds of one port, where a process may have so many descriptors."""
    usual = Bounds()
    connections = max(2, min((descriptors - RESERVED) // 2, usual.connections))
    # Strangers take at most half of a port's connections.
    return replace(usual, connections=connections, strangers=min(usual.strangers, connections // 2))


async def serve_switches(
    on_switch: OnSwitch, address: str, context: ssl.SSLContext | None, bounds: Bounds
) -> None:
    """Listen for switches; for ever. `address` is HOST:PORT. Raises `OSError`, `SettingsError`."""
    host, port = _host_port(address)
    async with serve(host, port, on_switch, ssl=context, bounds=bounds):
        log.info("listening for switches", address=address, tls=context is not None)
        await asyncio.Event().wait()


async def serve_api(
    api: Api, address: str, path: Path | None, context: ssl.SSLContext | None, bounds: Bounds
) -> None:
    """Serve the API at `address` (HOST:PORT), and at the unix socket `path`; for ever.

    Raises `OSError`, `SettingsError`.
    """
    host, port = _host_port(address)
    async with contextlib.AsyncExitStack() as stack:
        remote = await _server(api.application(local=False), stack)
        await stack.enter_async_context(
            listen(bound_socket(host, port), remote, context=context, bounds=bounds)
        )
        if path is not None:
            local = await _server(api.application(local=True), stack)
            await stack.enter_async_context(
                listen(_local_socket(path), local, bounds=Bounds(connections=MAX_LOCAL))
            )
        log.info("serving the API", address=address, tls=context is not None)
        if context is None:
            log.warning("without TLS anybody who reaches the controller can claim to be a node")
        await asyncio.Event().wait()


async def serve_reports(reports: web.Application, address: str, context: ssl.SSLContext) -> None:
    """Serve reports to viewers at `address` (HOST:PORT); for ever.

    Raises `OSError`, `SettingsError`.
    """
    host, port = _host_port(address)
    # By a port-forward all viewers come from one address, and none of them has a certificate.
    bounds = Bounds(MAX_VIEWERS, strangers=MAX_VIEWERS, strangers_of_address=MAX_VIEWERS)
    async with contextlib.AsyncExitStack() as stack:
        server = await _server(reports, stack)
        await stack.enter_async_context(
            listen(bound_socket(host, port), server, context=context, bounds=bounds)
        )
        log.info("serving reports", address=address)
        await asyncio.Event().wait()


async def _server(application: web.Application, stack: contextlib.AsyncExitStack) -> web.Server:
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=RequestLog(),
        shutdown_timeout=1.0,
        keepalive_timeout=MAX_SILENCE,
        # A long poll ends when its client has gone.
        handler_cancellation=True,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    assert server is not None  # noqa: S101  `setup` has made it
    return server


class RequestLog(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs: one line for a request that cannot be read, instead of a traceback.

    Such an error keeps a frame that keeps the error and the connection: the frame is emptied.
    """

    def __init__(self) -> None:
        super().__init__(logging.getLogger("controller.requests"))

    def log(
        self, level: int, msg: object, *args: object, exc_info: Any = None, **kwargs: Any
    ) -> None:
        """As `logging.Logger.log`."""
        if isinstance(exc_info, HttpProcessingError | ConnectionError):
            traceback.clear_frames(exc_info.__traceback__)
            reason = str(exc_info).strip().partition("\n")[0]
            level, exc_info = min(level, logging.WARNING), None
            msg, args = f"{msg}: %s", (*args, reason)
        super().log(level, msg, *args, exc_info=exc_info, **kwargs)


def _local_socket(path: Path) -> socket.socket:
    """Readable by root alone from the start. Raises `SettingsError` if somebody listens there."""
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
