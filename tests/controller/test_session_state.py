"""The states of a session: every event that may come, in every state, has a place to go."""

import pytest

from controller.session_state import EXTERNAL, PENDING, TRANSITIONS, WORKING, Event, State


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", sorted(EXTERNAL, key=lambda event: event.name))
def test_external_events_may_come_in_any_state(state: State, event: Event) -> None:
    after = TRANSITIONS[state, event]
    # None of them is lost: the session has something to do, or reads the programs yet.
    assert after in PENDING or after in {State.COMPARING, State.REPAIRING}


@pytest.mark.parametrize("state", sorted(PENDING, key=lambda state: state.name))
def test_round_can_begin_or_be_skipped_whenever_there_is_something_to_do(state: State) -> None:
    assert TRANSITIONS[state, Event.STARTED] in WORKING
    assert TRANSITIONS[state, Event.NODE_LOST] is State.PAUSED


@pytest.mark.parametrize("state", sorted(WORKING, key=lambda state: state.name))
def test_round_may_fail_at_any_time_and_then_the_switch_is_compared(state: State) -> None:
    reached = {state} | {TRANSITIONS[state, event] for event in EXTERNAL}
    for each in reached:
        assert TRANSITIONS[each, Event.FAILED] in {State.UNKNOWN, State.RETRY}


def test_round_can_end_after_any_event() -> None:
    for start in PENDING:
        states = {TRANSITIONS[start, Event.STARTED]}
        states |= {TRANSITIONS[each, event] for each in states for event in EXTERNAL}
        if TRANSITIONS[start, Event.STARTED] is not State.UPDATING:
            states = {TRANSITIONS[each, Event.FOUND] for each in states}
        states |= {TRANSITIONS[each, event] for each in states for event in EXTERNAL}
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
