"""The election, as one replica sees it: what it takes, renews, gives back and believes."""

import pytest

from controller.election import (
    DURATION,
    LONGEST_DURATION,
    LONGEST_TERM,
    MOST_TRANSITIONS,
    Election,
    Lease,
)

WALL = 1_800_000_000.0
MINUTES = int(WALL) // 60
OTHER = Lease("other", 7, "100", address="192.0.2.2:6654")


def taken(election: Election, now: float, *, delay: float | None = 0.0) -> Lease | None:
    """Write what is due, as an API server that agrees does."""
    wanted = election.due(now, wall=WALL, delay=delay)
    if wanted is not None:
        election.written(written(wanted), now, now)
    return wanted


def written(wanted: Lease) -> Lease:
    version = str(int(wanted.version or "0") + 1)
    return Lease(wanted.holder, wanted.transitions, version, wanted.duration, wanted.address)


def leading(*, transitions: int = 7) -> Election:
    """One that has taken the Lease at 0."""
    election = Election("own")
    election.seen(Lease("", transitions, "100"), 0.0)
    assert taken(election, 0.0)
    assert election.holds(0.0)
    return election


def test_nothing_is_due_before_the_lease_was_read() -> None:
    assert Election("own").due(1e6, wall=WALL) is None


def test_free_lease_is_taken_and_its_transitions_are_raised_at_once() -> None:
    election = Election("own", "192.0.2.1:6654")
    election.seen(Lease("", 7, "100"), 5.0)
    assert taken(election, 5.0) == Lease("own", 8, "100", address="192.0.2.1:6654")
    assert election.term is not None
    assert election.term.generation == election.generation == 8
    assert election.leader(5.0) == "own"


def test_lease_of_another_is_free_when_it_has_not_changed_for_its_duration() -> None:
    election = Election("own")
    election.seen(OTHER, 10.0)
    election.seen(OTHER, 13.0)
    assert taken(election, 10.0 + DURATION - 0.1) is None
    assert election.leader(10.0 + DURATION - 0.1) == "other"
    assert election.leader(10.0 + DURATION) == ""
    assert taken(election, 10.0 + DURATION) == Lease("own", 8, "100")


def test_each_renewal_by_another_begins_the_wait_anew() -> None:
    election = Election("own")
    for second in range(20):
        election.seen(Lease("other", 7, str(100 + second)), float(second))
        assert taken(election, float(second)) is None
    assert election.leader(19.0) == "other"


@pytest.mark.parametrize(("given", "waited"), [(0.5, DURATION), (15, 15), (1e9, LONGEST_DURATION)])
def test_duration_that_somebody_has_set_is_waited_for_within_bounds(
    given: float, waited: float
) -> None:
    election = Election("own")
    election.seen(Lease("other", 7, "100", duration=given), 0.0)
    assert taken(election, waited - 0.1) is None
    assert taken(election, waited) is not None


def test_term_is_counted_from_the_beginning_of_the_request() -> None:
    election = leading()
    wanted = election.due(2.0, wall=WALL)
    assert wanted is not None
    assert wanted.transitions == 8
    # The answer needs 2.5 s.
    election.written(written(wanted), 2.0, 4.5)
    assert election.term is not None
    assert election.term.renewed == 2.0
    assert election.holds(2.0 + LONGEST_TERM - 0.01)
    assert not election.holds(2.0 + LONGEST_TERM)


def test_term_ends_before_anybody_may_take_the_lease() -> None:
    own, other = leading(), Election("other")
    assert own.lease is not None
    other.seen(own.lease, 0.0)
    now = 0.0
    while taken(other, now) is None:
        now += 0.01
    assert not own.holds(now - 0.9)


def test_reading_its_own_lease_renews_no_term() -> None:
    election = leading()
    assert election.lease is not None
    election.seen(election.lease, 2.9)
    assert not election.holds(LONGEST_TERM)


def test_renewal_that_was_executed_late_is_found_and_repeated() -> None:
    """A PUT timed out, and the API server has done it nevertheless."""
    election = Election("own")
    election.seen(Lease("", 7, "100"), 0.0)
    assert election.due(0.0, wall=WALL) is not None
    election.refused()
    assert election.due(2.0, wall=WALL) is None
    election.seen(Lease("own", 8, "101"), 2.0)
    assert not election.holds(2.0)
    assert taken(election, 2.0) == Lease("own", 8, "101")
    assert election.holds(2.0)


def test_lease_that_another_has_taken_ends_the_term_as_soon_as_it_is_read() -> None:
    election = leading()
    election.refused()
    assert election.holds(1.0)
    election.seen(Lease("other", 9, "102"), 1.0)
    assert not election.holds(1.0)
    assert election.generation == 9
    assert taken(election, 1.0) is None


def test_deleted_lease_ends_the_term_and_is_made_anew_with_a_greater_generation() -> None:
    election = leading()
    election.seen(None, 1.0)
    assert not election.holds(1.0)
    assert taken(election, 1.0) == Lease("own", MINUTES + 1, "")
    assert election.holds(1.0)


@pytest.mark.parametrize("wall", [0.0, -1e9, 61.0])
def test_deleted_lease_has_a_greater_generation_whatever_the_clock_says(wall: float) -> None:
    election = leading(transitions=50)
    election.seen(None, 1.0)
    wanted = election.due(1.0, wall=wall)
    assert wanted is not None
    assert wanted.transitions == 52


def test_lease_restored_from_a_backup_is_taken_with_a_greater_generation_than_was_seen() -> None:
    election = Election("own")
    election.seen(Lease("other", 90, "900"), 0.0)
    election.seen(Lease("other", 3, "30"), 1.0)
    assert taken(election, 1.0 + DURATION) == Lease("own", 91, "30")


