"""Output: one flow per port, so that a dump shows the packets that each port sent."""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.flow import IN_PORT, Flow, Output
from flows.kinds import ATTACHMENT, EVERY_NODE
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import Attachment, Cluster


def every_node(_: Cluster, __: Cluster) -> Iterable[Flow]:
    """The two ports that every bridge has."""
    for ofport, reason in (
        (names.TUNNEL_OFPORT, "out through the tunnel"),
        (names.GATEWAY_OFPORT, "out to the node's own stack"),
    ):
        yield _out(ofport, Priority.SHARED, reason)
    yield _hairpin(
        names.GATEWAY_OFPORT, Priority.SHARED, "hairpin: from the node's own stack, back to it"
    )
    yield LAYOUT.flow(
        Feature.OUTPUT, "Output", Priority.GUARD, {"Hairpin": 1}, [Output(IN_PORT)],
        "hairpin: out of the ingress port, which Open vSwitch does only with IN_PORT",
    )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """Output to a pod, and its hairpin."""
    yield _out(attachment.ofport, Priority.LOCAL, "out to this pod")
    yield _hairpin(attachment.ofport, Priority.LOCAL, "hairpin: from this pod, back to it")


def _hairpin(ofport: int, priority: Priority, reason: str) -> Flow:
    return LAYOUT.flow(
        Feature.OUTPUT, "Hairpin", priority,
        {"in_port": ofport, "OutputPort": ofport},
        [LAYOUT.load("Hairpin", 1), LAYOUT.goto("Commit")],
        reason,
    )  # fmt: skip


def _out(ofport: int, priority: Priority, reason: str) -> Flow:
    return LAYOUT.flow(
        Feature.OUTPUT, "Output", priority, {"OutputPort": ofport}, [Output(ofport)], reason
    )


WRITES: Final = (EVERY_NODE.by(every_node), ATTACHMENT.by(attachment))
