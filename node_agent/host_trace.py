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
from typing import Any, Final, NamedTuple

import msgspec
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from flows.features.protocols import LAYER_4_NAMES
from node_agent import routes
from node_agent.faults import NodeFault
from node_agent.host_table import Elements, HostTable
from wire.questions import HostTrace, Packet, TraceHost

_LOCAL: Final = 2
"""RTN_LOCAL of linux/rtnetlink.h."""
_REFUSING: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
_LISTENING: Final = {6: ("tcp", "0A"), 17: ("udp", "07")}
"""The file in /proc/net, and the state of a socket that takes packets from anybody."""
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_HAIRPIN: Final = IPv4Address(names.HAIRPIN_ADDRESS)


class HostTraceError(NodeFault):
    """The packet cannot be followed; the text says why."""


class _Route(NamedTuple):
    kind: int
    device: str
    next_hop: IPv4Address | None
    source: IPv4Address | None


async def trace_host(netlink: AsyncIPRoute, table: HostTable, question: TraceHost) -> HostTrace:
    """Follow the packet. Raises `HostTraceError`, `nft.NftError`."""
    if table.ranges is None:
        raise HostTraceError("this node has no configuration yet")
    elements = await table.elements()
    return await _HostTrace(netlink, elements, table.ranges, question).run()


