"""Connections are bounded, and cost nothing once they are closed."""

import asyncio
import contextlib
import gc
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from controller.listening import RequestLog
from openflow import listener
from openflow.listener import Bounds, bound_socket, listen
from openflow.server import serve
from openflow.switch import Switch
from tests.openflow.conftest import eventually
from tests.openflow.test_connection import HANDSHAKE
from tests.openflow.test_server import pki, server_context

__all__ = ["pki"]

COUNT = 40
COSTLY = ("SSLProtocol", "SSLObject", "Switch", "Connection", "RequestHandler", "HttpRequestParser")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What a closed connection leaves in cycles stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def living() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects())


def dial(
    port: int, data: bytes, context: ssl.SSLContext | None, source: str = "127.0.0.1"
) -> socket.socket:
    """A connection that has sent this, and had an answer where there is one; not asyncio's."""
    made = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
    with contextlib.suppress(OSError):
        if context is None:
            made.sendall(data)
        else:
            made = context.wrap_socket(made)
            made.sendall(data)
            made.recv(100)
    return made


@contextlib.asynccontextmanager
async def openflow(context: ssl.SSLContext):
    async def on_switch(switch: Switch) -> None:
        await switch.wait_closed()

    async with serve("127.0.0.1", 0, on_switch, context) as server:
        yield server.port


@contextlib.asynccontextmanager
async def https(context: ssl.SSLContext):
    application = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    application.router.add_get("/healthz", answer)
    runner = web.AppRunner(application, access_log=None, logger=RequestLog())
    await runner.setup()
    assert runner.server
    async with listen(bound_socket("127.0.0.1", 0), runner.server, context=context) as server:
        yield server.port
    await runner.cleanup()


def with_certificate(pki: Path, name: str = "node1") -> ssl.SSLContext:
    client = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    client.check_hostname = False
    client.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return client


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("server", "data", "certificate"),
    [
        (openflow, b"", None),
        (openflow, b"\x16", None),
        (openflow, b"GET / HTTP/1.0\r\n\r\n", None),
        (openflow, b"", "stranger"),
        (openflow, HANDSHAKE, "node1"),
        (https, b"", None),
        (https, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "node1"),
        (https, b"nonsense\r\n\r\n", "node1"),
    ],
)
def test_a_closed_connection_leaves_no_object(pki: Path, server, data, certificate):
    client = with_certificate(pki, certificate) if certificate else None

    async def main():
        async with server(server_context(pki)) as port:
            before = living()

            async def dial_and_close(times: int) -> None:
                for _ in range(times):
                    made = await asyncio.to_thread(dial, port, data, client)
                    await asyncio.sleep(0.01)
                    made.close()

            # The first one makes what stays.
            await dial_and_close(1)
            await asyncio.sleep(0.1)
            before = living()
            await dial_and_close(COUNT)

            def left() -> Counter[str]:
                return living() - before

            await eventually(lambda: not any(left()[name] for name in COSTLY))

    asyncio.run(main())


OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for connection in OPEN:
        connection.close()
    OPEN.clear()


async def ended(connections: list[socket.socket]) -> list[bool]:
    """Of each, whether the other side has ended it."""

    def has_ended(connection: socket.socket) -> bool:
        connection.settimeout(0)
        try:
            while connection.recv(1000):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            pass
        return True

    return [has_ended(each) for each in connections]


class Connection(asyncio.Protocol):
    made: list[asyncio.BaseTransport] = []  # noqa: RUF012

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(transport)


@contextlib.asynccontextmanager
async def bounded(pki: Path | None, bounds: Bounds):
    """A listener that wants certificates but takes connections without; None: without TLS."""
    context = None
    if pki is not None:
        context = server_context(pki)
        context.verify_mode = ssl.CERT_OPTIONAL
    Connection.made.clear()
    sock = bound_socket("127.0.0.1", 0)
    async with listen(sock, Connection, context=context, bounds=bounds) as server:
        yield server
    for transport in Connection.made:
        transport.abort()
    await asyncio.sleep(0.05)


