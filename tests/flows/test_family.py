"""Features are written once for any `Family`: a second value gives flows of that family."""

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network, ip_address

import pytest

from flows import family
from flows.compile import compile_scope
from flows.family import IPV4, Family, family_of
from flows.fields import FIELDS
from flows.flow import Flow, Move, Pop, Push, SetField
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import CLUSTER_SCOPE, ClusterView, Target
from tests.flows import worlds

IPV6 = Family(
    version=6,
    bits=128,
    ether_type=0x86DD,
    source="ipv6_src",
    destination="ipv6_dst",
    opener="ct_ipv6_src",
    opened_to="ct_ipv6_dst",
    tunnel_source="tun_ipv6_src",
    tunnel_destination="tun_ipv6_dst",
    icmp=58,
    icmp_type="icmpv6_type",
    icmp_unreachable=1,
    resolution=None,
    not_carried=((IPv6Network("ff00::/8"), "multicast"),),
    router=IPv6Address("fe80::1"),
    hairpin=IPv6Address("fe80::2"),
    node_port=IPv6Address("fe80::3"),
)
"""A second family, for tests only."""

OF_IPV4 = {"nw_src", "nw_dst", "tun_src", "tun_dst", "icmp_type", "ct_nw_src", "ct_nw_dst"}


def view() -> ClusterView:
    """Nodes of IPv6. They have no pods, whose MACs carry IPv4 addresses."""
    nodes = {
        f"node{number}": replace(
            worlds.node(number),
            address=IPv6Address("2001:db8::") + number,
            pod_cidr=IPv6Network((int(IPv6Address("fd00::")) + (number << 64), 64)),
        )
        for number in (1, 2)
    }
    cluster = replace(
        worlds.CLUSTER, pod_range=IPv6Network("fd00::/48"), service_range=IPv6Network("fd01::/112")
    )
    target = Target(cluster.pod_range, worlds.TCP, 8080)
    return ClusterView(cluster, nodes, targets={str(target): target})


def named(flow: Flow) -> set[str]:
    """Every field that a flow matches or uses."""
    found = {name for name, _, _ in flow.match}
    for action in flow.actions:
        match action:
            case SetField(name) | Push(name) | Pop(name):
                found.add(name)
            case Move(source, destination):
                found |= {source, destination}
    return found


def test_features_write_for_a_second_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family.FAMILIES, 6, IPV6)
    six, four = (
        [flow for scope in (CLUSTER_SCOPE, "node1") for flow in compile_scope(given, scope).flows()]
        for given in (view(), worlds.view({1: [], 2: []}))
    )
    for flow in six:
        # Only IPv4 has ARP.
        if flow.feature != Feature.ARP and ("dl_type", 0x0806, None) not in flow.match:
            assert not named(flow) & OF_IPV4
            assert ("dl_type", IPV4.ether_type, None) not in flow.match
    kinds_of_six, kinds_of_four = (
        {(flow.feature, flow.table, flow.priority) for flow in flows} for flows in (six, four)
    )
    # The MACs of pods carry IPv4 addresses, and only IPv4 has this DHCP guard.
    assert (
        kinds_of_four - kinds_of_six
        == {
            (Feature.CLASSIFY, LAYOUT.tables["SpoofGuard"].number, Priority.GUARD),
            (Feature.CONNTRACK, LAYOUT.tables["NewConnection"].number, Priority.GUARD),
        }
        - kinds_of_six
    )
    assert {flow.feature for flow in six} == {flow.feature for flow in four}


@pytest.mark.parametrize("given", [IPV4, IPV6])
def test_fields_of_a_family_exist_and_are_as_wide_as_its_addresses(given: Family) -> None:
    for name in (given.source, given.destination, given.tunnel_source, given.tunnel_destination):
        assert FIELDS[name] == given.bits
    assert FIELDS[given.icmp_type] == 8
    assert given.prefix_mask(0) == 0
    assert given.prefix_mask(given.bits) == (1 << given.bits) - 1
    for address in (given.router, given.hairpin, given.node_port):
        assert address.version == given.version


def test_family_that_is_not_forwarded_is_refused_by_name() -> None:
    assert family_of(ip_address("10.0.0.1")) is IPV4
    with pytest.raises(ValueError, match="2001:db8::1: IPv6 is not supported"):
        family_of(ip_address("2001:db8::1"))
