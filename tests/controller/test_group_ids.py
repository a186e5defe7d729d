"""Ids of groups: whatever the order, and however few ids there are."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.group_ids import GroupIds, GroupKey
from flows import names

KEYS = [
    GroupKey(f"default/{number}", "", 6, variant)
    for number in range(6)
    for variant in ("cluster", "local")
]
FEW = range(100, 100 + len(KEYS))


def by_name(keys: set[GroupKey]) -> dict[GroupKey, int]:
    """The oracle: taken in the order of their names, each has the first of its ids that is free."""
    ids = GroupIds(FEW)
    found: dict[GroupKey, int] = {}
    for key in sorted(keys):
        number = 0
        while (wanted := ids._candidate(key, number)) in found.values():
            number += 1
        found[key] = wanted
    return found


@given(st.lists(st.sampled_from(KEYS), max_size=40))
@settings(max_examples=500, deadline=None)
def test_group_ids_do_not_depend_on_history(history: list[GroupKey]) -> None:
    ids, there = GroupIds(FEW), set[GroupKey]()
    for key in history:
        before = {each: ids[each] for each in there}
        moved = ids.give_back(key) if key in there else ids.take(key)
        there ^= {key}
        after = {each: ids[each] for each in there}
        assert after == by_name(there)
        both = before.keys() & after.keys()
        assert moved == {each for each in both if before[each] != after[each]}
    for key in list(there):
        ids.give_back(key)
    assert not any(vars(ids)[kept] for kept in ("_ids", "_holders", "_rejected", "_waiting"))


def test_group_ids_stay_the_same_between_versions() -> None:
    """Between replicas of different versions."""
    ids = GroupIds()
    key = GroupKey("default/s", "http", 6, "zone a")
    ids.take(key)
    assert ids[key] == 295_819_430
    assert ids[key] in names.GROUPS


def test_shared_groups_and_groups_of_nodes_never_exchange_ids() -> None:
    """They are sent apart: a group could be deleted after another had taken its id."""
    own = ("local", "node", "part 0 of local", "part 12 of node")
    shared = ("cluster", "zone local", "zone of node", "part 0 of cluster", "part 1 of zone node")
    found = []
    for variants in (own, shared):
        ids = GroupIds(range(100))
        keys = [GroupKey(f"default/{n}", "", 6, each) for n in range(9) for each in variants]
        for key in keys:
            ids.take(key)
        found.append({ids[key] for key in keys})
    assert not found[0] & found[1]
