"""`make soak` for a moment, and that it sees what is wrong."""

import subprocess
import sys

import pytest

from lab import Lab
from lab.soak import ExpectedLoss, disagreements, is_expected, left_over
from lab.traces import traces
from lab.traffic import Outage
from tests.waiting import wait_until


@pytest.mark.timeout(900)
def test_short_soak_finds_no_fault(name: str) -> None:
    options = ["--name", name, "--nodes", "2", "--minutes", "0.2", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, "-m", "lab.soak", *options],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--seed 7" in done.stdout
    assert "Compiled, installed and reachable agree" in done.stdout
    assert not Lab(name).down(), "it was not taken down"


@pytest.mark.parametrize("lab", [{"nodes": 1}], indirect=True, ids=["1 node"])
def test_soak_notices_changes_by_hand(lab: Lab) -> None:
    before = {"node1": traces(lab, "node1")}
    lab.pod_add("default", "a", "node1")
    wait_until(lambda: disagreements(lab, "node1") == [])
    (left,) = (line for line in left_over(lab, before, patience=0) if "leases" in line)
    assert left.startswith("node1: leases were nothing, are (")
    # Without its agent nobody finds out, and so nobody mends it.
    lab.kill_daemon("node1", "agent")
    for words, complaint in {
        "del-flows br-int table=10": "missing: cookie=",
        "mod-flows br-int table=30,actions=drop": "altered: cookie=",
        "add-flow br-int cookie=0x0100000000000bad,table=30,priority=1,actions=drop": "stale: ",
    }.items():
        lab.exec("node1", ["ovs-ofctl", "-O", "OpenFlow15", *words.split()])
        found = disagreements(lab, "node1")
        assert any(line.startswith(complaint) for line in found), found
    # The second opinion, which the controller has no part in.
    assert any(line.startswith("compiled, not installed: ") for line in found)
    assert any(line.startswith("installed, not compiled: ") for line in found)
    lab.up()
    wait_until(lambda: disagreements(lab, "node1") == [])
    lab.pod_del("default", "a")
    assert left_over(lab, before) == []


def outage(first: float, last: float) -> Outage:
    return Outage(first, last, None, 1)


@pytest.mark.parametrize(
    ("lost", "nodes", "is_allowed"),
    [
        (outage(15, 15), ("node1", "node2"), True),
        (outage(9.5, 20.5), ("node2", "node1"), True),
        (outage(15, 15), ("node2", "node3"), False),
        (outage(15, 15), ("node1", "node1"), False),
        (outage(15, 40), ("node1", "node2"), False),
        (outage(30, 30), ("node1", "node2"), False),
        (outage(15, 25), ("node1", "node3"), True),
        (outage(15, 25), ("node3", "node3"), False),
        (outage(25, 25), ("node3", "node3"), True),
    ],
)
def test_loss_is_expected_by_its_cause_only(
    lost: Outage, nodes: tuple[str, str], is_allowed: bool
) -> None:
    expected = [
        ExpectedLoss("tampering", frozenset({"node3"}), tunnels_only=False, begin=20, end=28),
        ExpectedLoss("a cut link", frozenset({"node1"}), tunnels_only=True, begin=10, end=20),
    ]
    assert is_expected(lost, nodes, expected) == is_allowed
