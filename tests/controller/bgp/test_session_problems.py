"""What is said about a BGPPeer whose sessions are not as they should be."""

from typing import Any

from controller.bgp.peers import PeerDraft
from controller.bgp.session_problems import problem_of
from tests.controller.bgp.test_peers import bgp_peer, judged
from wire.bgp import Session

NOW = 1_000_000.0


def draft(**spec: Any) -> PeerDraft:
    (found,) = judged(bgp_peer(**spec)).peers
    return found


def session(**more: Any) -> Session:
    return Session(**({"peer": "one", "state": "Established", "since": NOW - 3600} | more))


def said(*sessions: Session, given: PeerDraft | None = None, nodes: tuple[str, ...] = ()) -> str:
    names = nodes or ("",) * len(sessions)
    pairs = list(zip(names, sessions, strict=True))
    return problem_of(given or draft(), pairs, 0, clock=lambda: NOW)


def test_an_established_session_is_no_problem() -> None:
    assert said(session(received=7)) == ""


def test_a_session_gets_some_time_to_be_established() -> None:
    assert said(session(state="Connect", since=NOW - 20)) == ""
    silent = said(session(state="Connect", since=NOW - 40))
    assert silent == "no session: 172.30.0.1 port 179 does not answer, or closes connections"
    # The sentence stays the same, so it is one problem and one Event.
    assert said(session(state="Idle", since=NOW - 4000)) == silent


def test_a_password_is_named_as_a_possible_reason() -> None:
    with_password = draft(passwordSecret={"name": "sluice-bgp"})
    found = said(session(state="Idle"), given=with_password)
    assert found.endswith("; where both sides do not have the same password, it looks the same")


def test_what_a_notification_says_is_passed_on() -> None:
    reason = "we sent the notification 2/2: bad peer AS"
    assert said(session(state="Idle", reason=reason)) == f"no session: {reason}"


def test_a_session_that_does_not_last_is_a_problem_though_it_is_up_now() -> None:
    found = said(session(ended=3, since=NOW - 1))
    assert found == "the session does not last: it ended 3 times or more in 10 minutes"
    assert said(session(ended=2)) == ""


def test_routes_that_should_not_be_there_are_named() -> None:
    found = said(session(default_route=True, claimed=("10.244.1.0/24", "10.244.2.0/24")))
    assert "it announces a default route, which is not used" in found
    assert "it announces 10.244.1.0/24 and others of the cluster's own ranges" in found


def test_nodes_with_one_problem_are_named_together() -> None:
    idle = session(state="Idle", reason="no")
    found = said(idle, idle, session(), idle, idle, nodes=("a", "b", "c", "d", "e"))
    assert found == "from a, b, d and 1 more: no session: no"


def test_routes_that_are_too_many_are_counted() -> None:
    assert problem_of(draft(), [], 7) == "7 routes are too many, and not announced"
