"""Seals and companion flows: they carry digests of what a switch should hold.

A seal is part of the bundle that completes a program. A switch that has the seal holds the flows
and meters of the program, from whichever controller: state is known by content. So a controller
that starts, or takes over, reads two flows of a switch instead of all. The audit finds changes that
somebody made without the seal.
"""

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
