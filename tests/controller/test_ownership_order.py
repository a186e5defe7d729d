"""The order in which nodes are preferred as owners of an address."""

from collections import Counter
from ipaddress import IPv4Address

from controller.address_owners.claims import MAX_CANDIDATES, considered, ownership_order

NODES = [f"node{number}" for number in range(10)]
ADDRESSES = [IPv4Address("192.0.2.0") + number for number in range(2000)]


def test_the_order_does_not_depend_on_the_order_of_the_nodes():
    for address in ADDRESSES[:20]:
        assert ownership_order(address, NODES) == ownership_order(address, reversed(NODES))


def test_addresses_are_spread_evenly():
    first = Counter(ownership_order(address, NODES)[0] for address in ADDRESSES)
    assert set(first) == set(NODES)
    assert max(first.values()) < 1.4 * len(ADDRESSES) / len(NODES)


def test_a_node_that_leaves_changes_nothing_for_the_other_nodes():
    for address in ADDRESSES[:100]:
        order = ownership_order(address, NODES)
        for gone in NODES:
            rest = [name for name in NODES if name != gone]
            assert ownership_order(address, rest) == [name for name in order if name != gone]


def test_of_many_nodes_always_the_same_are_considered():
    many = frozenset(f"node{number}" for number in range(1000))
    few = considered(many)
    assert len(few) == MAX_CANDIDATES
    assert few < many
    assert considered(frozenset(sorted(many, reverse=True))) == few
    assert len(few & considered(many - {min(few)})) == MAX_CANDIDATES - 1
