"""Seals: what a switch should hold, in a flow that travels in the bundle that makes it so.

A switch that has a scope's seal holds that scope's flows and meters, whoever put them there and
whenever: state is known by content. So a controller that starts, or takes over, reads two flows of
a switch instead of all. Whoever changes a switch without its seal (a hand, another program) is
found by the audit instead.
"""

from flows.flow import Flow, Group, Note
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import CLUSTER_SCOPE

TABLE = LAYOUT.tables["State"].number


def seal(scope: str, count: int, total: int) -> Flow:
    """The seal of a scope of which `count` is how many flows it has.

    `total` (64 bits) is the sum of their cookies, and of the digests of its meters.
    """
    return LAYOUT.flow(
        Feature.STATE, "State", Priority.SHARED if scope == CLUSTER_SCOPE else Priority.LOCAL,
        {},
        # 14 bytes: a note has 6, or 8 more, and is padded with zeros to that.
        [Note(b"\0\0" + count.to_bytes(4, "big") + total.to_bytes(8, "big"))],
        f"sealed: the {count} flows of {'every node' if scope == CLUSTER_SCOPE else 'this node'}",
    )  # fmt: skip


def companion(group: Group) -> Flow:
    """The flow that says of a group what it holds: groups have no cookie of their own."""
    return LAYOUT.flow(
        Feature.STATE, "Groups", Priority.SHARED,
        {"Service": group.id},
        [Note(b"\0\0" + len(group.buckets).to_bytes(4, "big") + group.digest.to_bytes(8, "big"))],
        f"group {group.id:#x}: {len(group.buckets)} buckets",
    )  # fmt: skip


def is_seal(table: int, cookie: int) -> bool:
    """Whether a flow of this table with this cookie is some scope's seal."""
    return table == TABLE and cookie >> 56 == Feature.STATE
