"""A replica that follows keeps a request open at the leader, to notice at once that it has ended.

A Lease alone takes seconds to become free. But if the leader's process ends, the kernel of its
machine closes its connections, and nobody accepts new ones at its address. Or another process does:
then it says another identity. Both are taken as evidence that the leader is dead. Silence is none.

Only this says so much, and a wrong conclusion does no harm: see `controller.election`.
"""

import asyncio
import errno
import ssl
from collections.abc import Callable
from typing import Final, Literal

import aiohttp
import msgspec
import structlog
from aiohttp import web

from controller.election import Election
from controller.leadership import Leadership
from wire.paths import MAX_WAIT, WAIT

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

    async def run(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession() as session:
            while True:
                lease = self._election.lease
                if lease is None or not lease.address or lease.holder == self._election.identity:
                    await asyncio.sleep(_PAUSE)
                    continue
                if await self._ask(session, lease.holder, lease.address) == "dead":
                    log.info("the leader is dead", leader=lease.holder, address=lease.address)
                    self._election.dead(lease.holder)
                    self._leadership.doubt()
                    await asyncio.sleep(_PAUSE)

    async def _ask(
        self, session: aiohttp.ClientSession, holder: str, address: str
    ) -> Literal["dead", "unknown", "leads"]:
        """One request to the leader."""
        scheme = "https" if self._context else "http"
        timeout = aiohttp.ClientTimeout(total=HOLD + 5, connect=_CONNECT)
        tls = self._context() if self._context else True
        try:
            async with session.get(
                f"{scheme}://{address}{PATH}", params={WAIT: str(HOLD)}, timeout=timeout, ssl=tls
            ) as response:
                body = await response.content.read(LONGEST_ANSWER)
            found = msgspec.json.decode(body, type=Leader) if response.status == 200 else None
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno == errno.ECONNREFUSED:
                return "dead"
        except (aiohttp.ClientError, OSError, ValueError, RecursionError):
            # Also the end of a connection that was open: the next attempt says more. An API that
            # listens no more refuses it.
            await asyncio.sleep(0)
            return "unknown"
        else:
            if found is not None and found.identity != holder:
                return "dead"
            if found is not None and found.leads:
                return "leads"
            # It gives the Lease back, or is of another version.
            self._leadership.doubt()
        await asyncio.sleep(_PAUSE)
        return "unknown"


class LeaderApi:
    """The other side: tells whether this controller leads."""

    def __init__(self, identity: str, leadership: Leadership) -> None:
        self._identity = identity
        self._leadership = leadership
        self._waiting = 0

    def routes(self) -> list[web.RouteDef]:
        """For everybody: the answer says no more than the Lease."""
        return [web.get(PATH, self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        wait = request.query.get(WAIT, "0")
        leads = self._leadership.holds()
        if wait.isdecimal() and len(wait) < 4 and leads and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                await self._leadership.ceases(min(float(wait), MAX_WAIT))
            finally:
                self._waiting -= 1
        answer = Leader(self._identity, self._leadership.holds())
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
