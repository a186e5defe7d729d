"""Ways between nodes: the tunnel, or plain routing without encapsulation.

The way of a pair of nodes is a function of both Nodes, so switches, hosts and controllers agree:

    both noEncap                                  direct
    noEncap and hybrid, or both hybrid            direct within one subnet, else the tunnel
    one of them encap                             the tunnel

*Direct*: the sender's host routes the packet to the peer, with the pods' own addresses.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

from flows.family import IPNetwork

if TYPE_CHECKING:
    from flows.view import Node


class Mode(StrEnum):
    """How a node sends to the pods of others; the values of `cluster.network.mode`."""

    ENCAP = "encap"
    NO_ENCAP = "noEncap"
    HYBRID = "hybrid"


def is_direct(one: "Node", other: "Node") -> bool:
    """Whether two nodes reach each other's pods without the tunnel. It is symmetric."""
    if Mode.ENCAP in (one.mode, other.mode):
        return False
    if one.mode is other.mode is Mode.NO_ENCAP:
        return True
    return bool(subnet_number(one.subnet)) and one.subnet == other.subnet


def subnet_number(subnet: IPNetwork | None) -> int:
    """A subnet as a number of 32 bits, for a register field; 0: no subnet.

    It is the network address, and the highest host bit is 1, so the number also tells the prefix
    length. A subnet of one address has no neighbours, and counts as none.
    """
    if subnet is None or subnet.version != 4 or subnet.prefixlen == subnet.max_prefixlen:
        return 0
    return int(subnet.network_address) | 1 << (subnet.max_prefixlen - subnet.prefixlen - 1)
