"""The journal of one node's program has a bound, also within one change."""

import pytest

from controller import journal
from flows.diff import Delta, GroupChange
from flows.flow import Group
from flows.pipeline import LAYOUT, Feature

EMPTY = (0, 0)


def delta(number: int) -> Delta:
    flow = LAYOUT.flow(Feature.POLICY, "PolicyWalk", 1, {"Walk": number}, [], "a walk")
    return Delta(adds=(flow,))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> journal.Journal:
    """A small journal, in the middle of a change."""
    monkeypatch.setattr(journal, "MAX_COST", 10)
    made = journal.Journal()
    made.restart()
    made.hold(EMPTY)
    return made


def test_change_that_is_too_large_is_not_kept_until_it_is_complete(made: journal.Journal) -> None:
    for number in range(100):
        made.add(delta(number), EMPTY)
        assert len(made._held or ()) <= 11
    made.release()
    assert not made.is_whole
    assert not made.take()


def test_change_that_fits_is_one_step(made: journal.Journal) -> None:
    for number in range(10):
        made.add(delta(number), EMPTY)
    made.release()
    (step,) = made.take()
    assert len(step.adds) == 10


def contents(number: int) -> tuple[int, int]:
    """Of the program before the step with this number."""
    return number, number


def test_journal_that_remembers_goes_on_from_a_known_content() -> None:
    made = journal.Journal()
    made.remember()
    for number in range(5):
        made.add(delta(number), contents(number))
    assert not made.is_whole
    found = made.resume(lambda content: content == contents(3))
    assert found == [delta(3), delta(4)]
    assert made.is_whole
    made.add(delta(5), contents(5))
    (step,) = made.take()
    assert set(step.adds) == {flow for number in (3, 4, 5) for flow in delta(number).adds}


def test_unknown_content_leaves_the_journal_as_it_is() -> None:
    made = journal.Journal()
    made.remember()
    made.add(delta(0), contents(0))
    assert made.resume(lambda content: content == contents(1)) is None
    assert made.remembers
    assert not made.is_whole


def test_journal_remembers_the_last_changes_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_REMEMBERED", 3)
    made = journal.Journal()
    made.remember()
    for number in range(10_000):
        made.add(delta(number), contents(number))
        assert len(made._steps) <= 3
    assert made.resume(lambda content: content == contents(9_996)) is None
    assert made.resume(lambda content: content == contents(9_997)) is not None


def test_change_in_parts_is_remembered_with_what_was_before_it() -> None:
    made = journal.Journal()
    made.remember()
    made.hold(contents(7))
    made.add(delta(1), contents(7))
    made.add(delta(2), contents(8))
    made.release()
    found = made.resume(lambda content: content == contents(7))
    assert found is not None
    assert [len(step.adds) for step in found] == [2]


def test_undone_change_leaves_what_was_before() -> None:
    group = Group(0x10, "hash", (), ())
    flow = delta(1).adds[0]
    cookies, groups = {flow.cookie, 2}, {group.id: group}
    step = Delta(adds=(flow,), deletes=(3,), groups_set=(GroupChange(group),), groups_delete=(9,))
    journal.undo(step, cookies, groups)
    assert cookies == {2, 3}
    # What a deleted group was is unknown.
    assert groups == {9: None}
