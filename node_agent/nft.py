"""The nftables rules of this node, in tables of our own, each change one atomic transaction."""

import asyncio
import os
import re
import socket
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final, TypeAlias

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    nlmsgerr,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg, nftsocket

from node_agent.faults import NodeFault

TABLE: Final = "sluice"
"""The name of our table in each family. Tables of other names are somebody else's."""


class NftError(NodeFault):
    """nft refused a transaction."""


async def apply(text: str) -> None:
    """Apply one transaction. Raises `NftError` with the text of nft."""
    await _nft("-f", "-", stdin=text)


async def remove() -> None:
    """Delete our tables, whether or not they exist. Raises `NftError`."""
    for family in ("ip", "netdev"):
        await apply(f"table {family} {TABLE} {{}}\ndelete table {family} {TABLE}\n")


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
    every = await _nft("list", "tables", family)
    if f"table {family} {TABLE}" not in every.splitlines():
        return ""
    return await _nft("-s", "-p", "list", "table", family, TABLE)


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
    """Drop in the host's own stack what this interface receives; Open vSwitch still gets it.

    In the userspace datapath the switch reads frames from a packet socket, and the host's stack
    gets each frame as well: without this, a pod would reach the node past every flow. One chain
    per interface, because kernels before 6.4 add no interface to an existing chain. Raises
    `NftError`.
    """
    hook = [
        ("NFTA_HOOK_HOOKNUM", _INGRESS), ("NFTA_HOOK_PRIORITY", 0), ("NFTA_HOOK_DEV", device)
    ]  # fmt: skip
    chain = [
        ("NFTA_CHAIN_TABLE", TABLE), ("NFTA_CHAIN_NAME", device), ("NFTA_CHAIN_TYPE", "filter"),
        ("NFTA_CHAIN_HOOK", {"attrs": hook}), ("NFTA_CHAIN_POLICY", _DROP),
    ]  # fmt: skip
    _transaction(_table(), (nftsocket.nft_chain_msg, nftsocket.NFT_MSG_NEWCHAIN, chain))


async def allow_host_ingress(device: str) -> None:
    """Undo `drop_host_ingress`, whether or not it was called. Raises `NftError`.

    Newer kernels keep the chain of an interface that is gone.
    """
    chain = [("NFTA_CHAIN_TABLE", TABLE), ("NFTA_CHAIN_NAME", device)]
    _transaction(
        _table(),
        (nftsocket.nft_chain_msg, nftsocket.NFT_MSG_NEWCHAIN, chain),
        (nftsocket.nft_chain_msg, nftsocket.NFT_MSG_DELCHAIN, chain),
    )


# These two are needed for every pod, so they go straight to the kernel, as pyroute2's messages.
# `nft` takes 3 ms to start, and up to 20 to end after a deletion: the kernel does not let a socket
# be closed before it has freed what was deleted through it. So ours is never closed.

_Change: TypeAlias = tuple[Any, int, list[tuple[str, Any]]]
"""Class, type and attributes of a message."""

_NETFILTER: Final = 12
_FAMILY_NETDEV: Final = 5
_INGRESS: Final = 0
_DROP: Final = 0
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
"""Of linux/netlink.h, linux/netfilter.h and linux/netfilter/nfnetlink.h."""


def _table() -> _Change:
    return nftsocket.nft_table_msg, nftsocket.NFT_MSG_NEWTABLE, [("NFTA_TABLE_NAME", TABLE)]


@cache
def _socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    made.bind((0, 0))
    made.settimeout(5)
    return made


def _transaction(*changes: _Change) -> None:
    """Apply all changes or none. They are in force when the kernel acknowledges."""
    batch = _bounds(_BATCH_BEGIN)
    for kind, number, attributes in changes:
        message = kind()
        message["nfgen_family"] = _FAMILY_NETDEV
        message["attrs"] = attributes
        creates = 0 if number == nftsocket.NFT_MSG_DELCHAIN else NLM_F_CREATE
        flags = NLM_F_REQUEST | NLM_F_ACK | creates
        batch += _encoded(message, NFNL_SUBSYS_NFTABLES << 8 | number, flags)
    batch += _bounds(_BATCH_END)
    try:
        _socket().send(batch)
        errors: list[int] = []
        while len(errors) < len(changes):
            errors += _errors(_socket().recv(65536))
    except OSError as error:
        raise NftError(f"nf_tables: {error.strerror or error}") from error
    if worst := max(errors):
        raise NftError(f"nf_tables: {os.strerror(worst)}")


def _bounds(number: int) -> bytes:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    return _encoded(message, number, NLM_F_REQUEST)


def _encoded(message: Any, number: int, flags: int) -> bytes:
    message["header"]["type"] = number
    message["header"]["flags"] = flags
    message.encode()
    return bytes(message.data)


def _errors(data: bytes) -> Iterator[int]:
    """The error number in each answer; 0 is success."""
    at = 0
    while at < len(data):
        answer = nlmsgerr(data, offset=at)
        answer.decode()
        if answer["header"]["type"] == NLMSG_ERROR:
            yield -answer["error"]
        at += -(-answer["header"]["length"] // 4) * 4
