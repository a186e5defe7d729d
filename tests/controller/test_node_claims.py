"""Who of several Nodes gets a range or an address: by what they claim, in whatever order."""

from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.inventory import Inventory
from tests.controller.events import Event, Facts, connect, node_object, remove_node, set_object
from tests.flows.worlds import CLUSTER

NAMES = ("a", "b", "c", "d", "e")
CIDRS = ("10.244.0.0/22", "10.244.0.0/24", "10.244.1.0/24", "10.244.1.0/25", "10.244.2.0/23", "")
ADDRESSES = ("172.30.1.1", "172.30.1.2", "172.30.1.3", "172.30.1.4", "x")
EXTERNAL = ("198.51.100.1", "198.51.100.2", "172.30.1.1")

claims: st.SearchStrategy[Event] = st.one_of(
    *[
        st.builds(
            node_object,
            st.sampled_from(NAMES),
            st.sampled_from(CIDRS),
            st.sampled_from(ADDRESSES),
            st.sampled_from(("2026-01-01", "2026-01-02", "")),
            st.sampled_from(("u", "u", "u", "v")),
            others=st.lists(st.sampled_from(ADDRESSES), max_size=3).map(tuple),
            external=st.lists(st.sampled_from(EXTERNAL), max_size=2).map(tuple),
        ).map(set_object)
    ]
    * 4,
    st.sampled_from(NAMES).map(remove_node),
    st.builds(
        lambda name, address: connect(name, IPv4Address(address)),
        st.sampled_from(NAMES),
        st.sampled_from(ADDRESSES[:4]),
    ),
)


@given(st.lists(claims, min_size=4, max_size=30))
@settings(max_examples=600, deadline=None)
def test_history_leaves_no_trace(history: list[Event]) -> None:
    old, new, facts = Inventory(CLUSTER), Inventory(CLUSTER), Facts()
    for event in history:
        event(old)
        event(facts)  # type: ignore[arg-type]
    for event in facts.replay():
        event(new)
    assert old.view.nodes == new.view.nodes
    assert old.nodes.addresses == new.nodes.addresses
    assert old.problems.texts() == new.problems.texts()


@given(st.lists(claims, min_size=4, max_size=30))
@settings(max_examples=300, deadline=None)
def test_two_nodes_never_share_a_range_or_an_address(history: list[Event]) -> None:
    inventory = Inventory(CLUSTER)
    for event in history:
        event(inventory)
        nodes = list(inventory.view.nodes.values())
        addresses = [each for node in nodes for each in (node.address, *node.further_addresses)]
        assert len(addresses) == len(set(addresses))
        assert inventory.nodes.addresses.keys() == set(addresses)
        for node in nodes:
            assert not any(
                node.pod_cidr.overlaps(other.pod_cidr) for other in nodes if other is not node
            )
