"""Nodes that reach a peer without the tunnel: how a flow of the peer matches them.

A node in mode noEncap or hybrid writes its own mode and subnet into register fields. The flows of a
peer match these fields. So the flows of peers are the same on every node (`flows.ways.is_direct`).
"""

from collections.abc import Iterable

from flows.flow import Action, MatchValue
from flows.pipeline import LAYOUT
from flows.view import Node
from flows.ways import Mode, subnet_number


def own_ways(node: Node, subnet: str, no_encap: str) -> list[Action]:
    """The actions that write the node's own subnet and mode into these register fields."""
    return [
        LAYOUT.load(subnet, subnet_number(node.subnet)),
        LAYOUT.load(no_encap, int(node.mode is Mode.NO_ENCAP)),
    ]


def direct_nodes(
    peer: Node, subnet: str = "Subnet", no_encap: str = "NoEncap"
) -> Iterable[tuple[dict[str, MatchValue], str]]:
    """The nodes that reach a peer without the tunnel: what to match, and words for the reason."""
    if peer.mode is Mode.NO_ENCAP:
        yield {no_encap: 1}, "nodes in mode noEncap"
    if peer.mode is not Mode.ENCAP and (number := subnet_number(peer.subnet)):
        yield {subnet: number}, f"nodes in its subnet {peer.subnet}"
