"""Daemons end in the middle of changes of policies."""

from collections.abc import Iterator

import pytest

from lab import Lab
from tests.lab.policy_churn import Churn, Traffic
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
