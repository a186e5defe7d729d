"""Controllers' APIs on loopback, as agents meet them: real servers, which answer as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from settings import Agent
from tests.ports import free_port

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def nothing(_: web.Request) -> web.Response:
    """What a controller of an older version answers."""
    return web.Response(status=404)


class ServedController:
    """One controller. It can stop and start again at its address."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.respond: Respond = nothing
        self.requests: list[tuple[str, bytes]] = []
        """Path with query, and body, of each request so far."""
        self._runner: web.AppRunner | None = None
        self._silent: asyncio.Server | None = None
        self._held: list[asyncio.StreamWriter] = []

    def to(self, path: str) -> list[bytes]:
        """The bodies of the requests to a path that ends so."""
        return [body for asked, body in self.requests if asked.partition("?")[0].endswith(path)]

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, reuse_address=True).start()

    async def start_silent(self) -> None:
        """Accept connections, and answer nothing."""

        async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._held.append(writer)

        self._silent = await asyncio.start_server(hold, self.host, self.port)

    async def stop(self) -> None:
        """Its connections end."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._silent is not None:
            self._silent.close()
            for writer in self._held:
                writer.transport.abort()
        self._runner = self._silent = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path_qs, await request.read()))
        return await self.respond(request)


@asynccontextmanager
async def served(
    *, silent: bool = False, away: bool = False, **settings: Any
) -> AsyncIterator[tuple[Agent, ServedController, ServedController]]:
    """An agent's settings, and its two controllers. `silent`, `away`: the first one."""
    port = free_port()
    first, second = (ServedController(f"127.0.0.{number}", port) for number in (1, 2))
    try:
        if not away:
            await (first.start_silent() if silent else first.start())
        await second.start()
        hosts = (first.host, second.host)
        yield (
            Agent(node="n1", controllers=hosts, api_port=port, plain_tcp=True, **settings),
            first,
            second,
        )
    finally:
        await first.stop()
        await second.stop()


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A loop that never ends, while the context lasts; an error of it is raised."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
