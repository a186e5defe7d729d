"""nftables, in a network namespace of the test's own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from .conftest import needs_root

pytestmark = needs_root


@pytest.fixture
def inside() -> Iterator[Callable[..., str]]:
    name = f"sluice-nft-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)

    def run(*command: str) -> str:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{name}", *command],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    yield run
    subprocess.run(["ip", "netns", "delete", name], check=True)


PYTHON = [sys.executable, "-c"]


def test_an_interface_that_goes_meanwhile_leaves_no_chain(inside: Callable[..., str]) -> None:
    """Its removal took its chain away; then came ours, which newer kernels do not mind."""
    inside("ip", "link", "add", "stays", "type", "veth")
    deafen = "import asyncio; from node_agent import nft; asyncio.run(nft.deafen_again({}))"
    with contextlib.suppress(subprocess.CalledProcessError):  # older kernels refuse it as a whole
        inside(*PYTHON, deafen.format(["stays", "gone"]))
    assert "gone" not in inside("nft", "list", "ruleset")
    inside(*PYTHON, deafen.format(["stays"]))
    assert "chain stays" in inside("nft", "list", "ruleset")
