"""Addresses on the link while leaders change, and while nobody leads."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from lab import Lab
from lab.link_addresses import POOL, cut_from_controllers, moved, owner, row, serve, watched
from lab.replicas import leader
from tests.waiting import wait_until

ADDRESS = "172.30.200.1"
CONTROLLERS = ("control", "control2")

pytestmark = pytest.mark.parametrize(
    "lab", [{"nodes": 3, "source": "kube", "controllers": 2}], indirect=True
)


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """Three nodes, two controllers, and a Service with an address."""
    lab.apply(POOL)
    serve(lab, "web", "10.96.0.50", ADDRESS)
    owner(lab, ADDRESS)
    return lab


def test_killed_leader_makes_no_gap(lab: Lab) -> None:
    for _ in range(2):
        victim = leader(lab)
        with watched(lab, ADDRESS) as (node, watch):
            since = time.monotonic()
            lab.kill_daemon(victim, "controller")
            wait_until(lambda v=victim: leader(lab) != v)  # type: ignore[misc]
            time.sleep(5)
            found = watch.stop()
        assert [each.node for each in found.owners] == [node]
        print(f"nobody answered for {found.longest_silence(since, found.said[-1]):.3f} s")
        lab.start_daemon(victim, "controller")
        wait_until(lambda: row(lab, ADDRESS).get("owner") == node)


def test_owner_keeps_it_while_the_api_server_is_away_and_nobody_leads(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        since = time.monotonic()
        lab.kill_daemon("control", "kube-apiserver")
        time.sleep(12)  # more than a term, and than the Lease lasts
        lab.start_daemon("control", "kube-apiserver")
        leader(lab)
        time.sleep(4)
        found = watch.stop()
    assert [each.node for each in found.owners] == [node]
    print(f"nobody answered for {found.longest_silence(since, found.said[-1]):.3f} s")


def test_owner_is_silent_if_it_reaches_no_controller_while_nobody_leads(lab: Lab) -> None:
    """Or only one of two: the other one could lead, as far as it knows."""
    for cut in (CONTROLLERS, CONTROLLERS[1:]):
        with watched(lab, ADDRESS) as (node, watch):
            lab.kill_daemon("control", "kube-apiserver")
            time.sleep(6)
            since = time.monotonic()
            with cut_from_controllers(lab, node, *cut):
                time.sleep(4)
                silent_at = time.monotonic()
            lab.start_daemon("control", "kube-apiserver")
            leader(lab)
            owner(lab, ADDRESS)
            time.sleep(2)
            found = watch.stop()
        for before, after in zip(found.owners, found.owners[1:], strict=False):
            assert before.last < after.first
        last = max(at for at in found.said if at < silent_at)
        print(f"silent {last - since:.3f} s after the cut; {len(found.owners)} owners")
        assert last < silent_at - 0.5


def test_stopped_leader_that_goes_on_grants_nothing(lab: Lab) -> None:
    """Meanwhile the owner is cut off from its successor, and loses the address."""
    victim = leader(lab)
    other = next(each for each in CONTROLLERS if each != victim)
    pid = int(lab.status()["controllers"][victim]["pid"])
    with watched(lab, ADDRESS) as (node, watch), cut_from_controllers(lab, node, other):
        os.kill(pid, signal.SIGSTOP)
        since = time.monotonic()
        try:
            wait_until(lambda: leader(lab) == other)
            owner(lab, ADDRESS, other_than=node)
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(3)
        print(f"moved {moved(watch.stop(), since):.3f} s after the stop")
