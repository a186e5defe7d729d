"""The kernel's memory of connections, where it would lead them to where nobody is any more."""

import errno
import socket
from collections.abc import Collection
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError
from pyroute2.conntrack import Conntrack
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

_FEW: Final = 16
"""Ports for which the kernel is asked one by one; for more, all of UDP is looked through."""


def forget_udp(ports: Collection[int]) -> int:
    """Forget what came to a UDP port of this host, of these; returns how many entries.

    A client's packets keep an entry alive for ever, whatever the rules say meanwhile. Blocks.
    Raises `OSError`.
    """
    try:
        with IPRoute() as netlink:
            local = {address.get_attr("IFA_LOCAL") for address in netlink.get_addr(family=2)}
        with Conntrack() as table:
            found = [
                entry
                for asked in (ports if len(ports) <= _FEW else [None])
                for entry in table.dump_entries(
                    tuple_orig=NFCTAttrTuple(proto=socket.IPPROTO_UDP, dport=asked)
                )
                if entry.tuple_orig.dport in ports and entry.tuple_orig.daddr in local
            ]
            return sum(_forget(table, entry) for entry in found)
    except NetlinkError as error:
        raise OSError(error.code, f"conntrack: {error}") from error


def _forget(table: Conntrack, entry: Any) -> bool:
    try:
        table.entry("del", tuple_orig=entry.tuple_orig)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return False  # ended by itself
    return True
