"""What this node should be and do, as the controller says: one long poll after another."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import structlog

from node_agent.controllers import ControllerError, Controllers
from wire import paths
from wire.bgp import NodeBGP
from wire.documents import (
    NodeConfig,
    NodeServices,
    PeerRoutes,
    decode_bgp,
    decode_config,
    decode_peer_routes,
    decode_refusal,
    decode_services,
)

_WAIT: Final = 30
"""Seconds that the controller may hold a request that has no news."""
_SLOW: Final = 10.0
"""Seconds that it may take beside."""
_BACKOFF: Final = (0.2, 10.0)
"""Seconds before the second try, and at most."""

_Document = TypeVar("_Document", NodeConfig, NodeServices, PeerRoutes, NodeBGP)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeRefused:
    """The controller does not know this Node, or cannot use it; `why` is its sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No controller answers; yielded again when the reason changes."""

    why: str


def configurations(
    controllers: Controllers,
) -> AsyncIterator[NodeConfig | NodeRefused | Unreachable]:
    """Yield the configuration of this node whenever it changes. Never ends."""
    return _follow(controllers, paths.CONFIG, decode_config)


def services(controllers: Controllers) -> AsyncIterator[NodeServices | NodeRefused | Unreachable]:
    """Yield the host's part of Services whenever it changes. Never ends."""
    return _follow(controllers, paths.SERVICES, decode_services)


def peer_routes(controllers: Controllers) -> AsyncIterator[PeerRoutes | NodeRefused | Unreachable]:
    """Yield the peers that are reached without the tunnel whenever they change. Never ends."""
    return _follow(controllers, paths.ROUTES, decode_peer_routes)


def bgp_documents(controllers: Controllers) -> AsyncIterator[NodeBGP | NodeRefused | Unreachable]:
    """Yield what the node's own BGP speaker tells whenever it changes. Never ends."""
    return _follow(controllers, paths.BGP, decode_bgp)


async def _follow(
    controllers: Controllers, path: str, read: Callable[[bytes], _Document]
) -> AsyncIterator[_Document | NodeRefused | Unreachable]:
    """Yield a document of this node whenever it changes.

    If no controller answers, the requests are repeated with growing random delays, so that a
    thousand agents do not ask at one moment.
    """
    delay, down = _BACKOFF[0], ""
    latest: _Document | NodeRefused | None = None
    while True:
        try:
            # After an interruption, ask for the document at once, changed or not.
            answer = await _ask(controllers, path, read, None if down else latest)
        except ControllerError as error:
            if str(error) != down:
                down = str(error)
                log.warning("no controller answers", asked=path, error=down)
                yield Unreachable(down)
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  no secret
            delay = min(delay * 2, _BACKOFF[1])
            continue
        if down:
            log.info("the controller answers", asked=path)
        if answer is not None and (down or answer != latest):
            latest = answer
            yield answer
        delay, down = _BACKOFF[0], ""
        if isinstance(answer, NodeRefused):
            # Controllers answer a refusal at once, without waiting for a change.
            await asyncio.sleep(random.uniform(1, 2))  # noqa: S311


async def _ask(
    controllers: Controllers,
    path: str,
    read: Callable[[bytes], _Document],
    latest: _Document | NodeRefused | None,
) -> _Document | NodeRefused | None:
    """One request; None where nothing has changed. Raises `ControllerError`."""
    parameters = {}
    if latest is not None and not isinstance(latest, NodeRefused):
        parameters = {paths.AFTER: latest.revision, paths.WAIT: str(_WAIT)}

    def document(body: bytes) -> _Document:
        try:
            found = read(body)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the controller's answer cannot be read: {error}") from error
        if not isinstance(found, PeerRoutes) and found.node != controllers.node:
            raise ValueError(f"the controller answered for Node {found.node}")
        return found

    def refusal(body: bytes) -> NodeRefused:
        try:
            return NodeRefused(decode_refusal(body))
        except msgspec.MsgspecError as error:
            if path in {paths.ROUTES, paths.BGP}:
                return NodeRefused("the controller is of a version that does not know this")
            raise ValueError("the controller refuses without a reason") from error

    answer: _Document | NodeRefused | None = await controllers.ask(
        "GET",
        paths.path_for(path, controllers.node),
        answers={
            200: document,
            304: lambda _: None,
            **dict.fromkeys((403, 404, 409), refusal),
        },
        is_refusal=lambda given: isinstance(given, NodeRefused),
        timeout=_WAIT + _SLOW if parameters else _SLOW,
        params=parameters,
    )
    return answer
