"""The ledger: which connections use the source ports of egress addresses, as gateways tell.

Two connections of one egress address to one destination need two source ports, so one destination
can use up all of them. That is reported on the EgressAddress before it happens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from controller.egress.addresses import EgressAddresses
from controller.problems import Problems, Reporter, ReporterKind
from controller.service_fields import PROTOCOL_NAMES
from flows.features.protocols import ICMP
from flows.refs import ObjectRef
from wire.egress import AddressUse, DestinationUse, EgressUse

PORTS: Final = 64_512
"""Source ports for one destination: 1024 to 65535. A connection that had a lower one keeps to the
lower ones, which are few."""
ALARM: Final = 0.8
"""The share of the ports from which on it is reported."""
LIFETIME: Final = 300.0
"""Seconds for which a gateway is believed. It tells every 5 s, or less often if a look takes long.
"""
REPORTER: Final = Reporter(ReporterKind.EGRESS)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a gateway has told of one address."""

    node: str
    at: float
    """By the monotonic clock."""
    use: AddressUse
    tracked: int
    """Connections of the gateway with a translated source, and how many it can track."""
    capacity: int

    @property
    def most(self) -> DestinationUse | None:
        """The destination that uses most ports."""
        return self.use.destinations[0] if self.use.destinations else None

    @property
    def share(self) -> float:
        """The share of the source ports that one destination uses: the largest."""
        return self.most.ports / PORTS if self.most is not None else 0.0

    @property
    def full(self) -> float:
        """The share of the connections that the gateway can track."""
        return self.tracked / self.capacity if self.capacity else 0.0


class Ledger:
    """What the gateways have told last."""

    def __init__(
        self,
        egress: EgressAddresses,
        problems: Problems,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._egress = egress
        self._problems = problems
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        """By the name of the EgressAddress."""

    def take(self, node: str, use: EgressUse) -> None:
        """What a node tells, in place of what it told before.

        It is believed only about addresses that it is the gateway of.
        """
        now = self._clock()
        for each in use.addresses:
            name = self._egress.name_of(each.address)
            known = self._egress.view.get(name)
            if known is None or known.gateway != node:
                continue
            entry = self._entries[name] = Entry(node, now, each, use.tracked, use.capacity)
            self._problems.set(
                REPORTER, ObjectRef("EgressAddress", "", name), self._alarm(entry),
                lifetime=LIFETIME,
            )  # fmt: skip

    def entry(self, name: str) -> Entry | None:
        """Of an EgressAddress, from its gateway of the moment; None: it has told nothing yet."""
        found, known = self._entries.get(name), self._egress.view.get(name)
        if found is None or known is None:
            self._entries.pop(name, None)
            return None
        is_old = self._clock() - found.at > LIFETIME
        return None if is_old or found.node != known.gateway else found

    def used(self) -> dict[str, float]:
        """By EgressAddress, the largest share of its ports that one destination uses."""
        return {name: entry.share for name, entry in self._current().items()}

    def connections(self) -> dict[str, float]:
        """By EgressAddress, its connections."""
        return {name: float(entry.use.connections) for name, entry in self._current().items()}

    def most_used(self) -> float:
        """The largest share of all."""
        return max((max(e.share, e.full) for e in self._current().values()), default=0.0)

    def _current(self) -> dict[str, Entry]:
        found = ((name, self.entry(name)) for name in list(self._entries))
        return {name: entry for name, entry in found if entry is not None}

    def pod(self, address: IPv4Address) -> str:
        """`NAMESPACE/NAME` of a pod that leaves from an egress address; else the address."""
        member = self._egress.members.get(str(address))
        return f"{member.pod.namespace}/{member.pod.name}" if member else str(address)

    def _alarm(self, entry: Entry) -> str:
        problems = []
        if (most := entry.most) is not None and entry.share > ALARM:
            problems.append(
                f"{title(most)} uses {most.ports} of {PORTS} source ports of {entry.use.address}"
                + "".join(f", {number} of them by {self.pod(pod)}" for pod, number in most.pods[:1])
            )
        if entry.full > ALARM:
            problems.append(
                f"its gateway {entry.node} tracks {entry.tracked} of at most {entry.capacity}"
                " connections with a translated source"
            )
        return "; ".join(problems)


def title(destination: DestinationUse) -> str:
    """`203.0.113.10:443/TCP`."""
    if destination.protocol == ICMP:
        return f"{destination.address} (ICMP)"
    protocol = PROTOCOL_NAMES.get(destination.protocol, str(destination.protocol))
    return f"{destination.address}:{destination.port}/{protocol}"
