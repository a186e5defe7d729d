"""BGP peers for tests: the other end of a session, honest or not, at an address of loopback."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from wire.bgp import Peer

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
MARKER = b"\xff" * 16
OURS = 64512
THEIRS = 64601


def message(kind: int, body: bytes = b"") -> bytes:
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def open_message(
    asn: int = THEIRS, *, add_path: bool = True, router_id: str = "192.0.2.1"
) -> bytes:
    capabilities = struct.pack("!BBHBB", 1, 4, 1, 0, 1)  # IPv4 unicast
    capabilities += struct.pack("!BBI", 65, 4, asn)  # AS numbers of four bytes
    if add_path:
        capabilities += struct.pack("!BBHBB", 69, 4, 1, 1, 1)  # it can receive several paths
    parameters = struct.pack("!BB", 2, len(capabilities)) + capabilities
    short = asn if asn < 1 << 16 else 23456
    head = struct.pack("!BHH4sB", 4, short, 90, IPv4Address(router_id).packed, len(parameters))
    return message(OPEN, head + parameters)


def prefixes(networks: Iterable[str]) -> bytes:
    found = b""
    for text in networks:
        network = IPv4Network(text)
        size = (network.prefixlen + 7) // 8
        found += bytes([network.prefixlen]) + network.network_address.packed[:size]
    return found


def update(networks: Iterable[str], path: tuple[int, ...] = (THEIRS,), more: bytes = b"") -> bytes:
    """An announcement of prefixes, by an AS path."""
    as_path = struct.pack("!BB", 2, len(path)) + b"".join(struct.pack("!I", each) for each in path)
    attributes = b"\x40\x01\x01\x00"  # ORIGIN
    attributes += struct.pack("!BBB", 0x40, 2, len(as_path)) + as_path
    attributes += b"\x40\x03\x04" + IPv4Address("192.0.2.1").packed + more
    return message(UPDATE, struct.pack("!HH", 0, len(attributes)) + attributes + prefixes(networks))


class Talk:
    """One session, as the peer sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> tuple[int, bytes]:
        head = await self.reader.readexactly(19)
        length, kind = struct.unpack("!HB", head[16:])
        return kind, await self.reader.readexactly(length - 19)

    async def establish(self, asn: int = THEIRS, *, add_path: bool = True) -> None:
        await self.read()
        self.writer.write(open_message(asn, add_path=add_path) + message(KEEPALIVE))
        while (await self.read())[0] != KEEPALIVE:
            pass


Behaviour = Callable[[Talk], Coroutine[Any, Any, None]]


class Router:
    """An honest peer: keeps what it is told."""

    def __init__(self, *, add_path: bool = True) -> None:
        self.add_path = add_path
        self.paths: dict[tuple[IPv4Network, int], IPv4Address] = {}
        """Next hops, by prefix and path id."""
        self.events: list[str] = []
        """What it was told, in its order."""
        self.lost: set[str] = set()
        """Prefixes that had no next hop after some message that withdrew one."""
        self.sessions = 0
        self.says: list[bytes] = []
        """Messages that it sends in each session."""

    async def __call__(self, talk: Talk) -> None:
        await talk.establish(add_path=self.add_path)
        self.sessions += 1
        self.paths.clear()
        for each in self.says:
            talk.writer.write(each)
        while True:
            kind, body = await talk.read()
            if kind == UPDATE:
                self._take(body)

    def next_hops(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for (prefix, _), next_hop in self.paths.items():
            found.setdefault(str(prefix), set()).add(str(next_hop))
        return found

    def _take(self, body: bytes) -> None:
        if body == bytes(4):
            self.events.append("end of rib")
        (withdrawn_size,) = struct.unpack("!H", body[:2])
        for key in self._keys(body[2 : 2 + withdrawn_size]):
            self.paths.pop(key, None)
            self.events.append(f"withdraw {key[0]}")
        at = 2 + withdrawn_size
        (size,) = struct.unpack("!H", body[at : at + 2])
        attributes, announced = body[at + 2 : at + 2 + size], body[at + 2 + size :]
        next_hop = None
        while attributes:
            wide = attributes[0] & 0x10
            start = 4 if wide else 3
            length = int.from_bytes(attributes[2:start], "big")
            if attributes[1] == 3:
                next_hop = IPv4Address(attributes[start : start + length])
            attributes = attributes[start + length :]
        for key in self._keys(announced):
            assert next_hop is not None
            self.paths[key] = next_hop
            self.events.append(f"announce {key[0]} {next_hop}")
        withdrawn = {str(prefix) for prefix, _ in self._keys(body[2 : 2 + withdrawn_size])}
        self.lost |= withdrawn - self.next_hops().keys()

    def _keys(self, text: bytes) -> Iterable[tuple[IPv4Network, int]]:
        while text:
            path_id = 0
            if self.add_path:
                path_id, text = int.from_bytes(text[:4], "big"), text[4:]
            size = (text[0] + 7) // 8
            address = IPv4Address(text[1 : 1 + size].ljust(4, b"\0"))
            yield IPv4Network((address, text[0])), path_id
            text = text[1 + size :]


@asynccontextmanager
async def serving(
    behaviour: Behaviour, address: str = "127.0.0.2", *, password: str = ""
) -> AsyncIterator[int]:
    """Serve sessions; gives the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behaviour(Talk(reader, writer))
        finally:
            tasks.discard(task)
            writer.close()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 0))
    if password:
        _set_md5(listener, password)
    server = await asyncio.start_server(take, sock=listener)
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _set_md5(listener: socket.socket, password: str) -> None:
    """TCP_MD5SIG (tcp(7)) for a client at 127.0.0.1."""
    place = struct.pack("HH4s120x", socket.AF_INET, 0, IPv4Address("127.0.0.1").packed)
    key = struct.pack("2xH4x80s", len(password), password.encode())
    listener.setsockopt(socket.IPPROTO_TCP, 14, place + key)


def peer(port: int, name: str = "router", address: str = "127.0.0.2", **more: Any) -> Peer:
    given = {
        "name": name,
        "address": IPv4Address(address),
        "port": port,
        "asn": THEIRS,
        "local_asn": OURS,
        "hold_time": 90,
        "graceful_restart": 120,
    }
    return Peer(**(given | more))
