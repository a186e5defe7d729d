"""What this node should be, as the controller says: one long poll after another."""

import asyncio
import errno
import json
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
import structlog

from settings import Agent, Tls
from settings.node import NodeConfig, decode
from settings.tls import client_context

_WAIT: Final = 30
"""Seconds that the controller may hold a request that has no news."""
_BACKOFF: Final = (0.2, 10.0)
"""Seconds before the second try, and at most."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refused:
    """The controller knows no such Node, or cannot use it; the sentence is the controller's."""

    why: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The controller cannot be asked; told again when the reason changes."""

    why: str


async def configurations(agent: Agent) -> AsyncIterator[NodeConfig | Refused | Unreachable]:
    """Every configuration that the controller has for this node, as it changes; never ends.

    A controller that cannot be reached is tried again, further and further apart and at random,
    so that a thousand agents do not come back at one moment. Each time the files of `agent.tls`
    are read anew: they may have been put right.
    """
    url = f"{'http' if agent.tls is None else 'https'}://{agent.controller_api}"
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=_WAIT + 15)
    delay, down = _BACKOFF[0], ""
    latest: NodeConfig | Refused | None = None
    tls: ssl.SSLContext | None = None
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        while True:
            try:
                if agent.tls is not None and tls is None:
                    tls = client_context(agent.tls, "agent.tls")
                # After a time away there is always an answer, and at once.
                answer = await _ask(session, agent.node, None if down else latest, tls)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                tls = None
                why = _reason(error, agent.tls)
                if why != down:
                    down = why
                    log.warning("the controller does not answer", controller=url, error=why)
                    yield Unreachable(f"{url}: {why}")
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  no secret
                delay = min(delay * 2, _BACKOFF[1])
                continue
            if down:
                log.info("the controller answers", controller=url)
            if answer is not None and (down or answer != latest):
                latest = answer
                yield answer
            delay, down = _BACKOFF[0], ""
            if isinstance(answer, Refused):
                # Nothing to wait for on the other side: ask again before long.
                await asyncio.sleep(random.uniform(1, 2))  # noqa: S311


async def _ask(
    session: aiohttp.ClientSession,
    node: str,
    latest: NodeConfig | Refused | None,
    tls: ssl.SSLContext | None,
) -> NodeConfig | Refused | None:
    """One request; None where nothing has changed. Raises what `configurations` catches."""
    parameters = {}
    if isinstance(latest, NodeConfig):
        parameters = {"after": latest.revision, "wait": str(_WAIT)}
    path = f"/v1/nodes/{node}/config"
    async with session.get(path, params=parameters, ssl=tls or True) as response:
        body = await response.read()
        match response.status:
            case 200:
                try:
                    config = decode(body)
                except msgspec.MsgspecError as error:
                    raise ValueError(f"the controller's answer cannot be read: {error}") from error
                if config.node != node:
                    raise ValueError(f"the controller answered for Node {config.node}")
                return config
            case 304:
                return None
            case 403 | 404 | 409:
                try:
                    return Refused(str(json.loads(body)["error"]))
                except (KeyError, TypeError) as error:
                    raise ValueError(f"{response.status} without a reason") from error
            case status:
                raise ValueError(f"the controller answered {status}: {body[:200]!r}")


def _reason(error: Exception, tls: Tls | None) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError(
            certificate_error=ssl.SSLCertVerificationError() as refused
        ) if tls is not None:
            return (
                "the controller's certificate is refused: "
                f"{refused.verify_message} (agent.tls.ca is {tls.ca})"
            )
        # TLS 1.3: the client believes itself connected before its certificate has been looked at.
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError(errno=errno.ECONNRESET) if (
            tls is not None
        ):
            return (
                "the connection was cut: the controller has stopped, or does not take our "
                f"certificate (agent.tls.certificate is {tls.certificate}); its log says which"
            )
    return str(error) or repr(error)
