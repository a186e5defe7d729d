"""What a node has, by its own clock."""

from ipaddress import IPv4Address

from node_agent.address_holds import Holds
from wire.address_grants import LIFETIME, Granted

ADDRESS = IPv4Address("192.0.2.1")
GRANT = (ADDRESS, 5)


def granted(*grants: tuple[IPv4Address, int]) -> Granted:
    return Granted("x", leads=True, granted=grants)


def holding() -> Holds:
    """It has the address from 100 on, as the controller 0 of two said."""
    holds = Holds((0, 1))
    new = holds.answered(0, granted(GRANT), {ADDRESS}, sent=100.0, now=100.2)
    assert new == [ADDRESS]
    return holds


def test_it_has_an_address_for_the_lifetime_from_when_it_asked() -> None:
    holds = holding()
    assert holds.has(ADDRESS, 100 + LIFETIME - 0.001)
    assert not holds.has(ADDRESS, 100 + LIFETIME)
    assert holds.current(101.0) == [GRANT]
    assert holds.current(102.0) == []
    assert holds.forget_ended(101.0) == []
    assert holds.forget_ended(102.0) == [ADDRESS]


def test_an_address_that_it_did_not_ask_for_is_ignored() -> None:
    holds = Holds((0,))
    assert holds.answered(0, granted(GRANT), set(), sent=100.0, now=100.0) == []
    assert not holds.has(ADDRESS, 100.0)


def test_an_answer_that_comes_too_late_is_ignored() -> None:
    holds = Holds((0,))
    assert holds.answered(0, granted(GRANT), {ADDRESS}, sent=100.0, now=100 + LIFETIME) == []
    assert holds.held == {}


def test_renewal_counts_from_when_it_was_asked_for() -> None:
    holds = holding()
    holds.answered(0, granted(GRANT), (), sent=101.0, now=101.4)
    assert holds.has(ADDRESS, 101 + LIFETIME - 0.001)
    assert not holds.has(ADDRESS, 101 + LIFETIME)


def test_renewal_of_what_has_ended_meanwhile_is_ignored() -> None:
    """Another node may have it since then."""
    holds = holding()
    holds.answered(0, granted(GRANT), (), sent=101.0, now=100 + LIFETIME)
    assert not holds.has(ADDRESS, 100 + LIFETIME)


def test_an_older_answer_takes_nothing_away() -> None:
    holds = holding()
    holds.answered(0, granted(GRANT), (), sent=99.5, now=100.5)
    assert holds.has(ADDRESS, 100 + LIFETIME - 0.001)


def test_answer_without_the_address_lets_it_end() -> None:
    holds = holding()
    holds.answered(0, granted(), (), sent=101.0, now=101.1)
    assert holds.has(ADDRESS, 101.1)
    assert not holds.has(ADDRESS, 100 + LIFETIME)


def test_what_was_given_up_does_not_come_back() -> None:
    holds = holding()
    assert holds.give_up(ADDRESS) == GRANT
    assert holds.answered(0, granted(GRANT), (), sent=100.3, now=100.4) == []
    assert not holds.has(ADDRESS, 100.4)
    assert holds.give_up(ADDRESS) is None


def said(holds: Holds, controller: int, at: float, leader: str = "") -> None:
    holds.answered(
        controller, Granted(f"c{controller}", leads=False, leader=leader), (), sent=at, now=at
    )


def test_without_a_leader_it_keeps_what_it_has_while_all_controllers_say_so() -> None:
    holds = holding()
    for at in (100.3, 101.0, 102.0, 103.0, 104.0):
        said(holds, 0, at)
        said(holds, 1, at + 0.1)
    assert holds.has(ADDRESS, 104 + LIFETIME - 0.001)
    assert not holds.has(ADDRESS, 104 + LIFETIME)


def test_a_controller_that_is_silent_may_lead() -> None:
    holds = holding()
    for at in (100.3, 100.6, 100.9, 101.2):
        said(holds, 0, at)
    assert not holds.has(ADDRESS, 100 + LIFETIME)


def test_what_a_controller_said_long_ago_counts_no_more() -> None:
    holds = holding()
    said(holds, 1, 100.1)
    for at in (100.3, 101.0, 101.5):
        said(holds, 0, at)
    assert not holds.has(ADDRESS, 100.1 + LIFETIME)


def test_without_a_leader_nothing_that_has_ended_comes_back() -> None:
    holds = holding()
    said(holds, 0, 100 + LIFETIME)
    said(holds, 1, 100 + LIFETIME)
    assert not holds.has(ADDRESS, 100 + LIFETIME)


def test_a_controller_that_knows_of_another_leader_is_believed() -> None:
    holds = holding()
    said(holds, 0, 100.5)
    said(holds, 1, 100.6, leader="third")
    assert not holds.has(ADDRESS, 100 + LIFETIME)
    # It knows late what the leader itself has said already: it leads no more.
    said(holds, 1, 101.0, leader="c0")
    said(holds, 0, 101.0)
    assert holds.has(ADDRESS, 100 + LIFETIME)


def test_a_leader_that_answers_nothing_more_is_no_reason_to_keep_it() -> None:
    holds = holding()
    said(holds, 0, 100.4)
    said(holds, 1, 100.4)
    holds.answered(0, granted(GRANT), (), sent=100.6, now=100.7)
    said(holds, 1, 102.0)
    assert not holds.has(ADDRESS, 100.6 + LIFETIME)


def test_where_no_process_is_nobody_leads_if_another_controller_says_so_too() -> None:
    holds = holding()
    for at in (100.3, 101.0, 102.0):
        said(holds, 0, at)
        holds.refused(1, sent=at, now=at)
    assert holds.has(ADDRESS, 102 + LIFETIME - 0.001)


def test_that_nobody_is_there_alone_is_no_reason_to_keep_it() -> None:
    """A firewall between this node and all controllers may refuse connections."""
    holds = holding()
    for at in (100.3, 101.0):
        for controller in (0, 1):
            holds.refused(controller, sent=at, now=at)
    assert not holds.has(ADDRESS, 100 + LIFETIME)


def test_a_leader_that_another_controller_knows_may_be_behind_a_refused_connection() -> None:
    holds = holding()
    for at in (100.3, 101.0):
        said(holds, 0, at, leader="c1")
        holds.refused(1, sent=at, now=at)
    assert not holds.has(ADDRESS, 100 + LIFETIME)
