"""The nftables rules of this node, in tables of our own, each change one atomic transaction."""

import asyncio
import os
import re
import socket
import struct
import threading
from collections.abc import Iterable
from functools import cache
from typing import Final

from node_agent import netlink
from node_agent.faults import NodeFault

TABLE: Final = "sluice"
"""The name of our table in each family."""
ADDRESS_TABLE: Final = "sluice-addresses"
"""The name of a second one, of family ip (`address_gate`). Tables of other names are somebody
else's."""


class NftError(NodeFault):
    """nft refused a transaction."""


async def apply(text: str) -> None:
    """Apply one transaction. Raises `NftError` with the text of nft."""
    await _nft("-f", "-", stdin=text)


async def remove() -> None:
    """Delete our tables, whether or not they exist. Raises `NftError`."""
    for family, table in (("ip", TABLE), ("netdev", TABLE), ("ip", ADDRESS_TABLE)):
        await apply(f"table {family} {table} {{}}\ndelete table {family} {table}\n")


async def restore_host_ingress_drops(devices: Iterable[str]) -> None:
    """Drop ingress again on those of these existing interfaces where it is not. Raises `NftError`.

    Somebody flushed the ruleset, as a restart of nftables.service does.
    """
    for device in sorted(set(devices) - await host_ingress_drops()):
        await allow_host_ingress(device)
        await drop_host_ingress(device)
        # Kernels from 6.16 on accept chains of interfaces that do not exist. If this one was
        # removed meanwhile, together with its chain, the new chain would stay for ever.
        if device not in {name for _, name in socket.if_nameindex()}:
            await allow_host_ingress(device)


async def host_ingress_drops() -> set[str]:
    """The interfaces whose ingress the host drops. Raises `NftError`."""
    return set(_DROPPING_CHAIN.findall(await listed("netdev")))


_DROPPING_CHAIN: Final = re.compile(
    r'chain (\S+) \{\s+type filter hook ingress device "\1" priority \S+; policy drop;\s+\}'
)


async def listed(family: str) -> str:
    """Our table as nft prints it, without counters and with the numbers of protocols.

    Empty where there is none. Raises `NftError`.
    """
    if not await exists(family, TABLE):
        return ""
    return await _nft("-s", "-p", "list", "table", family, TABLE)


async def exists(family: str, table: str) -> bool:
    """Whether there is such a table. Raises `NftError`."""
    every = await _nft("list", "tables", family)
    return f"table {family} {table}" in every.splitlines()


async def _nft(*arguments: str, stdin: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise NftError(f"nft cannot be run: {error.strerror}") from error
    output, errors = await process.communicate(stdin.encode())
    if process.returncode:
        raise NftError(f"nft: {' '.join(errors.decode(errors='replace').split())}")
    return output.decode(errors="replace")


async def drop_host_ingress(device: str) -> None:
    """`drop_host_ingress_now`, in a thread. Raises `NftError`."""
    await asyncio.to_thread(drop_host_ingress_now, device)


async def allow_host_ingress(device: str) -> None:
    """`allow_host_ingress_now`, in a thread. Raises `NftError`."""
    await asyncio.to_thread(allow_host_ingress_now, device)


# These two are needed for every pod, so they go straight to the kernel. `nft` takes 3 ms to start,
# and up to 20 to end after a deletion: the kernel does not let a socket be closed before it has
# freed what was deleted through it. So ours is never closed.


def drop_host_ingress_now(device: str) -> None:
    """Drop in the host's own stack what this interface receives; Open vSwitch still gets it.

    In the userspace datapath the switch reads frames from a packet socket, and the host's stack
    gets each frame as well: without this, a pod would reach the node past every flow. One chain
    per interface, because kernels before 6.4 add no interface to an existing chain. Blocks. Raises
    `NftError`.
    """
    transaction(drop_messages(device))


def allow_host_ingress_now(device: str) -> None:
    """Undo `drop_host_ingress_now`, whether or not it was called. Blocks. Raises `NftError`.

    Newer kernels keep the chain of an interface that is gone.
    """
    transaction(allow_messages(device))


# Of linux/netfilter.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
_FAMILY_NETDEV: Final = 5
SUBSYSTEM: Final = 10
"""Of nf_tables in netlink messages."""
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_NEW_TABLE: Final = SUBSYSTEM << 8 | 0
_NEW_CHAIN: Final = SUBSYSTEM << 8 | 3
_DELETE_CHAIN: Final = SUBSYSTEM << 8 | 5
_TABLE_NAME: Final = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE = 1, 2, 3
_INGRESS: Final = 0
_DROP: Final = 0
_CREATE: Final = netlink.CHANGE | netlink.Flags.CREATE
"""If it is not there."""


def drop_messages(device: str) -> list[bytes]:
    """The transaction of `drop_host_ingress_now`."""
    hook = netlink.nested(
        _CHAIN_HOOK,
        _number(_HOOK_NUMBER, _INGRESS),
        _number(_HOOK_PRIORITY, 0),
        netlink.text(_HOOK_DEVICE, device),
    )
    kind = netlink.text(_CHAIN_TYPE, "filter")
    return _batch(_chain(_NEW_CHAIN, _CREATE, device, kind, hook, _number(_CHAIN_POLICY, _DROP)))


def allow_messages(device: str) -> list[bytes]:
    """The transaction of `allow_host_ingress_now`."""
    return _batch(
        _chain(_NEW_CHAIN, _CREATE, device), _chain(_DELETE_CHAIN, netlink.CHANGE, device)
    )


def _batch(*changes: bytes) -> list[bytes]:
    """These changes of our table, all or none."""
    return batch(_message(_NEW_TABLE, _CREATE, netlink.text(_TABLE_NAME, TABLE)), *changes)


def batch(*changes: bytes) -> list[bytes]:
    """These changes as one transaction."""
    begin, end = (
        netlink.message(kind, netlink.Flags.REQUEST, struct.pack("!BBH", 0, 0, SUBSYSTEM))
        for kind in (_BATCH_BEGIN, _BATCH_END)
    )
    return [begin, *changes, end]


def _chain(kind: int, flags: int, device: str, *more: bytes) -> bytes:
    """A chain that has the name of its interface."""
    names = netlink.text(_CHAIN_TABLE, TABLE), netlink.text(_CHAIN_NAME, device)
    return _message(kind, flags, *names, *more)


def _message(kind: int, flags: int, *attributes: bytes) -> bytes:
    return netlink.message(kind, flags, struct.pack("!BBH", _FAMILY_NETDEV, 0, 0), *attributes)


def _number(kind: int, value: int) -> bytes:
    """nf_tables has numbers in network byte order."""
    return netlink.attribute(kind, struct.pack("!I", value))


_turn: Final = threading.Lock()
"""Whoever has it may use the socket."""


@cache
def _socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETFILTER)
    made.bind((0, 0))
    made.settimeout(5)
    return made


def transaction(messages: list[bytes]) -> None:
    """Apply all changes or none. They are in force when the kernel acknowledges.

    `messages` are as `batch` makes them. Blocks. Raises `NftError`.
    """
    try:
        with _turn:
            errors = netlink.exchange(_socket(), messages)
    except OSError as error:
        # An answer may yet come, and would be taken for that to the next transaction.
        _socket.cache_clear()
        raise NftError(f"nf_tables: {error.strerror or error}") from error
    if worst := max(errors):
        raise NftError(f"nf_tables: {os.strerror(worst)}")
