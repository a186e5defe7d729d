"""An address that is handed out again: its new owner meets none of the old owner's connections."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

from lab import Lab, LabError
from lab.runtime import Runtime
from tests.lab.test_restart import address, kill
from tests.waiting import wait_until

ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", 7000))
    server.settimeout(30)
    print("ready", flush=True)
    data, peer = server.recvfrom(100)
    server.sendto(data, peer)
"""
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.bind(("", 6000))
    client.connect((sys.argv[1], 7000))
    client.settimeout(5)
    client.send(b"x")
    print(client.recv(100))
"""
A, LOCAL, REMOTE = "default/a", "default/local", "default/remote"


def exchange(lab: Lab, client: str, server: str, at: str) -> None:
    """One question from port 6000, one answer from port 7000."""
    command = lab.command(server, [sys.executable, "-c", ECHO])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        lab.exec(client, [sys.executable, "-c", ASK, at])


def connections(lab: Lab, node: str, of: str) -> list[str]:
    shown = lab.exec(node, ["ovs-appctl", "dpctl/dump-conntrack", "zone=100"]).stdout
    return [line for line in shown.splitlines() if re.search(rf"(src|dst)={re.escape(of)},", line)]


def committed(lab: Lab, node: str) -> int:
    dump = ["ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", "br-int", "table=Commit"]
    (count,) = re.findall(r"n_packets=(\d+).*commit", lab.exec(node, dump).stdout)
    return int(count)


def hand_out_next(lab: Lab, node: str, wanted: str) -> None:
    """Of the node's addresses all others are in use or resting, and this one has rested."""
    kill(lab, "agent", node)
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


def test_other_nodes_forget_a_released_address(lab: Lab) -> None:
    lab.pod_add("default", "server", "node1")
    lab.pod_add("default", "client", "node2")
    server, client = address(lab, "default/server"), address(lab, "default/client")
    exchange(lab, "default/client", "default/server", server)
    assert connections(lab, "node2", server)
    lab.pod_del("default", "server")
    wait_until(lambda: connections(lab, "node2", server) == [])
    lab.pod_del("default", "client")
    wait_until(lambda: connections(lab, "node1", client) == [])


def test_connections_of_the_last_owner_are_gone(lab: Lab) -> None:
    for pod, node in {A: "node1", LOCAL: "node1", REMOTE: "node2"}.items():
        lab.pod_add(*pod.split("/"), node)
    used = address(lab, A)
    for client in (LOCAL, REMOTE):
        exchange(lab, client, A, used)
    assert len(connections(lab, "node1", used)) == 2
    # The controller, which would have every switch forget the address, is away.
    os.kill(lab.status()["controller"]["pid"], signal.SIGKILL)
    lab.pod_del(*A.split("/"))

    hand_out_next(lab, "node1", used)
    assert len(connections(lab, "node1", used)) == 2, "nobody has the address: they do no harm"
    lab.up()
    lab.pod_add("default", "heir", "node1")
    assert address(lab, "default/heir") == used
    assert connections(lab, "node1", used) == []
    for client in (LOCAL, REMOTE):
        before = committed(lab, "node1")
        exchange(lab, client, "default/heir", used)
        # The userspace datapath adds what its megaflows have counted every half second.
        wait_until(lambda before=before: committed(lab, "node1") == before + 1)
