"""Watches the kernel for changes to the agent's routes, routing rules, addresses and nftables.

A restart of systemd-networkd, nftables.service or a VPN can remove them, and the next regular
repair may be far away. A netlink notification only starts the repair, and the repair reads the
whole state. So it is enough to read the few bytes of a notification that show whether it is about
something of the agent.
"""

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Network
from typing import Final

import structlog

from node_agent import nft, routes

_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_ROUTE_GROUPS: Final = (1, 5, 7, 8)
"""RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE and _IPV4_RULE of linux/rtnetlink.h."""
_NFT_GROUPS: Final = (7,)
"""NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h."""
_RTM_NEWLINK: Final = 16
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE, _RTM_DELRULE = 20, 21, 24, 25, 33
_NFT_DELETIONS: Final = {10 << 8 | number for number in (2, 5, 8)}
"""NFT_MSG_DELTABLE, _DELCHAIN and _DELRULE of linux/netfilter/nf_tables.h."""
_FAMILY_IP, _FAMILY_NETDEV = 2, 5
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_LINK: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, and which flags have changed."""
_IFF_UP: Final = 1
_ATTRIBUTE: Final = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_DATAGRAMS_AT_ONCE: Final = 256
_RETRY: Final = 60.0
"""Seconds after which a watch that failed is started again."""
_NO_CAPABILITY: Final = "the agent lacks the capability CAP_NET_ADMIN"
_PAUSE: Final = 0.5
"""Seconds between two reads: a flush sends many messages."""


log = structlog.get_logger()


class KernelWatch:
    """Calls `changed` when something of the agent may be removed or overridden."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._ranges: tuple[IPv4Network, ...] = ()
        self._gateway = 0
        self._uplinks: Collection[int] = ()

    def use(
        self, ranges: Iterable[IPv4Network], gateway: int, uplinks: Collection[int] = ()
    ) -> None:
        """Set which routes matter: into `ranges`, and by the interface with index `gateway`.

        If one of the interfaces `uplinks` goes down, its routes vanish without a message.
        """
        self._ranges, self._gateway, self._uplinks = tuple(ranges), gateway, uplinks

    async def run(self) -> None:
        """Watch; never ends. If the kernel refuses, only the regular repair finds changes."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._retry(socket.NETLINK_ROUTE, _ROUTE_GROUPS, self.concerns_agent))
            tasks.create_task(self._retry(_NETLINK_NETFILTER, _NFT_GROUPS, _is_our_table))

    async def _retry(
        self, protocol: int, groups: Iterable[int], matters: Callable[[int, bytes], bool]
    ) -> None:
        while True:
            try:
                await self._follow(protocol, groups, matters)
            except OSError as error:
                reason = _NO_CAPABILITY if error.errno == errno.EPERM else error.strerror
                log.warning("changes in the kernel are not watched", reason=reason)
            await asyncio.sleep(_RETRY)

    async def _follow(
        self, protocol: int, groups: Iterable[int], matters: Callable[[int, bytes], bool]
    ) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as listening:
            listening.bind((0, 0))
            for group in groups:
                listening.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            listening.setblocking(False)
            while True:
                await _readable(listening)
                if any(matters(kind, body) for kind, body in _received(listening)):
                    self._changed()
                await asyncio.sleep(_PAUSE)

    def concerns_agent(self, kind: int, body: bytes) -> bool:
        """Whether an rtnetlink message (its type and body) is about something of ours."""
        if kind in (_OVERFLOW, _RTM_DELRULE, _RTM_NEWADDR, _RTM_DELADDR):
            return True
        if kind == _RTM_NEWLINK and len(body) >= _LINK.size:
            *_, index, flags, changed = _LINK.unpack_from(body)
            return index in self._uplinks and bool(flags & changed & _IFF_UP)
        if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or len(body) < _ROUTE.size:
            return False
        _, length, *_ = _ROUTE.unpack_from(body)
        attributes = dict(_attributes(body[_ROUTE.size :]))
        if _number(attributes.get(_RTA_OIF)) == self._gateway:
            return kind == _RTM_DELROUTE
        if _number(attributes.get(_RTA_TABLE)) != routes.MAIN:
            return False
        destination = IPv4Network((attributes.get(_RTA_DST, bytes(4)), length), strict=False)
        return any(destination.subnet_of(each) for each in self._ranges)


_OVERFLOW: Final = -1
"""In place of a message type: the kernel dropped messages because the socket was full."""


def _is_our_table(kind: int, body: bytes) -> bool:
    """Whether a message of nf_tables says that a part of a Sluice table was deleted.

    Chains of single devices are ignored: they are deleted with their pods.
    """
    if kind == _OVERFLOW:
        return True
    if kind not in _NFT_DELETIONS or f"{nft.TABLE}\0".encode() not in body:
        return False
    return body[0] == _FAMILY_IP or (body[0] == _FAMILY_NETDEV and kind & 0xFF == 2)


async def _readable(file: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(file, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(file)


def _received(file: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Read waiting messages, up to a bound: type and body of each."""
    for _ in range(_DATAGRAMS_AT_ONCE):
        try:
            data = file.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield _OVERFLOW, b""
            continue
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                break
            yield kind, data[at + _HEADER.size : at + length]
            at += -(-length // 4) * 4


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4


def _number(value: bytes | None) -> int:
    return int.from_bytes(value[:4], sys.byteorder) if value else 0
