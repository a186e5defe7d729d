"""An address that is handed out again: its new owner meets none of the old owner's connections."""

import os
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from lab import Lab, LabError
from lab.processes import Process, running
from lab.runtime import Runtime
from tests.lab.pings import address
from tests.waiting import wait_until

SERVER = """
import socket
kept = []
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    while True:
        kept.append(server.accept())
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as client:
    print("connected", flush=True)
    sys.stdin.readline()
    client.send(b"x")
    try:
        print(client.recv(100), flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
"""
A, LOCAL, REMOTE = "default/a", "default/local", "default/remote"


@contextmanager
def program(lab: Lab, where: str, text: str, *argv: str) -> Iterator[Process]:
    """A Python program in a pod, killed at the end without a word to its peers."""
    with running(lab.command(where, [sys.executable, "-c", text, *argv])) as process:
        assert process.line() in {"ready", "connected"}
        yield process


def says_on(client: Process) -> str:
    """What becomes of one more byte on the client's connection."""
    return client.ask("")


def connections(lab: Lab, node: str, of: str) -> list[str]:
    shown = lab.exec(node, ["ovs-appctl", "dpctl/dump-conntrack", "zone=100"]).stdout
    return [line for line in shown.splitlines() if re.search(rf"(src|dst)={re.escape(of)},", line)]


def committed(lab: Lab, node: str) -> int:
    dump = ["ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", "br-int", "table=Commit"]
    # Of what is not a Service's.
    flow = r"n_packets=(\d+),.* priority=100,.*commit"
    (count,) = re.findall(flow, lab.exec(node, dump).stdout)
    return int(count)


def hand_out_next(lab: Lab, node: str, wanted: str) -> None:
    """Of the node's addresses all others are in use or resting, and this one has rested."""
    lab.kill_daemon(node, "agent")
    path = Path(lab.status()["directory"], "nodes", node, "state", "leases.sqlite")
    with closing(sqlite3.connect(path)) as database, database:
        last = int(IPv4Address(wanted)) | 0xFF
        database.execute("UPDATE state SET value = ? WHERE name = 'next address'", (str(last),))
        database.execute(
            "UPDATE released SET at = 0 WHERE address = ?", (int(IPv4Address(wanted)),)
        )
    lab.start_daemon(node, "agent")
    wait_until(lambda: takes_pods(lab, node))


def takes_pods(lab: Lab, node: str) -> bool:
    try:
        Runtime(lab.layout.node(int(node.removeprefix("node")))).status()
    except LabError:
        return False
    return True


def test_next_owner_of_an_address_meets_no_old_connection(lab: Lab) -> None:
    """Also when nobody has heard yet that the old one is gone."""
    for pod, node in {A: "node1", LOCAL: "node1", REMOTE: "node2"}.items():
        lab.pod_add(*pod.split("/"), node)
    used = address(lab, A)
    with (
        program(lab, A, SERVER),
        program(lab, LOCAL, CLIENT, used) as local,
        program(lab, REMOTE, CLIENT, used) as remote,
    ):
        controller = lab.status()["controller"]["pid"]
        os.kill(controller, signal.SIGSTOP)
        lab.pod_del(*A.split("/"))
        hand_out_next(lab, "node1", used)
        assert len(connections(lab, "node1", used)) == 2
        os.kill(controller, signal.SIGCONT)

        lab.pod_add("default", "heir", "node1")
        assert address(lab, "default/heir") == used
        assert connections(lab, "node1", used) == []
        for client in (local, remote):
            before = committed(lab, "node1")
            assert says_on(client) == "reset"
            # It was a new connection to the switch. The userspace datapath adds what its
            # megaflows have counted every half second.
            wait_until(lambda before=before: committed(lab, "node1") == before + 1)


def test_every_node_forgets_the_connections_of_a_deleted_pod(lab: Lab) -> None:
    """In time before somebody else has its address, and nobody else's."""
    lab.pod_add("default", "other", "node2")
    used, other = address(lab, "default/heir"), address(lab, "default/other")
    with (
        program(lab, "default/heir", SERVER),
        program(lab, LOCAL, SERVER),
        program(lab, REMOTE, CLIENT, used),
        program(lab, "default/other", CLIENT, address(lab, LOCAL)),
    ):
        for node in ("node1", "node2"):
            assert any("ESTABLISHED" in line for line in connections(lab, node, used))
        lab.pod_del("default", "heir")
        for node in ("node1", "node2"):
            wait_until(lambda node=node: connections(lab, node, used) == [])
            assert len(connections(lab, node, other)) == 1
