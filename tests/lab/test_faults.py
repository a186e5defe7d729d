"""Everything but the switches is killed, cut off or lied to, under traffic: nothing is lost."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab
from lab.daemons import kill
from lab.traffic import Pinged, ping, stream
from tests.lab.clocks import days_ahead, faked_clock
from tests.lab.losses import overflows
from tests.lab.pings import address
from tests.lab.test_pods import cookies, settled, traces
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.parametrize("lab", [{"source": "kube"}], indirect=True, ids=["kube"]),
    pytest.mark.timeout(600),
]

A, B = "default/a", "default/b"
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py, its cluster from a real API server, with a pod on each node."""
    for pod, node in ((A, "node1"), (B, "node2")):
        lab.pod_add(*pod.split("/"), node)
    return lab


@contextmanager
def nothing_lost(lab: Lab) -> Iterator[list[Pinged]]:
    """What happens inside costs no packet of a ping at 10 ms each way, and no byte of a stream.

    What sockets that nobody read in time have lost does not count (`overflows`). No pod may come
    or go meanwhile: in the userspace datapath that can cost a tunnel a packet
    (docs/lab.md, *Limits*).
    """
    a, b = address(lab, A), address(lab, B)
    found: list[Pinged] = []
    before = overflows(lab)
    with ping(lab, A, b) as there, ping(lab, B, a) as back, stream(lab, A, B, b) as streaming:
        yield found
        there.end()
        back.end()
        found += there.stop(), back.stop()
        for pinged in found:
            assert pinged.sent > 100
            assert pinged.duplicates == 0, pinged
            excused = overflows(lab) - before + pinged.unread
            assert pinged.lost <= excused, (pinged, excused)
        sent, received = streaming.stop()
        assert sent.bytes > 100_000
        assert sent == received


def test_a_loss_by_a_switch_that_does_not_run_is_excused(lab: Lab) -> None:
    switch = lab.status()["nodes"]["node1"]["pids"]["ovs-vswitchd"]
    before = overflows(lab)
    with nothing_lost(lab) as found:
        time.sleep(1)
        os.kill(switch, signal.SIGSTOP)
        # More packets than a socket holds.
        wait_until(lambda: overflows(lab) > before + 50)
        os.kill(switch, signal.SIGCONT)
    assert any(pinged.lost for pinged in found)


def test_a_loss_by_flows_is_not_excused(lab: Lab) -> None:
    agent = lab.status()["nodes"]["node1"]["pids"]["agent"]
    flow = "br-int table=0,priority=65535,icmp,actions=drop"
    ofctl = ["ovs-ofctl", "-O", "OpenFlow15"]

    def lose_pings() -> None:
        with nothing_lost(lab):
            time.sleep(1)
            lab.exec("node1", [*ofctl, "add-flow", *flow.split()])
            time.sleep(0.5)
            lab.exec("node1", [*ofctl, "--strict", "del-flows", *flow.rsplit(",", 1)[0].split()])
            time.sleep(1)

    os.kill(agent, signal.SIGSTOP)  # its audit would have the flow removed
    try:
        with pytest.raises(AssertionError, match="Pinged"):
            lose_pings()
    finally:
        os.kill(agent, signal.SIGCONT)


def pods_can_be_added(lab: Lab) -> None:
    """On both nodes, and nothing of them is left when they are gone."""
    before = {node: traces(lab, node) for node in NODES}
    for node in NODES:
        lab.pod_add("default", f"late-{node}", node)
        lab.exec(f"default/late-{node}", ["ping", "-n", "-c", "2", "-W", "5", address(lab, B)])
    for node in NODES:
        lab.pod_del("default", f"late-{node}")
    for node, wanted in before.items():
        assert settled(lab, node, wanted) == wanted


def pids(lab: Lab) -> dict[str, int]:
    """Every process that may be killed without harm, by a name of ours."""
    status = lab.status()
    return {
        **status["control"]["pids"],
        **{f"agent of {name}": node["pids"]["agent"] for name, node in status["nodes"].items()},
    }


def sessions(lab: Lab) -> dict[str, tuple[bool, bool]]:
    """By node, whether its switch is connected, and in sync; nothing without a controller."""
    status = lab.ask("/v1/status")
    return (
        {name: (node["connected"], node["inSync"]) for name, node in status["nodes"].items()}
        if status
        else {}
    )


ALL_IN_SYNC = dict.fromkeys(NODES, (True, True))


