"""Counters of switches, from which `sluice top` and `sluice drops` are made."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class TrafficRow(msgspec.Struct, frozen=True, rename="camel"):
    """What a pod, the tunnel or the gateway of a node has sent into the switch and got from it."""

    object: Reference
    """A Pod, a container, or `tunnel` or `gateway` with the name of the node."""
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int


class ServiceTrafficRow(msgspec.Struct, frozen=True, rename="camel"):
    """Connections to a Service that clients on a node, or through it, have opened."""

    object: Reference
    connections: int
    """New ones, also those that are refused. Later packets of them are not counted here."""


class DropRow(msgspec.Struct, frozen=True, rename="camel"):
    """Packets that a node's switch has dropped, or refused, for one reason."""

    reason: str
    """`table miss`, `guard`, `policy`, `meter`, `no endpoint`, `no route` or `invalid`."""
    why: str
    """In words."""
    table: str
    """Empty: a meter."""
    objects: tuple[Reference, ...]
    """For which the flow exists."""
    packets: int
    bytes: int
    idle: int | None
    """Seconds since the last one; null: not known."""


class NodeCounters(msgspec.Struct, frozen=True, rename="camel"):
    """What the flows of a node's switch have counted since they were added."""

    node: str
    at: float
    """When they were read, in seconds since 1970."""
    traffic: tuple[TrafficRow, ...]
    services: tuple[ServiceTrafficRow, ...]
    drops: tuple[DropRow, ...]
    left_out: tuple[str, ...] = ()
    """Tables that are too large to be read for this."""


class Counters(Report, frozen=True, kw_only=True):
    """Counters of some nodes."""

    nodes: tuple[NodeCounters, ...]
    unread: dict[str, str]
    """By node, why its switch did not tell them."""
    of: int
    """All nodes of the cluster."""
    after: str
    """Ask for the nodes after this one; empty: these were the last ones."""


class DenialRow(msgspec.Struct, frozen=True, rename="camel"):
    """A pod and another end between which policy denied packets, as a node's agent reports it."""

    at: float
    """When it was reported, in seconds since 1970."""
    node: str
    pod: Reference
    direction: str
    """`from the pod` or `to the pod`."""
    other_end: str
    """Its address."""
    sentence: str
    """Both ends, the ports, and why."""


class Denials(Report, frozen=True, kw_only=True):
    """What policy denied, newest first."""

    enabled: bool
    """Whether `cluster.policy.logDenials` is set; if not, agents report nothing."""
    denials: tuple[DenialRow, ...]
    left_out: int
    """Packets of further pairs, which agents only counted."""
