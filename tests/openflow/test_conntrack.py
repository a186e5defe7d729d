"""Connections forgotten by address, over OpenFlow, in a switch that tracks them."""

import asyncio
import re
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab.processes import running
from openflow import codec
from openflow.batch import Batch
from openflow.conntrack import ANY, CtTuple, Forget
from openflow.switch import Rejected
from openflow.templates import numbered
from openflow.watch import connect
from tests.ovs import Ovs
from tests.waiting import wait_until

OLD, OTHER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
VIRTUAL = "10.96.0.1"
ZONE = 100


def test_as_ovs_ofctl_writes_it(tmp_path: Path):
    one, two = IPv4Address("10.244.1.2"), IPv4Address("10.244.1.3")
    everything = CtTuple(one, two, 1000, 2000)
    cases = [
        (0, CtTuple(source=one), ANY, ["ct_nw_src=10.244.1.2"]),
        (0, ANY, CtTuple(source=one), ["", "ct_nw_src=10.244.1.2"]),
        (17, ANY, CtTuple(source=one, source_port=53),
         ["", "ct_nw_src=10.244.1.2,ct_nw_proto=17,ct_tp_src=53"]),
        (6, CtTuple(destination_port=80), ANY, ["ct_nw_proto=6,ct_tp_dst=80"]),
        (17, everything, CtTuple(two, one, 2000, 1000), [
            "ct_nw_src=10.244.1.2,ct_nw_dst=10.244.1.3,ct_nw_proto=17,ct_tp_src=1000,ct_tp_dst=2000",
            "ct_nw_src=10.244.1.3,ct_nw_dst=10.244.1.2,ct_tp_src=2000,ct_tp_dst=1000",
        ]),
        (0, ANY, ANY, []),
    ]  # fmt: skip
    for number, (protocol, original, reply, tuples) in enumerate(cases):
        message = codec.conntrack_flush(ZONE, protocol, original, reply)
        with socket.socket(socket.AF_UNIX) as server:
            path = tmp_path / f"switch{number}"
            server.bind(str(path))
            server.listen()
            ofctl = [
                "ovs-ofctl", "-O", "OpenFlow15", "ct-flush", f"unix:{path}", f"zone={ZONE}",
                *tuples,
            ]  # fmt: skip
            server.settimeout(60)
            with running(ofctl):
                connection, _ = server.accept()
                connection.settimeout(60)
                with connection, connection.makefile("rb") as stream:
                    connection.sendall(struct.pack("!BBHI", 6, 0, 8, 1))
                    kind, sent = 0, b""
                    while kind != 4:
                        header = stream.read(8)
                        _, kind, length, xid = struct.unpack("!BBHI", header)
                        sent = header + stream.read(length - 8)
            assert sent == numbered(message, xid)


@pytest.fixture
def tracking(ovs: Ovs) -> Ovs:
    """Every UDP packet of port 1 opens a connection; one to the virtual address is translated."""
    for number in (1, 2):
        ovs.port_up(f"p{number}", number)
    for flow in (
        f"priority=2,udp,nw_dst={VIRTUAL},"
        f"actions=ct(commit,zone={ZONE},nat(dst={OLD}),exec(set_field:7->ct_mark)),output:2",
        f"priority=1,udp,nw_src={THIRD},actions=ct(commit,zone=7),output:2",
        f"priority=0,udp,actions=ct(commit,zone={ZONE}),output:2",
    ):
        ovs.ofctl("add-flow", str(ovs.mgmt), flow)
    return ovs


def appctl(ovs: Ovs, *words: str) -> str:
    pid = (ovs.directory / "ovs-vswitchd.pid").read_text().strip()
    return ovs.run("ovs-appctl", "-t", f"{ovs.directory}/ovs-vswitchd.{pid}.ctl", *words)


def entries(ovs: Ovs) -> set[tuple[str, str, str]]:
    """(source, destination, who answers) of each connection."""
    pattern = r"orig=\(src=([\d.]+),dst=([\d.]+).*?reply=\(src=([\d.]+)"
    return set(re.findall(pattern, appctl(ovs, "dpctl/dump-conntrack")))


def receive(ovs: Ovs, source: str, destination: str, port: int = 2000, udp: bool = True) -> None:
    """A packet that opens a connection."""
    protocol = f"udp(src=1000,dst={port})" if udp else f"tcp(src=1000,dst={port}),tcp_flags(syn)"
    appctl(
        ovs, "netdev-dummy/receive", "p1",
        "in_port(1),eth(src=50:54:00:00:00:01,dst=50:54:00:00:00:02),eth_type(0x0800),"
        f"ipv4(src={source},dst={destination},proto={17 if udp else 6},tos=0,ttl=64,frag=no),"
        f"{protocol}",
    )  # fmt: skip


def flush(ovs: Ovs, batch: Batch) -> None:
    async def send() -> None:
        async with connect(ovs.mgmt) as switch:
            await switch.apply(batch)

    asyncio.run(send())


