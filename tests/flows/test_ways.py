"""The way to a peer, and which packets are accepted from it, in a real switch."""

import itertools
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from flows import names
from flows.compile import compile_scope
from flows.view import CLUSTER_SCOPE, ClusterView, Node
from flows.ways import Mode, is_direct, subnet_number
from tests.flows import worlds
from tests.flows.tracing import (
    ESTABLISHED,
    NEW,
    become,
    from_host,
    from_pod,
    leaves,
    outputs,
    path,
    translations,
)
from tests.ovs import Ovs

LEFT, RIGHT = IPv4Network("172.30.0.0/16"), IPv4Network("172.31.0.0/16")
TUNNEL, GATEWAY = [names.TUNNEL_OFPORT], [names.GATEWAY_OFPORT]
WAYS: dict[int, tuple[Mode, IPv4Network | None]] = {
    2: (Mode.HYBRID, LEFT),
    3: (Mode.HYBRID, RIGHT),
    4: (Mode.NO_ENCAP, LEFT),
    5: (Mode.NO_ENCAP, RIGHT),
    6: (Mode.NO_ENCAP, None),
    7: (Mode.ENCAP, LEFT),
    8: (Mode.HYBRID, None),
    9: (Mode.HYBRID, IPv4Network("172.30.0.0/17")),
}
"""Of the peers, by number."""


def node(number: int, mode: Mode, subnet: IPv4Network | None) -> Node:
    return replace(worlds.node(number), mode=mode, subnet=subnet)


def world(mode: Mode, subnet: IPv4Network | None) -> ClusterView:
    """node1 in this mode, with a pod, and a peer of each kind."""
    view = worlds.view({1: ["default/a"], **{number: [] for number in WAYS}})
    nodes = {f"node{n}": node(n, *way) for n, way in {1: (mode, subnet), **WAYS}.items()}
    return replace(view, nodes=nodes)


@pytest.mark.parametrize(
    ("mode", "subnet", "direct"),
    [
        (Mode.ENCAP, LEFT, set()),
        (Mode.HYBRID, LEFT, {2, 4}),
        (Mode.HYBRID, None, set()),
        (Mode.NO_ENCAP, LEFT, {2, 4, 5, 6}),
        (Mode.NO_ENCAP, None, {4, 5, 6}),
    ],
)
def test_flows_choose_the_way_that_the_modes_say(
    ovs: Ovs, mode: Mode, subnet: IPv4Network | None, direct: set[int]
) -> None:
    view = world(mode, subnet)
    assert {n for n in WAYS if is_direct(view.nodes["node1"], view.nodes[f"node{n}"])} == direct
    become(ovs, view, "node1")
    (pod,) = view.attachments["node1"].values()
    for number in WAYS:
        peer = view.nodes[f"node{number}"]
        to_peer = ovs.trace(from_pod(pod, nw_dst=peer.pod_cidr[5]), ESTABLISHED)
        assert outputs(to_peer) == (GATEWAY if number in direct else TUNNEL), number
        from_peer = from_host(nw_src=peer.pod_cidr[5], nw_dst=pod.address)
        guarded = ovs.trace(from_peer, NEW, NEW)
        if number in direct:
            assert outputs(guarded) == [pod.ofport], number
        else:
            assert path(guarded)[-1] in ("GatewayGuard", "PeerGuard"), number
        # While the mode changes, packets in the tunnel still arrive.
        inside = f"tcp,in_port=1,tun_src={peer.address},nw_src={peer.pod_cidr[5]}"
        assert outputs(ovs.trace(f"{inside},nw_dst={pod.address}", NEW, NEW)) == [pod.ofport]
    own = from_host(nw_src=view.nodes["node1"].pod_cidr[9], nw_dst=pod.address)
    assert path(ovs.trace(own, NEW, NEW))[-1] in ("GatewayGuard", "PeerGuard")
    nobody = from_host(nw_src="10.244.99.5", nw_dst=pod.address)
    assert path(ovs.trace(nobody, NEW, NEW))[-1] in ("GatewayGuard", "PeerGuard")
    gateway = from_host(nw_src=view.nodes["node1"].gateway, nw_dst=pod.address)
    assert outputs(ovs.trace(gateway, NEW, NEW)) == [pod.ofport]


def test_packet_from_a_peer_goes_to_pods_of_this_node_only(ovs: Ovs) -> None:
    view = world(Mode.NO_ENCAP, LEFT)
    become(ovs, view, "node1")
    source = view.nodes["node4"].pod_cidr[5]
    for to in (view.nodes["node2"].pod_cidr[5], view.nodes["node7"].pod_cidr[5], "192.0.2.1"):
        assert not leaves(ovs.trace(from_host(nw_src=source, nw_dst=to), NEW, NEW))


def test_connection_from_outside_to_a_peer_is_translated_and_hairpinned(ovs: Ovs) -> None:
    view = world(Mode.NO_ENCAP, LEFT)
    become(ovs, view, "node1")
    packet = from_host(nw_src="192.0.2.1", nw_dst=view.nodes["node4"].pod_cidr[5])
    trace = ovs.trace(f"{packet},ct_mark=0x4", ESTABLISHED)
    assert leaves(trace) == ["IN_PORT"]
    assert translations(trace)[-1] == f"src={names.snat_address(view.nodes['node1'].pod_cidr)}"


def test_flows_of_peers_are_the_same_on_all_nodes() -> None:
    """A node's own mode is in its own program only."""
    programs = [
        {flow.cookie for flow in compile_scope(world(mode, LEFT), CLUSTER_SCOPE).flows()}
        for mode in (Mode.ENCAP, Mode.HYBRID)
    ]
    one, other = (world(mode, LEFT).nodes["node1"] for mode in (Mode.ENCAP, Mode.HYBRID))
    assert (one.mode, other.mode) == (Mode.ENCAP, Mode.HYBRID)
    # The two differ by the flows for node1 as a peer: a way to it, and acceptance from it.
    assert not programs[0] - programs[1]
    assert len(programs[1] - programs[0]) == 2


def test_way_is_the_same_in_both_directions() -> None:
    nodes = [node(n, *way) for n, way in WAYS.items()]
    for one, other in itertools.product(nodes, nodes):
        assert is_direct(one, other) == is_direct(other, one)


def test_subnets_have_numbers_of_their_own() -> None:
    texts = ["10.0.0.0/8", "10.0.0.0/9", "10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25",
             "10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31", "0.0.0.0/0"]  # fmt: skip
    found = {subnet_number(IPv4Network(text)) for text in texts}
    assert len(found) == len(texts)
    assert all(0 < number < 1 << 32 for number in found)
    assert subnet_number(IPv4Network("10.0.0.1/32")) == 0
    assert subnet_number(None) == 0