def test_own_lease_restored_from_a_backup_begins_one_new_term() -> None:
    election = leading(transitions=90)
    election.seen(Lease("own", 40, "30"), 1.0)
    assert not election.holds(1.0)
    assert taken(election, 1.0) == Lease("own", 92, "30")
    # The next one is a renewal.
    assert taken(election, 2.0) == Lease("own", 92, "31")


def test_generation_is_raised_beyond_what_switches_know() -> None:
    election = leading()
    assert election.raised(7) is None
    wanted = election.raised(500)
    assert wanted is not None
    assert (wanted.holder, wanted.transitions) == ("own", 501)
    election.written(written(wanted), 1.0, 1.0)
    assert election.term is not None
    assert election.term.generation == 501
    assert election.raised(1 << 63).transitions == MOST_TRANSITIONS  # type: ignore[union-attr]


def test_lease_of_another_is_not_raised() -> None:
    election = Election("own")
    assert election.raised(5) is None
    election.seen(OTHER, 0.0)
    assert election.raised(500) is None


def test_last_generation_is_renewed_and_never_exceeded() -> None:
    election = leading(transitions=MOST_TRANSITIONS - 1)
    assert election.generation == MOST_TRANSITIONS
    assert election.problem
    assert taken(election, 1.0) is not None
    other = Election("other")
    other.seen(election.lease, 1.0)
    assert taken(other, 100.0) is None
    assert str(MOST_TRANSITIONS) in other.problem
    assert not Election("third").problem


def test_own_lease_restored_after_the_last_generation_is_written_with_the_last_one() -> None:
    election = leading(transitions=MOST_TRANSITIONS - 1)
    election.seen(Lease("own", 40, "30"), 1.0)
    assert taken(election, 1.0) == Lease("own", MOST_TRANSITIONS, "30")
    assert taken(election, 2.0) == Lease("own", MOST_TRANSITIONS, "31")


def test_lease_of_a_dead_holder_is_taken_at_once() -> None:
    election = Election("own")
    election.seen(OTHER, 0.0)
    assert taken(election, 0.1) is None
    election.dead("other")
    assert taken(election, 0.1) == Lease("own", 8, "100")


def test_death_of_a_holder_is_believed_once() -> None:
    election = Election("own")
    election.seen(OTHER, 0.0)
    election.dead("other")
    assert taken(election, 0.0) is not None
    election.seen(Lease("other", 9, "102"), 1.0)
    election.dead("other")
    assert taken(election, 1.0 + DURATION - 0.1) is None
    assert taken(election, 1.0 + DURATION) is not None


def test_death_is_believed_until_the_lease_is_taken() -> None:
    """The last renewal of the dead one was under way."""
    election = Election("own")
    election.seen(OTHER, 0.0)
    election.dead("other")
    assert election.due(0.0, wall=WALL) is not None
    election.refused()
    election.seen(Lease("other", 7, "101"), 0.1)
    assert taken(election, 0.1) == Lease("own", 8, "101")


def test_death_of_somebody_else_frees_no_lease() -> None:
    election = Election("own")
    election.seen(OTHER, 0.0)
    election.dead("third")
    assert taken(election, 0.1) is None


def test_replica_of_little_use_leaves_a_free_lease_to_others_for_a_while() -> None:
    election = Election("own")
    election.seen(Lease("", 7, "100"), 0.0)
    assert taken(election, 1.9, delay=2.0) is None
    assert taken(election, 2.0, delay=2.0) is not None
    late = Election("late")
    late.seen(OTHER, 0.0)
    assert taken(late, DURATION + 1.9, delay=2.0) is None
    assert taken(late, DURATION + 2.0, delay=2.0) is not None
    gone = Election("gone")
    gone.seen(None, 0.0)
    assert taken(gone, 1.9, delay=2.0) is None
    assert taken(gone, 2.0, delay=2.0) is not None


def test_replica_that_cannot_lead_takes_nothing_but_a_leader_goes_on() -> None:
    unfit = Election("unfit")
    unfit.seen(Lease("", 7, "100"), 0.0)
    assert taken(unfit, 1e6, delay=None) is None
    assert taken(leading(), 1.0, delay=None) is not None


def test_given_back_lease_ends_the_term_at_once_and_keeps_its_generation() -> None:
    election = leading()
    wanted = election.release()
    assert not election.holds(0.0)
    assert wanted is not None
    assert (wanted.holder, wanted.transitions, wanted.address) == ("", 8, "")
    election.written(written(wanted), 0.0, 0.0)
    assert election.release() is None
    other = Election("other")
    other.seen(election.lease, 0.5)
    assert taken(other, 0.5) == Lease("other", 9, "102")


def test_lease_of_another_is_not_given_back() -> None:
    election = Election("own")
    assert election.release() is None
    election.seen(OTHER, 0.0)
    assert election.release() is None


def test_who_led_before_is_waited_for_only_if_its_term_may_not_be_over() -> None:
    expired, released, dead, deleted = (Election("own") for _ in range(4))
    expired.seen(OTHER, 10.0)
    assert taken(expired, 10.0 + DURATION)
    assert expired.others_until == 0.0
    released.seen(Lease("", 7, "100"), 10.0)
    assert taken(released, 10.0)
    assert released.others_until == 0.0
    dead.seen(OTHER, 10.0)
    dead.dead("other")
    assert taken(dead, 11.0)
    assert dead.others_until == 11.0 + LONGEST_TERM
    assert taken(dead, 12.0), "its own renewal"
    assert dead.others_until == 11.0 + LONGEST_TERM
    deleted.seen(None, 10.0)
    assert taken(deleted, 11.0)
    assert deleted.others_until == 11.0 + LONGEST_TERM
