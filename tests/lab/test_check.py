"""`sluice check` and `sluice bundle` on a running lab."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from tests.waiting import wait_until


def sluice(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    lab.pod_add("default", "a", "node1")
    # The agents are asked as soon as they have fetched their first questions.
    wait_until(lambda: json.loads(checked(lab, "--json").stdout)["unanswered"] == {})
    return lab


def checked(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return sluice("check", "--lab", lab.name, *words)


def test_nothing_is_wrong_in_a_healthy_cluster(lab: Lab) -> None:
    done = checked(lab)
    assert (done.returncode, done.stdout, done.stderr) == (
        0, "node1: nothing is wrong\nnode2: nothing is wrong\n", ""
    )  # fmt: skip


@contextmanager
def between_nodes(lab: Lab, rule: str) -> Iterator[None]:
    """The network between the nodes does something to packets."""
    lines = ["add table bridge t", "add chain bridge t c { type filter hook forward priority 0; }"]
    for line in (*lines, f"add rule bridge t c {rule}"):
        lab.exec("fabric", ["nft", line])
    try:
        yield
    finally:
        lab.exec("fabric", ["nft", "delete table bridge t"])


def test_blocked_tunnel_is_found_by_both_ends(lab: Lab) -> None:
    with between_nodes(lab, "udp dport 6081 drop"):
        done = checked(lab)
    assert done.returncode == 1
    for text in (
        "node1: 1 error\n  error  Node node2 (172.30.1.2): nothing comes through the tunnel",
        "node2: 1 error\n  error  Node node1 (172.30.1.1): nothing comes through the tunnel",
        "cure: open UDP port 6081 between all nodes",
    ):
        assert text in done.stdout


def test_small_path_and_leftovers_are_found_on_one_node(lab: Lab) -> None:
    lab.exec("node1", ["nft", "add table ip kube-proxy"])
    try:
        with between_nodes(lab, "meta length gt 1400 drop"):
            done = checked(lab, "node1", "--json")
    finally:
        lab.exec("node1", ["nft", "delete table ip kube-proxy"])
    (node,) = json.loads(done.stdout)["nodes"]
    subjects = {each["subject"]: each for each in node["findings"]}
    assert set(subjects) == {"Node node2 (172.30.1.2)", "table ip kube-proxy"}
    assert "cluster.mtu: 13" in subjects["Node node2 (172.30.1.2)"]["cure"]


def test_bundle_has_the_flows_of_the_switches(lab: Lab, tmp_path: Path) -> None:
    lab.exec("node2", ["ovs-ofctl", "add-flow", "br-int", "table=100,priority=9,udp,actions=drop"])
    path = tmp_path / "b.tar.zst"
    try:
        made = sluice("bundle", "--lab", lab.name, "-o", path)
        assert (made.returncode, made.stderr) == (0, "")
        assert "flows of 2 nodes" in made.stdout
        for words in (
            ["node1"],
            ["node2", "--table", "Forwarding"],
            ["--pod", "default/a"],
            ["node1", "--pod", "default/a", "--raw"],
        ):
            live = rows(sluice("flows", *words, "--json", "--lab", lab.name))
            assert rows(sluice("--from", path, "flows", *words, "--json")) == live
            assert live
        recorded = json.loads(sluice("--from", path, "flows", "node2", "--json").stdout)["flows"]
        assert {row["state"] for row in recorded} == {"installed", "foreign"}
        assert any(row["packets"] for row in recorded)
    finally:
        lab.exec("node2", ["ovs-ofctl", "del-flows", "br-int", "table=100,udp"])
    status = sluice("--from", path, "status")
    assert (status.returncode, status.stdout.splitlines()[0]) == (
        0, "switches: 2 of 2 in sync, 2 connected; 1 pod attached"
    )  # fmt: skip
    assert "nothing is wrong" in sluice("--from", path, "check").stdout


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Without the counters, which go on."""
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["flows"]
    return [{**row, "packets": 0, "bytes": 0} for row in found]
