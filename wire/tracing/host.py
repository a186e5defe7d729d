"""What a node's own stack does with a packet: `table ip sluice` of nftables, and routes.

The sets of the table, and the routes, are facts from elsewhere. Tables of nftables that others made
are not judged.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from flows import names
from flows.features.protocols import LAYER_4_NAMES
from wire.questions import HostTrace, Packet, TraceHost

_SERVERS: Final = (6, 17)
"""Protocols of which a process listens on a port."""
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_HAIRPIN: Final = IPv4Address(names.HAIRPIN_ADDRESS)
_ANY: Final = IPv4Address(0)


Kind: TypeAlias = Literal["unicast", "local", "blackhole", "unreachable", "prohibit"]


class Route(NamedTuple):
    """The host's route to an address."""

    kind: Kind
    device: str = ""
    next_hop: IPv4Address | None = None
    source: IPv4Address | None = None
    """The source address of what the host itself sends there."""


class HostFacts(Protocol):
    """What is known of a node's own stack."""

    @property
    def pod_cidr(self) -> IPv4Network:
        """The node's own."""

    @property
    def pod_range(self) -> IPv4Network:
        """That of all pods."""

    @property
    def elements(self) -> Mapping[str, Mapping[str, str]]:
        """By set of `table ip sluice`, its elements (`wire.service_ports`)."""

    async def route(self, destination: IPv4Address, *, marked: bool) -> Route:
        """`marked`: of a packet whose destination, protocol and port are a Service's.

        Raises `TraceError`.
        """

    async def is_listening(self, packet: Packet) -> bool | None:
        """Whether a process takes a packet for the node itself; None: nobody knows."""


async def trace_host(facts: HostFacts, question: TraceHost) -> HostTrace:
    """Raises `TraceError`."""
    return await _HostTrace(facts, question).run()


