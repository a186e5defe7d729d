"""An API server as the command line needs it, with controllers behind its port-forwards.

In the place of kubelets, which these tests have none of: tests/lab/test_viewers.py asks a real API
server for the rest.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml
from aiohttp import WSMsgType, web
from kubernetes.aio.client import ApiClient

from controller import listening, tls, viewers
from controller.api import Api
from controller.authority import Authority
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from settings.tls import Identity
from tests.controller.world import NODE, SETTINGS
from tests.flows.worlds import CLUSTER
from tests.ports import free_port

TOKEN = "a viewer's".replace(" ", "-")
PREFIX = "/api/v1/namespaces/sluice-system"
READY = [{"type": "Ready", "status": "True"}]


def pod(name: str, port: int | None, conditions: Any = READY) -> dict[str, Any]:
    ports = [{"name": "api", "containerPort": 6654}]
    if port is not None:
        ports.append({"name": "reports", "containerPort": port})
    return {
        "metadata": {"name": name, "namespace": "sluice-system"},
        "spec": {"containers": [{"name": "controller", "ports": ports}]},
        "status": {"conditions": conditions},
    }


NOT_LEADING = "this controller is a standby of one-2"


def _standby() -> web.Application:
    """A controller that does not lead, so it answers no report."""

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": NOT_LEADING}, status=421)

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", refuse)])
    return application


class FakeCluster:
    """Its API server and one controller, in a thread; tests change the attributes."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self.port, self.reports, self.standby = free_port(), free_port(), free_port()
        self.ca = Authority.new()
        self.shown_ca = self.ca.certificate_pem.decode()
        self.pods = [pod("one", self.reports)]
        self.refused: dict[str, int] = {}
        """By the end of a path, the status of the answer."""
        self.forwarded: list[str] = []
        """The pods of port-forwards, as they came."""
        self.audiences: list[str] = []
        self.tokens = 0
        """How many were made."""
        self.write_kubeconfig()

    def write_kubeconfig(self) -> None:
        address = f"http://127.0.0.1:{self.port}"
        content = {
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {"token": "the user's own"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        loop, ready = asyncio.new_event_loop(), threading.Event()
        stop = asyncio.Event()

        def run() -> None:
            loop.run_until_complete(self._serve(ready, stop))
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(30)
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(30)

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        key, certificate = self.ca.for_controller([], timedelta(hours=1))
        identity = Identity(key, certificate, self.ca.certificate_pem, "", "")
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE], [])
        reconciler.source_complete(True)
        routes = Api(reconciler, SETTINGS).report_routes()
        reports = viewers.application(routes, viewers.Viewers("sluice-system", self._connect))
        serving = asyncio.create_task(
            listening.serve_reports(
                reports, f"127.0.0.1:{self.reports}", tls.for_viewers(lambda: identity)
            )
        )
        standby = asyncio.create_task(
            listening.serve_reports(
                _standby(), f"127.0.0.1:{self.standby}", tls.for_viewers(lambda: identity)
            )
        )
        application = web.Application(middlewares=[self._refuse])
        application.add_routes(
            [
                web.post(f"{PREFIX}/serviceaccounts/sluice-viewer/token", self._token),
                web.get(f"{PREFIX}/configmaps/sluice-ca", self._config_map),
                web.get(f"{PREFIX}/pods", self._pods),
                web.get(f"{PREFIX}/pods/{{pod}}/portforward", self._forward),
                web.post("/apis/authentication.k8s.io/v1/tokenreviews", self._review),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        ready.set()
        await stop.wait()
        for task in (serving, standby):
            task.cancel()
        await asyncio.wait([serving, standby])
        await runner.cleanup()

    async def _connect(self) -> ApiClient:
        made = ApiClient()
        made.configuration.host = f"http://127.0.0.1:{self.port}"
        return made

    @web.middleware
    async def _refuse(self, request: web.Request, handler: Any) -> web.StreamResponse:
        for end, status in self.refused.items():
            if request.path.endswith(end):
                return web.json_response({"message": f"refused: {end}"}, status=status)
        if "tokenreviews" not in request.path:
            assert request.headers["Authorization"] == "Bearer the user's own"
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _token(self, request: web.Request) -> web.Response:
        self.audiences = (await request.json())["spec"]["audiences"]
        self.tokens += 1
        status = {"token": TOKEN, "expirationTimestamp": "2030-01-01T00:00:00Z"}
        return web.json_response({"spec": {"audiences": self.audiences}, "status": status})

    async def _review(self, request: web.Request) -> web.Response:
        good = (await request.json())["spec"]["token"] == TOKEN
        name = "system:serviceaccount:sluice-system:sluice-viewer"
        status = {
            "authenticated": good,
            "audiences": self.audiences,
            "user": {"username": name},
        }
        return web.json_response({"status": status})

    async def _config_map(self, _: web.Request) -> web.Response:
        return web.json_response({"data": {"ca.crt": self.shown_ca}})

    async def _pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app.kubernetes.io/name=sluice-controller"
        return web.Response(
            body=msgspec.json.encode({"items": self.pods}), content_type="application/json"
        )

    async def _forward(self, request: web.Request) -> web.WebSocketResponse:
        """As kubelet: a byte for the channel (0 data, 1 error) before each piece."""
        self.forwarded.append(request.match_info["pod"])
        port = int(request.query["ports"])
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        for channel in (0, 1):
            await socket.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await socket.send_bytes(b"\1error forwarding port: connection refused")
            return socket

        async def back() -> None:
            while data := await reader.read(1 << 16):
                await socket.send_bytes(b"\0" + data)

        task = asyncio.create_task(back())
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
        task.cancel()
        await asyncio.wait([task])
        writer.close()
        return socket
