"""Who says on the nodes' link that an address is theirs, as long as something is done to a lab.

with watching(lab, "172.30.200.1") as watched:
    ...                     # kill something
found = watched.stop()
assert [each.node for each in found.owners] == ["node1", "node2"]
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final

from lab.commands import LabError
from lab.lab import Lab
from lab.layout import FABRIC_ADDRESS
from lab.network import BRIDGE, node_mac
from lab.processes import Process, running

_PROBE: Final = Path(__file__).with_name("arp_probe.py")
INTERVAL: Final = 0.01
"""Seconds between two requests."""


@dataclass(frozen=True)
class Owner:
    """A host that has said, again and again and without another one in between, that it has it."""

    node: str
    """Its MAC, if it is no node."""
    first: float
    """`time.monotonic()`, as all times here."""
    last: float


@dataclass(frozen=True)
class Watched:
    """All that was said."""

    owners: tuple[Owner, ...]
    """In their order. If two hosts have the address at one moment, they come in turn."""
    said: tuple[float, ...]

    def longest_silence(self, since: float, until: float) -> float:
        """The longest time in which nobody has said so."""
        times = [since, *(at for at in self.said if since <= at <= until), until]
        return max(later - at for at, later in pairwise(times))


class Watch:
    """A `lab.arp_probe` in the namespace of the fabric."""

    def __init__(self, process: Process, nodes: dict[str, str]) -> None:
        self._process = process
        self._nodes = nodes

    def stop(self) -> Watched:
        """End it. Raises `LabError`."""
        try:
            self._process.close_input()
            said: list[tuple[float, str]] = json.loads(self._process.rest().splitlines()[-1])
        except (TimeoutError, ValueError, IndexError):
            raise LabError("the ARP probe printed no result") from None
        owners = []
        for mac, found in groupby(said, key=lambda each: each[1]):
            times = [at for at, _ in found]
            owners.append(Owner(self._nodes.get(mac, mac), times[0], times[-1]))
        return Watched(tuple(owners), tuple(at for at, _ in said))


@contextmanager
def watching(lab: Lab, address: str, interval: float = INTERVAL) -> Iterator[Watch]:
    """Ask for the address that often, and note all answers and announcements."""
    status = lab.status()
    count = len(status["nodes"])
    nodes = {node_mac(each): each.name for each in lab.layout.nodes(count)}
    command = [
        sys.executable, "-I", str(_PROBE), BRIDGE, str(FABRIC_ADDRESS), address, str(interval)
    ]  # fmt: skip
    with running(lab.command("fabric", command)) as process:
        if process.line() != "ready":
            raise LabError("the ARP probe has not started")
        yield Watch(process, nodes)
