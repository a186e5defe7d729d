"""Which node should have an address: what is claimed, and the order of the nodes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address
from typing import Final

from flows.refs import ObjectRef

MAX_ADDRESSES: Final = 4_096
"""Addresses that one cluster can have owners for; the rest are reported."""
MAX_CANDIDATES: Final = 256
"""Nodes from which the owner of an address is chosen. Of more, always the same ones are taken, so
that few nodes renew."""
_LARGEST: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that one node at a time may have."""

    subject: ObjectRef
    """The object that needs the address: problems with it are reported there."""
    candidates: frozenset[str]
    """The names of the nodes that can have it. Give many claims one and the same set where it is
    equal. Whether a node is ready or drained need not be looked at: the owner is chosen from the
    ready ones."""
    announce: bool = True
    """Whether the owner answers ARP for the address."""
    gated: bool = False
    """Whether only the owner's host may send from the address: it drops such packets as soon as it
    is not the owner any more."""


def ownership_order(address: IPv4Address, nodes: Iterable[str]) -> list[str]:
    """The nodes, the most preferred owner of the address first.

    Rendezvous hashing: if a node leaves, only its addresses move, and they spread over all others.
    """
    salt = _number(address.packed)
    return sorted(nodes, key=lambda name: (_mixed(salt ^ node_number(name)), name))


def considered(nodes: frozenset[str]) -> frozenset[str]:
    """At most `MAX_CANDIDATES` of the nodes, of equal nodes always the same ones."""
    return nodes if len(nodes) <= MAX_CANDIDATES else _fewer(nodes)


@lru_cache(maxsize=64)
def _fewer(nodes: frozenset[str]) -> frozenset[str]:
    return frozenset(sorted(nodes, key=node_number)[:MAX_CANDIDATES])


@lru_cache(maxsize=16_384)
def node_number(name: str) -> int:
    """A node's hash, 64 bits."""
    return _number(name.encode())


def _number(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _mixed(number: int) -> int:
    # The finalizer of splitmix64: every bit of the input changes half of the output.
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _LARGEST
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _LARGEST
    return number ^ number >> 31
