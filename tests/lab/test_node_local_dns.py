"""NodeLocal DNSCache in both of its forms: CoreDNS as a cache on a node, and behind it in a pod.

The first form binds the ClusterIP of kube-dns to an interface of the node, the second an address
of its own, which kubelet tells pods.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab
from lab.processes import running
from tests.lab.served import A1, B1, endpoints, place, service, three_servers
from tests.waiting import wait_until

CLUSTER_IP, UPSTREAM, LOCAL = "10.96.0.60", "10.96.0.61", "169.254.20.10"
PORT = 5353

CACHE = f"""
.:53 {{
    bind {CLUSTER_IP} {LOCAL}
    cache 300
    forward . {UPSTREAM}
}}
"""
SERVER = f"""
.:{PORT} {{
    template IN A . {{
        answer "{{{{ .Name }}}} 600 IN A 192.0.2.7"
    }}
}}
"""

QUERY = """
import socket, struct, sys
address, name = sys.argv[1:]
question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\\0"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(2)
    try:
        client.connect((address, 53))
        client.send(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + question + struct.pack("!2H", 1, 1))
        answer = client.recv(512)
    except OSError as error:
        print(error)
    else:
        print(socket.inet_ntoa(answer[-4:]) if answer[7] else "nothing")
"""


def _coredns() -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice" / "kube"
    return next(iter(sorted(cache.glob("*-cluster-*/coredns"))), None)


needs_coredns = pytest.mark.skipif(not _coredns(), reason="CoreDNS is built by `make cluster`")


def query(lab: Lab, where: str, address: str, name: str) -> str:
    return lab.exec(where, [sys.executable, "-c", QUERY, address, name]).stdout.strip()


@contextmanager
def dns(lab: Lab, where: str, folder: Path, corefile: str) -> Iterator[None]:
    file = folder / f"Corefile-{where.replace('/', '-')}"
    file.write_text(corefile)
    with running(lab.command(where, [str(_coredns()), "-conf", str(file)])):
        yield


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    with three_servers(lab):
        yield lab


@needs_coredns
def test_a_dns_cache_on_the_node(lab: Lab, tmp_path: Path) -> None:
    ports = [{"name": "dns", "protocol": "UDP", "port": 53}]
    targets = [{"name": "dns", "protocol": "UDP", "port": PORT}]
    for name, address in (("kube-dns", CLUSTER_IP), ("kube-dns-upstream", UPSTREAM)):
        lab.apply(endpoints(name, [place(lab, B1)], targets))
        lab.apply(service(name, address, ports))
    for address in (CLUSTER_IP, LOCAL):
        lab.exec("node1", ["ip", "addr", "add", f"{address}/32", "dev", "lo"])
    try:
        with dns(lab, "node1", tmp_path, CACHE):
            with dns(lab, B1, tmp_path, SERVER):
                for where in ("node1", A1):
                    for address in (CLUSTER_IP, LOCAL):
                        name = f"{where.replace('/', '-')}.{address}.test"
                        wait_until(
                            lambda: query(lab, where, address, name) == "192.0.2.7"  # noqa: B023
                        )
                # The node goes on taking pods.
                lab.pod_add("default", "late", "node1")
                assert query(lab, "default/late", LOCAL, "late.test") == "192.0.2.7"
                assert query(lab, "default/late", CLUSTER_IP, "late.test") == "192.0.2.7"
                lab.pod_del("default", "late")
            # The host asks the cache at both addresses; pods at its own, and kube-dns itself at
            # the ClusterIP.
            for where in ("node1", A1):
                assert query(lab, where, LOCAL, "late.test") == "192.0.2.7"
            assert query(lab, "node1", CLUSTER_IP, "late.test") == "192.0.2.7"
            assert query(lab, A1, CLUSTER_IP, "late.test") != "192.0.2.7"
        assert lab.status()["problems"] in ([], {})
    finally:
        for address in (CLUSTER_IP, LOCAL):
            lab.exec("node1", ["ip", "addr", "del", f"{address}/32", "dev", "lo"])
        for name in ("kube-dns", "kube-dns-upstream"):
            lab.delete("Service", "default", name)
            lab.delete("EndpointSlice", "default", f"{name}-1")
