"""Deletes conntrack entries of the host kernel whose translation leads to an old endpoint."""

import errno
import socket
from collections.abc import Collection
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError
from pyroute2.conntrack import Conntrack
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

_MOST_QUERIES: Final = 16
"""Up to so many ports, there is one query for each port; for more, all UDP entries are read."""


def forget_udp(ports: Collection[int]) -> int:
    """Delete the entries of UDP packets to these ports of this host; return their number.

    As long as a client sends packets, its entry stays, and with it the translation that nftables
    chose first. Blocks. Raises `OSError`.
    """
    try:
        with IPRoute() as netlink:
            local = {address.get_attr("IFA_LOCAL") for address in netlink.get_addr(family=2)}
        with Conntrack() as table:
            found = [
                entry
                for asked in (ports if len(ports) <= _MOST_QUERIES else [None])
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
        return False  # the entry expired meanwhile
    return True
