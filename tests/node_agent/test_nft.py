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

async def deaf():
    return set(nft._DEAF.findall(await nft._listed("netdev")))

async def main():
    ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    assert await deaf() == set()
    await nft.forget("v0")
    await nft.deafen("v0")
    await nft.deafen("v0")
    await nft.deafen("v1")
    assert await deaf() == {"v0", "v1"}
    ip("link", "del", "v0")
    await nft.forget("v0")
    await nft.forget("v1")
    assert await deaf() == set()
    subprocess.run(["nft", "list", "table", "netdev", "sluice"], check=True)
    try:
        await nft.deafen("longer-than-any-interface")
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
