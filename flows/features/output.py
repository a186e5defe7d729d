"""Out of the switch: one flow per port, so that a dump shows what each port got."""

from collections.abc import Iterable

from flows import names
from flows.flow import Flow, Output
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import Attachment, Cluster


def cluster(_: Cluster) -> Iterable[Flow]:
    """The two ports that every bridge has."""
    for ofport, reason in (
        (names.TUNNEL_OFPORT, "out by the tunnel"),
        (names.GATEWAY_OFPORT, "out to the node's own stack"),
    ):
        yield _out(ofport, Priority.SHARED, reason)


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """Out to a pod."""
    yield _out(attachment.ofport, Priority.LOCAL, "out to this pod")


def _out(ofport: int, priority: Priority, reason: str) -> Flow:
    return LAYOUT.flow(
        Feature.OUTPUT, "Output", priority, {"OutputPort": ofport}, [Output(ofport)], reason
    )
