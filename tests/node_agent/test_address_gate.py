"""The host sends from a gated address only while the node has it, in a namespace of the test's own.

The far end of a veth pair counts what arrives.
"""

import os
import sys
from collections.abc import Iterator

import pytest

from .conftest import needs_root, run

pytestmark = needs_root

STEPS = """
import asyncio, socket, subprocess
from ipaddress import IPv4Address
from node_agent.address_gate import AddressGate

GATED, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")

def sends(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((str(address), 0))
        try:
            made.sendto(b"x", ("192.0.2.99", 9))
        except PermissionError:
            return False
        return True

async def main():
    gate = AddressGate()
    await gate.hold({GATED: 1.0})
    await gate.let_go([GATED])
    assert "sluice-addresses" not in subprocess.check_output(["nft", "list", "ruleset"], text=True)
    await gate.use([GATED])
    assert (sends(GATED), sends(OTHER)) == (False, True), "a gated address is closed at first"
    await gate.hold({GATED: 30.0, OTHER: 30.0})
    assert sends(GATED)
    await gate.use([GATED, OTHER])
    assert (sends(GATED), sends(OTHER)) == (True, False), "a change of the gate lets go of nothing"
    await gate.let_go([GATED, OTHER])
    assert not sends(GATED)
    for _ in range(3):
        await gate.hold({GATED: 0.3})
        await asyncio.sleep(0.2)
        assert sends(GATED), "it was renewed in time"
    await asyncio.sleep(0.4)
    assert not sends(GATED), "the kernel has forgotten it by itself"
    await gate.hold({GATED: 0.0})
    assert not sends(GATED)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert sends(GATED)
    await gate.repair()
    assert not sends(GATED)
    many = [IPv4Address("10.0.0.0") + number for number in range(4096)]
    await gate.use([*many, GATED])
    await gate.hold(dict.fromkeys(many, 30.0))
    listed = subprocess.check_output(["nft", "list", "set", "ip", "sluice-addresses", "held"])
    assert listed.count(b"timeout 30s") == 4096
    await gate.let_go(many)
    await gate.use([])
    assert sends(GATED)

asyncio.run(main())
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"sluice-test-gate-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for end in ("v0", "v1"):
        run("ip", "-n", name, "link", "set", end, "up")
    for address in ("192.0.2.1/24", "192.0.2.2/24"):
        run("ip", "-n", name, "address", "add", address, "dev", "v0")
    run("ip", "-n", name, "neigh", "add", "192.0.2.99", "lladdr", "02:00:00:00:00:99", "dev", "v0")
    yield name
    run("ip", "netns", "del", name)


def test_host_sends_from_a_gated_address_only_while_the_node_has_it(namespace: str) -> None:
    run("ip", "netns", "exec", namespace, sys.executable, "-c", STEPS)
