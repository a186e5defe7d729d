"""The state of the cluster for people: nodes, their sessions and ports, and what is refused."""

from collections.abc import Generator

import msgspec

from controller.reconciler import Reconciler


class AttachmentStatus(msgspec.Struct, frozen=True):
    """A port of a pod."""

    pod: str
    address: str
    ofport: int


class NodeStatus(msgspec.Struct, frozen=True):
    """A Node that has flows."""

    address: str
    pod_cidr: str = msgspec.field(name="podCIDR")
    connected: bool
    """Whether its switch has a session."""
    in_sync: bool = msgspec.field(name="inSync")
    """Whether its switch holds what it should."""
    attachments: dict[str, AttachmentStatus]
    """By name of the port."""


class ClusterStatus(msgspec.Struct, frozen=True):
    """The answer to `sluice status`."""

    ready: bool
    """Whether the cluster has been read."""
    whole: bool
    """Whether all of it could be read."""
    nodes: dict[str, msgspec.Raw]
    """By name, a `NodeStatus`. A part that is encoded already, because all at once take long."""
    problems: dict[str, str]
    """By subject, a sentence."""


def cluster_status(reconciler: Reconciler) -> Generator[None, None, ClusterStatus]:
    """Nodes that come or go meanwhile may be missing."""
    view = reconciler.inventory.view
    nodes: dict[str, msgspec.Raw] = {}
    for name in list(view.nodes):
        yield
        node, session = view.nodes.get(name), reconciler.sessions.get(name)
        if node is None:
            continue
        status = NodeStatus(
            address=str(node.address),
            pod_cidr=str(node.pod_cidr),
            connected=session is not None,
            in_sync=session is not None and session.in_sync,
            attachments={
                each.port: AttachmentStatus(each.pod, str(each.address), each.ofport)
                for each in view.attachments.get(name, {}).values()
            },
        )
        nodes[name] = msgspec.Raw(msgspec.json.encode(status))
    return ClusterStatus(
        ready=reconciler.listed.is_set(),
        whole=reconciler.desired.source_complete,
        nodes=nodes,
        problems=reconciler.problems.texts(),
    )
