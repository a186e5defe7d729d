"""For each node, the peers that it reaches without the tunnel: the same bytes for many nodes."""

import hashlib
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple, cast

import msgspec

from controller.inventory.nodes import Nodes
from flows.family import IPNetwork
from flows.view import Node
from flows.ways import Mode, is_direct
from wire.documents import PeerRoutes, encode


class Encoded(NamedTuple):
    """A document as an agent gets it."""

    revision: str
    body: bytes


class _Alike(NamedTuple):
    """What the ways of a node depend on."""

    mode: Mode
    subnet: IPNetwork | None


class PeerRouteDocuments:
    """Makes each document once for all nodes with the same mode and subnet."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes: Final = nodes
        self._made: dict[_Alike, Encoded] = {}
        self._of: tuple[int, bool] | None = None
        """The version of the nodes that `_made` and `_groups` belong to, and `whole`."""
        self._groups: dict[_Alike, list[Node]] = {}

    def of(self, name: str, *, whole: bool) -> Encoded | None:
        """The document of a node; None: it takes no part. `whole`: all of the source was read."""
        node = self._nodes.accepted.get(name)
        if node is None:
            return None
        if self._of != (self._nodes.version, whole):
            self._of = self._nodes.version, whole
            self._made.clear()
            self._groups.clear()
            for each in self._nodes.accepted.values():
                self._groups.setdefault(_Alike(each.mode, each.subnet), []).append(each)
        alike = _Alike(node.mode, node.subnet)
        if (made := self._made.get(alike)) is None:
            made = self._made[alike] = self._make(node, whole=whole)
        return made

    def _make(self, node: Node, *, whole: bool) -> Encoded:
        # The protocol has IPv4 only, as have all Nodes that are accepted.
        peers = [
            (cast("IPv4Network", peer.pod_cidr), cast("IPv4Address", peer.address))
            for group in self._groups.values()
            if is_direct(node, group[0])
            for peer in group
        ]
        document = PeerRoutes(tuple(sorted(peers)), "", whole)
        revision = hashlib.sha256(encode(document)).hexdigest()[:16]
        return Encoded(revision, encode(msgspec.structs.replace(document, revision=revision)))
