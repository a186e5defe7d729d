"""Traffic while something is done to a lab, and what was lost of it.

with ping(lab, "default/a", address) as pinging:
    ...                     # kill something
    assert pinging.stop().lost == 0
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lab.commands import LabError
from lab.lab import Lab
from lab.processes import Process, running

PROBE = Path(__file__).with_name("probe.py")
LONGEST_END = 300.0
"""Seconds that a stream may take to deliver what was sent: after an outage TCP waits long."""


class Outage(msgspec.Struct, frozen=True):
    """Packets lost one after another; times are `time.monotonic()` at which they were sent."""

    first: float
    last: float
    over: float | None
    """When the next one that was answered was sent; None where there was none."""
    lost: int


class Pinged(msgspec.Struct, frozen=True):
    """What became of every packet of a ping."""

    sent: int
    lost: int
    duplicates: int
    unread: int
    """Packets that the kernel dropped because the ping itself did not read them in time."""
    outages: tuple[Outage, ...]


class Streamed(msgspec.Struct, frozen=True):
    """What one side of a TCP stream sent or received."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Probe:
    """A `lab.probe` in a part of the lab."""

    process: Process
    what: str

    def wait_ready(self) -> None:
        """Wait until traffic flows. Raises `LabError` if it ends instead, or nothing flows."""
        try:
            ready = self.process.line() == "ready"
        except TimeoutError:
            ready = False
        if not ready:
            raise LabError(f"{self.what}: nothing gets through")

    def stop(self) -> dict[str, Any]:
        """End it, and return its result. Raises `LabError`."""
        try:
            self.process.close_input()
            said: dict[str, Any] = json.loads(self.process.rest(LONGEST_END).splitlines()[-1])
        except (TimeoutError, ValueError, IndexError):
            raise LabError(f"{self.what}: it printed no result") from None
        return said


@contextmanager
def _probe(lab: Lab, where: str, *arguments: str) -> Iterator[Probe]:
    with running(lab.command(where, [sys.executable, "-I", str(PROBE), *arguments])) as process:
        yield Probe(process, f"{' '.join(arguments)} in {where}")


@dataclass(frozen=True)
class Ping:
    """A ping that goes on until `stop`."""

    probe: Probe

    def end(self) -> None:
        """Send no more requests; `stop` waits for the last answers."""
        self.probe.process.close_input()

    def stop(self) -> Pinged:
        """End it, once the last answers are in. Raises `LabError`."""
        return msgspec.convert(self.probe.stop(), Pinged)


@contextmanager
def ping(lab: Lab, where: str, to: str, interval: float = 0.01) -> Iterator[Ping]:
    """An echo request every `interval` seconds; begins when the first is answered."""
    with _probe(lab, where, "ping", to, str(interval)) as probe:
        probe.wait_ready()
        yield Ping(probe)


@dataclass(frozen=True)
class Stream:
    """A TCP connection over which random bytes go until `stop`."""

    sender: Probe
    receiver: Probe

    def stop(self) -> tuple[Streamed, Streamed]:
        """End it; what was sent and what was received. Raises `LabError`."""
        sent = msgspec.convert(self.sender.stop(), Streamed)
        return sent, msgspec.convert(self.receiver.stop(), Streamed)


@contextmanager
def stream(lab: Lab, where: str, to: str, address: str, port: int = 8099) -> Iterator[Stream]:
    """From one part of the lab to another, which has `address`."""
    with ExitStack() as probes:
        receiver = probes.enter_context(_probe(lab, to, "receive", str(port)))
        receiver.wait_ready()
        sender = probes.enter_context(_probe(lab, where, "send", address, str(port)))
        sender.wait_ready()
        yield Stream(sender, receiver)