class _HostTrace:
    def __init__(
        self,
        netlink: AsyncIPRoute,
        elements: Elements,
        ranges: tuple[IPv4Network, IPv4Network],
        question: TraceHost,
    ) -> None:
        self._netlink = netlink
        self._elements = elements
        self._pod_cidr, self._pod_range = ranges
        self._from = question.comes_from
        self._assumed = question.assumed
        self._first = question.packet
        self._packet = question.packet
        self._said: list[str] = []

    async def run(self) -> HostTrace:
        packet = self._packet
        if self._from == "switch" and (
            packet.source in _LOOPBACK or packet.destination in _LOOPBACK
        ):
            self._said.append("the host drops packets of pods with loopback addresses")
            return self._end("dropped")
        is_reply = self._translate_back()
        if self._from == "process" and self._packet.source == _ANY:
            # The kernel chooses it before the packet gets its mark.
            await self._choose_source()
        to_external = self._has("external-ports", self._key(self._packet, at=True))
        route = await self._route(marked=to_external)
        if not is_reply and self._translate(is_local=route.kind == _LOCAL):
            route = await self._route(marked=False)
        if route.kind in _REFUSING:
            self._said.append(f"the host's routes refuse it ({_REFUSING[route.kind]})")
            return self._end("dropped")
        if route.kind == _LOCAL:
            return await self._to_process()
        if self._from == "switch" and route.device == names.GATEWAY_PORT:
            self._said.append(
                "it came from the switch and would go into it again: the host refuses it"
                " (nftables table ip sluice, chain forward)"
            )
            return self._end("dropped")
        if not is_reply:
            await self._masquerade(route)
        if route.device == names.GATEWAY_PORT:
            self._said.append(f"the host's routes send it into the switch by {route.device}")
            return self._end("switch", route)
        by = f"by {route.device}" + (f" to {route.next_hop}" if route.next_hop else "")
        self._said.append(f"the host's routes send it {by}")
        return self._end("outside", route)

    async def _choose_source(self) -> None:
        source = (await self._route(marked=False)).source
        if source is not None:
            self._packet = msgspec.structs.replace(self._packet, source=source)
            self._first = msgspec.structs.replace(self._first, source=source)

    def _end(self, goes_to: Any, route: _Route | None = None) -> HostTrace:
        return HostTrace(
            sentences=tuple(self._said),
            packet=self._packet,
            goes_to=goes_to,
            device=route.device if route else "",
            next_hop=route.next_hop if route else None,
            first=self._first,
        )

    def _translate_back(self) -> bool:
        """Whether the packet is a reply to one that was traced before."""
        for each in self._assumed:
            if _ends(self._packet) != _ends(_reversed(each.after)):
                continue
            back = _reversed(each.before)
            if _ends(back) != _ends(self._packet):
                self._said.append(
                    f"the host translates it back: from {_end(back)}"
                    f" to {back.destination}:{back.destination_port}"
                )
            self._packet = msgspec.structs.replace(
                back, is_reply=self._packet.is_reply, protocol=self._packet.protocol
            )
            return True
        return False

    def _translate(self, *, is_local: bool) -> bool:
        """As the chains `prerouting` and `output` do; whether anything was translated."""
        packet = self._packet
        if packet.protocol not in LAYER_4_NAMES:
            return False
        here, any_address = self._key(packet, at=True), self._key(packet, at=False)
        tries: list[tuple[str, str]] = []
        if self._from == "outside":
            tries.append(("host-endpoints-at", here))
            tries += [("host-endpoints", any_address)] if is_local else []
        if is_local:
            tries += [("host-ports-at", here), ("host-ports", any_address)]
            if self._from != "switch":
                tries.append(("own-addresses", here))
                if packet.destination not in _LOOPBACK:
                    tries.append(("node-ports", any_address))
        for name, key in tries:
            if not self._has(name, key):
                continue
            value = self._elements[name][key] or str(names.NODE_PORT_ADDRESS)
            address, _, port = value.partition(" . ")
            self._packet = msgspec.structs.replace(
                packet,
                destination=IPv4Address(address),
                destination_port=int(port) if port else packet.destination_port,
            )
            self._said.append(
                f"the host translates its destination {_to(packet)} to {_to(self._packet)}"
                f" (nftables table ip sluice, {name})"
            )
            return True
        return False

    async def _masquerade(self, route: _Route) -> None:
        """As the chain `postrouting` does."""
        packet, by_gateway = self._packet, route.device == names.GATEWAY_PORT
        why = ""
        if not by_gateway:
            if packet.source in self._pod_cidr and packet.destination not in self._pod_range:
                why = "from pods to the world outside"
            elif packet.source == _HAIRPIN:
                why = "from Services to the world outside"
        elif (
            packet.source != names.gateway_address(self._pod_cidr)
            and packet.destination in self._pod_range
            and packet.destination not in self._pod_cidr
            and await self._is_own(packet.source)
        ):
            why = "from the host's other addresses to other nodes' pods"
        elif _to(packet) != _to(self._first) and (
            packet.source in _LOOPBACK or packet.source in self._pod_cidr
        ):
            why = "to hostPorts"
        if not why:
            return
        source = route.source
        if by_gateway:
            source = IPv4Address(names.gateway_address(self._pod_cidr))
        if source is None:
            return
        self._packet = msgspec.structs.replace(packet, source=source)
        self._said.append(
            f"the host translates its source {packet.source} to {source}: {why}"
            " (nftables table ip sluice, chain postrouting)"
        )

    async def _to_process(self) -> HostTrace:
        packet = self._packet
        if packet.protocol not in _LISTENING:
            self._said.append("it is for the node itself")
            return self._end("process")
        if packet.is_reply or await asyncio.to_thread(_is_listening, packet):
            self._said.append(f"it is for the node itself, and a process has {_to(packet)}")
            return self._end("process")
        self._said.append(f"it is for the node itself, but no process listens on {_to(packet)}")
        return self._end("nobody")

    def _has(self, name: str, key: str) -> bool:
        return key in self._elements[name]

    def _key(self, packet: Packet, *, at: bool) -> str:
        key = f"{packet.protocol} . {packet.destination_port}"
        return f"{packet.destination} . {key}" if at else key

    async def _is_own(self, address: IPv4Address) -> bool:
        return (await self._ask_route({"dst": str(address)})).kind == _LOCAL

    async def _route(self, *, marked: bool) -> _Route:
        asked: dict[str, Any] = {"dst": str(self._packet.destination)}
        if marked:
            asked["mark"] = routes.MARK
        return await self._ask_route(asked)

    async def _ask_route(self, asked: Mapping[str, Any]) -> _Route:
        try:
            found = list(await self._netlink.route("get", **asked))
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise HostTraceError(f"the host has no route to {asked['dst']}") from None
            if error.code in (errno.EACCES, errno.EINVAL):
                return _Route(8 if error.code == errno.EACCES else 6, "", None, None)
            raise HostTraceError(f"the host's route to {asked['dst']}: {error}") from error
        route = found[0]
        index = route.get_attr("RTA_OIF")
        source, hop = route.get_attr("RTA_PREFSRC"), route.get_attr("RTA_GATEWAY")
        return _Route(
            kind=int(route["type"]),
            device=socket.if_indextoname(index) if index else "",
            next_hop=IPv4Address(hop) if hop else None,
            source=IPv4Address(source) if source else None,
        )


_ANY: Final = IPv4Address(0)


def _ends(packet: Packet) -> tuple[IPv4Address, int, IPv4Address, int]:
    if packet.protocol not in LAYER_4_NAMES:
        return packet.source, 0, packet.destination, 0
    return packet.source, packet.source_port, packet.destination, packet.destination_port


def _reversed(packet: Packet) -> Packet:
    return msgspec.structs.replace(
        packet,
        source=packet.destination,
        source_port=packet.destination_port,
        destination=packet.source,
        destination_port=packet.source_port,
    )


def _to(packet: Packet) -> str:
    if packet.protocol not in LAYER_4_NAMES:
        return str(packet.destination)
    return f"{packet.destination}:{packet.destination_port}"


def _end(packet: Packet) -> str:
    return f"{packet.source}:{packet.source_port}"


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
