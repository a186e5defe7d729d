"""The state of the cluster for people: nodes, their sessions and ports, and what is refused."""

from collections.abc import Generator, Mapping

from controller.inventory import Inventory
from controller.reports.status import AttachmentStatus, ClusterStatus, NodeStatus


def cluster_status(
    inventory: Inventory, in_sync: Mapping[str, bool], *, ready: bool, whole: bool
) -> Generator[None, None, ClusterStatus]:
    """`in_sync` has the nodes whose switch is connected.

    Nodes that come or go meanwhile may be missing.
    """
    view = inventory.view
    nodes: dict[str, NodeStatus] = {}
    for name in list(view.nodes):
        yield
        node = view.nodes.get(name)
        if node is None:
            continue
        nodes[name] = NodeStatus(
            address=str(node.address),
            pod_cidr=str(node.pod_cidr),
            connected=name in in_sync,
            in_sync=in_sync.get(name, False),
            attachments={
                each.port: AttachmentStatus(each.pod, str(each.address), each.ofport)
                for each in view.attachments.get(name, {}).values()
            },
        )
    return ClusterStatus(ready=ready, whole=whole, nodes=nodes, problems=inventory.problems.texts())
