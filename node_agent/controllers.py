"""Requests to the controllers' API. The agent uses the first controller that answers."""

import errno
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Never, Self, TypeAlias

import aiohttp
import structlog
from cryptography import x509

from node_agent.faults import NodeFault
from node_agent.tls_files import kept
from settings import Agent
from settings.tls import Replaceable, client_context, read
from wire import paths
from wire.documents import NodeAddresses, NodeDenials, NodeProblems, encode

_CONNECT: Final = 5.0
"""Seconds within which a controller has to accept a connection."""
_TELLING: Final = 15.0
"""Seconds that the controller may take to answer a report."""
TAKEN_OR_UNKNOWN: Final = (204, 404, 405)
"""A controller of an older version has no such path, or the Node is unknown."""
NodeReport: TypeAlias = NodeAddresses | NodeDenials | NodeProblems

log = structlog.get_logger()


class ControllerError(NodeFault):
    """No controller answered; the text gives the reason for each of them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How agent and controller authenticate each other, and which settings say so."""

    context: Callable[[], ssl.SSLContext]
    """May raise `SettingsError`."""
    trusted: str
    """For error messages: the setting that names the CA of the controller's certificate."""
    certificate: Path | None
    """The file with the agent's own certificate; None if the agent shows none."""


class Controllers:
    """Asks the controllers one after another until one answers; the next request starts with it."""

    def __init__(self, agent: Agent, credentials: Credentials | None = None) -> None:
        """`credentials`: instead of the agent's own certificate and CA."""
        self._agent = agent
        self._urls = list(agent.api_urls)
        self._credentials = credentials or _own(agent)
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
        """Send a request; return the result of the function in `answers` for the HTTP status.

        The function gets the body. After any other status, or a `ValueError` of the function, the
        next controller is asked. `timeout` is in seconds without a byte. Raises `ControllerError`.
        """
        reasons: dict[str, str] = {}
        for url in list(self._urls):
            try:
                limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT, sock_read=timeout)
                tls = self._credentials.context() if self._credentials else True
                async with self._session.request(
                    method, url + path, timeout=limits, ssl=tls, **request
                ) as response:
                    body = await response.read()
                answer = answers.get(response.status, partial(_no_answer, response.status))(body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                reasons[url] = _reason(error, self._credentials)
            else:
                self._urls.sort(key=lambda other: other != url)
                return answer
        raise ControllerError("; ".join(f"{url}: {reasons[url]}" for url in self._agent.api_urls))

    async def tell(self, path: str, report: NodeReport, statuses: Iterable[int]) -> bool:
        """Send a report of this node; whether a controller answered with one of these statuses."""
        try:
            await self.ask(
                "POST",
                paths.path_for(path, self._agent.node),
                answers=dict.fromkeys(statuses, bytes),
                timeout=_TELLING,
                data=encode(report),
            )
        except ControllerError as error:
            log.debug("not told", path=path, reason=str(error))
            return False
        return True


def _no_answer(status: int, body: bytes) -> Never:
    raise ValueError(f"the controller answered {status}: {body[:200]!r}")


def _own(agent: Agent) -> Credentials | None:
    if agent.tls is not None:
        files, section, trusted = agent.tls, "agent.tls", agent.tls.ca
    elif agent.enrolment is not None:
        files, section, trusted = kept(agent.state), "agent.enrolment", agent.enrolment.ca
    else:
        return None
    contexts = Replaceable(partial(read, files, section), client_context)
    return Credentials(contexts.context, f"{section}.ca is {trusted}", files.certificate)


def _reason(error: Exception, credentials: Credentials | None) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError(
            certificate_error=ssl.SSLCertVerificationError() as refused
        ) if credentials is not None:
            return (
                f"the controller's certificate is refused: {refused.verify_message}"
                f" ({credentials.trusted})"
            )
        # TLS 1.3: the client is connected before the server has checked the client's certificate.
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError(errno=errno.ECONNRESET) if (
            credentials is not None and credentials.certificate is not None
        ):
            ours = f"{credentials.certificate}{_expired(credentials.certificate)}"
            return (
                "the connection was closed: the controller stopped, or refuses our certificate "
                f"({ours}); its log says which"
            )
    return str(error) or repr(error)


def _expired(certificate: Path) -> str:
    try:
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return ""
    return f", expired on {until:%Y-%m-%d %H:%M} UTC" if until <= datetime.now(UTC) else ""
