"""A bounded capture of one pod's port, by tcpdump."""

import asyncio
import contextlib
import pwd
import shutil
from typing import Final

from node_agent.faults import NodeFault
from node_agent.leases import Leases
from wire.questions import MAX_CAPTURE, Captured, CapturePod
from wire.sentences import readable

SNAPSHOT: Final = 256
"""Bytes of a packet that are kept: headers, and the beginning of the content."""
_ERRORS: Final = 2_000


class CaptureError(NodeFault):
    """There is no capture; the text says why."""


async def capture(leases: Leases, question: CapturePod) -> Captured:
    """What passes the port until one of the bounds. Raises `CaptureError`."""
    if question.port not in {each.port for each in leases.all()}:
        raise CaptureError("the pod has no port on this node any more")
    program = shutil.which("tcpdump", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise CaptureError("tcpdump is not installed on this node")
    process = await asyncio.create_subprocess_exec(
        program, "-n", "-p", "-U", "--immediate-mode", "-i", question.port, "-s", str(SNAPSHOT),
        "-c", str(question.packets), "-Z", _user(), "-w", "-", "--", question.filter,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        content, ended = await _read(process, question.seconds)
        # Once it captures, it fails only because the port goes away: then the pod has ended.
        if ended and not content and await process.wait() != 0:
            raise CaptureError(f"tcpdump: {await _errors(process)}")
        return Captured(content, is_cut=len(content) >= MAX_CAPTURE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Also what is left in its pipes: asyncio takes a process with full pipes for running.
        await process.communicate()


async def _read(process: asyncio.subprocess.Process, seconds: float) -> tuple[bytes, bool]:
    """What tcpdump writes within a time, and whether it ended by itself."""
    assert process.stdout is not None  # noqa: S101  made with a pipe
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while len(content) < MAX_CAPTURE:
                chunk = await process.stdout.read(MAX_CAPTURE - len(content))
                if not chunk:
                    return bytes(content), True
                content += chunk
    except TimeoutError:
        pass
    return bytes(content), False


def _user() -> str:
    """Debian's tcpdump becomes the user `tcpdump`, and fails where there is none: in a container.

    With `-w` it writes packets without looking into them.
    """
    try:
        return pwd.getpwnam("tcpdump").pw_name
    except KeyError:
        return "root"


async def _errors(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101  made with a pipe
    said = (await process.stderr.read(_ERRORS)).decode(errors="replace")
    return readable(said.strip().splitlines()[-1] if said.strip() else "it ended")
