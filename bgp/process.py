"""One ExaBGP process, and the pipe to it."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from bgp import relay
from bgp.configuration import configuration
from bgp.events import Answer, Event, decode
from wire.bgp import Peer

MEMORY: Final = "/dev/shm"  # noqa: S108  the file is made safely
"""Where ExaBGP's configuration is while it starts. It may hold a password, so it is in memory; and
a container, whose root is read-only, can write there."""
START_SECONDS: Final = 20.0
"""Until a new process has connected."""
ANSWER_SECONDS: Final = 20.0
"""Until it has answered all commands of a batch, some milliseconds usually."""
STOP_SECONDS: Final = 3.0
BATCH: Final = 100
"""Commands that are sent before their answers are read. All of them fit into a pipe (64 KB), so
ExaBGP and its helper program never wait for each other."""
LONGEST_LINE: Final = 1 << 18
KEPT_LOG: Final = 20
"""Lines of ExaBGP's log that are remembered, to say why it ended."""
_SETTINGS: Final = {
    "exabgp_api_ack": "true",
    "exabgp_api_cli": "false",
    # If the helper program ends, so does ExaBGP: nobody could tell it anything.
    "exabgp_api_respawn": "false",
    "exabgp_api_terminate": "true",
    "exabgp_daemon_drop": "false",
    "exabgp_log_destination": "stderr",
    "exabgp_log_level": "WARNING",
    "exabgp_tcp_bind": "",
}
"""As environment variables. It listens at no port: it connects to the peer."""


class SpeakerError(Exception):
    """The process has ended, does not answer, or refused a command; the text is for people."""


class Process:
    """ExaBGP with one peer. `start`, then `send`; `stop` in every case."""

    def __init__(self, take: Callable[[Event | None], None]) -> None:
        """`take` is called with each event, and with None when there will be no more."""
        self._take = take
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Queue[bool | None] = asyncio.Queue()
        """None: there will be no more."""
        self._log: deque[str] = deque(maxlen=KEPT_LOG)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, peer: Peer, own_ranges: Sequence[IPv4Network]) -> None:
        """Return when it takes commands. Raises `SpeakerError`."""
        name, token = f"sluice-bgp-{secrets.token_hex(8)}", secrets.token_hex(16)
        router_id = local_address(peer.address)
        helper = (sys.executable, "-I", "-m", "bgp.relay")
        text = configuration(peer, router_id, helper)
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )

        async def take_helper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Any program of this network namespace may connect.
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    said = await reader.readline()
                if secrets.compare_digest(said.strip(), token.encode()) and not connected.done():
                    connected.set_result((reader, writer))
                    return
            writer.close()

        server = await asyncio.start_unix_server(
            take_helper, "\0" + name, limit=LONGEST_LINE, backlog=4
        )
        variables = relay.environment(name, token, own_ranges, peer.local_asn)
        try:
            with tempfile.NamedTemporaryFile("w", dir=MEMORY, prefix="sluice-bgp-") as file:
                file.write(text)
                file.flush()
                await self._spawn(file.name, variables)
                # Once it has started its helper program it has read the file.
                async with asyncio.timeout(START_SECONDS):
                    started: set[asyncio.Future[Any]] = {connected, *self._tasks}
                    await asyncio.wait(started, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise SpeakerError(f"ExaBGP has not started in {START_SECONDS:.0f} s") from None
        except OSError as error:
            raise SpeakerError(f"ExaBGP cannot be started: {error}") from error
        finally:
            server.close()
        if not connected.done():
            connected.cancel()
            raise SpeakerError(self._ended())
        reader, self._writer = connected.result()
        self._tasks.append(asyncio.create_task(self._read(reader)))

    async def _spawn(self, path: str, variables: dict[str, str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "exabgp", "server", path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            env={"PATH": os.environ.get("PATH", os.defpath), **_SETTINGS, **variables},
            start_new_session=True,
        )
        self._tasks.append(asyncio.create_task(self._read_log()))

    async def send(self, commands: Sequence[str]) -> list[bool]:
        """Whether each of at most `BATCH` commands was done. Raises `SpeakerError`."""
        if self._writer is None:
            raise SpeakerError("ExaBGP does not run")
        answers: list[bool] = []
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._writer.write("".join(f"{each}\n" for each in commands).encode())
                await self._writer.drain()
                while len(answers) < len(commands):
                    answer = await self._answers.get()
                    if answer is None:
                        self._answers.put_nowait(None)
                        raise SpeakerError(self._ended())
                    answers.append(answer)
        except TimeoutError:
            raise SpeakerError(f"ExaBGP has not answered for {ANSWER_SECONDS:.0f} s") from None
        except OSError:
            raise SpeakerError(self._ended()) from None
        return answers

    async def stop(self) -> None:
        """End it.

        It closes the session without a notification where graceful restart is on, so that the peer
        keeps the routes for a while.
        """
        if self._writer is not None:
            self._writer.close()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        # They end with the helper program, which ends with its connection.
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def pid(self) -> int | None:
        """Of ExaBGP."""
        return None if self._process is None else self._process.pid

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            # A line that is too long raises `ValueError`.
            async for line in reader:
                event = decode(line)
                if isinstance(event, Answer):
                    self._answers.put_nowait(event.done)
                elif event is not None:
                    self._take(event)
        except (OSError, ValueError) as error:
            self._log.append(f"its API: {error}")
        finally:
            self._answers.put_nowait(None)
            self._take(None)

    async def _read_log(self) -> None:
        assert self._process is not None  # noqa: S101  for mypy: `_spawn` has just set it
        assert self._process.stderr is not None  # noqa: S101
        with contextlib.suppress(OSError, ValueError):
            async for line in self._process.stderr:
                self._log.append(line.decode(errors="replace").strip()[:300])

    def _ended(self) -> str:
        """Why there is no answer any more."""
        # ExaBGP begins each line with the part that speaks, in a column.
        said = [" ".join(line.split()) for line in self._log if not line.startswith("advice")]
        return f"ExaBGP has ended; {said[-1]}" if said else "ExaBGP has ended"


def local_address(peer: IPv4Address) -> IPv4Address:
    """The address from which packets go to a peer. Raises `SpeakerError` if there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(peer), 179))  # sends nothing
        except OSError as error:
            raise SpeakerError(f"no route to the peer: {error.strerror}") from error
        return IPv4Address(probe.getsockname()[0])
