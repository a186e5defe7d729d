"""What `sluice top --json` prints: rates, made of two reports of counters."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class PodRates(msgspec.Struct, frozen=True, rename="camel"):
    """A pod's traffic, each second."""

    object: Reference
    node: str
    sent_bytes: float
    received_bytes: float
    sent_packets: float
    received_packets: float


class ServiceRates(msgspec.Struct, frozen=True, rename="camel"):
    """Connections to a Service on all nodes that were read, each second."""

    object: Reference
    connections: float


class NodeRates(msgspec.Struct, frozen=True, rename="camel"):
    """A node's traffic, each second."""

    node: str
    pods_sent_bytes: float
    """By all of its pods together."""
    pods_received_bytes: float
    tunnel_sent_bytes: float
    """To other nodes."""
    tunnel_received_bytes: float
    gateway_sent_bytes: float
    """To the node's own stack, and through it to the outside."""
    gateway_received_bytes: float
    dropped_packets: float


class DropRates(msgspec.Struct, frozen=True, rename="camel"):
    """Dropped packets for one reason on all nodes that were read, each second."""

    reason: str
    packets: float
    most_node: str
    """The node with the most of them."""
    most_why: str
    """What most of them are there."""


class Top(Report, frozen=True, kw_only=True):
    """Rates, the highest first. What has no traffic is left out."""

    at: float
    """The end of the time that was measured, in seconds since 1970."""
    seconds: float
    """Its length."""
    read: int
    """Nodes that were read."""
    of: int
    """All nodes of the cluster."""
    pods: tuple[PodRates, ...]
    services: tuple[ServiceRates, ...]
    nodes: tuple[NodeRates, ...]
    drops: tuple[DropRates, ...]
    unread: dict[str, str]
    """By node, why its switch did not tell its counters."""
    left_out: dict[str, tuple[str, ...]]
    """By node, tables that are too large to be read."""
