"""Seals and companion flows carry digests of what a switch should hold; one flow, the generation.

A seal is part of the bundle that completes a program. A switch that has the seal holds the flows
and meters of the program, from whichever controller: state is known by content. So a controller
that starts, or takes over, reads two flows of a switch instead of all. The audit finds changes that
somebody made without the seal.

Of two controllers only the one with the newest generation may write. Open vSwitch knows the newest
generation that was sent to it (OpenFlow 1.5.1, 6.3.6), but only until it restarts. So it stands in
a flow, too: the node's agent puts that back before the restarted switch connects to a controller.
"""

from typing import Final

from flows.flow import Flow, Group, Note
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import CLUSTER_SCOPE

TABLE = LAYOUT.tables["State"].number


def seal(scope: str, count: int, total: int) -> Flow:
    """The seal of a program with `count` flows.

    `total` (64 bits) is the sum of their cookies and of the digests of the program's meters.
    """
    return LAYOUT.flow(
        Feature.STATE, "State", Priority.SHARED if scope == CLUSTER_SCOPE else Priority.LOCAL,
        {},
        # 14 bytes: a note has 6, or 8 more, and is padded with zeros to that.
        [Note(b"\0\0" + count.to_bytes(4, "big") + total.to_bytes(8, "big"))],
        f"sealed: the {count} flows of {'every node' if scope == CLUSTER_SCOPE else 'this node'}",
    )  # fmt: skip


GENERATION_FLOW: Final = LAYOUT.flow(
    Feature.GENERATION, "State", Priority.OVERRIDE, {}, [Note(b"\0\0gen\0")],
    "the newest generation of a controller that has written to this switch",
)  # fmt: skip
"""On the switch its cookie is `generation_cookie`: there is one such flow, whatever it says."""
MOST_GENERATIONS: Final = (1 << 56) - 1


def generation_cookie(generation: int) -> int:
    """The cookie of the flow that says this generation, for people who read a dump."""
    if not 0 <= generation <= MOST_GENERATIONS:
        raise ValueError(f"{generation} is no generation")
    return Feature.GENERATION << 56 | generation


def generation_of(table: int, cookie: int) -> int | None:
    """The generation that a flow of this table with this cookie says; None: it says none."""
    is_it = table == TABLE and cookie >> 56 == Feature.GENERATION
    return cookie & MOST_GENERATIONS if is_it else None


def companion(group: Group) -> Flow:
    """The flow that carries the digest of a group, because groups have no cookie."""
    return LAYOUT.flow(
        Feature.STATE, "Groups", Priority.SHARED,
        {"Service": group.id},
        [Note(b"\0\0" + len(group.buckets).to_bytes(4, "big") + group.digest.to_bytes(8, "big"))],
        f"group {group.id:#x}: {len(group.buckets)} buckets",
    )  # fmt: skip


def is_seal(table: int, cookie: int) -> bool:
    """Whether a flow of this table with this cookie is a seal, of any scope."""
    return table == TABLE and cookie >> 56 == Feature.STATE
