"""A controller that leads is killed, stopped, cut off or misled, under traffic: another takes over.

Each test causes one fault under a ping each 10 ms, a TCP stream and an ADD each 100 ms. No packet
may be lost, and no two controllers may write at the same time, as the switches tell it. How long no
pod was attached is printed.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from lab import Lab, faults
from lab import node as nodes
from lab.programs import python
from lab.replicas import leader, leads, wait_warm
from lab.runtime import Sandbox
from lab.steady_adds import Attempt, SteadyAdds, adding, longest_gap, pods_to_add
from lab.traffic import ping, stream
from tests.lab.clocks import days_ahead, faked_clock
from tests.lab.kube import kubectl
from tests.lab.losses import overflows
from tests.lab.pings import address
from tests.lab.pings import ping as ping_once
from tests.lab.writers import Writers
from tests.lab.writers import faults as faults_of
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.parametrize(
        "lab", [{"nodes": 3, "source": "kube", "controllers": 2}], indirect=True, ids=["kube"]
    ),
    pytest.mark.timeout(600),
]

A, B = "default/a", "default/b"
CONTROLLERS = ("control", "control2")
NODES = ("node1", "node2", "node3")
ADDS = "node3"
"""Traffic is between the other two: in the userspace datapath a pod that comes or goes can cost a
tunnel of its node a packet (docs/lab.md, *Limits*)."""
EXTENDED = bool(os.environ.get("SLUICE_TAKEOVER_EXTENDED"))
LONG_STOP = 120.0 if EXTENDED else 20.0
"""Seconds for which a leader is stopped."""
API_SERVER_AWAY = 60.0 if EXTENDED else 8.0


@dataclass
class World:
    """The lab, and pods that can be attached."""

    lab: Lab
    pods: list[Sandbox]
    writers: Writers


@pytest.fixture(scope="module")
def world(lab: Lab) -> Iterator[World]:
    """A pod on each of two nodes, and on the third a bounded number that come and go."""
    for pod, node in ((A, "node1"), (B, "node2")):
        lab.pod_add(*pod.split("/"), node)
    layout = lab.layout.node(3)
    rest_shortly(lab)
    writers = Writers(lab, NODES)
    writers.watch()
    for name in CONTROLLERS:  # so that all sessions begin anew
        lab.kill_daemon(name, "controller")
    for name in CONTROLLERS:
        lab.start_daemon(name, "controller")
    with pods_to_add(lab, layout) as pods:
        yield World(lab, pods, writers)


def rest_shortly(lab: Lab) -> None:
    """Have the third node lease an address again after a second: it has 253 of them."""
    layout = lab.layout.node(3)
    lab.kill_daemon(ADDS, "agent")
    settings = yaml.safe_load(layout.settings.read_text())
    settings["agent"]["quarantine"] = 1.0
    file = layout.directory / "takeover.yaml"
    file.write_text(yaml.safe_dump(settings))
    daemons = nodes.daemons(layout)
    command = python("node_agent", "--config", str(file))
    daemons.start("agent", command, listens_at=lambda _: layout.cni_socket)


def other(controller: str) -> str:
    return next(name for name in CONTROLLERS if name != controller)


@contextmanager
def nothing_lost(world: World, what: str) -> Iterator[SteadyAdds]:
    """The fault inside costs no packet and no byte, and no two controllers write at a time."""
    lab = world.lab
    wait_warm(lab)
    leader(lab)
    a, b = address(lab, A), address(lab, B)
    start = datetime.now(UTC)
    before = overflows(lab)
    with (
        ping(lab, A, b) as there,
        ping(lab, B, a) as back,
        stream(lab, A, B, b) as streaming,
        adding(lab.layout.node(3), world.pods) as adds,
    ):
        adds.wait_for(5)
        began = time.monotonic()
        yield adds
        adds.wait_for(5)
        ended = time.monotonic()
        attempts = adds.stop()
        there.end()
        back.end()
        pinged = there.stop(), back.stop()
        sent, received = streaming.stop()
    tell(what, attempts, began, ended)
    for each in pinged:
        assert each.sent > 100
        assert each.lost <= overflows(lab) - before + each.unread, each
    assert sent == received
    assert sent.bytes > 100_000
    writes = world.writers.writes(start)
    assert len(writes) > 5
    wrong = faults_of(writes)
    assert wrong == [], "\n".join([*wrong[:5], *world.writers.roles(start)])
    pods_can_be_added(lab)


def tell(what: str, attempts: Sequence[Attempt], began: float, ended: float) -> None:
    """Print what the fault meant for new pods."""
    gap = longest_gap(attempts, began, ended)
    refused = [each for each in attempts if each.problem]
    longest = max(each.ended - each.began for each in attempts)
    print(
        f"\n{what}: no pod attached for {gap:.2f} s; {len(attempts)} ADDs, {len(refused)} refused,"
        f" the longest took {longest:.2f} s"
    )


def pods_can_be_added(lab: Lab) -> None:
    lab.pod_add("default", "late", "node1")
    try:
        ping_once(lab, "default/late", address(lab, B))
        ping_once(lab, B, address(lab, "default/late"))
    finally:
        lab.pod_del("default", "late")


def make_leader(lab: Lab, controller: str) -> None:
    """Have this one lead, by a restart of the other."""
    wait_warm(lab)
    if leader(lab) != controller:
        lab.kill_daemon(other(controller), "controller")
        wait_until(lambda: leads(lab, controller))
        lab.start_daemon(other(controller), "controller")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_leader_ends(world: World, number: signal.Signals) -> None:
    lab = world.lab
    first = leader(lab)
    with nothing_lost(world, f"{number.name} to the leader"):
        os.kill(faults.pid(lab, first, "controller"), number)
        wait_until(lambda: leads(lab, other(first)))
        wait_until(lambda: lab.status()["controllers"][first]["pid"] is None)
        lab.start_daemon(first, "controller")
        assert leader(lab) == other(first)


@pytest.mark.parametrize("seconds", [2.0, LONG_STOP])
def test_leader_is_stopped_and_goes_on(world: World, seconds: float) -> None:
    lab = world.lab
    first = leader(lab)
    with nothing_lost(world, f"SIGSTOP of the leader for {seconds:g} s"):
        with faults.stopped(lab, first):
            time.sleep(seconds)
            # The Lease lasts 4 s.
            assert seconds < 4 or leads(lab, other(first))
        leader(lab)


CUTS: list[tuple[tuple[faults.Part, ...], faults.Verdict]] = [
    (("API server",), "drop"),
    (("nodes",), "drop"),
    (("API server", "nodes"), "reject"),
    (("API server", "nodes", "controllers"), "drop"),
]
MORE_CUTS: list[tuple[tuple[faults.Part, ...], faults.Verdict]] = [
    (("API server",), "reject"),
    (("nodes",), "reject"),
    (("API server", "nodes"), "drop"),
    (("controllers",), "drop"),
    (("controllers",), "reject"),
    (("API server", "nodes", "controllers"), "reject"),
]


@pytest.mark.parametrize(("parts", "verdict"), CUTS + MORE_CUTS if EXTENDED else CUTS, ids=str)
def test_leader_is_cut_off(
    world: World, parts: tuple[faults.Part, ...], verdict: faults.Verdict
) -> None:
    lab = world.lab
    make_leader(lab, "control2")
    with nothing_lost(world, f"leader cut off from {' and '.join(parts)} ({verdict})"):
        with faults.cut_off(lab, "control2", parts, verdict):
            if parts == ("controllers",):
                time.sleep(5)
            else:
                wait_until(lambda: leads(lab, "control"))
                time.sleep(1)
        leader(lab)


def test_both_are_killed(world: World) -> None:
    lab = world.lab
    with nothing_lost(world, "SIGKILL to both for 2 s"):
        for name in CONTROLLERS:
            lab.kill_daemon(name, "controller")
        time.sleep(2)
        for name in CONTROLLERS:
            lab.start_daemon(name, "controller")


def test_api_server_is_away(world: World) -> None:
    """Nobody leads then."""
    lab = world.lab
    with nothing_lost(world, f"API server away for {API_SERVER_AWAY:g} s"):
        lab.kill_daemon("control", "kube-apiserver")
        wait_until(lambda: not any(leads(lab, name) for name in CONTROLLERS))
        time.sleep(API_SERVER_AWAY - 3)
        lab.start_daemon("control", "kube-apiserver")
        leader(lab)


def test_a_switch_restarts_during_the_takeover(world: World) -> None:
    """It has forgotten the generation, and its agent puts that back."""
    lab = world.lab
    first = leader(lab)
    with nothing_lost(world, "SIGKILL to the leader and a switch"):
        lab.kill_daemon(ADDS, "ovs-vswitchd")
        lab.kill_daemon(first, "controller")
        lab.start_daemon(ADDS, "ovs-vswitchd")
        world.writers.watch(ADDS)
        wait_until(lambda: leads(lab, other(first)))
        lab.start_daemon(first, "controller")


def test_clock_of_the_leader_is_set(world: World, tmp_path: Path) -> None:
    lab = world.lab
    clock = tmp_path / "step"
    with faked_clock(lab, clock, "+0d", "control2"):
        make_leader(lab, "control2")
        with nothing_lost(world, "the leader's clock a day ahead, and back"):
            for days in (1, 0):
                clock.write_text(f"{days:+}d\n")
                wait_until(lambda days=days: days_ahead(lab, "control2") == days)
                time.sleep(1)
            assert leader(lab) == "control2"


def test_times_in_the_lease_are_compared_with_no_clock(world: World) -> None:
    """As if the controllers' clocks were an hour apart."""
    lab = world.lab
    first = leader(lab)
    with nothing_lost(world, "renewTime an hour off"):
        for hours in (1, -1, 0):
            moment = datetime.now(UTC) + timedelta(hours=hours)
            spec = {"renewTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
            kubectl(lab, "-n", "kube-system", "patch", "lease", "sluice-controller",
                    "--type=merge", "-p", json.dumps({"spec": spec}))  # fmt: skip
            time.sleep(0.5)
        assert leader(lab) == first
