"""An API server that has Leases only, with the versions of a real one, and fails on demand."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from controller.election import Election
from controller.kubernetes_api import connect
from controller.leadership import Leadership
from controller.lease_loop import LeaseLoop
from settings import Election as Settings
from tests.controller.api_server import status

SETTINGS = Settings(namespace="net", name="sluice")
PATH = "/apis/coordination.k8s.io/v1/namespaces/net/leases"
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class LeaseServer:
    """One Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 100
        self.asked: list[str] = []
        """The method of each request."""
        self.faults: deque[Fault] = deque()
        """Each comes before one request, and may answer it."""
        self.always: Fault | None = None

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        found: dict[str, Any] = self.lease["spec"]
        return found

    def change(self, **spec: Any) -> None:
        """What somebody else does."""
        lease = self.lease or {"metadata": {"name": "sluice"}, "spec": {}}
        self._keep(lease | {"spec": lease["spec"] | spec})

    def label(self, **labels: str) -> None:
        assert self.lease is not None
        self._keep(self.lease | {"metadata": self.lease["metadata"] | {"labels": labels}})

    def _keep(self, lease: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = lease["metadata"] | {"resourceVersion": str(self.version), "namespace": "net"}
        self.lease = lease | {"metadata": metadata}
        return self.lease

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.method)
        fault = self.faults.popleft() if self.faults else self.always
        if fault is not None and (answered := await fault(request)) is not None:
            return answered
        given = await request.json() if request.method != "GET" else None
        if request.method == "POST":
            if self.lease is not None:
                return status(409, "it exists")
            return web.json_response(self._keep(given), status=201)
        if self.lease is None:
            return status(404, "no such Lease")
        if given is not None:
            if (
                given["metadata"].get("resourceVersion")
                != self.lease["metadata"]["resourceVersion"]
            ):
                return status(409, "it was changed")
            self._keep(given)
        return web.json_response(self.lease)


def saying(code: int, body: object = "because") -> Fault:
    async def fault(_: web.Request) -> web.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=code, body=data, content_type="application/json")

    return fault


async def silent(_: web.Request) -> None:
    await asyncio.Event().wait()


class Judge:
    """A replica of use."""

    def __init__(self) -> None:
        self.weakness = ""
        self.handicap: float | None = 0.0

    def delay(self) -> float | None:
        return self.handicap

    def should_step_down(self) -> str:
        return self.weakness


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Replica:
    """One that takes part in the election."""

    def __init__(self, name: str, kubeconfig: Path, settings: Settings = SETTINGS) -> None:
        self.clock = Clock()
        self.judge = Judge()
        self.leadership = Leadership(elected=True, clock=self.clock)
        self.election = Election(name, f"{name}:6654")
        self.problems: list[str] = []
        self.loop = LeaseLoop(
            settings,
            lambda: connect(kubeconfig),
            self.election,
            self.leadership,
            self.judge,
            self.problems.append,
        )

    @property
    def leads(self) -> bool:
        return self.leadership.holds()

    async def step(self, later: float = 0.0) -> None:
        """What it does once a second, so many seconds later."""
        self.clock.now += later
        await self.loop._step()

    async def end(self) -> None:
        self.leadership.withdraw()
        await self.loop._disconnect()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[LeaseServer, Callable[[str], Replica]]]:
    """The server, and what makes a replica of this name."""
    server, made = LeaseServer(), list[Replica]()
    application = web.Application()
    application.router.add_post(PATH, server.answer)
    application.router.add_get(f"{PATH}/sluice", server.answer)
    application.router.add_put(f"{PATH}/sluice", server.answer)
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=0
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"},
                    }
                ],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )

    def replica(name: str) -> Replica:
        made.append(Replica(name, kubeconfig))
        return made[-1]

    try:
        yield server, replica
    finally:
        for each in made:
            await each.end()
        await runner.cleanup()
