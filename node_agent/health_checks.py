"""What load balancers ask a node, as kube-proxy answers it (pkg/proxy/healthcheck).

For each Service with a `healthCheckNodePort`: has it ready endpoints on this node? And for the
node itself, on kube-proxy's own port: may it have new connections (`/healthz`)?
"""

import errno
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

import msgspec

from node_agent.answers import Answer, AnswerServer

HEALTHZ_PORT: Final = 10256
"""kube-proxy's `--healthz-bind-address`."""


class HealthChecks:
    """One server; the port says which Service is asked about, or that it is the node."""

    def __init__(self, healthz_port: int | None, is_healthy: Callable[[], bool]) -> None:
        """`healthz_port` None: nothing is served for the node itself."""
        self._healthz_port = healthz_port
        self._is_healthy = is_healthy
        self._server = AnswerServer(self._answer)
        self._services: dict[int, tuple[str, int]] = {}

    async def converge(self, wanted: Iterable[tuple[int, str, int]]) -> dict[str, str]:
        """Listen on these ports and no others: port, Service, number of endpoints.

        Returns by Service why its port cannot be had; to be called again for it.
        """
        self._services = {port: (service, count) for port, service, count in wanted}
        for port in self._server.ports - self._services.keys() - {self._healthz_port}:
            self._server.stop(port)
        problems = {}
        for port in self._services.keys() - self._server.ports:
            service, _ = self._services[port]
            if error := await self._listen(port):
                problems[service] = f"health check port {port} cannot be listened on: {error}"
        return problems

    async def serve_healthz(self) -> str:
        """Listen for the node itself; why that is not possible, or the empty text."""
        port = self._healthz_port
        if port is None or port in self._server.ports:
            return ""
        if error := await self._listen(port):
            return f"/healthz cannot be served on port {port}: {error}"
        return ""

    async def _listen(self, port: int) -> str:
        try:
            await self._server.listen(port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another process listens on it (kube-proxy?)"
            return error.strerror or str(error)
        return ""

    async def close(self) -> None:
        """Listen no more."""
        await self._server.close()

    def _answer(self, port: int, path: str) -> Answer:
        if port in self._services:
            return self._of_service(*self._services[port])
        if port == self._healthz_port and path.partition("?")[0] in ("/healthz", "/livez"):
            return self._of_node()
        return Answer(HTTPStatus.NOT_FOUND, b"")

    def _of_service(self, service: str, count: int) -> Answer:
        namespace, _, name = service.partition("/")
        body = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": count,
            "serviceProxyHealthy": True,
        }
        return Answer(
            HTTPStatus.OK if count else HTTPStatus.SERVICE_UNAVAILABLE,
            msgspec.json.encode(body),
            {"X-Load-Balancing-Endpoint-Weight": str(count)},
        )

    def _of_node(self) -> Answer:
        healthy = self._is_healthy()
        now = datetime.fromtimestamp(time.time(), UTC).isoformat()
        body = {"lastUpdated": now, "currentTime": now, "nodeEligible": healthy}
        return Answer(
            HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, msgspec.json.encode(body)
        )
