"""Daemons end in the middle of changes of policies."""

from collections.abc import Iterator

import pytest

from lab import Lab
from tests.lab.policy_churn import BY_POLICY, NEVER_PODS, Churn, Passed, Traffic, both_ends
from tests.lab.test_restart import snapshot, wait_for_snapshot
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def churn(lab: Lab) -> Churn:
    """The pods of `policy_churn` in the lab of conftest.py; none comes or goes later."""
    churn = Churn(lab, with_pods=False)
    churn.prepare()
    return churn


@pytest.fixture(scope="module")
def traffic(churn: Churn) -> Iterator[Traffic]:
    with Traffic.of(churn) as traffic:
        yield traffic


@pytest.mark.parametrize(
    ("where", "daemon"),
    [("control", "controller"), ("node1", "agent")],
    ids=["controller", "agent"],
)
def test_after_a_restart_in_the_middle_of_changes_the_last_state_is_in_force(
    churn: Churn, traffic: Traffic, where: str, daemon: str
) -> None:
    """While a daemon is away the state changes; the switches then get the new one at once."""
    with churn.running():
        for number in (1, 2):
            wait_until(lambda to=churn.changes + number: churn.changes > to)
            churn.lab.kill_daemon(where, daemon)
            wait_until(lambda to=churn.changes + number: churn.changes > to)
            if where == "control":
                churn.lab.start_control()
            else:
                churn.lab.start_daemon(where, daemon)
    traffic.check()


def leaked_within(passed: Passed, node: str) -> list[object]:
    """What has passed that never may, between two pods of a node: one switch has judged it."""
    return [
        probe
        for probe in passed.leaked
        if NEVER_PODS[probe.source] == NEVER_PODS[probe.destination] == node
    ]


def restart_switch(lab: Lab) -> None:
    lab.kill_daemon("node1", "ovs-vswitchd")
    lab.start_daemon("node1", "ovs-vswitchd")


def test_switch_that_restarts_in_the_middle_of_changes_opens_nothing(
    churn: Churn, traffic: Traffic
) -> None:
    """Nor does it stay closed."""
    wait_for_snapshot(churn.lab)
    with traffic.flowing() as passed, churn.running():
        for number in (1, 2):
            wait_until(lambda to=churn.changes + number: churn.changes > to)
            restart_switch(churn.lab)
            wait_until(lambda to=churn.changes + number: churn.changes > to)
    assert not leaked_within(passed, "node1")
    traffic.check()


def test_snapshot_that_is_older_than_a_policy_opens_nothing(churn: Churn, traffic: Traffic) -> None:
    """What both states deny stays denied, also until the controller has corrected the switch."""
    lab = churn.lab
    lab.apply(both_ends(BY_POLICY[:2]))
    traffic.check()
    wait_for_snapshot(lab)
    older = snapshot(lab).read_bytes()
    lab.apply(both_ends(BY_POLICY[2:]))
    wait_until(lambda: snapshot(lab).read_bytes() != older)
    wait_for_snapshot(lab)
    lab.kill_daemon("node1", "agent")
    snapshot(lab).write_bytes(older)
    with traffic.flowing() as passed:
        restart_switch(lab)
        lab.start_daemon("node1", "agent")
        # The switch has the older state until its controller has corrected it.
        wait_until(lambda: snapshot(lab).read_bytes() != older)
        wait_for_snapshot(lab)
    assert not leaked_within(passed, "node1")
    traffic.check()
