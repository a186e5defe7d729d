"""What a peer is told, and what of it is announced to a peer with ADD-PATH and to one without."""

from ipaddress import IPv4Address, IPv4Network

from bgp import commands
from bgp.commands import FIRST, Path, paths
from tests.bgp.peers import peer
from wire.bgp import MAX_NEXT_HOPS, Route

ONE, TWO, THREE = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.3"))
PREFIX = IPv4Network("198.51.100.7/32")


def test_a_peer_without_add_path_gets_the_first_next_hop() -> None:
    assert paths([Route(PREFIX, (TWO, ONE))], several=False) == {Path(PREFIX, FIRST): TWO}


def test_a_peer_with_add_path_gets_all_of_them() -> None:
    found = paths([Route(PREFIX, (TWO, ONE, THREE))], several=True)
    assert found == {
        Path(PREFIX, FIRST): TWO,
        Path(PREFIX, ONE): ONE,
        Path(PREFIX, THREE): THREE,
    }


def test_a_route_without_a_next_hop_is_none() -> None:
    assert paths([Route(PREFIX, ())], several=True) == {}


def test_next_hops_and_paths_are_bounded() -> None:
    many = tuple(IPv4Address(0x0A000001 + n) for n in range(100))
    assert len(paths([Route(PREFIX, many)], several=True)) == MAX_NEXT_HOPS
    routes = [Route(IPv4Network((n << 8, 24)), (ONE, TWO)) for n in range(20_001)]
    assert len(paths(routes, several=False)) == 20_000
    # Every prefix has a next hop before any has a second one.
    found = paths(routes[:15_000], several=True)
    assert len(found) == 20_000
    assert {path.prefix for path in found} == {route.prefix for route in routes[:15_000]}


def test_attributes_are_written_as_exabgp_reads_them() -> None:
    given = peer(179, communities=("64512:7", "64512:1:2"), local_preference=200)
    text = commands.attributes(given)
    assert text == " community [ 64512:7 ] large-community [ 64512:1:2 ] local-preference 200"
    assert commands.announce(Path(PREFIX, FIRST), ONE, text) == (
        "announce route 198.51.100.7/32 next-hop 192.0.2.1 path-information 0.0.0.1" + text
    )
