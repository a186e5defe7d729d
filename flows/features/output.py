"""Out of the switch: one flow per port, so that a dump shows what each port got."""

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
        (names.TUNNEL_OFPORT, "out by the tunnel"),
        (names.GATEWAY_OFPORT, "out to the node's own stack"),
    ):
        yield _out(ofport, Priority.SHARED, reason)
    yield _hairpin(names.GATEWAY_OFPORT, Priority.SHARED, "from the node's own stack, back to it")
    yield LAYOUT.flow(
        Feature.OUTPUT, "Output", Priority.GUARD, {"Hairpin": 1}, [Output(IN_PORT)],
        "out to where it came from, which Open vSwitch does only when told so",
    )  # fmt: skip


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Flow]:
    """Out to a pod, or back to it."""
    yield _out(attachment.ofport, Priority.LOCAL, "out to this pod")
    yield _hairpin(attachment.ofport, Priority.LOCAL, "from this pod, back to it")


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
