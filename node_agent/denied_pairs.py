"""Pods and the other ends that policy denied them, told to the controllers.

The leader writes Events about them.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, NoReturn

from flows.policy import Direction
from node_agent.controllers import TAKEN_OR_UNKNOWN, ControllerApi, Controllers
from wire import paths
from wire.documents import (
    MAX_DENIED_PAIRS,
    MAX_DENIED_PORTS,
    DeniedPair,
    DeniedPort,
    NodeDenials,
)

MAX_OF_POD: Final = 16
"""Pairs of one pod in a minute: a pod that scans addresses does not displace those of others."""
PERIOD: Final = 60.0
"""Seconds in which a pair is told once."""
PATIENCE: Final = 120.0
"""Seconds after which a pair that could not be told is dropped: its packets are too old."""
_LOOK: Final = 5.0
"""Seconds between two looks at whether there is something to tell."""
_MAX_LEFT_OUT: Final = (1 << 32) - 1

_Key = tuple[str, Direction, IPv4Address]
"""The name of the pod's OVS port, the direction, and the other end."""


@dataclass(slots=True)
class _Pair:
    since: float
    """When the first of its packets that are not told yet was denied."""
    ports: dict[DeniedPort, None] = field(default_factory=dict)
    """Of its packets that are not told yet; empty: all are told."""
    more_ports: bool = False
    told: float | None = None


class DeniedPairs:
    """The pairs of the last minute, for one controller.

    Their number is bounded: the first ones are kept. Packets of further pairs are only counted.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._pairs: dict[_Key, _Pair] = {}
        self._of_pod: Counter[str] = Counter()
        self._left_out = 0

    def add(
        self, attachment: str, direction: Direction, other_end: IPv4Address, port: DeniedPort
    ) -> None:
        """A packet was denied. `attachment` is the name of the pod's OVS port."""
        key = attachment, direction, other_end
        pair = self._pairs.get(key)
        if pair is None:
            is_full = len(self._pairs) >= MAX_DENIED_PAIRS or self._of_pod[attachment] >= MAX_OF_POD
            if is_full:
                self._count(1)
                return
            pair = self._pairs[key] = _Pair(self._monotonic())
            self._of_pod[attachment] += 1
        if not pair.ports:
            pair.since = self._monotonic()
        if port in pair.ports:
            return
        if len(pair.ports) < MAX_DENIED_PORTS:
            pair.ports[port] = None
        else:
            pair.more_ports = True

    def due(self) -> NodeDenials:
        """What is to be told now; equal to `NodeDenials()` if nothing is."""
        now = self._monotonic()
        for key, pair in list(self._pairs.items()):
            is_over = pair.told is None or now - pair.told >= PERIOD
            is_late = bool(pair.ports) and now - pair.since >= PATIENCE
            if is_late:
                self._count(1)
            if is_late or (is_over and not pair.ports):
                self._drop(key)
        pairs = tuple(
            DeniedPair(*key, tuple(pair.ports), pair.more_ports)
            for key, pair in self._pairs.items()
            if pair.ports and (pair.told is None or now - pair.told >= PERIOD)
        )
        # What is only counted is no reason to tell the controller.
        return NodeDenials(pairs, self._left_out) if pairs else NodeDenials()

    def told(self, given: NodeDenials) -> None:
        """The controller has answered."""
        for each in given.pairs:
            pair = self._pairs[each.attachment, each.direction, each.other_end]
            pair.told = pair.since = self._monotonic()
            # Others may have come while the controller answered.
            pair.ports = {port: None for port in pair.ports if port not in each.ports}
            pair.more_ports = False
        self._left_out -= given.left_out

    def _drop(self, key: _Key) -> None:
        del self._pairs[key]
        self._of_pod[key[0]] -= 1
        if not self._of_pod[key[0]]:
            del self._of_pod[key[0]]

    def _count(self, packets: int) -> None:
        self._left_out = min(self._left_out + packets, _MAX_LEFT_OUT)


async def report_loop(controllers: Controllers, pairs: Iterable[DeniedPairs]) -> None:
    """Tell each controller what is due to it. `pairs` has one element for each. Never ends."""
    async with asyncio.TaskGroup() as tasks:
        for controller, due in zip(controllers.each, pairs, strict=True):
            tasks.create_task(_report_to(controller, due))


async def _report_to(controller: ControllerApi, pairs: DeniedPairs) -> NoReturn:
    while True:
        # At random, so that a thousand agents do not come at one moment.
        await asyncio.sleep(_LOOK * random.uniform(0.8, 1.2))  # noqa: S311
        due = pairs.due()
        if due.pairs and await controller.tell(paths.DENIALS, due, TAKEN_OR_UNKNOWN):
            pairs.told(due)
