"""Ten changes of policies, labels and pods a second, while new connections begin all the time.

`make churn` has each test run for five minutes.
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
    sent = lost = 0
    denied = always_denied(churn.lab)
    end = time.monotonic() + SECONDS
    with churn.running():
        while time.monotonic() < end:
            before = overflows(churn.lab)
            with traffic.flowing() as passed:
                time.sleep(EPISODE)
            assert not passed.leaked
            assert always_denied(churn.lab) == denied
            counted = {
                probe: len(numbers)
                for probe, numbers in passed.lost.items()
                # In the userspace datapath a change of ports may cost a tunnel some packets.
                if not with_pods or ALWAYS_PODS[probe.source] == ALWAYS_PODS[probe.destination]
            }
            excused = overflows(churn.lab) - before
            assert sum(counted.values()) <= excused, counted
            sent += sum(passed.sent.values())
            lost += sum(map(len, passed.lost.values()))
    print(f"\n{churn.changes} changes, {sent} packets, {lost} of them lost")


def always_denied(lab: Lab) -> dict[str, dict[str, int]]:
    """What was denied to or from the pods whose packets are always allowed."""
    return {pod: denials(lab, node, pod) for pod, node in ALWAYS_PODS.items()}
