"""What a peer is told, and the commands of ExaBGP's API that bring it up to date.

With ADD-PATH (RFC 7911) a peer takes several next hops of one prefix, each under a path id of its
own. The first next hop always has the path id `FIRST`, the others have themselves as path id. So a
peer without ADD-PATH, which would take the last path as the only one, gets just the one path
`FIRST`, and a change of its next hop is one announcement that replaces the old one.
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple, TypeAlias

from wire.bgp import MAX_NEXT_HOPS, MAX_PATHS, Peer, Route

FIRST: Final = IPv4Address("0.0.0.1")
"""As a path id. No node has this address."""


class Path(NamedTuple):
    """What an announcement replaces, or a withdrawal ends."""

    prefix: IPv4Network
    path_id: IPv4Address


Paths: TypeAlias = Mapping[Path, IPv4Address]
"""Next hops."""

END_OF_RIB: Final = "announce eor ipv4 unicast"
"""All routes of a new session were sent (RFC 4724)."""
SEND_AGAIN: Final = "flush adj-rib out"
"""Send all routes again that the peer was told."""
ECHO: Final = "version"
"""To see whether the speaker answers."""


def paths(routes: Sequence[Route], *, several: bool) -> dict[Path, IPv4Address]:
    """What a peer is to be told, at most `MAX_PATHS`; with `several` all next hops of a prefix."""
    found: dict[Path, IPv4Address] = {}
    for prefix, next_hop in _first_paths(routes):
        if len(found) >= MAX_PATHS:
            break
        found[Path(prefix, FIRST)] = next_hop
    if several:
        for route in routes:
            for next_hop in route.next_hops[1:MAX_NEXT_HOPS]:
                if len(found) >= MAX_PATHS:
                    return found
                found[Path(route.prefix, next_hop)] = next_hop
    return found


def _first_paths(routes: Sequence[Route]) -> Iterator[tuple[IPv4Network, IPv4Address]]:
    return ((route.prefix, route.next_hops[0]) for route in routes if route.next_hops)


def attributes(peer: Peer) -> str:
    """Of all routes to this peer, as ExaBGP writes them."""
    found = ""
    ordinary = [each for each in peer.communities if each.count(":") == 1]
    large = [each for each in peer.communities if each.count(":") == 2]
    if ordinary:
        found += f" community [ {' '.join(ordinary)} ]"
    if large:
        found += f" large-community [ {' '.join(large)} ]"
    if peer.local_preference is not None:
        found += f" local-preference {peer.local_preference}"
    return found


def announce(path: Path, next_hop: object, with_attributes: str) -> str:
    """The command for a new or changed path."""
    return (
        f"announce route {path.prefix} next-hop {next_hop} path-information {path.path_id}"
        + with_attributes
    )


def withdraw(path: Path, next_hop: object) -> str:
    """The command for a path that ends."""
    return f"withdraw route {path.prefix} next-hop {next_hop} path-information {path.path_id}"
