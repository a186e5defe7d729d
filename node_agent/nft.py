"""The nftables rules of this node, in tables of our own, each change one atomic transaction."""

import asyncio
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from ipaddress import IPv4Network
from typing import Final

from flows.names import GATEWAY_PORT

_TABLE: Final = "sluice"


class NftError(Exception):
    """nft refused a transaction."""


async def apply(text: str) -> None:
    """Give one transaction to the kernel. Raises `NftError` with what nft says."""
    await _nft("-f", "-", stdin=text)


async def masquerade(pod_cidr: IPv4Network, pod_range: IPv4Network) -> None:
    """What pods send beyond the cluster leaves with the node's address. Raises `NftError`.

    A table that is so already is left alone, and its counter counts on. Otherwise it is replaced
    as a whole; translations of existing connections live in conntrack and stay as they are.
    """
    wanted = _masquerade(pod_cidr, pod_range)
    if (await _listed("ip")).split() != wanted.split():
        await apply(f"table ip {_TABLE} {{}}\ndelete table ip {_TABLE}\n{wanted}")


async def deafen_again(devices: Iterable[str]) -> None:
    """`deafen` those of these existing interfaces that are not. Raises `NftError`.

    Somebody flushed the ruleset: a restart of the nftables service does.
    """
    deaf = set(_DEAF.findall(await _listed("netdev")))
    missing = sorted(set(devices) - deaf)
    for device in missing:
        await forget(device)
        await deafen(device)


_DEAF: Final = re.compile(
    r'chain (\S+) \{\s+type filter hook ingress device "\1" priority \S+; policy drop;\s+\}'
)


async def _listed(family: str) -> str:
    """Our table as nft prints it, without counters; empty where there is none."""
    every = await _nft("-s", "list", "tables", family)
    if f"table {family} {_TABLE}" not in every.splitlines():
        return ""
    return await _nft("-s", "list", "table", family, _TABLE)


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


def _masquerade(pod_cidr: IPv4Network, pod_range: IPv4Network) -> str:
    # As nft 1.0.6 prints it: what another version prints differently is set anew each time.
    return f"""
table ip {_TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {pod_cidr} ip daddr != {pod_range} oifname != "{GATEWAY_PORT}" \
counter masquerade comment "from pods to the world outside"
    }}
}}
"""


async def deafen(device: str) -> None:
    """The kernel does not hear what this interface receives; Open vSwitch does.

    In the userspace datapath a packet socket feeds the switch, and the kernel's own stack gets
    every frame as well: without this a pod speaks to the node past every flow. One chain for
    each device, because kernels before 6.4 add none to an existing chain. Raises `NftError`.
    """
    hook = _number(1, _INGRESS) + _number(2, 0) + _text(3, device)
    policy_drop = _number(5, 0)
    chain = _text(1, _TABLE) + _text(3, device) + _attribute(4 | _NESTED, hook)
    _transaction(
        (_NEWTABLE, _text(1, _TABLE)), (_NEWCHAIN, chain + policy_drop + _text(7, "filter"))
    )


async def forget(device: str) -> None:
    """Undo `deafen`, whether or not it was done. Raises `NftError`.

    Newer kernels keep the chain of a device that is gone.
    """
    chain = _text(1, _TABLE) + _text(3, device)
    _transaction((_NEWTABLE, _text(1, _TABLE)), (_NEWCHAIN, chain), (_DELCHAIN, chain))


# These two come with every pod, so they are spoken straight to the kernel: 0.1 ms each. `nft` takes
# 3 ms to start, and up to 20 to end after a deletion, because the kernel lets nobody close a socket
# before it has freed what was deleted over it. Numbers of linux/netfilter/nf_tables.h (messages;
# attributes of table, chain and hook), nfnetlink.h (batches) and netlink.h.

_NETFILTER: Final = 12
_NEWTABLE: Final = 0
_NEWCHAIN: Final = 3
_DELCHAIN: Final = 5
_INGRESS: Final = 0
_NESTED: Final = 0x8000
_FAMILY_NETDEV: Final = 5
_SUBSYSTEM: Final = 10
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_REQUEST: Final = 1
_ACKNOWLEDGE: Final = 4
_CREATE: Final = 0x400
_ERROR: Final = 2


@cache
def _socket() -> socket.socket:
    """Never closed, see above."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    made.bind((0, 0))
    made.settimeout(5)
    return made


def _transaction(*changes: tuple[int, bytes]) -> None:
    """All of these or none. The kernel has done it when it takes the message."""
    batch = _message(_BATCH_BEGIN, _REQUEST, 0, _SUBSYSTEM)
    for kind, body in changes:
        flags = _REQUEST | _ACKNOWLEDGE | (0 if kind == _DELCHAIN else _CREATE)
        batch += _message(_SUBSYSTEM << 8 | kind, flags, _FAMILY_NETDEV, 0, body)
    batch += _message(_BATCH_END, _REQUEST, 0, _SUBSYSTEM)
    try:
        _socket().send(batch)
        errors: list[int] = []
        while len(errors) < len(changes):
            errors += _errors(_socket().recv(65536))
    except OSError as error:
        raise NftError(f"nf_tables: {error.strerror or error}") from error
    if worst := max(errors):
        raise NftError(f"nf_tables: {os.strerror(worst)}")


def _errors(data: bytes) -> Iterator[int]:
    """One for each answer, 0 for success."""
    at = 0
    while at < len(data):
        length, kind, _, _, _, error = struct.unpack_from("=IHHIIi", data, at)
        if kind == _ERROR:
            yield -error
        at += length + 3 & ~3


def _message(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    header = struct.pack("=IHHII", 20 + len(body), kind, flags, 0, 0)
    return header + struct.pack("!BBH", family, 0, resource) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, value.to_bytes(4, "big"))
