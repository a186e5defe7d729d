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
    lag: float = 0.0
    """Seconds since its switch last held everything that it should; 0: it does now."""
    acknowledged_in: float = 0.0
    """Seconds that its switch took to acknowledge the last change; 0: there was none."""
    proven_age: float = 0.0
    """Seconds since its agent last found that the switch holds what it should."""
    drift: int = 0
    """Flows, groups and meters that others changed, found and repaired since it connected."""
    agent: str = ""
    """The version of the agent; empty: unknown."""
    open_vswitch: str = ""


class ControllerStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A process of the controller."""

    name: str
    """Of its host; for a Pod in the host network, the node's."""
    version: str
    leader: bool
    since: float
    """When it was started (Unix time)."""


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
    controllers: tuple[ControllerStatus, ...] = ()
    """The one that answers is the only one, so far."""
