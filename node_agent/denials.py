"""Packets that policy denied: a line of the log for each, and what the controller is told.

Flows of policy report them if the cluster's setting `logDenials` says so. The switch reports no
more than `flows.features.judgement.LOGGED_PER_SECOND`, which bounds the work here.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import structlog

from flows.features.protocols import IPV4, LAYER_4_NAMES
from flows.pipeline import LAYOUT
from flows.policy import Direction
from node_agent.denied_pairs import DeniedPairs
from node_agent.leases import Lease
from openflow.messages import PacketIn
from wire.documents import DeniedPort

log = structlog.get_logger()

_TABLES: Final = {
    LAYOUT.tables["DeniedFromPod"].number: Direction.FROM_POD,
    LAYOUT.tables["DeniedToPod"].number: Direction.TO_POD,
}
_RULE, _OUTPUT_PORT = (
    int(LAYOUT.registers[name].register.removeprefix("reg"))
    for name in ("DecidedRule", "OutputPort")
)
_ETHERNET: Final = 14
_ICMP: Final = 1
_VERSION: Final = 4


@dataclass(frozen=True, slots=True)
class Denial:
    """A packet that was denied."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    """IANA's number."""
    port: int | None
    """Of the destination; None: the packet does not show one."""

    @property
    def protocol_name(self) -> str:
        """`tcp`; the number of a protocol without ports, except for `icmp`."""
        if self.protocol == _ICMP:
            return "icmp"
        return LAYER_4_NAMES.get(self.protocol, str(self.protocol))


def denial(frame: bytes) -> Denial | None:
    """The ends of an IPv4 packet; None for any other frame, or one that is cut off."""
    try:
        (kind,) = struct.unpack_from("!H", frame, 12)
        first, fragment, number = struct.unpack_from("!B5xHxB", frame, _ETHERNET)
        source, destination = struct.unpack_from("!4s4s", frame, _ETHERNET + 12)
    except struct.error:
        return None
    if kind != IPV4 or first >> 4 != _VERSION:
        return None
    layer_4 = frame[_ETHERNET + 4 * (first & 0xF) :]
    port = None
    if number in LAYER_4_NAMES and not fragment & 0x1FFF and len(layer_4) >= 4:
        (port,) = struct.unpack_from("!2xH", layer_4)
    return Denial(IPv4Address(source), IPv4Address(destination), number, port)


class Denials:
    """Takes the denied packets that the switch reports."""

    def __init__(self, leases: Callable[[], Iterable[Lease]], *pairs: DeniedPairs) -> None:
        """`leases` are all of this node: they have the names of its pods.

        `pairs` gather the denials of pods, one for each controller.
        """
        self._leases = leases
        self._pairs = pairs

    def packet(self, packet: PacketIn) -> None:
        """A packet that a flow of this node's bridge has sent to the agent."""
        direction = _TABLES.get(packet.table)
        found = denial(packet.data)
        if direction is None or found is None:
            return
        own, other_end = packet.in_port, found.destination
        if direction is Direction.TO_POD:
            own, other_end = packet.registers.get(_OUTPUT_PORT, 0), found.source
        lease = next((lease for lease in self._leases() if lease.ofport == own), None)
        rule = packet.registers.get(_RULE)
        log.info(
            "denied by policy",
            direction=direction.value,
            pod=lease.title if lease else None,
            source=str(found.source),
            destination=str(found.destination),
            protocol=found.protocol_name,
            port=found.port,
            reason=f"rule {rule:#x} denies it" if rule else "no rule allows it",
        )
        # Without Kubernetes there is no object that an Event could be about.
        if lease is not None and lease.pod is not None:
            port = DeniedPort(found.protocol, found.port, rule or None)
            for each in self._pairs:
                each.add(lease.port, direction, other_end, port)