def many(port: int, count: int, context: ssl.SSLContext | None = None, source: str = "127.0.0.1"):
    def dial_one() -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
        OPEN.append(context.wrap_socket(made) if context else made)
        return OPEN[-1]

    return asyncio.to_thread(lambda: [dial_one() for _ in range(count)])


async def expect_ended(connections: list[socket.socket], expected: list[bool]) -> None:
    async with asyncio.timeout(60):
        while await ended(connections) != expected:
            await asyncio.sleep(0.01)


def test_an_address_with_too_many_strangers_loses_its_oldest(pki: Path) -> None:
    async def main() -> None:
        async with bounded(pki, Bounds(strangers_of_address=3)) as server:
            other = await many(server.port, 1, source="127.0.0.2")
            strangers = await many(server.port, 5)
            await expect_ended(strangers, [True, True, False, False, False])
            assert await ended(other) == [False]

    asyncio.run(main())


def test_one_certificate_has_a_bound_of_its_own(pki: Path) -> None:
    async def main() -> None:
        bounds = Bounds(strangers_of_address=1, of_certificate=3)
        async with bounded(pki, bounds) as server:
            node = await many(server.port, 5, with_certificate(pki))
            await expect_ended(node, [True, True, False, False, False])
            stranger = await many(server.port, 1)
            assert await ended(stranger) == [False]

    asyncio.run(main())


def test_at_the_bound_of_strangers_the_oldest_of_the_greediest_address_ends(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LEAST_AGE", 1000.0)
    monkeypatch.setattr(listener, "_MOST_AT_ONCE", 2)

    async def main() -> None:
        async with bounded(pki, Bounds(strangers=4)) as server:
            first = await many(server.port, 1, source="127.0.0.2")
            greedy = await many(server.port, 3, source="127.0.0.3")
            await asyncio.sleep(0.1)
            late = await many(server.port, 1, source="127.0.0.4")
            await expect_ended(greedy, [True, False, False])
            assert await ended(first + late) == [False, False]

    asyncio.run(main())


def test_strangers_that_came_just_now_are_not_pushed_out(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_LEAST_AGE", 1000.0)
    monkeypatch.setattr(listener, "_PAUSE", 0.01)

    async def main() -> None:
        async with bounded(pki, Bounds(strangers=2)) as server:
            strangers = await many(server.port, 2)
            waiting = await asyncio.to_thread(
                socket.create_connection, ("127.0.0.1", server.port), 20
            )
            tls = with_certificate(pki)
            dialled = asyncio.create_task(asyncio.to_thread(tls.wrap_socket, waiting))
            await asyncio.sleep(0.1)
            assert not dialled.done()
            assert await ended(strangers) == [False, False]
            strangers[0].close()
            OPEN.append(await asyncio.wait_for(dialled, 20))

    asyncio.run(main())


def test_without_descriptors_nobody_is_accepted_and_the_log_has_one_line(
    pki: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "_PAUSE", 0.05)
    attempts = 0
    out = True
    accept = socket.socket.accept

    def limited(sock: socket.socket):
        nonlocal attempts
        if out:
            attempts += 1
            raise OSError(24, "Too many open files")
        return accept(sock)

    async def main() -> None:
        nonlocal out
        async with bounded(pki, Bounds()) as server:
            monkeypatch.setattr(socket.socket, "accept", limited)
            (waiting,) = await many(server.port, 1)
            await asyncio.sleep(0.5)
            assert 1 <= attempts <= 11
            out = False
            tls = with_certificate(pki)
            dialled = asyncio.to_thread(tls.wrap_socket, waiting)
            OPEN.append(await asyncio.wait_for(dialled, 20))

    asyncio.run(main())
    lines = [r for r in caplog.records if "cannot accept connections" in r.getMessage()]
    assert 1 <= len(lines) <= attempts
    assert all(line.exc_info is None for line in lines)


def test_the_total_is_bounded_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PAUSE", 0.01)

    async def main() -> None:
        async with bounded(None, Bounds(connections=2, strangers_of_address=1)) as server:
            connections = await many(server.port, 3)
            await asyncio.sleep(0.1)
            assert len(Connection.made) == 2
            connections[0].close()
            await eventually(lambda: len(Connection.made) == 3)

    asyncio.run(main())
