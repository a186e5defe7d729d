"""The state of a session, from what ExaBGP says."""

from bgp.events import Counted, Down, Negotiated, StateChanged, Up, decode, reason_of
from bgp.session import RESTLESS_SESSIONS, SessionState
from wire.bgp import FLAP_SECONDS


def established(at: float = 10.0) -> SessionState:
    state = SessionState("leaf1", 0.0)
    for event in (
        StateChanged("Connect"),
        StateChanged("OpenSent"),
        Negotiated(add_path=True),
        StateChanged("OpenConfirm"),
        StateChanged("Established"),
        Up(),
    ):
        state.take(event, at)
    return state


def test_a_session_is_established_since_it_is_up() -> None:
    report = established().report(20.0)
    assert (report.state, report.since, report.add_path) == ("Established", 10.0, True)


def test_a_session_that_ends_is_remembered_for_a_while() -> None:
    state = established()
    state.take(Down("notification received (6,2)"), 30.0)
    report = state.report(31.0)
    assert (report.state, report.since, report.ended, report.add_path) == ("Idle", 30.0, 1, None)
    assert state.report(31.0 + FLAP_SECONDS).ended == 0


def test_attempts_do_not_change_since_when_there_is_no_session() -> None:
    state = SessionState("leaf1", 5.0)
    for at in (6.0, 7.0):
        state.take(StateChanged("Connect"), at)
        state.take(Down("closing connection"), at)
    assert (state.report(8.0).since, state.report(8.0).ended) == (5.0, 0)


def test_a_connection_that_ends_says_nothing_unless_there_was_a_session() -> None:
    state = SessionState("leaf1", 5.0)
    state.take(Down("closing connection"), 6.0)
    assert state.report(7.0).reason == ""
    state = established()
    state.take(Down("closing connection"), 11.0)
    state.take(Down("closing connection"), 12.0)
    assert state.report(13.0).reason == "the connection was lost"


def test_a_session_that_ends_all_the_time_is_restless() -> None:
    state = established()
    for number in range(RESTLESS_SESSIONS):
        assert not state.is_restless(20.0)
        state.take(Down(""), 11.0 + number / 10)
        state.take(Up(), 11.0 + number / 10)
    assert state.is_restless(20.0)
    assert not state.is_restless(100.0)


def test_what_was_received_ends_with_the_session() -> None:
    state = established()
    state.take(Counted(7, default_route=True, claimed=("10.0.0.0/8",)), 11.0)
    assert state.report(12.0).received == 7
    state.take(StateChanged("Idle"), 13.0)
    assert (state.report(14.0).received, state.report(14.0).claimed) == (0, ())


def test_numbers_of_notifications_get_their_names() -> None:
    assert reason_of("notification sent (2,2)") == "we sent the notification 2/2: bad peer AS"
    assert reason_of("notification received (6,9)") == "the peer sent the notification 6/9: cease"
    assert reason_of("notification sent (99,1)") == "we sent the notification 99/1: unknown error"
    assert reason_of("closing connection") == "closing connection"
    assert reason_of("notification sent (a,b)") == "notification sent (a,b)"


def test_lines_that_say_nothing_are_ignored() -> None:
    for line in (b"", b"reload in progress", b"{", b'{"type": 1}', b'{"type": "signal"}', b"[1]"):
        assert decode(line) is None
    assert decode(b"{" * 100_000) is None
