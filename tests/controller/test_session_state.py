"""The states of a session: every event that may come, in every state, has a place to go."""

import pytest

from controller.session_state import EXTERNAL, PENDING, TRANSITIONS, WORKING, Event, State

CHANGES = EXTERNAL - {Event.FOLLOW}
"""What may happen to a session of a controller that leads."""
ROUND = (Event.FOUND, Event.SENT, Event.SENT_PARTLY, Event.FAILED)
"""What a round of work tells."""


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", sorted(EXTERNAL, key=lambda event: event.name))
def test_external_events_may_come_in_any_state(state: State, event: Event) -> None:
    after = TRANSITIONS[state, event]
    if event is Event.FOLLOW or state is State.STANDBY:
        # Another controller does it, and `LEAD` compares the switch.
        assert after is State.STANDBY
    else:
        # None of them is lost: the session has something to do, or reads the programs yet.
        assert after in PENDING or after in {State.COMPARING, State.REPAIRING}


@pytest.mark.parametrize("state", sorted(PENDING, key=lambda state: state.name))
def test_round_can_begin_or_be_skipped_whenever_there_is_something_to_do(state: State) -> None:
    assert TRANSITIONS[state, Event.STARTED] in WORKING
    assert TRANSITIONS[state, Event.NODE_LOST] is State.PAUSED


@pytest.mark.parametrize("state", sorted(WORKING, key=lambda state: state.name))
def test_round_may_fail_at_any_time_and_then_the_switch_is_compared(state: State) -> None:
    reached = {state} | {TRANSITIONS[state, event] for event in CHANGES}
    for each in reached:
        assert TRANSITIONS[each, Event.FAILED] in {State.UNKNOWN, State.RETRY}


def test_round_can_end_after_any_event() -> None:
    for start in PENDING:
        states = {TRANSITIONS[start, Event.STARTED]}
        states |= {TRANSITIONS[each, event] for each in states for event in CHANGES}
        if TRANSITIONS[start, Event.STARTED] is not State.UPDATING:
            states = {TRANSITIONS[each, Event.FOUND] for each in states}
        states |= {TRANSITIONS[each, event] for each in states for event in CHANGES}
        for each in states:
            after = TRANSITIONS[each, Event.SENT]
            assert after in PENDING | {State.IN_SYNC}
            assert (after is State.IN_SYNC) == (each is State.UPDATING)


def test_only_a_session_in_sync_can_drift() -> None:
    assert [state for state, event in TRANSITIONS if event is Event.DRIFTED] == [State.IN_SYNC]


def test_every_state_can_be_reached_and_left() -> None:
    reached, waiting = {State.UNKNOWN}, [State.UNKNOWN]
    while waiting:
        state = waiting.pop()
        following = {to for (start, _), to in TRANSITIONS.items() if start is state} - reached
        reached |= following
        waiting += following
    assert reached == set(State)
    assert {start for start, _ in TRANSITIONS} == set(State)


def test_standby_has_nothing_to_do() -> None:
    assert State.STANDBY not in PENDING | WORKING
    entered = {event for (_, event), to in TRANSITIONS.items() if to is State.STANDBY}
    assert entered == EXTERNAL | {*ROUND, Event.NODE_LOST}
    assert (State.STANDBY, Event.STARTED) not in TRANSITIONS


@pytest.mark.parametrize("event", ROUND)
def test_round_that_goes_on_after_its_term_changes_nothing(event: Event) -> None:
    assert TRANSITIONS[State.STANDBY, event] is State.STANDBY


def test_new_leader_compares_a_switch_whatever_a_round_of_its_last_term_tells() -> None:
    assert [state for state, event in TRANSITIONS if event is Event.LEAD] == [State.STANDBY]
    state = TRANSITIONS[State.STANDBY, Event.LEAD]
    assert state is State.UNKNOWN
    assert {TRANSITIONS[state, event] for event in ROUND} == {State.UNKNOWN}