@pytest.mark.parametrize(
    "victims",
    [
        ["controller"],
        ["agent of node1"],
        ["kube-apiserver"],
        ["controller", "agent of node1", "agent of node2", "kube-apiserver", "etcd"],
    ],
    ids=["controller", "agent", "API server", "all at once"],
)
def test_sigkill_costs_nothing(lab: Lab, victims: list[str]) -> None:
    flows = {node: cookies(lab, node) for node in NODES}
    with nothing_lost(lab):
        before = pids(lab)
        kill(before[victim] for victim in victims)
        assert all(pids(lab).get(victim) is None for victim in victims)
        time.sleep(1)  # traffic without them
        assert {node: cookies(lab, node) for node in NODES} == flows
        lab.up()
        after = pids(lab)
        assert {name for name in before if before[name] != after[name]} == set(victims)
        time.sleep(1)  # traffic with the new ones
    pods_can_be_added(lab)
    assert {node: cookies(lab, node) for node in NODES} == flows


@contextmanager
def cut(lab: Lab, end: str) -> Iterator[None]:
    """The wire from the fabric to a node or the control plane has no carrier."""
    lab.exec("fabric", ["ip", "link", "set", end, "down"])
    try:
        yield
    finally:
        lab.exec("fabric", ["ip", "link", "set", end, "up"])


def test_flapping_uplink_costs_what_the_link_loses(lab: Lab) -> None:
    """The measure is a ping between the nodes themselves, which meets no flow of ours."""
    a, b = lab.status()["nodes"]["node2"]["address"], address(lab, B)
    with ping(lab, "node1", a) as bare, ping(lab, A, b) as ours, stream(lab, A, B, b) as streaming:
        for _ in range(5):
            with cut(lab, "node2"):
                time.sleep(0.3)
            # Both get through again before the next time.
            for where, to in (("node1", a), (A, b)):
                lab.exec(where, ["ping", "-n", "-c", "1", "-w", "60", to])
        of_link, of_pods = bare.stop(), ours.stop()
        sent, received = streaming.stop()
    assert sent == received
    assert len(of_link.outages) == 5, of_link
    assert len(of_pods.outages) == 5, of_pods
    for link, pods in zip(of_link.outages, of_pods.outages, strict=True):
        # Who was sent after the link had carried a packet again must have arrived.
        assert link.over is not None
        assert pods.last < link.over, (link, pods)
        assert link.first - 1 < pods.first, (link, pods)
    wait_until(lambda: sessions(lab) == ALL_IN_SYNC)
    pods_can_be_added(lab)


@pytest.mark.parametrize("end", ["control", "node2"])
def test_sessions_come_back_after_a_long_cut(lab: Lab, end: str) -> None:
    """Long enough for the controller to give the switch up; the switch may not know it yet."""
    gone = NODES if end == "control" else ("node2",)

    def cut_until_given_up() -> None:
        with cut(lab, end):
            # A controller that has stepped down tells nothing for a moment.
            unknown = True, True
            wait_until(lambda: not any(sessions(lab).get(node, unknown)[0] for node in gone), 300)

    if end == "control":
        with nothing_lost(lab):
            cut_until_given_up()
            wait_until(lambda: sessions(lab) == ALL_IN_SYNC, 300)
    else:
        cut_until_given_up()
        wait_until(lambda: sessions(lab) == ALL_IN_SYNC, 300)
    with nothing_lost(lab):
        time.sleep(1)
    pods_can_be_added(lab)


def test_stepping_the_controllers_clock_costs_nothing(lab: Lab, tmp_path: Path) -> None:
    clock = tmp_path / "step"
    with faked_clock(lab, clock, "+0d"):
        log = Path(lab.status()["controller"]["log"])
        before = log.stat().st_size
        for days in (1, 0, -1):
            with nothing_lost(lab):
                clock.write_text(f"{days:+}d\n")
                wait_until(lambda days=days: days_ahead(lab) == days)
                time.sleep(1)
            wait_until(lambda: sessions(lab) == ALL_IN_SYNC)
            pods_can_be_added(lab)
        said = log.read_bytes()[before:]
        assert b"switch lost" not in said
        assert b"switch gone" not in said


def test_controller_whose_clock_is_a_day_ahead_costs_nothing(lab: Lab, tmp_path: Path) -> None:
    flows = {node: cookies(lab, node) for node in NODES}
    with nothing_lost(lab), faked_clock(lab, tmp_path / "step", "+1d"):
        assert days_ahead(lab) == 1
        assert {node: cookies(lab, node) for node in NODES} == flows
    with faked_clock(lab, tmp_path / "step", "+1d"):
        pods_can_be_added(lab)
