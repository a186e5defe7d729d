"""A replica that follows keeps a request open at the leader, to notice at once that it has ended.

A Lease alone takes seconds to become free. But if the leader's process ends, the kernel of its
machine closes its connections, and nobody accepts new ones at its address. Or another process does:
then it says another identity. Both are taken as evidence that the leader is dead. Silence is none.

Only this says so much, and a wrong conclusion does no harm: see `controller.election`.
"""

import asyncio
import errno
import re
import socket
import ssl
import time
from collections.abc import Callable
from itertools import count
from typing import Final, Literal

import aiohttp
import msgspec
import structlog
from aiohttp import web

from controller.election import Election, Lease
from controller.leadership import Leadership
from controller.reports.status import ControllerStatus
from wire.paths import MAX_WAIT, WAIT
from wire.sentences import readable
from wire.version import VERSION

log = structlog.get_logger()

PATH: Final = "/v1/leader"
"""GET: `Leader`; a long poll, which ends when this controller begins or ceases to lead."""
HOLD: Final = 20
"""Seconds that the leader may hold a request."""
_CONNECT: Final = 1.0
_PAUSE: Final = 0.2
"""Seconds between two requests that say nothing new."""
MAX_WAITING: Final = 16
"""Requests that wait at once: there are few replicas, and anybody may ask."""
LONGEST_ANSWER: Final = 4_096
"""Bytes."""
_NAME: Final = "name"
_VERSION: Final = "version"
_SINCE: Final = "since"
"""Queries by which one that follows says what it is. Anybody could say so."""
_ADDRESS: Final = re.compile(r"([0-9A-Za-z.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
"""Of a leader. Whoever may write the Lease can give any."""
_VALID: Final = re.compile(r"[-0-9A-Za-z.+~_]{1,253}")


class Leader(msgspec.Struct, frozen=True):
    """What a controller says of itself to the others."""

    identity: str
    leads: bool


class LeaderLink:
    """Follows whoever holds the Lease, while it is somebody else."""

    def __init__(
        self,
        election: Election,
        leadership: Leadership,
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        """`context`: for a TLS client; None: plain TCP."""
        self._election = election
        self._leadership = leadership
        self._context = context
        self._query = {
            WAIT: str(HOLD),
            _NAME: socket.gethostname(),
            _VERSION: VERSION,
            _SINCE: str(int(time.time())),
        }
        self._noted: tuple[str, str] = "", ""
        """The last holder of which something was logged, and what."""
        self._doubted = ""
        """The version of the Lease that was doubted last."""

    async def run(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as session:
            while True:
                lease = self._election.lease
                if lease is None or lease.holder in {"", self._election.identity}:
                    await asyncio.sleep(_PAUSE)
                elif not _ADDRESS.fullmatch(lease.address):
                    self._note(lease, "the leader gives no address")
                    await asyncio.sleep(_PAUSE)
                elif await self._ask(session, lease) == "dead":
                    self._note(lease, "the leader is dead")
                    self._election.dead(lease.holder)
                    self._doubt(lease)
                    await asyncio.sleep(_PAUSE)

    def _had_this_place(self, lease: Lease) -> bool:
        """Whether the holder ran on this host, at the address where this process answers now.

        So a single controller that is started again need not wait for its own Lease. If two hosts
        are given one address by mistake, their names differ.
        """
        election = self._election
        host, _, mark = lease.holder.rpartition("_")
        is_here = bool(mark) and host == election.identity.rpartition("_")[0]
        return is_here and lease.address == election.address != ""

    def _doubt(self, lease: Lease) -> None:
        """Have the Lease read at once, and not again as long as it stays the same."""
        if lease.version != self._doubted:
            self._doubted = lease.version
            self._leadership.doubt()

    def _note(self, lease: Lease, what: str) -> None:
        if self._noted != (lease.holder, what):
            self._noted = lease.holder, what
            log.info(what, leader=readable(lease.holder), address=readable(lease.address))

    async def _ask(
        self, session: aiohttp.ClientSession, lease: Lease
    ) -> Literal["dead", "unknown"]:
        """One request to the leader."""
        scheme = "https" if self._context else "http"
        timeout = aiohttp.ClientTimeout(total=HOLD + 5, connect=_CONNECT)
        began = time.monotonic()
        try:
            tls = self._context() if self._context else True
            async with session.get(
                f"{scheme}://{lease.address}{PATH}",
                params=self._query,
                timeout=timeout,
                ssl=tls,
                allow_redirects=False,
            ) as response:
                body = await response.content.read(LONGEST_ANSWER)
            found = msgspec.json.decode(body, type=Leader) if response.status == 200 else None
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno == errno.ECONNREFUSED:
                return "dead"
        except (aiohttp.ClientError, OSError, ValueError, RecursionError):
            # If a connection has ended that was open for a while, the next attempt says more: a
            # process that has ended refuses it.
            if time.monotonic() - began > _PAUSE:
                return "unknown"
        else:
            if found is not None and found.identity == self._election.identity:
                if self._had_this_place(lease):
                    return "dead"
                self._note(lease, "the leader gives the address of this controller")
            elif found is not None and found.identity != lease.holder:
                return "dead"
            elif found is None or not found.leads:
                # It gives the Lease back, or is of another version.
                self._doubt(lease)
        await asyncio.sleep(_PAUSE)
        return "unknown"


class LeaderApi:
    """The other side: tells whether this controller leads."""

    def __init__(self, identity: str, leadership: Leadership) -> None:
        self._identity = identity
        self._leadership = leadership
        self._waiting: dict[int, ControllerStatus | None] = {}
        self._serial = count()

    def routes(self) -> list[web.RouteDef]:
        """For everybody: the answer says no more than the Lease."""
        return [web.get(PATH, self._answer)]

    def followers(self) -> tuple[ControllerStatus, ...]:
        """What those that wait now say of themselves."""
        found = {each.name: each for each in self._waiting.values() if each is not None}
        return tuple(found[name] for name in sorted(found))

    async def _answer(self, request: web.Request) -> web.Response:
        wait = request.query.get(WAIT, "0")
        is_time = wait.isascii() and wait.isdecimal() and len(wait) < 4
        if is_time and self._leadership.holds() and len(self._waiting) < MAX_WAITING:
            number = next(self._serial)
            self._waiting[number] = _follower(request)
            try:
                await self._leadership.ceases(min(float(wait), MAX_WAIT))
            finally:
                del self._waiting[number]
        answer = Leader(self._identity, self._leadership.holds())
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _follower(request: web.Request) -> ControllerStatus | None:
    name, version, since = (request.query.get(each, "") for each in (_NAME, _VERSION, _SINCE))
    if not (_VALID.fullmatch(name) and _VALID.fullmatch(version) and _VALID.fullmatch(since)):
        return None
    known = since.isdecimal() and len(since) < 12
    return ControllerStatus(name, version, leader=False, since=float(since) if known else 0.0)
