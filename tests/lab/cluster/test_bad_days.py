"""What a node meets on a bad day: a full disk, no Open vSwitch, a controller that hears nothing."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lab import Lab, daemons
from lab.runtime import PluginError, Runtime
from tests.lab.kube import get, kubectl, pod, running_pod, wait_for_nodes
from tests.lab.pings import ping
from tests.lab.test_pods import settled, traces
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

NODE = "node3"


@pytest.fixture(scope="module")
def friend(lab: Lab) -> Iterator[str]:
    """The address of a pod on the node that has bad days, which is there all the time."""
    with running_pod(lab, "friend", NODE) as address:
        yield address


def kill(lab: Lab, *names: str) -> None:
    pids = lab.status()["nodes"][NODE]["pids"]
    daemons.kill([pids[name] for name in names])


@contextmanager
def on_a_disk_of(lab: Lab, size: str) -> Iterator[Path]:
    """While the context lasts, the agent of the node has its state on a file system so large."""
    state = lab.layout.node(3).state
    kill(lab, "agent")
    mount = ["mount", "-n", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(state)]
    aside = state.with_name("state.aside")
    shutil.copytree(state, aside)
    # Without what sqlite keeps beside it, in which there would be room left.
    with closing(sqlite3.connect(aside / "leases.sqlite")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    lab.exec(NODE, mount)
    try:
        lab.exec(NODE, ["cp", "-a", f"{aside}/.", str(state)])
        lab.start_daemon(NODE, "agent")
        yield state
        kill(lab, "agent")
        lab.exec(NODE, ["cp", "-a", f"{state}/.", str(aside)])
    finally:
        lab.exec(NODE, ["umount", "--lazy", str(state)])
        shutil.copytree(aside, state, dirs_exist_ok=True)
        shutil.rmtree(aside)
        lab.start_daemon(NODE, "agent")
    wait_until(lambda: not refusal(lab))


def complaints(lab: Lab, name: str) -> str:
    """What kubelet has told about a pod."""
    chosen = f"--field-selector=involvedObject.name={name},reason=FailedCreatePodSandBox"
    return " ".join(event["message"] for event in get(lab, "events", chosen)["items"])


def test_full_disk_under_the_lease_file_is_reported(lab: Lab, friend: str) -> None:
    with on_a_disk_of(lab, "1m") as state:
        wait_until(lambda: not refusal(lab))
        before = traces(lab, NODE)
        lab.exec(NODE, ["dd", "if=/dev/zero", f"of={state}/rubbish", "bs=4k"], check=False)
        kubectl(lab, "create", "-f", "-", manifest=pod(lab, "late", NODE))
        wait_until(lambda: "leases.sqlite" in complaints(lab, "late"), 120)
        said = complaints(lab, "late")
        assert "no address can be leased now" in said
        assert f"{state}/leases.sqlite: database or disk is full" in said
        assert settled(lab, NODE, before) == before
        ping(lab, "node1", friend)
        lab.exec(NODE, ["rm", f"{state}/rubbish"])
        # kubelet tries again until it goes.
        wait_until(lambda: get(lab, "pod", "late")["status"]["phase"] == "Running", 120)
        ping(lab, "default/late", friend)
    # And the agent that has its disk again knows of it.
    ping(lab, "default/late", friend)
    kubectl(lab, "delete", "pod", "late")
    assert settled(lab, NODE, before) == before


def test_node_without_open_vswitch_is_not_ready(lab: Lab, friend: str) -> None:
    """As where the agent starts first, and nobody has installed Open vSwitch.

    The node of a lab is off the network then, so kubelet cannot hand on what it is told.
    """
    node = lab.layout.node(3)
    (conf,) = node.cni_conf.glob("*.conflist")
    kill(lab, "agent", "ovs-vswitchd", "ovsdb-server")
    # The file of a node that was ready before stays, and STATUS tells the runtime.
    lab.start_daemon(NODE, "agent")
    wait_until(lambda: "ovsdb-server does not answer at" in refusal(lab))
    assert "error 50: " in refusal(lab)
    # Where it has never been ready, none appears.
    kill(lab, "agent")
    aside = conf.rename(conf.with_name("aside"))
    log = node.logs / "agent.log"
    before = log.stat().st_size
    lab.start_daemon(NODE, "agent")
    wait_until(lambda: b"ovsdb-server does not answer" in log.read_bytes()[before:])
    assert not conf.exists()
    for daemon in ("ovsdb-server", "ovs-vswitchd"):
        lab.start_daemon(NODE, daemon)
    wait_until(conf.exists)
    assert conf.read_text() == aside.read_text()
    aside.unlink()
    lab.exec("node1", ["ping", "-n", "-c", "1", "-w", "60", friend], timeout=90)
    wait_for_nodes(lab)
    with running_pod(lab, "late", NODE) as address:
        ping(lab, "default/friend", address)


def refusal(lab: Lab) -> str:
    """Why the node takes no pods, as its runtime is told; empty where it does."""
    try:
        Runtime(lab.layout.node(3)).status()
    except PluginError as error:
        return str(error)
    return ""


@contextmanager
def deaf_controller(lab: Lab) -> Iterator[None]:
    """While the context lasts, its connections to the API server stand and bring nothing."""
    ours = f"pid={lab.status()['controller']['pid']},"
    shown = lab.exec("control", ["ss", "-Htnp", "dport", "=", ":6443"]).stdout.splitlines()
    ports = [line.split()[3].rpartition(":")[2] for line in shown if ours in line]
    assert ports, shown
    drop = (
        "add table inet deaf\n"
        "add chain inet deaf input { type filter hook input priority 0; }\n"
        f"add rule inet deaf input tcp sport 6443 tcp dport {{ {', '.join(ports)} }} drop\n"
    )
    lab.exec("control", ["nft", "-f", "-"], stdin=drop)
    try:
        yield
    finally:
        lab.exec("control", ["nft", "delete", "table", "inet", "deaf"])


def test_pod_starts_once_its_controller_knows_it(lab: Lab, friend: str) -> None:
    """The API server answers everybody but the controller."""
    find = ["ovs-vsctl", "--bare", "--columns=name", "find", "interface"]
    find.append("external_ids:sluice-pod=default/unheard")
    with deaf_controller(lab):
        kubectl(lab, "create", "-f", "-", manifest=pod(lab, "unheard", NODE))
        wait_until(lambda: lab.exec(NODE, find).stdout != "\n")
        assert get(lab, "pod", "unheard")["status"]["phase"] == "Pending"
        ping(lab, "node1", friend)
    wait_until(lambda: get(lab, "pod", "unheard")["status"]["phase"] == "Running", 120)
    ping(lab, "default/unheard", friend)
    kubectl(lab, "delete", "pod", "unheard")
