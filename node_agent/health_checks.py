"""Answers load balancers that ask if a Service has endpoints on this node.

What is asked and answered is kube-proxy's (pkg/proxy/healthcheck/service_health.go): a port for
each Service, any path, 200 or 503.
"""

import asyncio
from collections.abc import Iterable

import msgspec
from aiohttp import web


class HealthChecks:
    """One server; the port says which Service is meant."""

    def __init__(self) -> None:
        self._server = web.Server(self._answer)
        self._listening: dict[int, asyncio.Server] = {}
        self._services: dict[int, tuple[str, int]] = {}

    async def converge(self, wanted: Iterable[tuple[int, str, int]]) -> dict[str, str]:
        """Listen on these ports and no others: port, Service, number of endpoints.

        Returns by Service why its port cannot be had; to be called again for it.
        """
        self._services = {port: (service, count) for port, service, count in wanted}
        for port in self._listening.keys() - self._services.keys():
            self._listening.pop(port).close()
        problems = {}
        for port in self._services.keys() - self._listening.keys():
            try:
                self._listening[port] = await asyncio.get_running_loop().create_server(
                    self._server, "0.0.0.0", port  # noqa: S104  whoever asks is outside
                )  # fmt: skip
            except OSError as error:
                service, _ = self._services[port]
                problems[service] = f"health check port {port} cannot be listened on: {error}"
        return problems

    async def close(self) -> None:
        """Listen no more."""
        await self.converge(())
        await self._server.shutdown(0.1)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        transport = request.transport
        port = transport.get_extra_info("sockname")[1] if transport else 0
        if port not in self._services:
            return web.Response(status=404)  # asked on a connection from before
        service, count = self._services[port]
        namespace, _, name = service.partition("/")
        body = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": count,
            "serviceProxyHealthy": True,
        }
        return web.Response(
            status=200 if count else 503,
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers={
                "X-Content-Type-Options": "nosniff",
                "X-Load-Balancing-Endpoint-Weight": str(count),
            },
        )
