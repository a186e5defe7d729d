"""Requests to the controllers' APIs. Every controller serves them, whether it is the leader or not.

What every controller knows is asked of one: the first that answers (`Controllers.ask`). What an
agent reports must reach each of them, because each compiles from it or reports it: one loop for
each controller (`Controllers.each`), so that one that is away delays none of the others.
"""

import errno
import random
import ssl
import time
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
from wire.bgp import NodeSessions
from wire.documents import NodeAddresses, NodeDenials, NodeProblems, SwitchDigest, encode
from wire.egress import EgressUse

_CONNECT: Final = 5.0
"""Seconds within which a controller has to accept a connection."""
_TRANSFER: Final = 20.0
"""Seconds that an answer may take beside the time without a byte: no controller sends for ever."""
MAX_ANSWER: Final = 16 << 20
"""Bytes of an answer. The longest is `NodeServices`, of some 5 MB at its bounds."""
_REPORTING: Final = 15.0
"""Seconds that the controller may take to answer a report."""
_PAUSE: Final = (1.0, 8.0)
"""Seconds without reports to a controller that did not answer: at first, and at most. Short after a
restart; long enough that a thousand agents do not hinder one that starts."""
TAKEN_OR_UNKNOWN: Final = (204, 404, 405)
"""A controller of an older version has no such path, or the Node is unknown."""
NodeReport: TypeAlias = EgressUse | NodeAddresses | NodeDenials | NodeProblems | NodeSessions

log = structlog.get_logger()


class ControllerError(NodeFault):
    """A controller, or none of them, answered; the text gives the reason for each."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How agent and controller authenticate each other, and which settings say so."""

    context: Callable[[], ssl.SSLContext]
    """May raise `SettingsError`."""
    trusted: str
    """For error messages: the setting that names the CA of the controller's certificate."""
    certificate: Path | None
    """The file with the agent's own certificate; None if the agent shows none."""


class ControllerApi:
    """The API of one controller."""

    def __init__(
        self, url: str, node: str, session: aiohttp.ClientSession, credentials: Credentials | None
    ) -> None:
        self.url = url
        self.node = node
        """The Node of this agent."""
        self.losses = 0
        """Grows with each request that gets no answer. The process that answers next may be a new
        one, which knows nothing of what was reported to the last one."""
        self._session = session
        self._credentials = credentials
        self._pause = _PAUSE[0]
        self._next_report = 0.0

    @property
    def is_away(self) -> bool:
        """Whether the last request got no answer."""
        return self._next_report > 0.0

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

        The function gets the body. Raises `ControllerError` after any other status, or a
        `ValueError` of the function. `timeout` is in seconds without a byte.
        """
        limits = aiohttp.ClientTimeout(
            total=timeout + _TRANSFER, connect=_CONNECT, sock_read=timeout
        )
        try:
            tls = self._credentials.context() if self._credentials else True
            async with self._session.request(
                method, self.url + path, timeout=limits, ssl=tls, allow_redirects=False, **request
            ) as response:
                body = await _body(response)
            answer = answers.get(response.status, partial(_no_answer, response.status))(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._lost()
            raise ControllerError(_reason(error, self._credentials)) from error
        except ValueError as error:
            raise ControllerError(_reason(error, self._credentials)) from error
        self._next_report, self._pause = 0.0, _PAUSE[0]
        return answer

    async def report(
        self,
        path: str,
        report: NodeReport | SwitchDigest,
        answers: Mapping[int, Callable[[bytes], Any]],
    ) -> Any:
        """Send a report of this node; return as `ask`.

        A controller that is away is not sent more than one report in a while. Raises
        `ControllerError`.
        """
        if time.monotonic() < self._next_report:
            raise ControllerError("it did not answer, and is asked again in a moment")
        return await self.ask(
            "POST",
            paths.path_for(path, self.node),
            answers=answers,
            timeout=_REPORTING,
            data=encode(report),
        )

    async def tell(self, path: str, report: NodeReport, statuses: Iterable[int]) -> bool:
        """Send a report of this node; whether the answer had one of these statuses."""
        try:
            await self.report(path, report, dict.fromkeys(statuses, bytes))
        except ControllerError as error:
            log.debug("not told", controller=self.url, path=path, reason=str(error))
            return False
        return True

    def _lost(self) -> None:
        self.losses += 1
        now = time.monotonic()
        # Of all requests that fail at one moment, one counts.
        if now >= self._next_report:
            self._next_report = now + self._pause * random.uniform(0.5, 1)  # noqa: S311  no secret
            self._pause = min(2 * self._pause, _PAUSE[1])


class Controllers:
    """The APIs of all controllers, and the connections to them."""

    def __init__(self, agent: Agent, credentials: Credentials | None = None) -> None:
        """`credentials`: instead of the agent's own certificate and CA."""
        self.node = agent.node
        # No bound on connections: with one, requests that a silent controller does not answer
        # would delay those to the others. Each loop has one request to a controller at a time.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            # A compressed answer could be short, and yet fill the memory.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )
        credentials = credentials or _own(agent)
        self.each: Final = tuple(
            ControllerApi(url, agent.node, self._session, credentials) for url in agent.api_urls
        )
        self._order = [*self.each]

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
        is_refusal: Callable[[Any], bool] = lambda _: False,
        **request: Any,
    ) -> Any:
        """Ask one controller after another, as `ControllerApi.ask`, until one answers.

        The next request starts with the one that answered. Those that are away come last. A refusal
        is the result only if no other controller answers otherwise: one may know the Node already
        that another does not. Raises `ControllerError`.
        """
        refusals: dict[ControllerApi, Any] = {}
        reasons: dict[ControllerApi, str] = {}
        for controller in sorted(self._order, key=lambda each: each.is_away):
            try:
                answer = await controller.ask(method, path, **request)
            except ControllerError as error:
                reasons[controller] = str(error)
                continue
            if not is_refusal(answer):
                self._order.sort(key=lambda other: other is not controller)
                return answer
            refusals[controller] = answer
        for controller in self.each:
            if controller in refusals:
                return refusals[controller]
        raise ControllerError("; ".join(f"{each.url}: {reasons[each]}" for each in self.each))


class Told:
    """What one controller was told last of one kind of report.

    A report is sent when it changes, again after `repeat` seconds, and again after the connection
    to the controller was lost: the process that answers next may know nothing of it.
    """

    def __init__(
        self, controller: ControllerApi, path: str, statuses: Iterable[int], repeat: float
    ) -> None:
        self._controller = controller
        self._path = path
        self._statuses = tuple(statuses)
        self._repeat = repeat
        self._report: NodeReport | None = None
        self._at = 0.0
        self._losses = 0

    async def update(self, report: NodeReport, *, repeat: bool = True) -> None:
        """Send the report if the controller may not know it. `repeat`: also if it is merely old."""
        # Taken before: what is lost meanwhile counts.
        losses = self._controller.losses
        is_old = time.monotonic() - self._at >= self._repeat
        if report == self._report and losses == self._losses and not (repeat and is_old):
            return
        if await self._controller.tell(self._path, report, self._statuses):
            self._report, self._at, self._losses = report, time.monotonic(), losses


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Raises `ValueError` if it is too long."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ValueError(f"the controller's answer has more than {MAX_ANSWER >> 20} MiB")
    return bytes(body)


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
