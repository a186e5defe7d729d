"""Daemons are killed on all nodes at once, under traffic, and started as an init system would.

`make kills` prints what each of them cost, the table of docs/operations.md.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from lab import Lab, daemons
from lab.traffic import Pinged, ping, stream
from tests.lab.kube import (
    deploy,
    kubectl,
    on_node,
    pods,
    restart_counts,
    running_pod,
    wait_for_nodes,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

NODES = ("node1", "node2", "node3")
CONTROL = (
    "controller",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
)
IN_ORDER = ("ovsdb-server", "ovs-vswitchd", "agent", "containerd", "kubelet")
"""The daemons of a node, as an init system would start them after a boot."""
NETWORK = ("ovs-vswitchd", "ovsdb-server")
"""Without the first the userspace datapath forwards nothing, and nothing after some two seconds
without the second (docs/lab.md, *Limits*)."""


@dataclass(frozen=True)
class Cost:
    """What a kill cost."""

    what: str
    within: Pinged
    across: Pinged
    stream: bool
    """Whether every byte of a TCP stream between nodes arrived."""
    restarted: int
    """Containers, of all that run."""

    @classmethod
    def header(cls) -> str:
        return (
            "| Killed, on all nodes at once | Lost within a node | Gap | Lost between nodes | Gap "
            "| TCP stream | Containers restarted |\n|---|---|---|---|---|---|---|"
        )

    def line(self) -> str:
        """A row of the table."""
        return (
            f"| {self.what} | {_lost(self.within)} | {_lost(self.across)} "
            f"| {'goes on' if self.stream else 'broken'} | {self.restarted} |"
        )


def _lost(pinged: Pinged) -> str:
    gaps = [outage.over - outage.first for outage in pinged.outages if outage.over is not None]
    gap = f"{1000 * max(gaps):.0f} ms" if gaps else "none"
    return f"{pinged.lost} of {pinged.sent} | {gap}"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The cluster with two pods of the Deployment `web` on each node."""
    deploy(lab, "web", 6)
    yield lab
    kubectl(lab, "delete", "deployment", "web", "--cascade=foreground")


@pytest.fixture(scope="module")
def costs() -> Iterator[list[Cost]]:
    """Printed at the end."""
    found: list[Cost] = []
    yield found
    print("\n", Cost.header(), *(cost.line() for cost in found), sep="\n")


def kill_and_start(lab: Lab, victims: tuple[str, ...]) -> None:
    """SIGKILL to all of them on all nodes; then each is started."""
    status = lab.status()
    pids = [status["nodes"][node]["pids"][v] for node in NODES for v in victims if v in IN_ORDER]
    control = [status["control"]["pids"][v] for v in victims if v in CONTROL]
    daemons.kill([*pids, *control])

    def start(node: str) -> None:
        for daemon in IN_ORDER:
            if daemon in victims:
                lab.start_daemon(node, daemon)

    with ThreadPoolExecutor() as threads:
        started = [threads.submit(start, node) for node in NODES]
        if control:
            started.append(threads.submit(lab.start_control))
        for each in started:
            each.result()


@pytest.mark.parametrize(
    "victims",
    [*((daemon,) for daemon in ("kubelet", "containerd", *CONTROL[:3], *IN_ORDER[2::-1])),
     IN_ORDER + CONTROL],
    ids=lambda victims: victims[0] if len(victims) == 1 else "everything",
)  # fmt: skip
def test_kill_under_traffic_costs_what_is_documented(
    lab: Lab, victims: tuple[str, ...], costs: list[Cost]
) -> None:
    found = pods(lab, "web")
    (a, _), (_, beside) = on_node(found, "node1")
    (c, across), *_ = on_node(found, "node3")
    a, c = f"default/{a}", f"default/{c}"
    restarts = restart_counts(lab)
    with (
        ping(lab, a, beside) as near,
        ping(lab, a, across) as far,
        stream(lab, a, c, across) as tcp,
    ):
        time.sleep(0.5)
        kill_and_start(lab, victims)
        wait_until(lambda: recovered(lab), 120)
        for to in (beside, across):
            wait_until_reached(lab, a, to)
        time.sleep(0.5)
        sent, received = tcp.stop()
        within, between = near.stop(), far.stop()
    wait_for_nodes(lab)
    restarted = sum(restart_counts(lab).values()) - sum(restarts.values())
    name = victims[0] if len(victims) == 1 else "all of these, and the rest of the control plane"
    costs.append(Cost(name, within, between, sent == received, restarted))
    assert restarted == 0
    assert sent == received
    assert sent.bytes > 100_000
    if not set(NETWORK) & set(victims):
        assert (within.lost, between.lost) == (0, 0), (within, between)
    with running_pod(lab, "late", "node2") as address:
        wait_until_reached(lab, a, address)
        wait_until_reached(lab, "default/late", across)


def wait_until_reached(lab: Lab, where: str, to: str) -> None:
    """The first packet to a peer is lost where ovs-vswitchd has to ask for its MAC."""
    lab.exec(where, ["ping", "-n", "-c", "1", "-i", "0.1", "-w", "60", to], timeout=90)


def recovered(lab: Lab) -> bool:
    """Every daemon runs, every switch has its controller and its flows."""
    status = lab.status()
    asked = lab.ask("/v1/status")
    return bool(
        status["ready"]
        and asked
        and asked["ready"]
        and not asked["problems"]
        and all(node["connected"] and node["inSync"] for node in asked["nodes"].values())
    )
