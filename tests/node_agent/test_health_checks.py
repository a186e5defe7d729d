"""What load balancers ask a node, and what strangers do to the ports where they ask."""

import asyncio
import errno
import logging
import resource
import socket
from contextlib import ExitStack, suppress
from typing import Any

import aiohttp
import pytest

from node_agent import answers, descriptors
from node_agent.answers import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS
from node_agent.health_checks import HealthChecks
from tests.ports import free_port


def never() -> bool:
    return False


def test_health_checks_answer_as_kube_proxy_does() -> None:
    async def main() -> None:
        one, two = free_port(), free_port()
        checks = HealthChecks(None, never)
        async with aiohttp.ClientSession() as session:

            async def ask(port: int) -> tuple[int, str, dict[str, Any]]:
                async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                    weight = response.headers["X-Load-Balancing-Endpoint-Weight"]
                    assert response.headers["Content-Type"].startswith("application/json")
                    return response.status, weight, await response.json()

            def body(name: str, count: int) -> dict[str, Any]:
                return {
                    "service": {"namespace": "default", "name": name},
                    "localEndpoints": count,
                    "serviceProxyHealthy": True,
                }

            assert await checks.converge([(one, "default/a", 2), (two, "default/b", 0)]) == {}
            assert await ask(one) == (200, "2", body("a", 2))
            assert await ask(two) == (503, "0", body("b", 0))
            assert await checks.converge([(one, "default/a", 0)]) == {}
            assert await ask(one) == (503, "0", body("a", 0))
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("0.0.0.0", two))
                other.listen()
                problems = await checks.converge([(two, "default/b", 1)])
                assert problems.keys() == {"default/b"}
                assert f"health check port {two}" in problems["default/b"]
            assert await checks.converge([(two, "default/b", 1)]) == {}
            assert (await ask(two))[0] == 200
            await checks.close()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", two)) != 0

    asyncio.run(main())


def test_healthz_says_whether_the_node_takes_connections() -> None:
    async def main() -> None:
        port, healthy = free_port(), False
        checks = HealthChecks(port, lambda: healthy)
        with socket.socket() as other:
            other.bind(("0.0.0.0", port))
            other.listen()
            assert f"on port {port}: another process listens" in await checks.serve_healthz()
        assert await checks.serve_healthz() == ""
        # Other changes leave it alone.
        await checks.converge(())
        async with aiohttp.ClientSession() as session:

            async def ask(path: str) -> tuple[int, bytes]:
                async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                    return response.status, await response.read()

            status, body = await ask("/healthz")
            assert status == 503
            assert b'"nodeEligible":false' in body
            healthy = True
            status, body = await ask("/healthz?verbose")
            assert status == 200
            assert b'"nodeEligible":true' in body
            assert (await ask("/other"))[0] == 404
        await checks.close()

    asyncio.run(main())


async def _get(port: int, source: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.split(b"\r\n")[0]


def test_slow_clients_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address may have a few connections, all together some more; the oldest has to go."""
    monkeypatch.setattr(answers, "DEADLINE", 1000.0)

    async def main() -> None:
        port = free_port()
        checks = HealthChecks(None, never)
        await checks.converge([(port, "default/a", 1)])
        server = checks._server

        async def slow(source: str, count: int) -> None:
            for _ in range(count):
                made = files.enter_context(socket.socket())
                made.setblocking(False)
                made.bind((source, 0))
                await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
                await asyncio.get_running_loop().sock_sendall(made, b"GET / HT")

        with ExitStack() as files:
            await slow("127.0.0.2", 3 * MAX_CONNECTIONS_PER_ADDRESS)
            assert await _get(port, "127.0.0.2") == b"HTTP/1.1 200 OK"
            assert len(server._connections) <= MAX_CONNECTIONS_PER_ADDRESS
            for number in range(3, 3 + 2 * MAX_CONNECTIONS // MAX_CONNECTIONS_PER_ADDRESS):
                await slow(f"127.0.0.{number}", MAX_CONNECTIONS_PER_ADDRESS)
            assert await _get(port) == b"HTTP/1.1 200 OK"
            assert len(server._connections) <= MAX_CONNECTIONS
        await checks.close()
        assert not server._connections

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_", [b"x" * 20_000, b"\xff\xfe\r\n\r\n", b"GET /\r\n\r\n", b"PUT / HTTP/1.1\r\n\r\n"]
)
def test_a_request_that_is_none_is_not_served(request_: bytes) -> None:
    async def main() -> None:
        port = free_port()
        checks = HealthChecks(None, never)
        await checks.converge([(port, "default/a", 1)])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        with suppress(ConnectionError):
            assert (await reader.read())[:12] in (b"", b"HTTP/1.1 400")
        writer.close()
        assert await _get(port) == b"HTTP/1.1 200 OK"
        await checks.close()

    asyncio.run(main())


def test_a_client_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "DEADLINE", 0.01)

    async def main() -> None:
        port = free_port()
        checks = HealthChecks(None, never)
        await checks.converge([(port, "default/a", 1)])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await checks.close()

    asyncio.run(main())


def test_a_shortage_of_descriptors_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    handle = descriptors.exception_handler(lambda: now)

    async def main() -> None:
        nonlocal now
        loop = asyncio.get_running_loop()
        for _ in range(100):
            handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many")})
        assert capsys.readouterr().out.count("connections have to wait") == 1
        now = 60.0
        handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many")})
        assert capsys.readouterr().out.count("connections have to wait") == 1

    asyncio.run(main())


def test_other_faults_are_logged_as_before(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with caplog.at_level(logging.ERROR, "asyncio"):
            descriptors.exception_handler()(asyncio.get_running_loop(), {"message": "a fault"})

    asyncio.run(main())
    assert "a fault" in caplog.text


def test_the_soft_limit_of_descriptors_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert descriptors.raise_limit() == min(descriptors.WANTED, before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(descriptors.WANTED, before[1])
        assert descriptors.raise_limit() == min(descriptors.WANTED, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
