"""What the switches' connection tracking must forget, and when.

An address that is given back must not meet its next owner with the connections of the last one. UDP
clients of a Service would stay with an endpoint that is gone.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final

from controller.stale_udp import Stale
from flows.family import IPAddress
from flows.pipeline import CT_ZONE, SNAT_ZONE
from flows.view import ClusterView
from openflow.batch import Batch

FREED_TICK: Final = 5.0
"""Seconds in which freed addresses are gathered. Agents let an address rest for longer."""
MAX_FORGETS: Final = 8
"""Of one batch, so that no flow has to wait for many of them: for each the switch looks at all the
connections that it knows."""
FLUSHES_OF_STALE: Final = 15
"""Each leaves at most half: enough for 30,000 UDP connections to one endpoint."""
FLUSHES_OF_FREED: Final = 4
"""Fewer, for there are many: what is left passes policy at the address's own node, whose agent has
seen to it that none is left there."""


class ConntrackFlush:
    """Gathers what is to be forgotten, and hands it on in small batches."""

    def __init__(self, view: ClusterView, send: Callable[[Batch], None]) -> None:
        """`send` has every connected switch forget a batch, once it holds the flows of now."""
        self._view = view
        self._send = send
        self._freed: dict[IPAddress, str] = {}
        """Addresses that no attachment has any more, and the node that they belong to."""
        self._stale: dict[Stale, None] = {}

    def attached(self, node: str) -> set[IPAddress]:
        """The addresses of a node's attachments."""
        return {each.address for each in self._view.attachments.get(node, {}).values()}

    def free(self, node: str, addresses: Collection[IPAddress]) -> None:
        """No attachment of the node has these addresses any more."""
        if addresses and not self._freed:
            asyncio.get_running_loop().call_later(FREED_TICK, self._forget_freed)
        self._freed |= dict.fromkeys(addresses, node)

    def add_stale(self, stale: Iterable[Stale]) -> None:
        """A change of Services made these stale; forgotten when `published` is called."""
        self._stale |= dict.fromkeys(stale)

    def published(self) -> None:
        """The change is part of the shared program: have forgotten what it made stale."""
        stale, self._stale = list(self._stale), {}
        forgets = [each.forget(zone) for each in stale for zone in (CT_ZONE, SNAT_ZONE)]
        for at in range(0, len(forgets), MAX_FORGETS):
            self._send(Batch.of_forgets(forgets[at : at + MAX_FORGETS], FLUSHES_OF_STALE))

    def _forget_freed(self) -> None:
        freed, self._freed = self._freed, {}
        attached = {node: self.attached(node) for node in set(freed.values())}
        # An address with a new owner is left: its connections may be the new owner's. The node's
        # agent had them forgotten before it handed the address out.
        addresses = [address for address, node in freed.items() if address not in attached[node]]
        for at in range(0, len(addresses), MAX_FORGETS):
            self._send(
                Batch.forgetting(CT_ZONE, addresses[at : at + MAX_FORGETS], FLUSHES_OF_FREED)
            )
