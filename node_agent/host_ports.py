"""Which process of the host holds which port: a Service does not take it."""

import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from pyroute2 import DiagSocket, NetlinkError

_SYSCTLS: Final = Path("/proc/sys/net/ipv4")
_LISTEN: Final = 1 << 10
_UNCONNECTED: Final = 1 << 7
"""States of linux/tcp_states.h, in which a UDP socket that takes datagrams from anybody is too."""
_STATES: Final = {socket.IPPROTO_TCP: _LISTEN, socket.IPPROTO_UDP: _UNCONNECTED}


def held(ports: Collection[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Of these (protocol, port), those that a process holds, and by what name it is known.

    Sockets of loopback addresses do not count, nor do UDP sockets whose port the kernel may have
    chosen: they are clients'. SCTP's are not seen. Blocks. Raises `OSError`.
    """
    ephemeral = _ephemeral()
    wanted = {at for at in ports if at[0] != socket.IPPROTO_UDP or at[1] not in ephemeral}
    inodes = {}
    try:
        with DiagSocket() as diag:
            for protocol, states in _STATES.items():
                for family in (socket.AF_INET, socket.AF_INET6):
                    for entry in diag.get_sock_stats(family, states, protocol):
                        key = int(protocol), int(entry["idiag_sport"])
                        if key in wanted and _takes_ipv4_from_others(entry):
                            inodes[key] = int(entry["idiag_inode"])
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel does not tell its sockets: {error}") from error
    titles = dict(_holders(frozenset(inodes.values()))) if inodes else {}
    return {key: titles.get(inode, "a process") for key, inode in inodes.items()}


def _ephemeral() -> set[int]:
    """The ports that the kernel gives to sockets that ask for none (ip(7)). Raises `OSError`."""
    first, last = map(int, (_SYSCTLS / "ip_local_port_range").read_text().split())
    found = set(range(first, last + 1))
    for part in (_SYSCTLS / "ip_local_reserved_ports").read_text().strip().split(","):
        if part:
            low, _, high = part.partition("-")
            found -= set(range(int(low), int(high or low) + 1))
    return found


def _takes_ipv4_from_others(entry: Any) -> bool:
    address = ip_address(entry["idiag_src"])
    if address.version == 6:
        mapped = address.ipv4_mapped
        if mapped is None:
            return address.is_unspecified and not entry.get_attr("INET_DIAG_SKV6ONLY")
        address = mapped
    return not address.is_loopback


def _holders(inodes: Collection[int]) -> Iterator[tuple[int, str]]:
    """By inode: the process that has the socket open, if we may see it."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for file in (process / "fd").iterdir():
                inode = links.get(str(file.readlink()))
                if inode is not None:
                    name = (process / "comm").read_text().strip()
                    yield inode, f"process {process.name} ({name})"
        except OSError:
            continue  # it has ended, or we may not look
