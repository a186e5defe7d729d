"""The state of the cluster for people: nodes, their sessions and ports, and what is refused."""

from collections.abc import Generator, Mapping

import msgspec

from controller.inventory import Inventory


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


def cluster_status(
    inventory: Inventory, in_sync: Mapping[str, bool], *, ready: bool, whole: bool
) -> Generator[None, None, ClusterStatus]:
    """`in_sync` has the nodes whose switch is connected.

    Nodes that come or go meanwhile may be missing.
    """
    view = inventory.view
    nodes: dict[str, msgspec.Raw] = {}
    for name in list(view.nodes):
        yield
        node = view.nodes.get(name)
        if node is None:
            continue
        status = NodeStatus(
            address=str(node.address),
            pod_cidr=str(node.pod_cidr),
            connected=name in in_sync,
            in_sync=in_sync.get(name, False),
            attachments={
                each.port: AttachmentStatus(each.pod, str(each.address), each.ofport)
                for each in view.attachments.get(name, {}).values()
            },
        )
        nodes[name] = msgspec.Raw(msgspec.json.encode(status))
    return ClusterStatus(ready=ready, whole=whole, nodes=nodes, problems=inventory.problems.texts())
