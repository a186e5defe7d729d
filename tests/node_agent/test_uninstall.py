"""A node is left as it was found."""

import asyncio
import json
import shutil
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from lab.patience import PROGRAM_TIMEOUT
from openflow.batch import Batch, GenerationSet
from openflow.watch import connect
from tests.node_agent.conftest import (
    ADDRESS,
    NODE,
    ROOT,
    ScratchNode,
    controlled,
    needs_root,
    until,
)
from wire.documents import NodeServices, PeerRoutes

pytestmark = needs_root

PEER = ADDRESS + 1


@pytest.fixture
def node(scratch: ScratchNode) -> ScratchNode:
    """With a bridge of somebody else's."""
    scratch.vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev")
    return scratch


def uninstall(node: ScratchNode, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node_agent", "uninstall", "--config", str(node.config_file)]
    return subprocess.run(
        [*node.inside, *command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )


def found(node: ScratchNode) -> dict[str, Any]:
    """All that an agent changes, as it is."""
    root = json.loads(node.vsctl("--format=json", "list", "Open_vSwitch"))
    # Two numbers that only grow: they count the changes.
    columns = dict(zip(root["headings"], root["data"][0], strict=True))
    kept = ("bridges", "datapaths", "external_ids", "other_config", "ssl")
    return {
        "OVSDB": {name: columns[name] for name in kept},
        "rows": node.vsctl("--columns=name", "list", "Interface"),
        "links": sorted(link["ifname"] for link in json.loads(node.run("ip", "-j", "link"))),
        "routes": node.run("ip", "-4", "route", "show", "table", "all"),
        "rules": node.run("ip", "-4", "rule"),
        "neighbours": node.run("ip", "neigh", "show", "nud", "permanent"),
        "nftables": node.run("nft", "list", "ruleset"),
        "forwarding": node.run("sysctl", "net.ipv4.ip_forward"),
        "files": sorted(
            str(path.relative_to(node.home))
            for name in ("net.d", "bin", "state", "run")
            for path in (node.home / name).rglob("*")
        ),
    }  # fmt: skip


@pytest.mark.parametrize("forwarding", ["0", "1"])
def test_node_is_left_as_it_was_found(node: ScratchNode, forwarding: str) -> None:
    async def main() -> None:
        node.run("sysctl", "-w", f"net.ipv4.ip_forward={forwarding}")
        node.vsctl("set", "Open_vSwitch", ".", "external_ids:somebody=else")
        before = found(node)
        async with controlled(node) as controller:
            external = (IPv4Address("198.51.100.7"),)
            controller.services = NodeServices(
                NODE, (), external, (), "2", external_ports=((external, ((6, 80),), "default/web"),)
            )
            peer = (IPv4Network("10.99.7.0/24"), PEER)
            controller.routes = PeerRoutes((peer,), "1")
            await until(lambda: "fwmark" in node.run("ip", "rule"), node.log)
            await until(lambda: f"via {PEER}" in node.run("ip", "route"), node.log)
            async with connect(node.home / "br-int.mgmt") as switch:
                await switch.apply(Batch.of(first=[GenerationSet(7)]))
            await until((node.home / "state" / "generation").exists, node.log)
            assert (await node.add("a", node.netns()))[0] == 0
            done = uninstall(node)
            assert done.returncode == 1
            assert "its agent runs" in done.stderr
            assert (await node.cni("DEL", **node.attachment("a", "")))[0] == 0
            node.stop_agent()
        assert found(node) != before
        done = uninstall(node)
        assert done.returncode == 0, done.stderr
        assert found(node) == before
        # Once more, and nothing is there any more.
        done = uninstall(node)
        assert done.returncode == 0, done.stderr
        assert found(node) == before

    asyncio.run(main())


def test_pods_are_not_cut_off_unless_forced(node: ScratchNode) -> None:
    async def main() -> None:
        before = found(node)
        netns = node.netns()
        async with controlled(node):
            assert (await node.add("a", netns))[0] == 0
            node.stop_agent(kill=True)
        running = found(node)
        done = uninstall(node)
        assert done.returncode == 1
        assert "1 attachments would lose their network: default/a; remove" in done.stderr
        assert (node.home / "net.d" / "10-sluice.conflist").exists()
        # SQLite has tidied up behind the one that was killed.
        assert found(node) | {"files": []} == running | {"files": []}
        done = uninstall(node, "--force")
        assert done.returncode == 0, done.stderr
        assert found(node) == before

    asyncio.run(main())


def test_what_cannot_be_done_yet_is_done_by_the_next_run(node: ScratchNode) -> None:
    async def main() -> None:
        before = found(node)
        async with controlled(node):
            node.stop_agent()
        assert node.vswitchd is not None
        # It leaves its interfaces, and its successor waits for the agent that is no more.
        node.vswitchd.kill()
        node.vswitchd.wait(timeout=60)
        done = uninstall(node)
        assert done.returncode == 1
        assert "ovs-vswitchd does not take that in: is it running?" in done.stderr
        node.start_vswitchd()
        done = uninstall(node)
        assert done.returncode == 0, done.stderr
        assert found(node) == before

    asyncio.run(main())


def test_without_a_database_nothing_is_touched(node: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(node):
            node.stop_agent()
        conf = node.home / "net.d" / "10-sluice.conflist"
        socket: Path = node.home / "db.sock"
        aside = socket.with_name("aside.sock")
        shutil.move(socket, aside)
        done = uninstall(node)
        shutil.move(aside, socket)
        assert done.returncode == 1
        assert f"ovsdb-server does not answer at {socket}" in done.stderr
        assert conf.exists()

    asyncio.run(main())
