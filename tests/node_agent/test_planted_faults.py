"""Faults that are planted in network namespaces for real, and found by looking at the host."""

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from lab.patience import PROGRAM_TIMEOUT
from node_agent.checks import echo, host_facts, probes
from node_agent.checks.facts import ControllerSession
from node_agent.checks.host_facts import Notes, Places, parse_chains
from node_agent.checks.local import check
from tests.namespaces import inside
from tests.ovs import Ovs
from tests.ports import free_port
from wire.findings import Finding, Peer

from .conftest import needs_root
from .test_findings import BEFORE

HOST, ROUTER, OTHER = (f"sluice-{name}-{os.getpid()}" for name in ("check", "way", "peer"))
PEER = Peer("node2", IPv4Address("198.51.100.2"))
WANTED = msgspec.structs.replace(BEFORE, controllers=("198.51.100.2",), peers=(PEER,))


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=PROGRAM_TIMEOUT, capture_output=True)


def nft(where: str, text: str) -> None:
    subprocess.run(
        ["ip", "netns", "exec", where, "nft", "-f", "-"],
        # A line for each statement, as nft wants it.
        input=text.replace("{", "{\n").replace("}", "\n}\n").encode(),
        check=True, timeout=PROGRAM_TIMEOUT,
    )  # fmt: skip


