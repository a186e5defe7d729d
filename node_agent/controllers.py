"""The controllers' API as an agent uses it: the first of them that answers is asked."""

import errno
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Never, Self

import aiohttp

from settings import Agent, Tls
from settings.tls import Replaceable, client_context

_CONNECT: Final = 5.0
"""Seconds within which a controller has to accept a connection."""


class ControllerError(Exception):
    """No controller has answered; the text says why of each."""


class Controllers:
    """One after another is asked until one answers; that one is the first to be asked next."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._urls = list(agent.api_urls)
        self._tls = Replaceable(agent.tls, "agent.tls", client_context) if agent.tls else None
        self._session = aiohttp.ClientSession()

    async def __aenter__(self) -> Self:
        """For `async with`, which closes the connections."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        answers: Mapping[int, Callable[[bytes], Any]],
        timeout: float,  # noqa: ASYNC109
        **request: Any,
    ) -> Any:
        """What the function for the answer's status makes of the body.

        Another status, or a `ValueError` of the function, is no answer. `timeout` is in seconds
        without a byte. Raises `ControllerError`.
        """
        whys: dict[str, str] = {}
        for url in list(self._urls):
            try:
                limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT, sock_read=timeout)
                tls = self._tls.context() if self._tls else True
                async with self._session.request(
                    method, url + path, timeout=limits, ssl=tls, **request
                ) as response:
                    body = await response.read()
                answer = answers.get(response.status, partial(_no_answer, response.status))(body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                whys[url] = _reason(error, self._agent.tls)
            else:
                self._urls.sort(key=lambda other: other != url)
                return answer
        raise ControllerError("; ".join(f"{url}: {whys[url]}" for url in self._agent.api_urls))


def _no_answer(status: int, body: bytes) -> Never:
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
