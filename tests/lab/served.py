"""Services for the lab's tests: their manifests, servers behind them, and clients before them."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from lab import Lab
from lab.processes import running
from tests.lab.pings import address
from tests.waiting import wait_until

A1, A2, B1 = "default/a1", "default/a2", "default/b1"
NODE1, NODE2 = "172.30.1.1", "172.30.1.2"
NODES = {A1: "node1", A2: "node1", B1: "node2"}

ANSWERER = """
import select, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
tcp = socket.create_server(("", port), backlog=1024)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: answer from where it was asked
udp.bind(("", port))
print("ready", flush=True)
held = []
while True:
    readable, _, _ = select.select([tcp, udp, *held], [], [])
    for each in readable:
        if each is tcp:
            connection, peer = tcp.accept()
            connection.sendall(f"{name} {peer[0]} {peer[1]} {port}\\n".encode())
            held.append(connection)
        elif each is udp:
            data, control, _, peer = udp.recvmsg(2048, 64)
            udp.sendmsg([f"{name} {peer[0]} {peer[1]} ".encode() + data], control, 0, peer)
        else:
            try:
                data = each.recv(2048)
            except OSError:
                data = b""
            if data:
                each.sendall(data)
            else:
                held.remove(each)
                each.close()
"""

ASKER = """
import socket, sys
protocol, address, port, times, source = sys.argv[1:6]
for number in range(int(times)):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(float(sys.argv[6]))
        if source != "0":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
            client.bind(("", int(source)))
        try:
            client.connect((address, int(port)))
            if protocol == "udp":
                client.send(b"x")
            print(client.recv(100).decode().strip())
        except TimeoutError:
            print("timeout")
        except ConnectionRefusedError:
            print("refused")
        except OSError as error:
            print(error)
"""


class ServerAnswer(NamedTuple):
    """Which server answered, and what it saw of its client."""

    server: str
    address: str
    port: int


@contextmanager
def answering(lab: Lab, where: str, port: int = 8080) -> Iterator[None]:
    """A TCP and UDP server that says its name and whom it sees."""
    command = lab.command(where, [sys.executable, "-c", ANSWERER, where, str(port)])
    with running(command) as process:
        assert process.line() == "ready"
        yield


SPREAD = """
import collections, json, socket, struct, sys
counts = collections.Counter()
for number in range(int(sys.argv[3])):
    with socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connect((sys.argv[1], int(sys.argv[2])))
        counts[client.recv(100).decode().split()[3]] += 1
print(json.dumps(counts))
"""


def spread(lab: Lab, where: str, address: str, port: int, times: int) -> Counter[str]:
    """How many of so many connections each port of the endpoints got."""
    command = [sys.executable, "-c", SPREAD, address, str(port), str(times)]
    return Counter(json.loads(lab.exec(where, command, timeout=300).stdout))


def ask(
    lab: Lab,
    where: str,
    address: str,
    port: int,
    protocol: str = "tcp",
    *,
    times: int = 1,
    source: int = 0,
    timeout: float = 5.0,
) -> list[str]:
    """What a client hears: `SERVER ADDRESS PORT`, `timeout`, `refused`; once for each time."""
    words = [protocol, address, str(port), str(times), str(source), str(timeout)]
    return lab.exec(where, [sys.executable, "-c", ASKER, *words], timeout=300).stdout.splitlines()


def answered(line: str) -> bool:
    """Whether a server said this, and not the client's own kernel."""
    return re.fullmatch(r"\S+ [0-9.]+ [0-9]+ \S+", line) is not None


def answers(
    lab: Lab, where: str, address: str, port: int, *more: Any, **how: Any
) -> list[ServerAnswer]:
    """As `ask`; fails where a server does not answer."""
    heard = ask(lab, where, address, port, *more, **how)
    assert all(map(answered, heard)), heard
    split = [line.split() for line in heard]
    return [ServerAnswer(words[0], words[1], int(words[2])) for words in split]


def wait_until_answered(
    lab: Lab, clients: Iterable[str], address: str, port: int, protocol: str = "tcp"
) -> None:
    """Until a server answers each of the clients: nodes get their flows and rules one by one."""
    for client in clients:
        wait_until(
            lambda c=client: answered(ask(lab, c, address, port, protocol, timeout=1)[0])  # type: ignore[misc]
        )


def service(
    name: str, address: str | None, ports: Iterable[Mapping[str, Any]], **spec: Any
) -> dict[str, Any]:
    """A Service in the namespace default; a port is e.g. `{"port": 80}`."""
    status = spec.pop("status", {})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"protocol": "TCP", **port} for port in ports],
            **spec,
        },
        "status": status,
    }


def endpoints(
    name: str,
    places: Iterable[tuple[str, Mapping[str, Any]]],
    ports: Iterable[Mapping[str, Any]] = ({"port": 8080},),
) -> dict[str, Any]:
    """The EndpointSlice of a Service; a place is an address and more of an endpoint."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": True}, **more}
            for address, more in places
        ],
        "ports": [{"name": "", "protocol": "TCP", **port} for port in ports],
    }


@contextmanager
def three_servers(lab: Lab) -> Iterator[None]:
    """Two pods on node1 and one on node2, each with a server at 8080."""
    with ExitStack() as servers:
        for pod, node in NODES.items():
            namespace, name = pod.split("/")
            lab.pod_add(namespace, name, node)
            servers.enter_context(answering(lab, pod))
        yield


def place(lab: Lab, pod: str, **more: object) -> tuple[str, dict[str, object]]:
    return address(lab, pod), {"nodeName": NODES[pod], **more}


def serve(lab: Lab, name: str, at: str, *pods: str, ports=({"port": 80},), **spec: object) -> None:  # type: ignore[no-untyped-def]
    """A Service with these pods behind it."""
    named = [{"name": port.get("protocol", "TCP"), **port} for port in ports]
    put_behind(lab, name, pods)
    lab.apply(service(name, at, named, **spec))


def put_behind(lab: Lab, name: str, pods: Iterable[str], leaving: Iterable[str] = ()) -> None:
    """These pods and no others are the Service's endpoints; some are being deleted."""
    both = [{"name": p, "port": 8080, "protocol": p} for p in ("TCP", "UDP")]
    terminating = {"ready": False, "serving": True, "terminating": True}
    places = [place(lab, pod) for pod in pods]
    places += [place(lab, pod, conditions=terminating) for pod in leaving]
    lab.apply(endpoints(name, places, both))
