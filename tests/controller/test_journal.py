"""The journal of one node's program has a bound, also within one change."""

import pytest

from controller import journal
from flows.diff import Delta
from flows.pipeline import LAYOUT, Feature


def delta(number: int) -> Delta:
    flow = LAYOUT.flow(Feature.POLICY, "PolicyWalk", 1, {"Walk": number}, [], "a walk")
    return Delta(adds=(flow,))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> journal.Journal:
    """A small journal, in the middle of a change."""
    monkeypatch.setattr(journal, "MAX_COST", 10)
    made = journal.Journal()
    made.restart()
    made.hold()
    return made


def test_change_that_is_too_large_is_not_kept_until_it_is_complete(made: journal.Journal) -> None:
    for number in range(100):
        made.add(delta(number))
        assert len(made._held or ()) <= 11
    made.release()
    assert not made.is_whole
    assert not made.take()


def test_change_that_fits_is_one_step(made: journal.Journal) -> None:
    for number in range(10):
        made.add(delta(number))
    made.release()
    (step,) = made.take()
    assert len(step.adds) == 10
