"""One node at a time answers ARP for an address of a Service; see `controller.address_owners`.

Somebody on the link asks every 10 ms, and notes all answers. How long a move takes is printed, and
measured by `bench.failover`.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from lab import Lab
from lab.link_addresses import (
    POOL,
    agent_pid,
    cut_from_controllers,
    drain,
    moved,
    owner,
    row,
    serve,
    set_link,
    watched,
)

ADDRESS = "172.30.200.1"

pytestmark = pytest.mark.parametrize("lab", [{"nodes": 3, "tls": True}], indirect=True)


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """Three nodes, a pool of addresses on their link, and a Service."""
    lab.apply(POOL)
    serve(lab, "web", "10.96.0.50", ADDRESS)
    owner(lab, ADDRESS)
    return lab


def test_one_node_answers(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        assert [each.node for each in watch.stop().owners] == [node]
    found = row(lab, ADDRESS)
    assert found["reason"].startswith("the first of 3 candidates")
    assert found["candidates"][0]["node"] == node


def test_address_moves_when_its_node_dies_and_stays_when_that_returns(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        set_link(lab, node, "down")
        since = time.monotonic()
        lab.kill_daemon(node, "agent")
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.3)
        lab.start_daemon(node, "agent")
        set_link(lab, node, "up")
        time.sleep(3)  # in which nothing may happen
        print(f"moved {moved(watch.stop(), since):.3f} s after the node's death")
    assert "keeps it" in row(lab, ADDRESS)["reason"]


def test_address_moves_when_its_node_is_drained(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        since = time.monotonic()
        drain(lab, node, unschedulable=True)
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.3)
        print(f"moved {moved(watch.stop(), since):.3f} s after the drain")
    drain(lab, node, unschedulable=False)


def test_owner_that_is_cut_off_from_the_controller_is_silent_before_another_one_answers(
    lab: Lab,
) -> None:
    """It is still on the link. When it returns, nothing has changed in the cluster."""
    with watched(lab, ADDRESS) as (node, watch):
        since = time.monotonic()
        with cut_from_controllers(lab, node, "control"):
            owner(lab, ADDRESS, other_than=node)
            time.sleep(1)
        time.sleep(3)  # in which nothing may happen
        print(f"moved {moved(watch.stop(), since):.3f} s after the cut")


def test_agent_that_is_stopped_and_continued_does_not_answer(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        pid = agent_pid(lab, node)
        since = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            owner(lab, ADDRESS, other_than=node)
            time.sleep(3)
        finally:
            os.kill(pid, signal.SIGCONT)
        # All that was asked meanwhile waits in its socket.
        time.sleep(2)
        print(f"moved {moved(watch.stop(), since):.3f} s after the stop")


def test_owner_keeps_the_address_when_the_controller_starts_again(lab: Lab) -> None:
    """Or another node has it: the controller may take longer than the owner may keep it."""
    with watched(lab, ADDRESS) as (_, watch):
        since = time.monotonic()
        lab.kill_daemon("control", "controller")
        lab.start_daemon("control", "controller")
        owner(lab, ADDRESS)
        until = time.monotonic()
        found = watch.stop()
    for before, after in zip(found.owners, found.owners[1:], strict=False):
        assert before.last < after.first
    assert len(found.owners) <= 2
    print(f"nobody answered for {found.longest_silence(since, until):.3f} s")


def test_agent_that_starts_again_takes_its_address_back_or_another_node_does(lab: Lab) -> None:
    with watched(lab, ADDRESS) as (node, watch):
        since = time.monotonic()
        os.kill(agent_pid(lab, node), signal.SIGTERM)
        owner(lab, ADDRESS, other_than=node)
        time.sleep(0.3)
        print(f"moved {moved(watch.stop(), since):.3f} s after the agent's end")
    lab.kill_daemon(node, "agent")
    lab.start_daemon(node, "agent")
