"""The miss of every table: a flow with a counter for packets that no other flow matches."""

from collections.abc import Iterable
from typing import Final

from flows.flow import Flow
from flows.kinds import EVERY_NODE
from flows.pipeline import LAYOUT
from flows.view import Cluster


def every_node(_: Cluster, __: Cluster) -> Iterable[Flow]:
    """One miss for each table."""
    return LAYOUT.misses()


WRITES: Final = (EVERY_NODE.by(every_node),)
