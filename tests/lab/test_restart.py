"""A node's daemons are killed under traffic, and started again as its init system would."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import Lab
from lab.processes import running
from tests.lab.pings import address
from tests.waiting import wait_until

A, B = "default/a", "default/b"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with a pod on each of its two nodes."""
    for pod, node in ((A, "node1"), (B, "node2")):
        lab.pod_add(*pod.split("/"), node)
    return lab


@dataclass
class Pings:
    """Pings of 10 ms from one pod to another, and which of them were answered."""

    answered: list[int] = field(default_factory=list)

    @property
    def gap(self) -> int:
        """The longest time without an answer, in pings."""
        steps = zip(self.answered, self.answered[1:], strict=False)
        return max((later - earlier - 1 for earlier, later in steps), default=0)


@contextmanager
def pings(lab: Lab, where: str, to: str) -> Iterator[Pings]:
    """While the context lasts; what was answered is known after it."""
    command = lab.command(where, ["ping", "-n", "-i", "0.01", "-W", "1", to])
    found = Pings()
    with running(command) as process:
        output = [process.line(), process.line()]
        yield found
        # Those that are under way come back.
        lab.exec(where, ["ping", "-n", "-q", "-c", "3", "-i", "0.05", to], check=False)
        output.append(process.end(signal.SIGINT))
    words = " ".join(output).split()
    found.answered += [int(w.removeprefix("icmp_seq=")) for w in words if w.startswith("icmp_seq=")]
    print(f"\nlongest gap {10 * found.gap} ms")


def reaches(lab: Lab, where: str, to: str) -> bool:
    return lab.exec(where, ["ping", "-n", "-c1", "-W1", to], check=False).returncode == 0


def snapshot(lab: Lab, node: str = "node1") -> Path:
    return Path(lab.status()["directory"], "nodes", node, "state", "bridge.openflow")


def saved(lab: Lab) -> str:
    """The snapshot of node1 in the words of Open vSwitch's own tool; empty if it is no good."""
    path = snapshot(lab)
    parsed = lab.exec("node1", ["ovs-ofctl", "ofp-parse", str(path)], check=False)
    return "" if parsed.returncode else parsed.stdout


