"""Daemons end in the middle of a change of policies: what is closed in every state stays closed."""

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
    [("control", "controller"), ("node1", "agent"), ("node2", "ovs-vswitchd")],
    ids=["controller", "agent", "ovs-vswitchd"],
)
def test_restart_in_the_middle_of_changes_opens_nothing(
    churn: Churn, traffic: Traffic, where: str, daemon: str
) -> None:
    with churn.running(), traffic.flowing() as passed:
        for number in (1, 2):
            wait_until(lambda to=churn.changes + number: churn.changes > to)
            churn.lab.kill_daemon(where, daemon)
            wait_until(lambda to=churn.changes + number: churn.changes > to)
            if where == "control":
                churn.lab.start_control()
            else:
                churn.lab.start_daemon(where, daemon)
        wait_until(lambda to=churn.changes + 5: churn.changes > to)
    assert not passed.leaked
    traffic.check()