class _HostTrace:
    def __init__(self, facts: HostFacts, question: TraceHost) -> None:
        self._facts = facts
        self._from = question.comes_from
        self._assumed = question.assumed
        self._first = question.packet
        self._packet = question.packet
        self._said: list[str] = []

    async def run(self) -> HostTrace:
        if why := await self._dropped_at_once():
            self._said.append(why)
            return self._end("dropped")
        is_returned = self._from == "switch" and await self._is_untracked()
        is_reply = self._translate_back()
        if self._from == "process" and self._packet.source == _ANY:
            # The kernel chooses it before the packet gets its mark.
            await self._choose_source()
        to_external = self._has("external-ports", self._key(self._packet, at=True))
        route = await self._route(marked=to_external)
        if not is_reply and self._translate(is_local=route.kind == "local"):
            route = await self._route(marked=False)
        if route.kind == "local":
            return await self._to_process()
        if route.kind != "unicast":
            self._said.append(f"the host's routes refuse it ({route.kind})")
            return self._end("dropped")
        if is_returned and route.device == names.GATEWAY_PORT:
            self._said.append(
                "the host has no route to that node: it drops the packet (nftables table ip"
                " sluice, chain forward)"
                if self._is_to_peer()
                else "it came from the switch and would go into it again: the host refuses it"
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

    async def _is_untracked(self) -> bool:
        """As the chain `gateway` decides, before anything is translated."""
        if self._has("external-ports", self._key(self._packet, at=True)):
            return True
        return (await self._route(marked=False)).device == names.GATEWAY_PORT

    async def _dropped_at_once(self) -> str:
        """Why one of the chains of prerouting drops or refuses it; empty: none does."""
        source, to = self._packet.source, self._packet.destination
        if self._from == "switch" and (source in _LOOPBACK or to in _LOOPBACK):
            return "the host drops packets of pods with loopback addresses"
        if self._from == "outside" and source in self._facts.pod_range:
            route = await self._facts.route(source, marked=False)
            if route.device == names.GATEWAY_PORT:
                return (
                    "it has a pod's address, and the host's route to that pod is another way: the"
                    " host drops it (nftables table ip sluice, chain from-peers)"
                )
        if self._from == "outside" and await self._is_refused():
            return (
                "only Services have this address, and none of them has this port: the host refuses"
                " it (nftables table ip sluice, chain refuse-received)"
            )
        return ""

    async def _is_refused(self) -> bool:
        """Whether the chain `refuse-received` refuses it: no port of an address of Services."""
        to = self._packet.destination
        return (
            str(to) in self._facts.elements["balancer-addresses"]
            and not self._has("external-ports", self._key(self._packet, at=True))
            and (await self._facts.route(to, marked=False)).kind != "local"
        )

    def _is_to_peer(self) -> bool:
        """Whether a packet from the switch is of a pod of this node, and to one of another."""
        packet, pod_cidr = self._packet, self._facts.pod_cidr
        return (
            packet.source in pod_cidr
            and packet.destination in self._facts.pod_range
            and packet.destination not in pod_cidr
        )

    async def _choose_source(self) -> None:
        source = (await self._route(marked=False)).source
        if source is not None:
            self._packet = msgspec.structs.replace(self._packet, source=source)
            self._first = msgspec.structs.replace(self._first, source=source)

    def _end(self, goes_to: Any, route: Route | None = None) -> HostTrace:
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
            value = self._facts.elements[name][key] or str(names.NODE_PORT_ADDRESS)
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

    async def _masquerade(self, route: Route) -> None:
        """As the chain `postrouting` does."""
        packet, by_gateway = self._packet, route.device == names.GATEWAY_PORT
        pod_cidr, pod_range = self._facts.pod_cidr, self._facts.pod_range
        why = ""
        if not by_gateway:
            if packet.source in pod_cidr and packet.destination not in pod_range:
                why = "from pods to the world outside"
            elif packet.source == _HAIRPIN:
                why = "from Services to the world outside"
        elif (
            packet.source != names.gateway_address(pod_cidr)
            and packet.destination in pod_range
            and packet.destination not in pod_cidr
            and await self._is_own(packet.source)
        ):
            why = "from the host's other addresses to other nodes' pods"
        elif _to(packet) != _to(self._first) and (
            packet.source in _LOOPBACK or packet.source in pod_cidr
        ):
            why = "to hostPorts"
        if not why:
            return
        source = route.source
        if by_gateway:
            source = IPv4Address(names.gateway_address(pod_cidr))
        if source is None:
            return
        self._packet = msgspec.structs.replace(packet, source=source)
        self._said.append(
            f"the host translates its source {packet.source} to {source}: {why}"
            " (nftables table ip sluice, chain postrouting)"
        )

    async def _to_process(self) -> HostTrace:
        packet = self._packet
        if packet.protocol not in _SERVERS:
            self._said.append("it is for the node itself")
            return self._end("process")
        is_listening = packet.is_reply or await self._facts.is_listening(packet)
        if is_listening is None:
            self._said.append(
                f"it is for the node itself; whether a process listens on {_to(packet)} is unknown"
            )
            return msgspec.structs.replace(self._end("process"), is_listener_unknown=True)
        if is_listening:
            self._said.append(f"it is for the node itself, and a process has {_to(packet)}")
            return self._end("process")
        self._said.append(f"it is for the node itself, but no process listens on {_to(packet)}")
        return self._end("nobody")

    def _has(self, name: str, key: str) -> bool:
        return key in self._facts.elements[name]

    def _key(self, packet: Packet, *, at: bool) -> str:
        key = f"{packet.protocol} . {packet.destination_port}"
        return f"{packet.destination} . {key}" if at else key

    async def _is_own(self, address: IPv4Address) -> bool:
        return (await self._facts.route(address, marked=False)).kind == "local"

    async def _route(self, *, marked: bool) -> Route:
        return await self._facts.route(self._packet.destination, marked=marked)


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
