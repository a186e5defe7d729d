"""What a kubelet is told of an agent."""

import asyncio
import subprocess
import sys

import pytest

from lab.patience import PROGRAM_TIMEOUT
from tests.node_agent.conftest import ROOT, ScratchNode, controlled, needs_root, until

pytestmark = needs_root


def probe(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "node_agent.probe", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PROGRAM_TIMEOUT
    )
    return done.returncode, done.stderr


def test_probe(scratch: ScratchNode) -> None:
    socket = str(scratch.socket)

    async def main() -> None:
        async with controlled(scratch):
            assert probe("--ready", socket)[0] == 0
            assert probe(socket)[0] == 0
        # Without its controller it answers all the same, but soon is not ready.
        await until(lambda: probe("--ready", socket)[0] == 1)
        assert "no controller session" in probe("--ready", socket)[1]
        assert probe(socket)[0] == 0

    assert probe(socket) == (1, f"the node agent does not answer at {socket}: "
                                "[Errno 2] No such file or directory\n")  # fmt: skip
    asyncio.run(main())
    scratch.stop_agent()
    assert probe(socket)[0] == 1


@pytest.mark.parametrize("arguments", [[], ["--well", "/run/x"], ["--ready", ""]])
def test_usage(arguments: list[str]) -> None:
    assert probe(*arguments)[0] == 2
