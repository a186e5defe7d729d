"""Keeps the host from sending with an address that the node does not have.

`table ip sluice-addresses` drops what leaves with a gated address as its source, except with those
in the set `held`. Its elements have timeouts: the kernel itself forgets an address that the agent
does not renew, also when the agent is stopped or dead.
"""

import asyncio
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Final, TypeVar

from flows.names import GATEWAY_PORT
from node_agent import netlink, nft

_HELD: Final = "held"
# Of linux/netfilter/nf_tables.h.
_FAMILY_IP: Final = 2
_NEW_ELEMENT: Final = nft.SUBSYSTEM << 8 | 12
_DELETE_ELEMENT: Final = nft.SUBSYSTEM << 8 | 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEMENT: Final = 1
_ELEMENT_KEY, _ELEMENT_TIMEOUT = 1, 4
_DATA_VALUE: Final = 1
_NESTED: Final = 0x8000
_MOST_ELEMENTS: Final = 1_000
"""In one transaction: an attribute of a message has at most 64 KiB, and a socket's buffer 200."""
_CREATE: Final = netlink.CHANGE | netlink.Flags.CREATE
T = TypeVar("T")


class AddressGate:
    """The table, as it was set up last."""

    def __init__(self) -> None:
        self.gated: frozenset[IPv4Address] = frozenset()
        """Addresses from which the host sends only while it holds them."""
        self._is_set_up = False

    async def use(self, gated: Collection[IPv4Address]) -> None:
        """Gate these addresses, in place of the last ones. Raises `NftError`."""
        wanted = frozenset(gated)
        if wanted == self.gated and (self._is_set_up or not wanted):
            return
        if not wanted and not self._is_set_up:
            return
        await nft.apply(_table(wanted))
        self.gated, self._is_set_up = wanted, True

    async def repair(self) -> None:
        """Set the table up again if somebody has removed it. Raises `NftError`."""
        if self.gated and not await nft.exists("ip", nft.ADDRESS_TABLE):
            self._is_set_up = False
            await self.use(self.gated)

    async def hold(self, seconds: Mapping[IPv4Address, float]) -> None:
        """Let the host send from these of the gated addresses for so long. Raises `NftError`.

        Short of the time: from the next statement on, the kernel counts.
        """
        wanted = {each: int(s * 1000) for each, s in seconds.items() if each in self.gated}
        for part in _parts([(address, left) for address, left in wanted.items() if left > 0]):
            await asyncio.to_thread(nft.transaction, hold_messages(dict(part)))

    async def let_go(self, addresses: Collection[IPv4Address]) -> None:
        """Send nothing more from these addresses. Raises `NftError`."""
        for part in _parts([address for address in addresses if address in self.gated]):
            await asyncio.to_thread(nft.transaction, let_go_messages(part))


def hold_messages(milliseconds: Mapping[IPv4Address, int]) -> list[bytes]:
    """The transaction of `AddressGate.hold`.

    Kernels before 6.12 do not change the timeout of an element that is there, and none of them
    deletes one that is not there.
    """
    timed = [_element(address, left) for address, left in milliseconds.items()]
    plain = [_element(address) for address in milliseconds]
    return nft.batch(
        _message(_NEW_ELEMENT, _CREATE, timed),
        _message(_DELETE_ELEMENT, netlink.CHANGE, plain),
        _message(_NEW_ELEMENT, _CREATE, timed),
    )


def let_go_messages(addresses: Collection[IPv4Address]) -> list[bytes]:
    """The transaction of `AddressGate.let_go`."""
    plain = [_element(address) for address in addresses]
    return nft.batch(
        _message(_NEW_ELEMENT, _CREATE, plain),
        _message(_DELETE_ELEMENT, netlink.CHANGE, plain),
    )


def _element(address: IPv4Address, milliseconds: int | None = None) -> bytes:
    key = netlink.nested(_ELEMENT_KEY | _NESTED, netlink.attribute(_DATA_VALUE, address.packed))
    if milliseconds is None:
        return netlink.nested(_LIST_ELEMENT | _NESTED, key)
    timeout = netlink.attribute(_ELEMENT_TIMEOUT, struct.pack("!Q", milliseconds))
    return netlink.nested(_LIST_ELEMENT | _NESTED, key, timeout)


def _message(kind: int, flags: int, elements: Iterable[bytes]) -> bytes:
    return netlink.message(
        kind,
        flags,
        struct.pack("!BBH", _FAMILY_IP, 0, 0),
        netlink.text(_LIST_TABLE, nft.ADDRESS_TABLE),
        netlink.text(_LIST_SET, _HELD),
        netlink.nested(_LIST_ELEMENTS | _NESTED, *elements),
    )


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + _MOST_ELEMENTS] for at in range(0, len(items), _MOST_ELEMENTS))


def _table(gated: Collection[IPv4Address]) -> str:
    """The transaction that gates these addresses. The elements of the set `held` stay.

    After `srcnat`: so the source is the one that the packet leaves with.
    """
    table = f"ip {nft.ADDRESS_TABLE}"
    elements = ", ".join(map(str, sorted(gated)))
    add = f"add element {table} gated {{ {elements} }}\n" if elements else ""
    return f"""
add table {table}
add set {table} gated {{ type ipv4_addr; }}
add set {table} {_HELD} {{ type ipv4_addr; flags timeout; }}
add chain {table} sent {{ type filter hook postrouting priority 150; policy accept; }}
flush chain {table} sent
add rule {table} sent oifname != "{GATEWAY_PORT}" ip saddr @gated ip saddr != @{_HELD} \
counter drop comment "from an address that this node does not have"
flush set {table} gated
{add}"""
