"""Probes: connections to controllers, their clock, and full packets to other nodes.

They go to addresses of the cluster only: controllers, nodes, and the nodes' addresses among the
pods.
"""

import asyncio
import errno
import os
import socket
import struct
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address
from typing import Final, Self

import aiohttp

from node_agent.checks.facts import Reached
from wire.findings import MAX_PEERS, Peer

CONNECT: Final = 3.0
"""Seconds for a connection."""
ECHO: Final = 0.7
"""Seconds for an answer to an echo request."""
TRIES: Final = 2
SMALLEST: Final = 576
"""Bytes of the smallest packet that is tried (RFC 791: what every host takes)."""
GRAIN: Final = 8
"""Bytes within which the path MTU is found."""
AT_ONCE: Final = 16
"""Sizes that are tried at the same time."""

_HEADERS: Final = 28
"""Bytes of IPv4 and ICMP."""
_MTU_DISCOVER: Final = 10
_DISCOVER_PROBE: Final = 3
"""IP_MTU_DISCOVER and IP_PMTUDISC_PROBE of linux/in.h: set DF, and ignore what the kernel has
learned of the path."""
_REQUEST, _REPLY = 8, 0


async def reach(host: str, port: int) -> Reached:
    """Try to connect."""
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Reached(host, port, f"no answer within {CONNECT:.0f} s")
    except OSError as error:
        refused = error.errno == errno.ECONNREFUSED
        # A socket.gaierror has numbers of its own.
        text = "connection refused" if refused else (error.strerror or str(error))
        return Reached(host, port, text, refused=refused)
    writer.close()
    return Reached(host, port)


async def clock_offset(url: str) -> float | None:
    """Seconds that this host is ahead of a controller, by the header Date of an answer.

    The certificate is not checked: with a wrong clock it would not be accepted. Nothing is sent
    that others must not see, and nothing depends on the answer but a sentence.
    """
    timeout = aiohttp.ClientTimeout(total=CONNECT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/healthz", ssl=False, allow_redirects=False) as response,
        ):
            now = datetime.now(UTC)
            return (now - parsedate_to_datetime(response.headers["Date"])).total_seconds()
    except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError, TypeError):
        return None


class NoEchoError(OSError):
    """Nobody lets the process send echo requests."""


async def path_mtu(address: IPv4Address, most: int) -> int | None:
    """Bytes of the largest packet, `most` at most, to which the address answers; None: to none.

    By ICMP echo requests that no router may fragment. Raises `NoEchoError`.
    """
    with _Echo(address) as echo:
        answered = await echo.answered({SMALLEST, most})
        if most in answered or not answered:
            return max(answered, default=None)
        works, fails = SMALLEST, most
        while fails - works > GRAIN:
            step = max(GRAIN, -(-(fails - works) // AT_ONCE))
            sizes = {*range(works + step, fails, step)}
            # Sizes that networks have.
            sizes |= {size for size in (1500, 1450, 1420, 1400, 1280) if works < size < fails}
            answered = await echo.answered(sizes)
            works = max(answered, default=works)
            fails = min((size for size in sizes if size > works), default=fails)
        return works


class _Echo:
    """A socket for echo requests to one address."""

    def __init__(self, address: IPv4Address) -> None:
        try:
            # For groups in net.ipv4.ping_group_range; systemd sets it for all.
            self._socket = socket.socket(
                socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP
            )
            self._raw = False
        except PermissionError:
            self._socket = _raw()
            self._raw = True
        self._number = 0
        # The kernel replaces it where the socket is not raw.
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._socket.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _DISCOVER_PROBE)
        self._socket.connect((str(address), 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def answered(self, sizes: set[int]) -> set[int]:
        """Of packets of so many bytes, those that are answered."""
        found: set[int] = set()
        for _ in range(TRIES):
            missing = sizes - found
            if not missing:
                break
            requests = await self._send(missing)
            try:
                async with asyncio.timeout(ECHO):
                    while found < sizes:
                        found |= await self._receive(requests)
            except TimeoutError:
                continue
        return found

    async def _send(self, sizes: set[int]) -> dict[int, int]:
        """The sizes by the numbers of their requests."""
        loop = asyncio.get_running_loop()
        requests = {}
        for size in sorted(sizes):
            self._number = (self._number + 1) & 0xFFFF
            try:
                await loop.sock_sendall(self._socket, self._request(size))
            except OSError:
                # More than our own interface carries, or the ICMP error about an earlier packet.
                continue
            requests[self._number] = size
        return requests

    async def _receive(self, requests: dict[int, int]) -> set[int]:
        """The size of the request that the next packet answers; none: it answers none."""
        try:
            packet = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except OSError:
            return set()  # An ICMP error about a request.
        if self._raw:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) < 8:
            return set()
        kind, _, _, identifier, number = struct.unpack("!BBHHH", packet[:8])
        size = requests.get(number)
        ours = kind == _REPLY and (not self._raw or identifier == self._identifier)
        return {size} if ours and size == len(packet) + _HEADERS - 8 else set()

    def _request(self, size: int) -> bytes:
        body = bytes(size - _HEADERS)
        head = struct.pack("!BBHHH", _REQUEST, 0, 0, self._identifier, self._number)
        checksum = _checksum(head + body)
        return struct.pack("!BBHHH", _REQUEST, 0, checksum, self._identifier, self._number) + body


def _raw() -> socket.socket:
    try:
        return socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP
        )
    except PermissionError:
        raise NoEchoError(
            "this process may not send ICMP echo requests (net.ipv4.ping_group_range, CAP_NET_RAW)"
        ) from None


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def some_peers(peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
    """Those that are probed, other ones each time."""
    if len(peers) <= MAX_PEERS:
        return peers
    start = int(time.monotonic()) % len(peers)
    return (peers[start:] + peers[:start])[:MAX_PEERS]
