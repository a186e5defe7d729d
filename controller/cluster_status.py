"""The state of the cluster for people: nodes, their sessions and ports, and what is refused."""

from collections.abc import Callable, Generator
from typing import NamedTuple

from controller.inventory import Inventory
from controller.questions import Versions
from controller.reports.status import (
    AttachmentStatus,
    ClusterStatus,
    ControllerStatus,
    NodeStatus,
)


class NodeFacts(NamedTuple):
    """What is known of a node besides its objects; see `NodeStatus`."""

    connected: bool = False
    in_sync: bool = False
    lag: float = 0.0
    acknowledged_in: float = 0.0
    drift: int = 0
    proven_age: float = 0.0
    versions: Versions = Versions()


def cluster_status(
    inventory: Inventory,
    facts: Callable[[str], NodeFacts] | None = None,
    *,
    ready: bool,
    whole: bool,
    controllers: tuple[ControllerStatus, ...] = (),
) -> Generator[None, None, ClusterStatus]:
    """`facts` tells what is known of a node; None: nothing.

    Nodes that come or go meanwhile may be missing.
    """
    view = inventory.view
    nodes: dict[str, NodeStatus] = {}
    for name in list(view.nodes):
        yield
        node = view.nodes.get(name)
        if node is None:
            continue
        known = NodeFacts() if facts is None else facts(name)
        nodes[name] = NodeStatus(
            address=str(node.address),
            pod_cidr=str(node.pod_cidr),
            connected=known.connected,
            in_sync=known.in_sync,
            attachments={
                each.port: AttachmentStatus(each.pod, str(each.address), each.ofport)
                for each in view.attachments.get(name, {}).values()
            },
            lag=round(known.lag, 3),
            acknowledged_in=round(known.acknowledged_in, 6),
            proven_age=round(known.proven_age, 1),
            drift=known.drift,
            agent=known.versions.agent,
            open_vswitch=known.versions.open_vswitch,
        )
    problems: dict[str, str] = {}
    for problem in list(inventory.problems):
        yield
        problems[problem.title] = problem.text
    return ClusterStatus(
        ready=ready,
        whole=whole,
        nodes=nodes,
        problems=problems,
        controllers=controllers,
    )
