"""Deaf interfaces, in a network namespace of the test's own."""

import os
import sys

import pytest

from .conftest import needs_root, run

pytestmark = needs_root

STEPS = """
import asyncio, subprocess
from node_agent import nft

def ip(*words):
    subprocess.run(["ip", *words], check=True)

async def host_ingress_drops():
    return set(nft._DROPPING_CHAIN.findall(await nft.listed("netdev")))

async def main():
    ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    assert await host_ingress_drops() == set()
    await nft.allow_host_ingress("v0")
    await nft.drop_host_ingress("v0")
    await nft.drop_host_ingress("v0")
    await nft.drop_host_ingress("v1")
    assert await host_ingress_drops() == {"v0", "v1"}
    ip("link", "del", "v0")
    await nft.allow_host_ingress("v0")
    await nft.allow_host_ingress("v1")
    assert await host_ingress_drops() == set()
    subprocess.run(["nft", "list", "table", "netdev", "sluice"], check=True)
    try:
        await nft.drop_host_ingress("longer-than-any-interface")
    except nft.NftError as error:
        print(error, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def namespace():
    name = f"sluice-test-nft-{os.getpid()}"
    run("ip", "netns", "add", name)
    yield name
    run("ip", "netns", "del", name)


def test_interfaces_are_deafened_and_forgotten_again_and_again(namespace: str) -> None:
    told = run("ip", "netns", "exec", namespace, sys.executable, "-c", STEPS)
    assert "chain" not in told
    assert told.splitlines()[-1].startswith("nf_tables: ")


RACE = """
import asyncio, subprocess
from node_agent import nft

subprocess.run(["ip", "link", "add", "stays", "type", "veth"], check=True)
try:
    asyncio.run(nft.restore_host_ingress_drops(["gone", "stays"]))
except nft.NftError:
    pass  # older kernels refuse it
asyncio.run(nft.restore_host_ingress_drops(["stays"]))
subprocess.run(["nft", "list", "table", "netdev", "sluice"], check=True)
"""


def test_an_interface_that_goes_meanwhile_leaves_no_chain(namespace: str) -> None:
    """Its removal took its chain away; then came ours, which newer kernels do not mind."""
    told = run("ip", "netns", "exec", namespace, sys.executable, "-c", RACE)
    assert "chain stays" in told
    assert "gone" not in told