@pytest.fixture
def hosts() -> Iterator[None]:
    """The host and another node, with a router between them."""
    with namespaces(HOST, ROUTER, OTHER):
        join(HOST, "192.0.2.1", ROUTER, "192.0.2.254")
        join(OTHER, "198.51.100.2", ROUTER, "198.51.100.254")
        run("ip", "netns", "exec", ROUTER, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        yield


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    made = []
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in made:
            run("ip", "netns", "delete", name)


def join(host: str, address: str, router: str, gateway: str) -> None:
    link = f"to-{address}"[:15]
    run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", link, "netns", router)
    for where, name, own in ((host, "eth0", address), (router, link, gateway)):
        run("ip", "-n", where, "address", "add", f"{own}/24", "dev", name)
        run("ip", "-n", where, "link", "set", name, "up")
    run("ip", "-n", host, "route", "add", "default", "via", gateway)


def found(ovs: Ovs, folder: Path, **changes: Any) -> dict[str, Finding]:
    """What is found on the host, by subject."""
    places = Places(
        modules=folder / "modules",
        cni_conf=folder / "cni",
        ovsdb=ovs.directory / "db.sock",
        ovs_run=ovs.directory,
    )
    wanted = msgspec.structs.replace(WANTED, **changes)
    made = inside(HOST, lambda: asyncio.run(check(wanted, places)))
    return {each.subject: each for each in made.findings}


@needs_root
def test_nothing_is_found_on_a_healthy_host(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    release = tmp_path / "modules" / os.uname().release
    release.mkdir(parents=True)
    (release / "modules.dep").write_text("kernel/net/openvswitch/openvswitch.ko.xz: a.ko\n")
    (release / "modules.builtin").write_text("kernel/drivers/net/geneve.ko\n")
    assert found(ovs, tmp_path) == {}


@needs_root
def test_faults_of_the_host_are_found(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    nft(HOST, """
        table ip nat { chain KUBE-SERVICES { }; chain KUBE-KUBELET-CANARY { } }
        table ip kube-proxy { }
        table inet fw { chain forwarded { type filter hook forward priority 0; policy drop; } }
    """)  # fmt: skip
    run("ip", "-n", HOST, "link", "add", "cni0", "type", "bridge")
    run("ip", "-n", HOST, "link", "add", "cali12", "type", "veth", "peer", "p")
    run("ip", "-n", HOST, "route", "add", "10.244.7.0/24", "via", "192.0.2.254")
    run("ip", "-n", HOST, "address", "add", "10.244.9.9/32", "dev", "lo")
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni" / "05-x.conf").write_text(json.dumps({"type": "bridge"}))
    (tmp_path / "modules" / os.uname().release).mkdir(parents=True)
    (tmp_path / "modules" / os.uname().release / "modules.dep").write_text("")
    ovs.vsctl("add-br", "br-int", "--", "set", "Bridge", "br-int", "external_ids:ovn-x=y")

    def listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", 10256))

    with closing(inside(HOST, listen)):
        subjects = set(found(ovs, tmp_path))
    assert subjects == {
        "kernel module openvswitch",
        "kernel module geneve",
        "bridge br-int",
        "chain KUBE-SERVICES of table ip nat",
        "table ip kube-proxy",
        "chain forwarded of table inet fw",
        "interface cni0",
        "interface cali12",
        "route 10.244.7.0/24 on eth0",
        "address 10.244.9.9 on lo",
        "port 10256/TCP",
        str(tmp_path / "cni" / "05-x.conf"),
    }


@needs_root
def test_firewall_that_accepts_the_gateway_is_no_finding(
    ovs: Ovs, hosts: None, tmp_path: Path
) -> None:
    del hosts
    nft(HOST, """
        table inet fw { chain forwarded {
            type filter hook forward priority 0; policy drop;
            iifname "sluice-gw" accept
            oifname "sluice-gw" accept
        } }
    """)  # fmt: skip
    assert found(ovs, tmp_path) == {}


@needs_root
def test_chains_of_legacy_iptables_are_found(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    program = ["ip", "netns", "exec", HOST, "iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES"]
    try:
        run(*program)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no iptables-legacy")
    (one,) = found(ovs, tmp_path).values()
    assert "iptables-legacy shows chain KUBE-SERVICES" in one.text


@needs_root
@pytest.mark.parametrize("silent", [False, True])
def test_small_path_is_found_though_routers_may_be_silent(
    ovs: Ovs, hosts: None, tmp_path: Path, silent: bool
) -> None:
    del hosts
    run("ip", "-n", ROUTER, "link", "set", "to-198.51.100.2", "mtu", "1420")
    run("ip", "-n", OTHER, "link", "set", "eth0", "mtu", "1420")
    if silent:
        nft(ROUTER, """
            table ip t { chain c { type filter hook output priority 0;
                icmp type destination-unreachable drop
            } }
        """)  # fmt: skip
    (one,) = found(ovs, tmp_path).values()
    assert one.subject == "Node node2 (198.51.100.2)"
    mtu = int(one.cure.split("`cluster.mtu: ")[1].rstrip("`"))
    assert 1420 - 50 - probes.GRAIN <= mtu <= 1420 - 50


@needs_root
def test_path_is_right_with_the_mtu_of_the_settings(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    run("ip", "-n", ROUTER, "link", "set", "to-198.51.100.2", "mtu", "1420")
    run("ip", "-n", OTHER, "link", "set", "eth0", "mtu", "1420")
    assert found(ovs, tmp_path, mtu=1370) == {}


@needs_root
def test_port_that_a_firewall_blocks_is_found(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    nft(
        ROUTER,
        """
        table ip t { chain c { type filter hook forward priority 0; tcp dport 6654 drop } }
    """,
    )
    (one,) = found(ovs, tmp_path).values()
    assert one.subject == "controller 198.51.100.2, port 6654/TCP"


@needs_root
def test_node_without_answer_to_echo_requests_is_said(
    ovs: Ovs, hosts: None, tmp_path: Path
) -> None:
    del hosts
    nft(
        OTHER,
        """
        table ip t { chain c { type filter hook input priority 0; icmp type echo-request drop } }
    """,
    )
    places = Places(cni_conf=tmp_path, ovsdb=ovs.directory / "db.sock", ovs_run=ovs.directory)
    made = inside(HOST, lambda: asyncio.run(check(WANTED, places)))
    assert made.findings == ()
    assert any("path MTU to node2" in each for each in made.unchecked)


def test_clock_that_is_behind_the_controllers_is_found() -> None:
    async def look() -> float | None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            then = datetime.now(UTC) + timedelta(hours=1)
            writer.write(f"HTTP/1.1 200 OK\r\nDate: {then:%a, %d %b %Y %H:%M:%S} GMT\r\n"
                         "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())  # fmt: skip
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await probes.clock_offset(f"http://127.0.0.1:{port}")

    offset = asyncio.run(look())
    assert offset is not None
    assert -3602 < offset < -3500


def test_certificate_is_read_with_its_dates(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node1")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, start, start + timedelta(days=365)
    ).sign(key, hashes.SHA256())
    path = tmp_path / "tls.crt"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    notes = Notes()
    (one,) = host_facts.certificates(path, notes)
    assert (one.not_before, one.not_after) == (start, start + timedelta(days=365))
    assert not one.is_ca
    path.write_text("no certificate")
    assert host_facts.certificates(path, notes) == []
    assert host_facts.certificates(tmp_path / "absent", notes) == []
    assert len(notes) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"plugins": 7}', b'{"plugins": [7]}', b'{"type": ', b"[" * 100_000, b"\xff\xfe",
     b'{"plugins": [' + b'{"type": "x"},' * 400_000],
)  # fmt: skip
def test_cni_file_of_any_content_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "05.conflist").write_bytes(content)
    (one,) = host_facts.cni_files(Places(cni_conf=tmp_path), Notes())
    assert one.plugins == ()


def test_cni_file_may_be_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "05.conf")
    (one,) = host_facts.cni_files(Places(cni_conf=tmp_path), Notes())
    assert one.plugins == ()


def test_output_of_a_program_is_bounded() -> None:
    text, problem = asyncio.run(host_facts.output("yes"))
    assert problem == ""
    assert len(text) < host_facts.LARGEST_OUTPUT + (1 << 17)


def test_chains_of_a_large_list_are_bounded() -> None:
    text = "table ip nat {\n" + "\tchain KUBE-SEP-X {\n\t}\n" * 200_000
    chains, tables = parse_chains(text)
    assert len(chains) == host_facts.MOST_CHAINS
    assert tables == [("ip", "nat")]


def test_answer_of_ovsdb_that_never_ends_is_bounded(tmp_path: Path) -> None:
    async def look() -> str:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(b'{"id":0,"error":null,"result":["')
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
            except ConnectionError:
                writer.close()

        path = tmp_path / "db.sock"
        async with await asyncio.start_unix_server(answer, path):
            found = await host_facts.open_vswitch(Places(ovsdb=path, ovs_run=tmp_path))
        return found.database

    assert asyncio.run(look()) == "it says too much"


def test_session_of_the_switch_with_each_controller(ovs: Ovs) -> None:
    """Of two, one is somebody's own."""
    ovs.vsctl(
        "--id=@a", "create", "Controller", 'target="tcp:127.0.0.1:1"', "type=service",
        "external_ids:sluice=controller", "--",
        "--id=@b", "create", "Controller", 'target="tcp:127.0.0.1:2"', "type=service", "--",
        "set", "Bridge", "br0", "controller=@a,@b",
    )  # fmt: skip

    async def look() -> list[ControllerSession]:
        places = Places(ovsdb=ovs.directory / "db.sock", ovs_run=ovs.directory)
        found = await host_facts.open_vswitch(places)
        assert not found.database
        return list(found.sessions)

    (session,) = asyncio.run(look())
    assert (session.target, session.is_connected) == ("tcp:127.0.0.1:1", False)


@needs_root
def test_blocked_tunnel_port_is_found_before_anything_listens_there(hosts: None) -> None:
    del hosts
    there = threading.Event()
    stop = threading.Event()

    async def answer() -> None:
        async with echo.answering(6081):
            there.set()
            await asyncio.to_thread(stop.wait, 60)

    def ask(within: float) -> tuple[Peer, ...]:
        return inside(HOST, lambda: asyncio.run(echo.silent((PEER,), 6081, within)))

    other = threading.Thread(target=lambda: inside(OTHER, lambda: asyncio.run(answer())))
    other.start()
    try:
        assert there.wait(30)
        assert ask(30) == ()
        nft(
            ROUTER,
            """
            table ip t { chain c { type filter hook forward priority 0; udp dport 6081 drop } }
        """,
        )
        assert ask(1) == (PEER,)
    finally:
        stop.set()
        other.join(60)


@needs_root
def test_own_listener_at_the_tunnel_port_is_no_fault(ovs: Ovs, hosts: None, tmp_path: Path) -> None:
    del hosts
    assert "port 6081/UDP" not in found(ovs, tmp_path, together=0.5)


def test_only_probes_are_answered_and_never_with_more_bytes() -> None:
    async def story() -> list[bytes]:
        loop = asyncio.get_running_loop()
        async with echo.answering(port := free_port()):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with closing(client):
                client.connect(("127.0.0.1", port))
                for data in (b"x", echo.MAGIC + b"y" * 100, echo.MAGIC + b"1"):
                    await loop.sock_sendall(client, data)
                first = await loop.sock_recv(client, 2000)
                # Two nodes that answered each other's answers would do so for ever.
                for data in (first, echo.MAGIC + b"2"):
                    await loop.sock_sendall(client, data)
                return [first, await loop.sock_recv(client, 2000)]

    one, two = asyncio.run(asyncio.wait_for(story(), 30))
    assert (one[-1:], two[-1:]) == (b"1", b"2")
    assert len(one) == len(echo.MAGIC + b"1")