def test_every_connection_of_an_address_and_no_other(tracking: Ovs):
    wanted = {
        (OLD, OTHER, OTHER), (OTHER, OLD, OLD), (OTHER, VIRTUAL, OLD),
        (OTHER, "10.0.0.11", "10.0.0.11"), (THIRD, OLD, OLD),
    }  # fmt: skip
    for source, destination, _ in wanted:
        receive(tracking, source, destination)
    wait_until(lambda: entries(tracking) == wanted)
    flush(tracking, Batch.forgetting(ZONE, [IPv4Address(OLD)]))
    # The third is in another zone.
    assert entries(tracking) == {(OTHER, "10.0.0.11", "10.0.0.11"), (THIRD, OLD, OLD)}


VIRTUAL_2 = "10.96.0.2"


def connections(ovs: Ovs) -> set[tuple[str, str, int]]:
    """(protocol, destination, port) of each connection as it was opened."""
    pattern = r"(udp|tcp),orig=\(src=[\d.]+,dst=([\d.]+),sport=\d+,dport=(\d+)\)"
    found = re.findall(pattern, appctl(ovs, "dpctl/dump-conntrack"))
    return {(protocol, address, int(port)) for protocol, address, port in found}


@pytest.mark.parametrize(
    ("forget", "gone"),
    [
        (
            Forget.endpoint(ZONE, 17, IPv4Address(OLD), 53),
            {("udp", VIRTUAL, 530), ("udp", VIRTUAL_2, 530), ("udp", OLD, 53)},
        ),
        (Forget.endpoint(ZONE, 6, IPv4Address(OLD), 53), {("tcp", VIRTUAL, 530)}),
        (Forget.frontend(ZONE, 17, IPv4Address(VIRTUAL), 530), {("udp", VIRTUAL, 530)}),
        (
            Forget.frontend(ZONE, 17, None, 530),
            {("udp", VIRTUAL, 530), ("udp", VIRTUAL_2, 530)},
        ),
        (Forget.untranslated(ZONE, 17, IPv4Address(VIRTUAL), 530), set()),
        (Forget.untranslated(ZONE, 17, IPv4Address(OTHER), 53), {("udp", OTHER, 53)}),
        (Forget.untranslated(ZONE, 17, None, 53), {("udp", OLD, 53), ("udp", OTHER, 53)}),
    ],
    ids=[
        "endpoint",
        "endpoint by tcp",
        "frontend",
        "frontend of any address",
        "translated",
        "untranslated",
        "untranslated of any address",
    ],
)
def test_the_connections_of_an_endpoint_or_a_frontend_and_no_others(
    ovs: Ovs, forget: Forget, gone: set[tuple[str, str, int]]
):
    """Two Services that one endpoint stands behind, a connection to it, and what is like them."""
    for number in (1, 2):
        ovs.port_up(f"p{number}", number)
    for flow in (
        *(
            f"priority=2,{protocol},nw_dst={service},{field}={port},"
            f"actions=ct(commit,zone={ZONE},nat(dst={OLD}:{to})),output:2"
            for protocol, field in (("udp", "udp_dst"), ("tcp", "tcp_dst"))
            for service, port, to in (
                (VIRTUAL, 530, 53),
                (VIRTUAL, 540, 54),
                (VIRTUAL_2, 530, 53),
            )
        ),
        f"priority=1,ip,nw_dst={THIRD},actions=ct(commit,zone=7,nat(dst={OLD}:53)),output:2",
        f"priority=0,ip,actions=ct(commit,zone={ZONE}),output:2",
    ):
        ovs.ofctl("add-flow", str(ovs.mgmt), flow)
    opened = {
        ("udp", VIRTUAL, 530), ("udp", VIRTUAL, 540), ("udp", VIRTUAL_2, 530), ("udp", OLD, 53),
        ("udp", OLD, 54), ("udp", OTHER, 53), ("udp", THIRD, 530), ("tcp", VIRTUAL, 530),
        ("tcp", OTHER, 530),
    }  # fmt: skip
    for number, (protocol, address, port) in enumerate(sorted(opened)):
        receive(ovs, f"10.1.0.{number}", address, port, protocol == "udp")
    wait_until(lambda: connections(ovs) == opened)
    flush(ovs, Batch.of_forgets([forget]))
    assert connections(ovs) == opened - gone


def test_a_switch_that_cannot_says_so(ovs: Ovs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "_NXT_CT_FLUSH", 999)

    async def flush() -> None:
        async with connect(ovs.mgmt) as switch:
            with pytest.raises(
                Rejected, match=r"connections opened from 10\.0\.0\.1, in .*from 3\.1 on.*BAD_EXP"
            ):
                await switch.apply(Batch.forgetting(ZONE, [IPv4Address(OLD)]))
            assert await switch.alive(10)

    asyncio.run(flush())
