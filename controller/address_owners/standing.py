"""What a Node's object says about the node as an owner of addresses."""

from enum import IntEnum
from typing import Final

from controller.sources.objects import NodeObject

EXCLUDED_LABEL: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label of a Node that load balancers should not use (well-known label of Kubernetes)."""


class Standing(IntEnum):
    """How fit a node is; less is better.

    A node with a worse one gets an address only where no candidate has a better one.
    """

    READY = 0
    DRAINED = 1
    """`spec.unschedulable`: kubectl cordon and drain set it."""
    NOT_READY = 2
    """The condition Ready is not True."""
    NEVER = 3
    """It is excluded by its label, or there is no such Node: it gets no address."""


WORDS: Final = {
    Standing.READY: "ready",
    Standing.DRAINED: "drained (spec.unschedulable)",
    Standing.NOT_READY: "not ready",
    Standing.NEVER: f"excluded by the label {EXCLUDED_LABEL}, or no Node",
}


def standing_of(node: NodeObject) -> Standing:
    """A Node without the condition counts as ready: manifests of a directory seldom have it."""
    if EXCLUDED_LABEL in (node.metadata.labels or {}):
        return Standing.NEVER
    ready = next((c for c in node.status.conditions or () if c.type == "Ready"), None)
    if ready is not None and ready.status != "True":
        return Standing.NOT_READY
    return Standing.DRAINED if node.spec.unschedulable else Standing.READY
