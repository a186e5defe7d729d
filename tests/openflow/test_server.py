"""Peers that are slow, rude or strangers; none of them harms another."""

import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from openflow.batch import Batch
from openflow.connection import Timeouts
from openflow.errors import ConnectionLost
from openflow.server import serve
from openflow.switch import MAX_PORTS, Switch
from tests.openflow import samples
from tests.openflow.conftest import connected, eventually
from tests.openflow.test_connection import FEATURES, HANDSHAKE, PORT, hello, message, multipart
from tests.ovs import Ovs

# OVS 3.1 sometimes looks at what follows HELLO only half a second later.
SHORT = Timeouts(handshake=1.5, idle=10, answer=10)


async def until_closed(switch: Switch) -> None:
    await switch.wait_closed()


@asynccontextmanager
async def stranger(
    port: int, data: bytes, ssl: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A peer that is no Open vSwitch."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def over(reader: asyncio.StreamReader) -> None:
    """Wait for the end of the connection, by end of file or reset."""
    async with asyncio.timeout(60):
        await asyncio.gather(reader.read(), return_exceptions=True)


@contextmanager
def logged(caplog: pytest.LogCaptureFixture, text: str) -> Iterator[None]:
    """Exactly one line of the server's holds this text."""
    with caplog.at_level(logging.INFO, "openflow.server"):
        yield
    lines = [record.getMessage() for record in caplog.records]
    assert sum(text in line for line in lines) == 1, lines


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000, "before HELLO"),
        (b"\x06\0\0\x03aaaa", "3 bytes long"),
        (hello(4), "not 1.5"),
        (hello(6) + message(6, b"?"), "malformed message of type 6"),
        (hello(6)[:3], "handshake not done in time: waiting for the peer's HELLO"),
        (b"", "handshake not done in time: waiting for the peer's HELLO"),
        (hello(6), "handshake not done in time: waiting for the datapath id"),
        (HANDSHAKE[:-1], "handshake not done in time: waiting for the list of ports"),
        (hello(6) + FEATURES + multipart(13, PORT, 4, more=True), "waiting for the list of ports"),
    ],
)
def test_a_rude_peer_is_cut_with_one_line_and_others_live_on(ovs: Ovs, caplog, data, reason):
    async def main():
        switches: asyncio.Queue[Switch] = asyncio.Queue()

        async def on_switch(switch: Switch) -> None:
            await switches.put(switch)
            await switch.wait_closed()

        async with serve("127.0.0.1", 0, on_switch, timeouts=SHORT) as server:
            ovs.dial(f"tcp:127.0.0.1:{server.port}")
            switch = await asyncio.wait_for(switches.get(), 20)
            async with stranger(server.port, data) as (reader, writer):
                host, port, *_ = writer.get_extra_info("sockname")
                await over(reader)
            await switch.apply(Batch.of([samples.flow(1)]))
            assert len(await switch.dump_flows()) == 1
            assert switches.empty()
            return f"switch {host}:{port} "

    with caplog.at_level(logging.INFO, "openflow.server"):
        name = asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if line.startswith(name)]
    assert reason in line


def test_many_who_say_nothing_keep_no_switch_out(ovs: Ovs):
    async def main():
        ready = asyncio.Event()

        async def on_switch(switch: Switch) -> None:
            ready.set()
            await switch.wait_closed()

        async with (
            serve("127.0.0.1", 0, on_switch, timeouts=SHORT) as server,
            AsyncExitStack() as s,
        ):
            port = server.port
            half = [b"", hello(6), hello(6) + FEATURES[:5]]
            silent = [
                await s.enter_async_context(stranger(port, data))
                for data in half
                for _ in range(100)
            ]
            ovs.dial(f"tcp:127.0.0.1:{port}")
            async with asyncio.timeout(60):
                await ready.wait()
                await asyncio.gather(*(over(reader) for reader, _ in silent))

    asyncio.run(main())


def test_a_switch_that_vanishes_cancels_its_task():
    async def main():
        started, ended = asyncio.Event(), asyncio.Event()

        async def on_switch(_: Switch) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serve("127.0.0.1", 0, on_switch) as server:
            async with stranger(server.port, HANDSHAKE), asyncio.timeout(60):
                await started.wait()
            async with asyncio.timeout(60):
                await ended.wait()

    asyncio.run(main())


def test_a_task_that_fails_cuts_its_switch_and_no_other(caplog):
    async def main():
        good: asyncio.Queue[Switch] = asyncio.Queue()

        async def on_switch(switch: Switch) -> None:
            if good.empty():
                await good.put(switch)
                await switch.wait_closed()
            else:
                raise LookupError("a bug")

        async with (
            serve("127.0.0.1", 0, on_switch) as server,
            stranger(server.port, HANDSHAKE),
        ):
            await eventually(lambda: not good.empty())
            async with stranger(server.port, HANDSHAKE) as (reader, _):
                await over(reader)
            assert not good.get_nowait()._connection.closed

    with logged(caplog, "its task failed"):
        asyncio.run(main())
    assert "a bug" in caplog.text


