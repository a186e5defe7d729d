"""Connections to Services that see a packet twice, or their Service change while they are open."""

import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from lab import Lab, processes
from lab.processes import Process
from tests.lab.losses import drops, overflows
from tests.lab.pings import address
from tests.lab.served import (
    A1,
    A2,
    B1,
    NODE1,
    NODES,
    answers,
    ask,
    endpoints,
    place,
    put_behind,
    serve,
    service,
    three_servers,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The lab of conftest.py with three pods, each with a server."""
    with three_servers(lab):
        yield lab


# These first: right after some ten thousand connections were made, Open vSwitch has been seen to go
# on with an old one that it was told to forget.


@pytest.mark.parametrize(
    ("client", "at", "port"),
    [(A1, "10.96.1.4", 53), ("node2", "10.96.1.4", 53), ("outside", NODE1, 30053)],
)
def test_datagrams_leave_a_removed_endpoint(lab: Lab, client: str, at: str, port: int) -> None:
    """Of a client that never pauses, from one port; the server that it leaves would go on."""
    ports = [{**UDP_53, "nodePort": 30053}]
    serve(lab, "talk", "10.96.1.4", A2, ports=ports, type="NodePort")
    wait_until(lambda: served(lab, client, at, port, "udp"))
    with running(lab, client, TALKER, at, str(port)) as talker:
        for pod in (A2, B1, A1) * 5:
            put_behind(lab, "talk", [pod])
            assert said(talker) == pod


TALKER = """
import socket, sys, time
server, since = b"", time.monotonic()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(0.1)
    client.connect((sys.argv[1], int(sys.argv[2])))
    while time.monotonic() < since + 60:
        client.send(b"x")
        try:
            heard = client.recv(100).split()[0]
        except OSError:
            continue
        if heard != server:
            server, since = heard, time.monotonic()
            print(server.decode(), flush=True)
print("still", server.decode())
"""


def test_no_answer_of_the_first_endpoint_is_lost(lab: Lab) -> None:
    """What was sent before it was there may have to be forgotten; but not what it answers.

    Of a pod; a host's process has been seen to lose one. What sockets that nobody read in time have
    lost does not count.
    """
    client = A1
    for _ in range(8):
        before = overflows(lab)
        serve(lab, "late", "10.96.1.10", ports=[UDP_53, {"port": 53}])
        wait_until(lambda: ask(lab, client, "10.96.1.10", 53) == ["refused"])
        with running(lab, client, EAGER, "10.96.1.10", "53") as eager:
            assert said(eager) == "nobody"
            put_behind(lab, "late", [A2])
            server = said(eager)
        assert server == A2 or (not server and overflows(lab) > before), drops(lab)


EAGER = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.settimeout(0.005)
    print("nobody", flush=True)
    server = None
    while not server:
        try:
            client.send(b"x")
            server = client.recv(100).decode().split()[0]
        except OSError:
            pass
    client.settimeout(10)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        client.send(b"x")
        client.recv(100)
    print(server)
"""


@pytest.mark.parametrize("client", [A1, "node2"])
def test_two_queries_at_once_from_one_socket_are_answered(lab: Lab, client: str) -> None:
    """As resolvers ask for A and AAAA: both datagrams of a new connection are on their way at once.

    Where two of them could be translated apart, one of the answers would be lost. What sockets that
    nobody read in time have lost does not count.
    """
    serve(lab, "dns", "10.96.1.1", A1, A2, B1, ports=[UDP_53])
    wait_until(lambda: served(lab, client, "10.96.1.1", 53, "udp"))
    command = [sys.executable, "-c", RESOLVER, "10.96.1.1", "53", "10000"]
    before = overflows(lab)
    done = lab.exec(client, command, timeout=300)
    counts = Counter(json.loads(done.stdout))
    lost = counts.pop("timed out", 0)
    assert lost <= overflows(lab) - before, (done.stderr, drops(lab))
    assert counts.keys() == {A1, A2, B1}
    assert counts.total() + lost == 10_000


RESOLVER = """
import collections, json, socket, sys, time
at, tries = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
start, counts = time.monotonic(), collections.Counter()
for number in range(tries):
    # Each try is up to two new connections for the meter of the pod, which passes 4,000 a second.
    time.sleep(max(0, start + number / 1500 - time.monotonic()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind(("", 20000 + number))
        client.connect(at)
        questions = [f"{number} A".encode(), f"{number} AAAA".encode()]
        for question in questions:
            client.send(question)
        answers = []
        try:
            for _ in questions:
                answers.append(client.recv(100).split(b" ", 3))
        except TimeoutError:
            counts["timed out"] += 1
            print(f"try {number}: {answers}", file=sys.stderr)
            if counts["timed out"] > 5:
                sys.exit(f"try {number}: timed out")
            continue
        except OSError as error:
            sys.exit(f"try {number}: {error}")
        servers = {answer[0].decode() for answer in answers}
        if sorted(answer[3] for answer in answers) != questions or len(servers) != 1:
            sys.exit(f"try {number}: {answers}")
        counts.update(servers)
print(json.dumps(counts))
"""


@pytest.mark.parametrize("client", [A1, "node2"])
def test_repeated_syn_goes_to_the_same_endpoint(lab: Lab, client: str) -> None:
    """Though one endpoint more is there by then, which a new choice would lead some of them to."""
    serve(lab, "deaf", "10.96.1.2", A1, A2)
    wait_until(lambda: served(lab, client, "10.96.1.2", 80))
    with (
        deaf(lab, "tcp flags & (syn | ack) == syn"),
        running(lab, client, CALLERS, "10.96.1.2", "80") as callers,
    ):
        wait_until(lambda: len(heard(lab)) == MANY)
        get_one_more(lab, "deaf", client)
        so_far = heard(lab)
        wait_until(lambda: all(heard(lab)[who] > so_far[who] for who in so_far))
        first = heard(lab)
        hear_again(lab)
        answers = [said(callers).split() for _ in range(MANY)]
    assert {(server, int(port)) for server, port in answers} == first.keys()
    assert len(first) == MANY
    assert {server for server, _ in first} == {A1, A2}


@pytest.mark.parametrize("client", [A1, "node2"])
def test_unanswered_datagrams_go_to_the_same_endpoint(lab: Lab, client: str) -> None:
    serve(lab, "mute", "10.96.1.3", A1, A2, ports=[UDP_53])
    wait_until(lambda: served(lab, client, "10.96.1.3", 53, "udp"))
    with deaf(lab, "meta l4proto udp"), running(lab, client, SENDERS, "10.96.1.3", "53") as senders:
        tell(senders, "send")
        wait_until(lambda: len(heard(lab)) == MANY)
        get_one_more(lab, "mute", client)
        for count in range(2, 7):
            # One after another: the socket that the switch reads holds only some 90 packets.
            tell(senders, "send")
            wait_until(lambda: set(heard(lab).values()) == {count})  # noqa: B023
        first = heard(lab)
        hear_again(lab)
        tell(senders, "ask")
        answers = [said(senders).split() for _ in range(MANY)]
    assert {(server, int(port)) for server, port in answers} == first.keys()
    assert len(first) == MANY
    assert {server for server, _ in first} == {A1, A2}


def test_endpoint_that_changes_every_second_costs_no_connection(lab: Lab) -> None:
    """Under 200 connections a second: none of them fails, nor does any that is open as it goes."""
    clients, at = (A1, "node2"), ("10.96.1.5", "80")
    serve(lab, "churn", at[0], A1, A2, B1)
    wait_until(lambda: all(served(lab, client, "10.96.1.5", 80) for client in clients))
    with ExitStack() as started:
        start = started.enter_context
        holders = [start(running(lab, client, HOLDER, *at, A2)) for client in clients]
        assert [said(holder) for holder in holders] == [A2, A2]
        connectors = [start(running(lab, client, CONNECTOR, *at, "2400")) for client in clients]
        changes = itertools.count()
        while any(connector.popen.poll() is None for connector in connectors):
            # As a pod that is deleted; and as one that has failed, at once.
            if next(changes) % 2:
                put_behind(lab, "churn", [A1, B1], leaving=[A2])
                time.sleep(0.2)
            put_behind(lab, "churn", [A1, B1])
            time.sleep(0.4)
            echo(holders, "on")
            put_behind(lab, "churn", NODES)
            time.sleep(0.5)
        served_by = [Counter(json.loads(said(connector))) for connector in connectors]
        put_behind(lab, "churn", [A1, B1])
        wait_until(lambda: all(servers(lab, c, "10.96.1.5", 80) == {A1, B1} for c in clients))
        assert all(servers(lab, client, "10.96.1.5", 80) == {A1, B1} for client in clients)
        echo(holders, "to the end")
    assert next(changes) > 5
    for counts in served_by:
        assert counts.keys() == {A1, A2, B1}
        assert counts.total() == 2400
        assert counts[A2] < min(counts[A1], counts[B1])


HOLDER = """
import socket, sys
while True:
    held = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    server = held.recv(100).decode().split()[0]
    if server == sys.argv[3]:
        break
print(server, flush=True)
for line in sys.stdin:
    held.sendall(line.encode())
    print(held.recv(100).decode(), end="", flush=True)
"""

CONNECTOR = """
import collections, json, socket, sys, time
start, counts = time.monotonic(), collections.Counter()
for number in range(int(sys.argv[3])):
    time.sleep(max(0, start + number / 200 - time.monotonic()))
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as client:
            server = client.recv(100).decode().split()[0]
            client.sendall(b"x")
            counts[server if client.recv(100) == b"x" else "nothing"] += 1
    except OSError as error:
        counts[str(error)] += 1
print(json.dumps(counts))
"""


@pytest.mark.parametrize("how", ["at once", "another address", "after a while"])
def test_recreated_service_has_its_new_ports(lab: Lab, how: str) -> None:
    """What is open goes on, though nothing of the old Service is left for anybody else."""
    name, old, clients = "anew", "10.96.1.6", (A1, B1, "node1", "node2")
    new = "10.96.1.7" if how == "another address" else old
    udp = {**UDP_53, "port": 80}
    serve(lab, name, old, A2, B1, ports=[{"port": 80}, udp])
    wait_until(lambda: all(served(lab, client, old, 80) for client in clients))
    with ExitStack() as started:
        holders = [
            started.enter_context(running(lab, client, HOLDER, old, "80", server))
            for client in clients
            for server in (A2, B1)
        ]
        assert [said(holder) for holder in holders] == [A2, B1] * len(clients)
        lab.delete("Service", "default", name)
        if how == "after a while":
            lab.delete("EndpointSlice", "default", f"{name}-1")
            wait_until(lambda: all(ask(lab, c, old, 80) == ["refused"] for c in clients))
            echo(holders, "without")
        serve(lab, name, new, A1, ports=[{"port": 81}, {**udp, "port": 81}])
        wait_until(lambda: all(served(lab, client, new, 81) for client in clients))
        wait_until(lambda: all(served(lab, client, new, 81, "udp") for client in clients))
        for client in clients:
            assert answers(lab, client, new, 81)[0].server == A1
            assert ask(lab, client, old, 80, times=3) == ["refused"] * 3
            # Of ICMP errors the kernel sends a few to each address, then one a second.
            wait_until(lambda: ask(lab, client, old, 80, "udp", timeout=1) == ["refused"])  # noqa: B023
            echo(holders, "and on")


def echo(holders: Iterable[subprocess.Popen[str]], word: str) -> None:
    """Through each of these connections."""
    for holder in holders:
        tell(holder, word)
        assert said(holder) == word


@pytest.mark.parametrize("count", [1_000, 3_000])
def test_service_with_very_many_endpoints(lab: Lab, count: int) -> None:
    """Ports of three pods, each an endpoint of its own. Some go and come under connections."""
    name, at, first = f"many-{count}", f"10.96.2.{count // 1_000}", 20_000
    ports = range(first, first + -(-count // 3))
    # A slice has all of its endpoints at each of its ports; so there is one for each port.
    places = [place(lab, pod) for pod in (A2, B1, A1)]
    coming = endpoints(name, places[: count % 3 or 3], [{"port": first}])
    slices = [endpoints(name, places, [{"port": port}]) for port in ports[1:]]
    for number, each in enumerate(slices):
        each["metadata"]["name"] = f"{name}-of-many-{number}"
    many = {"kind": "List", "metadata": {"namespace": "default", "name": name}, "items": slices}
    clients = (A1, "node2")

    def everywhere(number: int) -> bool:
        return all(chosen_of(lab, node, ports) == number for node in ("node1", "node2"))

    with ExitStack() as started, every_port(lab, ports):
        start = started.enter_context
        lab.apply(coming)
        lab.apply(service(name, at, [{"port": 80}]))
        wait_until(lambda: all(served(lab, client, at, 80) for client in clients))
        holders = [start(running(lab, client, HOLDER, at, "80", A2)) for client in clients]
        assert [said(holder) for holder in holders] == [A2, A2]
        lab.apply(many)
        wait_until(lambda: everywhere(count))
        for client in clients:
            before = heard(lab)
            assert {a.server for a in answers(lab, client, at, 80, times=300)} == {A1, A2, B1}
            after = heard(lab)
            assert sum(after.values()) == sum(before.values()) + 300
            # 300 of 1,000 reach 259 of them on the average.
            assert sum(after[to] > before.get(to, 0) for to in after) > 200
        echo(holders, "one of many")
        connectors = [start(running(lab, client, CONNECTOR, at, "80", "400")) for client in clients]
        while any(connector.popen.poll() is None for connector in connectors):
            lab.delete("EndpointSlice", "default", f"{name}-1")
            wait_until(lambda: everywhere(3 * len(slices)))
            echo(holders, "without")
            lab.apply(coming)
            wait_until(lambda: everywhere(count))
        for connector in connectors:
            counts = Counter(json.loads(said(connector)))
            assert counts.keys() == {A1, A2, B1}
            assert counts.total() == 400
        lab.delete("Service", "default", name)
        lab.delete("List", "default", name)
        lab.delete("EndpointSlice", "default", f"{name}-1")
        wait_until(lambda: everywhere(0))
        echo(holders, "to the end")


def chosen_of(lab: Lab, node: str, ports: range) -> int:
    """To how many places at these ports the node's groups lead."""
    places = set(re.findall(r"dst=([\d.]+:\d+)", groups(lab, node)))
    return sum(int(place.split(":")[1]) in ports for place in places)


MANY = 30

CALLERS = f"""
import socket, sys
callers = []
for _ in range({MANY}):
    each = socket.socket()
    each.setblocking(False)
    each.connect_ex((sys.argv[1], int(sys.argv[2])))
    callers.append(each)
for each in callers:
    each.settimeout(60)
    print(each.recv(100).decode().split()[0], each.getsockname()[1], flush=True)
"""

SENDERS = f"""
import socket, sys
senders = []
for _ in range({MANY}):
    each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    each.settimeout(20)
    each.connect((sys.argv[1], int(sys.argv[2])))
    senders.append(each)
for line in sys.stdin:
    for each in senders:
        each.send(b"x")
        if line == "ask\\n":
            print(each.recv(100).decode().split()[0], each.getsockname()[1], flush=True)
"""


def servers(lab: Lab, client: str, at: str, port: int) -> set[str]:
    """All that it can reach there, as good as certainly."""
    return {answer.server for answer in answers(lab, client, at, port, times=40)}


def deaf(lab: Lab, to: str) -> AbstractContextManager[None]:
    """The three servers do not hear such packets, an expression of nftables; `heard` tells them."""
    return noting(
        lab,
        "type filter hook prerouting priority raw; "
        f"th dport 8080 {to} update @heard {{ th sport counter }} drop",
    )


def every_port(lab: Lab, ports: range) -> AbstractContextManager[None]:
    """The three servers are at these ports as well; `heard` tells connections by them."""
    return noting(
        lab,
        "type nat hook prerouting priority dstnat; "
        f"tcp dport {ports[0]}-{ports[-1]} update @heard {{ tcp dport counter }} redirect to :8080",
    )


@contextmanager
def noting(lab: Lab, chain: str) -> Iterator[None]:
    """A chain of nftables in front of the three servers, which puts ports in the set `heard`."""
    rules = f"""
        table ip noting {{
            set heard {{ type inet_service; flags dynamic; size 65535; }}
            chain servers {{ {chain}; }}
        }}
    """
    for pod in NODES:
        lab.exec(pod, ["nft", "-f", "-"], stdin=rules)
    try:
        yield
    finally:
        for pod in NODES:
            lab.exec(pod, ["nft", "delete", "table", "ip", "noting"])


def heard(lab: Lab) -> dict[tuple[str, int], int]:
    """How many came to which pod, by the port."""
    found: dict[tuple[str, int], int] = {}
    for pod in NODES:
        shown = json.loads(
            lab.exec(pod, ["nft", "-j", "list", "set", "ip", "noting", "heard"]).stdout
        )
        (named,) = [entry["set"] for entry in shown["nftables"] if "set" in entry]
        for element in named.get("elem", ()):
            found[pod, element["elem"]["val"]] = element["elem"]["counter"]["packets"]
    return found


def hear_again(lab: Lab) -> None:
    for pod in NODES:
        lab.exec(pod, ["nft", "flush", "chain", "ip", "noting", "servers"])


def get_one_more(lab: Lab, name: str, client: str) -> None:
    """B1 is an endpoint as well, and the client's switch knows it."""
    node = NODES.get(client, client)
    to = f"{address(lab, B1)}:8080"
    before = groups(lab, node).count(to)
    put_behind(lab, name, NODES)
    wait_until(lambda: groups(lab, node).count(to) > before)


def groups(lab: Lab, node: str) -> str:
    return lab.exec(node, ["ovs-ofctl", "-O", "OpenFlow15", "dump-groups", "br-int"]).stdout


@contextmanager
def running(lab: Lab, where: str, text: str, *argv: str) -> Iterator[Process]:
    """A Python program, killed at the end."""
    with processes.running(lab.command(where, [sys.executable, "-c", text, *argv])) as process:
        yield process


def tell(process: Process, line: str) -> None:
    process.say(f"{line}\n")


def said(process: Process) -> str:
    """Its next line."""
    return process.line().strip()


UDP_53 = {"name": "UDP", "protocol": "UDP", "port": 53}


def served(lab: Lab, client: str, *at: str | int) -> bool:
    """Whether a server answers there."""
    return ask(lab, client, *at, timeout=1)[0].startswith("default/")  # type: ignore[arg-type]
