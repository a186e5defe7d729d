"""`sluice flows`: what people and scripts read."""

import json
import os
import signal
import subprocess
import sys

import pytest

from flows.pipeline import LAYOUT, Feature
from lab import Lab
from tests.waiting import wait_until


def sluice(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "flows", "--name", lab.name, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    lab.pod_add("default", "a", "node1")
    return lab


def test_flows_are_shown_by_table_with_object_and_reason(lab: Lab) -> None:
    done = sluice(lab, "node1")
    assert (done.returncode, done.stderr) == (0, "")
    titles = [line.split(" (")[0] for line in done.stdout.splitlines() if line[:1].isalpha()]
    assert titles == list(LAYOUT.tables)
    assert "Pod default/a: to this pod  [forwarding, " in done.stdout
    assert "Node node2: to the pods of a peer, through the tunnel  [forwarding, " in done.stdout
    assert "missing" not in done.stdout
    assert "foreign" not in done.stdout


def test_json_has_all_flows_of_the_dump(lab: Lab) -> None:
    done = sluice(lab, "node1", "--json")
    rows = json.loads(done.stdout)["flows"]
    dump = lab.exec("node1", ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"]).stdout
    shown = [f"cookie={int(row['cookie'], 16):#x}," for row in rows]
    assert all(cookie in dump for cookie in shown)
    assert len(shown) == dump.count("cookie=")
    known = {feature.name.lower() for feature in Feature}
    for row in rows:
        assert row["state"] == "installed"
        assert row["feature"] in known
        assert row["object"]
        assert row["reason"]


def test_register_fields_and_ofports_have_names_unless_raw(lab: Lab) -> None:
    shown, raw = (
        sluice(lab, "node1", "--table", "Output", *more).stdout for more in ((), ("--raw",))
    )
    assert "OutputPort=16 (default/a) → output:16 (default/a)\n" in shown
    assert "reg1=0x10 → output:16\n" in raw


def test_one_table_is_shown(lab: Lab) -> None:
    rows = json.loads(sluice(lab, "node1", "--table", "Classifier", "--json").stdout)["flows"]
    assert {row["table"] for row in rows} == {"Classifier"}
    assert [row["object"] for row in rows] == ["Pod default/a", "cluster", "cluster", "cluster"]


def test_changes_by_hand_are_shown_and_repaired(lab: Lab) -> None:
    def by_hand(verb: str, flow: str, table: str = "Forwarding") -> None:
        number = LAYOUT.tables[table].number
        words = ["ovs-ofctl", "-O", "OpenFlow15", verb, "br-int", f"table={number},{flow}"]
        lab.exec("node2", words)

    def states() -> set[str]:
        rows = json.loads(sluice(lab, "node2", "--json").stdout)["flows"]
        return {row["state"] for row in rows}

    agent = lab.status()["nodes"]["node2"]["pids"]["agent"]
    os.kill(agent, signal.SIGSTOP)  # it would have the controller mend it
    try:
        by_hand("add-flow", "priority=9,udp,actions=drop")
        by_hand("del-flows", "ip,nw_dst=10.244.1.0/24", "PeerWay")
        group = ["ovs-ofctl", "-O", "OpenFlow15", "add-group", "br-int", "group_id=7,type=all"]
        lab.exec("node2", group)
        by_hand("mod-flows", "ip,nw_dst=10.96.0.0/16,actions=output:2")
        text = sluice(lab, "node2", "--table", "Forwarding").stdout
        shown = "9  dl_type=0x800,nw_proto=0x11 → drop\n         [foreign] not managed by Sluice"
        assert shown in text
        assert "group 7: [foreign] not managed by Sluice" in text
        peers = sluice(lab, "node2", "--table", "PeerWay").stdout
        assert "[missing] Node node1: to the pods of a peer, through the tunnel" in peers
        assert "→ output:2\n         [altered] cluster: an address of the Service range" in text
    finally:
        os.kill(agent, signal.SIGCONT)
    wait_until(lambda: states() == {"installed", "foreign"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["node7"], "Error: Node node7 is unknown"),
        (["node1", "--table", "Nothing"], "Error: there is no table Nothing; there are Classifier"),
        (["node1", "--name", "nowhere"], "Error: no lab nowhere is up"),
    ],
)
def test_mistakes_get_one_sentence(lab: Lab, words: list[str], sentence: str) -> None:
    done = sluice(lab, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
