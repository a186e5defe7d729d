"""What this node's own stack does with a packet: our table of nftables, and the kernel's routes.

The sets are read from the kernel, and the kernel itself is asked for routes. Tables of nftables
that others made are not judged; the trace says so where there are any.
"""

import asyncio
import errno
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute, NetlinkError

from node_agent import routes
from node_agent.host_table import HostTable
from wire.questions import HostTrace, Packet, TraceHost
from wire.service_ports import Elements
from wire.tracing import TraceError, host
from wire.tracing.host import Kind, Route

_KINDS: Final[Mapping[int, Kind]] = {
    2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit",
}  # fmt: skip
"""Of linux/rtnetlink.h, RTN_*."""
_LISTENING: Final = {6: ("tcp", "0A"), 17: ("udp", "07")}
"""The file in /proc/net, and the state of a socket that takes packets from anybody."""


async def trace_host(netlink: AsyncIPRoute, table: HostTable, question: TraceHost) -> HostTrace:
    """Follow the packet. Raises `TraceError`, `nft.NftError`."""
    if table.ranges is None:
        raise TraceError("this node has no configuration yet")
    facts = _Facts(netlink, table.ranges, await table.elements())
    return await host.trace_host(facts, question)


class _Facts:
    def __init__(
        self, netlink: AsyncIPRoute, ranges: tuple[IPv4Network, IPv4Network], elements: Elements
    ) -> None:
        self._netlink = netlink
        self.pod_cidr, self.pod_range = ranges
        self.elements = elements

    async def route(self, destination: IPv4Address, *, marked: bool) -> Route:
        asked: dict[str, Any] = {"dst": str(destination)}
        if marked:
            asked["mark"] = routes.MARK
        try:
            found = list(await self._netlink.route("get", **asked))
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise TraceError(f"the host has no route to {destination}") from None
            if error.code in (errno.EACCES, errno.EINVAL):
                return Route("prohibit" if error.code == errno.EACCES else "blackhole")
            raise TraceError(f"the host's route to {destination}: {error}") from error
        route = found[0]
        index = route.get_attr("RTA_OIF")
        source, hop = route.get_attr("RTA_PREFSRC"), route.get_attr("RTA_GATEWAY")
        return Route(
            kind=_KINDS.get(int(route["type"]), "unicast"),
            device=socket.if_indextoname(index) if index else "",
            next_hop=IPv4Address(hop) if hop else None,
            source=IPv4Address(source) if source else None,
        )

    async def is_listening(self, packet: Packet) -> bool:
        return await asyncio.to_thread(_is_listening, packet)


def _is_listening(packet: Packet) -> bool:
    name, state = _LISTENING[packet.protocol]
    for file in (name, f"{name}6"):
        try:
            text = Path("/proc/thread-self/net", file).read_text()
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            local, _, now = line.split()[1:4]
            address, _, port = local.partition(":")
            if now == state and int(port, 16) == packet.destination_port:
                at = bytes.fromhex(address[-8:])[::-1]
                if not any(at) or at == packet.destination.packed:
                    return True
    return False
