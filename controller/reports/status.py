"""The answer of `sluice status`."""

import msgspec

from controller.reports.report import Report


class AttachmentStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A port of a pod."""

    pod: str
    """`NAMESPACE/NAME`; empty: a container without a Pod."""
    address: str
    ofport: int


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A Node that has flows."""

    address: str
    pod_cidr: str = msgspec.field(name="podCIDR")
    connected: bool
    """Whether its switch has a session."""
    in_sync: bool
    """Whether its switch holds what it should."""
    attachments: dict[str, AttachmentStatus]
    """By name of the port."""


class ClusterStatus(Report, frozen=True, kw_only=True):
    """The state of the cluster: nodes, their switches and pods, and what is refused."""

    ready: bool
    """Whether the cluster has been read."""
    whole: bool
    """Whether all of it could be read."""
    nodes: dict[str, NodeStatus]
    """By name."""
    problems: dict[str, str]
    """By subject, a sentence."""
