"""Which connections are flushed from the switches' connection tracking, and when.

A reused address must not inherit the connections of its previous pod. UDP clients of a Service must
not stay with a removed endpoint.

An answer that is on its way when its connection is flushed is lost. So a flush ends as soon as the
address has a new pod, or the Service has the endpoint again.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, Final, Generic, TypeAlias, TypeVar
from weakref import WeakSet

from controller.stale_udp import Stale, StaleUdp
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
_ZONES: Final = (CT_ZONE, SNAT_ZONE)
_MAX_STALE: Final = MAX_FORGETS // len(_ZONES)

Item = TypeVar("Item", bound=Hashable)


class Flush(Generic[Item]):
    """Connections that every switch is to flush, several times over. They become fewer.

    Each time a switch flushes only what is to be flushed at that moment (`batch`).
    """

    def __init__(
        self, items: Iterable[Item], times: int, encode: Callable[[Iterable[Item]], Batch]
    ) -> None:
        """`encode` makes the messages for these items."""
        self.times = times
        self._encode = encode
        self.items = tuple(items)
        self.batch: Batch | None = encode(self.items)
        """None: nothing is left."""

    def keep(self, items: Collection[Item]) -> None:
        """Take out everything but these."""
        left = tuple(item for item in self.items if item in items)
        if left != self.items:
            self.items = left
            self.batch = self._encode(left) if left else None


AnyFlush: TypeAlias = Flush[Any]


class ConntrackFlush:
    """Gathers what has to be flushed, and sends it in small batches."""

    def __init__(
        self,
        view: ClusterView,
        send: Callable[[AnyFlush], None],
        stale_udp: StaleUdp | None = None,
    ) -> None:
        """`send` flushes on every connected switch, once it holds the current flows."""
        self._view = view
        self._send = send
        self._stale_udp = StaleUdp() if stale_udp is None else stale_udp
        self._freed: dict[IPAddress, str] = {}
        """Addresses that no attachment has any more, and the node that they belong to."""
        self._stale: dict[Stale, None] = {}
        self._changes = 0
        """`StaleUdp.changes` when the flushes under way were last narrowed."""
        self._freed_under_way: WeakSet[Flush[IPAddress]] = WeakSet()
        self._stale_under_way: WeakSet[Flush[Stale]] = WeakSet()
        """Flushes that a switch still has to do."""

    def attached(self, node: str) -> set[IPAddress]:
        """The addresses of a node's attachments."""
        return {each.address for each in self._view.attachments.get(node, {}).values()}

    def free(self, node: str, addresses: Collection[IPAddress]) -> None:
        """No attachment of the node has these addresses any more."""
        if addresses and not self._freed:
            asyncio.get_running_loop().call_later(FREED_TICK, self._forget_freed)
        self._freed |= dict.fromkeys(addresses, node)

    def reuse(self, addresses: Collection[IPAddress]) -> None:
        """New attachments have these addresses: their connections are flushed no more."""
        for flush in self._freed_under_way if addresses else ():
            flush.keep(set(flush.items).difference(addresses))

    def add_stale(self, stale: Iterable[Stale]) -> None:
        """A change of Services made these stale; they are flushed when `published` is called.

        Call it after each change of Services: what is not stale any more is flushed no more.
        """
        if self._changes != self._stale_udp.changes:
            self._changes = self._stale_udp.changes
            for flush in self._stale_under_way:
                narrowed = {each: self._stale_udp.narrowed(each) for each in flush.items}
                flush.keep({each for each, left in narrowed.items() if left == (each,)})
                for each, left in narrowed.items():
                    if left != (each,):
                        self._stale |= dict.fromkeys(left)
        self._stale |= dict.fromkeys(stale)

    def published(self) -> None:
        """The change is in the shared program: flush what it made stale."""
        stale = [
            *dict.fromkeys(left for each in self._stale for left in self._stale_udp.narrowed(each))
        ]
        self._stale = {}
        for at in range(0, len(stale), _MAX_STALE):
            flush = Flush(stale[at : at + _MAX_STALE], FLUSHES_OF_STALE, _stale_batch)
            self._stale_under_way.add(flush)
            self._send(flush)

    def _forget_freed(self) -> None:
        freed, self._freed = self._freed, {}
        attached = {node: self.attached(node) for node in set(freed.values())}
        # An address with a new pod is not flushed: the connections may belong to the new pod. The
        # node's agent flushed the old ones before it assigned the address.
        addresses = [address for address, node in freed.items() if address not in attached[node]]
        for at in range(0, len(addresses), MAX_FORGETS):
            flush = Flush(addresses[at : at + MAX_FORGETS], FLUSHES_OF_FREED, _freed_batch)
            self._freed_under_way.add(flush)
            self._send(flush)


def _stale_batch(stale: Iterable[Stale]) -> Batch:
    return Batch.of_forgets(each.forget(zone) for each in stale for zone in _ZONES)


def _freed_batch(addresses: Iterable[IPAddress]) -> Batch:
    return Batch.forgetting(CT_ZONE, addresses)
