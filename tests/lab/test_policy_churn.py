"""Ten changes of policies, labels and pods a second, while new connections begin all the time.

`SLUICE_CHURN_SECONDS=300` has it run for five minutes.
"""

import os
import time
from collections.abc import Iterator

import pytest

from lab import Lab
from lab.patience import PATIENCE
from tests.lab.losses import overflows
from tests.lab.policy_churn import ALWAYS_PODS, Churn, Traffic
from tests.lab.test_policy import denials

SECONDS = float(os.environ.get("SLUICE_CHURN_SECONDS") or 10)
"""Of each test."""
EPISODE = 5.0
"""Seconds until what has passed is looked at."""

pytestmark = pytest.mark.timeout(600 + 3 * SECONDS * PATIENCE)


@pytest.fixture(scope="module")
def churn(lab: Lab) -> Churn:
    """The pods of `policy_churn` in the lab of conftest.py."""
    churn = Churn(lab)
    churn.prepare()
    return churn


@pytest.fixture(scope="module")
def traffic(churn: Churn) -> Iterator[Traffic]:
    with Traffic.of(churn) as traffic:
        yield traffic


@pytest.mark.parametrize("with_pods", [False, True], ids=["policies and labels", "and pods"])
def test_what_no_state_allows_never_passes_and_what_all_allow_always_does(
    churn: Churn, traffic: Traffic, with_pods: bool
) -> None:
    churn.with_pods = with_pods
    sent = lost = excused = 0
    end = time.monotonic() + SECONDS
    with churn.running():
        while time.monotonic() < end:
            before, pods = overflows(churn.lab), churn.pods_changed
            with traffic.flowing() as passed:
                time.sleep(EPISODE)
            assert not passed.leaked
            lost_now = sum(map(len, passed.lost.values()))
            excused_now = overflows(churn.lab) - before
            # In the userspace datapath a change of ports may cost a tunnel a packet (`pings`).
            excused_now += churn.pods_changed + 2 - pods if with_pods else 0
            assert lost_now <= excused_now, passed.lost
            sent += sum(passed.sent.values())
            lost += lost_now
            excused += excused_now
    print(f"\n{churn.changes} changes, {sent} packets, {lost} of them lost, {excused} excused")
    for pod, node in ALWAYS_PODS.items():
        assert set(denials(churn.lab, node, pod).values()) == {0}, pod