def flows(lab: Lab) -> list[str]:
    dump = ["ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "--names", "dump-flows", "br-int"]
    lines = lab.exec("node1", dump, check=False).stdout.splitlines()
    return sorted(line for line in lines if "cookie=" in line)


def cookies(text: str) -> set[str]:
    return set(re.findall(r"cookie=(0x[0-9a-f]+)", text))


def wait_for_snapshot(lab: Lab) -> None:
    """Until it holds just what the switch holds."""
    wait_until(lambda: cookies(saved(lab)) == cookies("".join(flows(lab))) != set())


def log(lab: Lab) -> str:
    return Path(lab.status()["nodes"]["node1"]["log_dir"], "agent.log").read_text()


def held(lab: Lab) -> bool:
    """Whether the next ovs-vswitchd is to wait for its flows."""
    shown = lab.exec("node1", ["ovs-vsctl", "get", "open", ".", "other_config"], check=False)
    return 'flow-restore-wait="true"' in shown.stdout


def check_that_pods_can_be_added(lab: Lab) -> None:
    pod = lab.pod_add("default", "after", "node1")
    assert pod.address
    assert reaches(lab, B, pod.address)
    lab.pod_del("default", "after")


ECHO_SERVER = """
import socket
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
ECHO_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=60) as connection:
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(connection.recv(100).decode(), end="", flush=True)
"""


@contextmanager
def connection(lab: Lab, client: str, server: str) -> Iterator[Callable[[str], str]]:
    """One TCP connection: says a line on it, and returns what comes back."""
    at = address(lab, server)
    listening = lab.command(server, [sys.executable, "-c", ECHO_SERVER])
    connecting = lab.command(client, [sys.executable, "-c", ECHO_CLIENT, at])
    with running(listening) as echo:
        assert echo.line() == "ready"
        with running(connecting) as speaker:
            yield speaker.ask


def test_connection_survives_a_kill_of_vswitchd(lab: Lab) -> None:
    wait_for_snapshot(lab)
    with pings(lab, B, address(lab, A)) as seen, connection(lab, B, A) as say:
        assert say("before") == "before"
        lab.kill_daemon("node1", "ovs-vswitchd")
        if lab.status()["datapath"] == "system":
            # The kernel forwards what it knows. What the next process then lets go of is lost:
            # packets between two of the flows that it did not make itself.
            assert say("without it") == "without it"
            assert all(reaches(lab, B, address(lab, A)) for _ in range(10))
        lab.start_daemon("node1", "ovs-vswitchd")
        assert say("right after") == "right after"
        wait_until(lambda: reaches(lab, B, address(lab, A)))
        assert say("after") == "after"
    if lab.status()["datapath"] == "netdev":
        assert seen.gap > 0, "in the userspace datapath nothing is forwarded without ovs-vswitchd"
    wait_until(lambda: held(lab))
    check_that_pods_can_be_added(lab)


@pytest.mark.parametrize("also", ["agent", "ovsdb-server"])
def test_all_flows_come_back_without_the_controller(lab: Lab, also: str) -> None:
    """And without the daemon named, which was killed as well, until that is back."""
    wait_for_snapshot(lab)
    lab.kill_daemon("control", "controller")
    before = flows(lab)
    assert len(before) > 40
    with pings(lab, B, address(lab, A)):
        lab.kill_daemon("node1", also)
        lab.kill_daemon("node1", "ovs-vswitchd")
        lab.start_daemon("node1", "ovs-vswitchd")
        if also == "agent":
            # It waits for the agent, with empty tables. What the kernel knows goes on; in
            # userspace nothing is known.
            wait_until(
                lambda: lab.exec("node1", ["ovs-ofctl", "show", "br-int"], check=False).stdout
            )
            assert flows(lab) == []
            assert reaches(lab, B, address(lab, A)) == (lab.status()["datapath"] == "system")
        lab.start_daemon("node1", also)
        # Both: the kernel's datapath forwards before ovs-vswitchd has its flows again.
        wait_until(lambda: flows(lab) == before)
        wait_until(lambda: reaches(lab, B, address(lab, A)))
    wait_until(lambda: held(lab))

    lab.up()
    assert flows(lab) == before
    check_that_pods_can_be_added(lab)


def test_vswitchd_recovers_from_repeated_kills(lab: Lab) -> None:
    """Whatever it, or the agent that gets it going, was doing just then."""
    wait_for_snapshot(lab)
    before = flows(lab)
    for milliseconds in range(0, 200, 20):
        lab.kill_daemon("node1", "ovs-vswitchd")
        lab.start_daemon("node1", "ovs-vswitchd")
        time.sleep(milliseconds / 1000)
    wait_until(lambda: reaches(lab, B, address(lab, A)))
    wait_until(lambda: held(lab))
    wait_until(lambda: flows(lab) == before)
    check_that_pods_can_be_added(lab)


def test_pods_can_be_added_after_a_kill_of_ovsdb_server(lab: Lab) -> None:
    # The seal comes some time after a start of the controller.
    wait_for_snapshot(lab)
    before = flows(lab)
    # What is lost is printed and not judged: in userspace, ovs-vswitchd forwards on for a second or
    # two without its database, and whether its next one is there by then is the machine's affair.
    with pings(lab, B, address(lab, A)):
        lab.kill_daemon("node1", "ovsdb-server")
        lab.start_daemon("node1", "ovsdb-server")
        # Now its clients connect anew, each in its own time.
        check_that_pods_can_be_added(lab)
        wait_until(lambda: reaches(lab, B, address(lab, A)))
    wait_until(lambda: flows(lab) == before)


def test_unreadable_snapshot_does_not_hold_up_the_switch(lab: Lab) -> None:
    wait_for_snapshot(lab)
    lab.kill_daemon("node1", "agent")
    lab.kill_daemon("node1", "ovs-vswitchd")
    content = snapshot(lab).read_bytes()
    snapshot(lab).write_bytes(content[:-7])
    lab.start_daemon("node1", "ovs-vswitchd")
    lab.start_daemon("node1", "agent")
    wait_until(lambda: "its end is missing" in log(lab))
    wait_until(lambda: reaches(lab, B, address(lab, A)))
    # The controller fills the bridge, and the next audit finds it right.
    wait_for_snapshot(lab)


def test_hold_is_renewed_when_others_remove_it(lab: Lab) -> None:
    """As `ovs-ctl restart` does when it has put flows back itself."""
    wait_until(lambda: held(lab))
    lab.exec("node1", ["ovs-vsctl", "remove", "open", ".", "other_config", "flow-restore-wait"])
    wait_until(lambda: held(lab))
