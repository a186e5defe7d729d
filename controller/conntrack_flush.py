"""Which connections are flushed from the switches' connection tracking, and when.

A reused address must not inherit the connections of its previous pod. UDP clients of a Service must
not stay with a removed endpoint.
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
"""Seconds for which freed addresses are gathered. Agents reuse an address later than that."""
MAX_FORGETS: Final = 8
"""Flushes in one batch, so that no flow has to wait for many of them: for each the switch reads its
whole conntrack table."""
FLUSHES_OF_STALE: Final = 15
"""Each leaves at most half: enough for 30,000 UDP connections to one endpoint."""
FLUSHES_OF_FREED: Final = 4
"""Fewer, because there are many such addresses. A connection that is left is still subject to
policy at the node of the address, whose agent has flushed it there."""


class ConntrackFlush:
    """Gathers what has to be flushed, and sends it in small batches."""

    def __init__(self, view: ClusterView, send: Callable[[Batch], None]) -> None:
        """`send` flushes a batch on every connected switch, once it holds the current flows."""
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
        """A change of Services made these stale; they are flushed when `published` is called."""
        self._stale |= dict.fromkeys(stale)

    def published(self) -> None:
        """The change is in the shared program: flush what it made stale."""
        stale, self._stale = list(self._stale), {}
        forgets = [each.forget(zone) for each in stale for zone in (CT_ZONE, SNAT_ZONE)]
        for at in range(0, len(forgets), MAX_FORGETS):
            self._send(Batch.of_forgets(forgets[at : at + MAX_FORGETS], FLUSHES_OF_STALE))

    def _forget_freed(self) -> None:
        freed, self._freed = self._freed, {}
        attached = {node: self.attached(node) for node in set(freed.values())}
        # An address with a new pod is not flushed: the connections may belong to the new pod. The
        # node's agent flushed the old ones before it assigned the address.
        addresses = [address for address, node in freed.items() if address not in attached[node]]
        for at in range(0, len(addresses), MAX_FORGETS):
            self._send(
                Batch.forgetting(CT_ZONE, addresses[at : at + MAX_FORGETS], FLUSHES_OF_FREED)
            )
