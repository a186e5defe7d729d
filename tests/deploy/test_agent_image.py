"""The agent as a container: with two capabilities it does all of its work, with one it does not."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.deploy.containers import Container, unpack
from tests.node_agent.conftest import (
    NOTHING_LEFT,
    ScratchNode,
    check_gateway,
    scratch,  # noqa: F401  a fixture
    until,
)

CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN")


@contextmanager
def agent(
    node: ScratchNode, images: Path, tmp_path: Path, *arguments: str, without: str = ""
) -> Iterator[Path]:
    """It runs in the node's network namespace, as its manifest has it; yields its log."""
    rootfs = tmp_path / "rootfs"
    if not rootfs.exists():
        unpack(images, "sluice-agent:0.1.0", rootfs)
    settings = node.settings | {"sysctl": "/host/proc/sys"}
    node.config_file.write_text(yaml.safe_dump({"agent": settings}))
    container = Container(
        rootfs,
        {"User": "0", "Entrypoint": ["python3", "-m", "node_agent"], "Cmd": [],
         "Env": ["PATH=/usr/sbin:/usr/bin"]},
        node.name,
        args=[*arguments, "--config", str(node.config_file)],
        capabilities=[name for name in CAPABILITIES if name != without],
        mounts={
            str(node.home): (node.home, "rw"),
            "/run/netns": (Path("/run/netns"), "ro"),
            "/host/proc/sys/net": (Path("/proc/sys/net"), "rw"),
        },
    )  # fmt: skip
    log = tmp_path / "agent.log"
    with container.running(log):
        yield log


def test_a_pod_from_add_to_del(scratch: ScratchNode, images: Path, tmp_path: Path) -> None:  # noqa: F811
    async def main() -> None:
        await scratch.start_controller()
        try:
            with agent(scratch, images, tmp_path) as log:
                await until((scratch.home / "net.d/10-sluice.conflist").exists, log.read_text, 60)
                check_gateway(scratch)
                # Made after the container: it gets there by propagation.
                netns = scratch.netns()
                code, answer = await scratch.add("a", netns)
                assert code == 0, (answer, log.read_text())
                assert scratch.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
                assert (await scratch.cni("DEL", **scratch.attachment("a", netns)))[0] == 0
                assert scratch.left_over() == NOTHING_LEFT
        finally:
            await scratch.controller.stop()

    asyncio.run(main())


@pytest.mark.parametrize("without", CAPABILITIES)
def test_each_capability_is_needed(
    scratch: ScratchNode,  # noqa: F811
    images: Path,
    tmp_path: Path,
    without: str,
) -> None:
    async def main() -> None:
        await scratch.start_controller()
        try:
            with agent(scratch, images, tmp_path, without=without) as log:
                if without == "NET_ADMIN":
                    # The agent cannot even listen to what the kernel reports of netfilter.
                    refused = "Operation not permitted"
                    await until(lambda: refused in log.read_text(), log.read_text, 60)
                    return
                await until((scratch.home / "net.d/10-sluice.conflist").exists, log.read_text, 60)
                code, answer = await scratch.add("a", scratch.netns())
                assert code == 1
                assert "[Errno 1] failed to open netns" in answer["details"]
        finally:
            await scratch.controller.stop()

    asyncio.run(main())
