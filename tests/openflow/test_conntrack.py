"""Connections forgotten by address, over OpenFlow, in a switch that tracks them."""

import asyncio
import re
import socket
import struct
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from openflow import codec
from openflow.batch import Batch
from openflow.codec import Direction
from openflow.switch import Rejected
from openflow.templates import numbered
from openflow.watch import connect
from tests.ovs import Ovs
from tests.waiting import wait_until

OLD, OTHER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
VIRTUAL = "10.96.0.1"
ZONE = 100


def test_as_ovs_ofctl_writes_it(tmp_path: Path):
    for direction in Direction:
        message = codec.conntrack_flush(ZONE, direction, IPv4Address("10.244.1.2"))
        with socket.socket(socket.AF_UNIX) as server:
            path = tmp_path / f"switch{direction}"
            server.bind(str(path))
            server.listen()
            tuples = [""] * direction + ["ct_nw_src=10.244.1.2"]
            ofctl = [
                "ovs-ofctl", "-O", "OpenFlow15", "ct-flush", f"unix:{path}", f"zone={ZONE}",
                *tuples,
            ]  # fmt: skip
            with subprocess.Popen(ofctl) as process:
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as stream:
                    connection.sendall(struct.pack("!BBHI", 6, 0, 8, 1))
                    kind, sent = 0, b""
                    while kind != 4:
                        header = stream.read(8)
                        _, kind, length, xid = struct.unpack("!BBHI", header)
                        sent = header + stream.read(length - 8)
                process.kill()
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
    pid = (ovs.directory / "vswitchd.pid").read_text().strip()
    return ovs.run("ovs-appctl", "-t", f"{ovs.directory}/ovs-vswitchd.{pid}.ctl", *words)


def entries(ovs: Ovs) -> set[tuple[str, str, str]]:
    """(source, destination, who answers) of each connection."""
    pattern = r"orig=\(src=([\d.]+),dst=([\d.]+).*?reply=\(src=([\d.]+)"
    return set(re.findall(pattern, appctl(ovs, "dpctl/dump-conntrack")))


def test_every_connection_of_an_address_and_no_other(tracking: Ovs):
    wanted = {
        (OLD, OTHER, OTHER), (OTHER, OLD, OLD), (OTHER, VIRTUAL, OLD),
        (OTHER, "10.0.0.11", "10.0.0.11"), (THIRD, OLD, OLD),
    }  # fmt: skip
    for source, destination, _ in wanted:
        appctl(
            tracking, "netdev-dummy/receive", "p1",
            "in_port(1),eth(src=50:54:00:00:00:01,dst=50:54:00:00:00:02),eth_type(0x0800),"
            f"ipv4(src={source},dst={destination},proto=17,tos=0,ttl=64,frag=no),"
            "udp(src=1000,dst=2000)",
        )  # fmt: skip
    wait_until(lambda: entries(tracking) == wanted)

    async def flush() -> None:
        async with connect(tracking.mgmt) as switch:
            await switch.apply(Batch.forgetting(ZONE, [IPv4Address(OLD)]))

    asyncio.run(flush())
    # The third is in another zone.
    assert entries(tracking) == {(OTHER, "10.0.0.11", "10.0.0.11"), (THIRD, OLD, OLD)}


def test_a_switch_that_cannot_says_so(ovs: Ovs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "_NXT_CT_FLUSH", 999)

    async def flush() -> None:
        async with connect(ovs.mgmt) as switch:
            with pytest.raises(
                Rejected, match=r"connections with 10\.0\.0\.1 .*from 3\.1 on.*BAD_EXP"
            ):
                await switch.apply(Batch.forgetting(ZONE, [IPv4Address(OLD)]))
            assert await switch.alive(10)

    asyncio.run(flush())
