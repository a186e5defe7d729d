"""What is sent to a switch: the difference between installed and desired."""

from dataclasses import replace

import pytest

from flows import names
from flows.diff import Delta, GroupChange, diff, is_learned, is_ours
from flows.flow import Bucket, Group, Output

ID = names.GROUPS[3]


def bucket(number: int, port: int = 1) -> Bucket:
    return Bucket(number, 1, (Output(port),))


GROUP = Group(ID, "hash", (), tuple(map(bucket, (1, 2, 3, 4))))


def with_buckets(*buckets: Bucket) -> Group:
    return replace(GROUP, buckets=buckets)


@pytest.mark.parametrize(
    ("new", "edits"),
    [
        (GROUP, ((), ())),
        (with_buckets(*GROUP.buckets, bucket(5)), ((), (bucket(5),))),
        (with_buckets(*GROUP.buckets[1:]), ((1,), ())),
        (with_buckets(*GROUP.buckets[:3], bucket(4, 9)), ((4,), (bucket(4, 9),))),
        (with_buckets(*GROUP.buckets[2:], bucket(5)), ((1, 2), (bucket(5),))),
        # The edits are more than the whole group.
        (with_buckets(bucket(1), bucket(5)), None),
        (with_buckets(), None),
        (replace(GROUP, method="dp_hash"), None),
        (replace(GROUP, fields=("nw_src",)), None),
        (replace(GROUP, id=ID + 1), None),
    ],
)
def test_only_changed_buckets_of_a_group_are_sent(new: Group, edits: object) -> None:
    assert GroupChange(new, GROUP).buckets() == edits
    assert GroupChange(new).buckets() is None


def test_a_dp_hash_group_is_sent_whole() -> None:
    """Open vSwitch would choose only among inserted buckets (test_every_endpoint_is_chosen)."""
    slotted = replace(GROUP, method="dp_hash")
    more = replace(slotted, buckets=(*GROUP.buckets, bucket(5)))
    assert GroupChange(more, slotted).buckets() is None
    assert GroupChange(slotted, more).buckets() is None
    assert GroupChange(slotted, slotted).buckets() == ((), ())


OTHER = with_buckets(*GROUP.buckets, bucket(5))


@pytest.mark.parametrize(
    ("installed", "change"),
    [
        ({ID: GROUP}, ()),
        ({ID: OTHER}, (GroupChange(GROUP, OTHER),)),
        # The group exists, with unknown content.
        ({ID: None}, (GroupChange(GROUP),)),
        ({}, (GroupChange(GROUP),)),
    ],
)
def test_a_group_with_unknown_content_is_sent_whole(
    installed: dict[int, Group | None], change: tuple[GroupChange, ...]
) -> None:
    delta = diff((), {}, installed, {}, {}, {ID: GROUP})
    assert delta == Delta(groups_set=change)
    assert bool(delta) == bool(change)


def test_stale_groups_are_deleted_and_foreign_ones_stay() -> None:
    ours = (names.GROUPS[0], ID, names.GROUPS[-1])
    others = (1, names.GROUPS[0] - 1, names.GROUPS[-1] + 1)
    installed = dict.fromkeys((*ours, *others)) | {ID: GROUP}
    delta = diff((), {}, installed, {}, {}, {ID: GROUP})
    assert delta == Delta(groups_delete=(ours[0], ours[2]))


def test_a_learned_flow_is_neither_stale_nor_foreign() -> None:
    assert is_learned(10 << 56 | 5)
    assert not is_ours(10 << 56 | 5)
    assert not is_learned(7 << 56 | 5)
    assert diff({10 << 56 | 5}, {}, {}, {}, {}, {}) == Delta()