def test_a_task_that_returns_closes_its_connection():
    async def main():
        async def on_switch(_: Switch) -> None:
            return

        async with (
            serve("127.0.0.1", 0, on_switch) as server,
            stranger(server.port, HANDSHAKE) as (reader, _),
        ):
            await over(reader)

    asyncio.run(main())


def test_the_server_s_end_is_every_connection_s_end():
    async def main():
        switches: list[Switch] = []
        ready = asyncio.Event()

        async def on_switch(switch: Switch) -> None:
            switches.append(switch)
            ready.set()
            await switch.wait_closed()

        async with AsyncExitStack() as strangers:
            async with serve("127.0.0.1", 0, on_switch) as server:
                port = server.port
                await strangers.enter_async_context(stranger(port, HANDSHAKE))
                half, _ = await strangers.enter_async_context(stranger(port, b""))
                async with asyncio.timeout(60):
                    await ready.wait()
            assert await switches[0].wait_closed() == "the server stops"
            await over(half)
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


async def flooded(port: int, data: bytes, times: int) -> None:
    """Send without reading, until the connection is gone."""
    async with stranger(port, HANDSHAKE) as (reader, writer):
        try:
            for _ in range(times):
                writer.write(data)
                await writer.drain()
            # All was written before it was cut; then reading tells.
            while await reader.read(1 << 20):
                pass
        except ConnectionError:
            pass


@pytest.mark.parametrize(
    ("data", "times", "reason"),
    [
        (message(2, b"x" * 60_000), 2000, "the peer does not read"),
        (
            message(12, b"\2" + bytes(7) + PORT) * 1000,
            MAX_PORTS // 1000 + 2,
            "its port events are not read",
        ),
    ],
)
def test_a_flood_that_nobody_reads_is_cut(monkeypatch, data, times, reason):
    """Echo requests whose answers the peer does not read; port events that we do not read."""

    async def main():
        switches = []

        async def on_switch(switch: Switch) -> None:
            switches.append(switch)
            await asyncio.Event().wait()

        monkeypatch.setattr("openflow.switch.MAX_UNREAD", 1 << 20)
        async with serve("127.0.0.1", 0, on_switch) as server, asyncio.timeout(30):
            await flooded(server.port, data, times)
            assert await switches[0].wait_closed() == reason

    asyncio.run(main())


def test_a_session_can_ask_whether_an_earlier_one_still_lives():
    """A rebooted switch is not locked out by the connection it has forgotten."""

    async def main():
        switches: asyncio.Queue[Switch] = asyncio.Queue()

        async def on_switch(switch: Switch) -> None:
            await switches.put(switch)
            await switch.wait_closed()

        async with serve("127.0.0.1", 0, on_switch) as server, asyncio.timeout(60):
            port = server.port
            async with stranger(port, HANDSHAKE), stranger(port, HANDSHAKE):
                old, new = await switches.get(), await switches.get()
                assert old.dpid == new.dpid
                assert not await old.alive(0.05)
                old.close("replaced")
                with pytest.raises(ConnectionLost, match="replaced"):
                    await old.dump_flows()

    asyncio.run(main())


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(
        ["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=30
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with certificates for a controller and a node, and a CA of a stranger's."""
    directory = tmp_path_factory.mktemp("pki")
    for ca in ("ca", "other"):
        openssl(
            directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}",
        )  # fmt: skip
    for name, ca in (("controller", "ca"), ("node1", "ca"), ("stranger", "other")):
        openssl(
            directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
        )  # fmt: skip
        openssl(
            directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem",
            "-CAkey", f"{ca}.key", "-CAcreateserial", "-out", f"{name}.pem",
        )  # fmt: skip
    return directory


def server_context(pki: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pki / "controller.pem", pki / "controller.key")
    return context


def test_mutual_tls_names_the_node(ovs: Ovs, pki: Path):
    ovs.vsctl("set-ssl", str(pki / "node1.key"), str(pki / "node1.pem"), str(pki / "ca.pem"))

    async def main():
        async with connected(ovs, ssl=server_context(pki)) as switch:
            assert switch.certificate_name == "node1"
            flows = [samples.flow(number) for number in range(5000)]
            await switch.apply(Batch.of(flows))
            assert len(await switch.dump_flows()) == 5000

    asyncio.run(main())


async def refused(port: int, client: ssl.SSLContext) -> bool:
    """Whether a TLS peer is cut; with TLS 1.3 it learns that only when it reads."""
    try:
        async with stranger(port, HANDSHAKE, client) as (reader, _):
            return await reader.read() == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.parametrize("certificate", [None, "stranger"])
def test_a_peer_without_our_ca_s_certificate_gets_nowhere(pki: Path, certificate):
    client = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    client.check_hostname = False
    if certificate:
        client.load_cert_chain(pki / f"{certificate}.pem", pki / f"{certificate}.key")

    async def main():
        async def on_switch(_: Switch) -> None:
            pytest.fail("it got in")

        context = server_context(pki)
        async with serve("127.0.0.1", 0, on_switch, context, SHORT) as server:
            port = server.port
            assert await refused(port, client)
            # Nor does one that does not even begin.
            async with stranger(port, b"") as (reader, _):
                await over(reader)

    asyncio.run(main())
