"""Packets through the compiled flows, in `ofproto/trace` of a real switch."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from flows import names
from flows.pipeline import ENDPOINT, FROM_SERVICE, KNOWN
from flows.view import Attachment, ClusterView
from tests.flows import tracing, worlds
from tests.flows.tracing import ESTABLISHED, INVALID, NEW, RELATED, become, outputs, path
from tests.ovs import Ovs, running

VIEW: ClusterView = worlds.view({1: ["default/a", "default/b"], 2: ["default/c"], 3: []})
A, B = VIEW.attachments["node1"].values()
(C,) = VIEW.attachments["node2"].values()
EXTERNAL = "203.0.113.10"


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    with running(tmp_path_factory.mktemp("ovs")) as made:
        become(made, VIEW, "node1")
        yield made


def from_pod(attachment: Attachment = A, **fields: object) -> str:
    return tracing.from_pod(attachment, **fields)


def test_new_connection_to_a_pod_here(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=B.address), NEW, NEW)
    assert path(trace) == [
        "Classifier", "SpoofGuard", "RouterGuard", "UnSnat", "Conntrack", "ConntrackState",
        "NewConnection", "NodeAddress", "ServiceAddress", "ServiceChoice", "Direct",
        "DestinationGuard",
        "PolicyFromPod", "IsolationFromPod", "PolicyFromPodVerdict",
        "Forwarding",
        "PolicyToPod", "IsolationToPod", "PolicyToPodVerdict", "Hairpin",
        "Commit", "Snat", "Output",
    ]  # fmt: skip
    assert outputs(trace) == [B.ofport]
    assert f"set_field:{B.mac}->eth_dst" in trace


def test_established_connection_skips_layer_4(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=B.address), ESTABLISHED)
    assert path(trace) == [
        "Classifier", "SpoofGuard", "RouterGuard", "UnSnat", "Conntrack", "ConntrackState",
        "DestinationGuard", "Forwarding", "PolicyToPod", "Hairpin", "Commit", "Snat", "Output",
    ]  # fmt: skip
    assert outputs(trace) == [B.ofport]
    megaflow = trace.rpartition("Megaflow: ")[2].partition("\n")[0]
    assert "tp_" not in megaflow


def test_packet_to_a_pod_of_a_peer_leaves_by_the_tunnel(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=C.address), NEW, NEW)
    assert outputs(trace) == [names.TUNNEL_OFPORT]
    assert "set_field:172.30.1.2->tun_dst" in trace


def test_packet_to_the_outside_leaves_by_the_gateway(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=EXTERNAL), NEW, NEW)
    assert outputs(trace) == [names.GATEWAY_OFPORT]
    assert f"set_field:{names.GATEWAY_MAC}->eth_dst" in trace


def test_icmp_error_comes_back(switch: Ovs) -> None:
    packet = (
        f"icmp,in_port={names.GATEWAY_OFPORT},dl_src={names.GATEWAY_MAC},"
        f"dl_dst={names.ROUTER_MAC},nw_src={EXTERNAL},nw_dst={A.address},icmp_type=3,icmp_code=4"
    )
    assert outputs(switch.trace(packet, RELATED)) == [A.ofport]


@pytest.mark.parametrize(
    ("what", "packet", "last"),
    [
        ("another MAC", from_pod(dl_src=B.mac, nw_dst=B.address), "SpoofGuard"),
        ("another address", from_pod(nw_src=B.address, nw_dst=B.address), "SpoofGuard"),
        ("a peer's address", from_pod(nw_src=C.address, nw_dst=B.address), "SpoofGuard"),
        ("not to the router", from_pod(dl_dst=B.mac, nw_dst=B.address), "RouterGuard"),
        ("to its own MAC", from_pod(dl_dst=A.mac, nw_dst=A.address), "RouterGuard"),
        ("a broadcast", from_pod(dl_dst="ff:ff:ff:ff:ff:ff", nw_dst=B.address), "RouterGuard"),
        ("an unknown port", f"tcp,in_port=99,nw_src={A.address},nw_dst={B.address}", "Classifier"),
        (
            "IPv6",
            f"tcp6,in_port={A.ofport},dl_src={A.mac},dl_dst={names.ROUTER_MAC}",
            "SpoofGuard",
        ),
        (
            "a router advertisement",
            f"icmp6,in_port={A.ofport},dl_src={A.mac},dl_dst=33:33:00:00:00:01,icmpv6_type=134",
            "SpoofGuard",
        ),
        (
            "ARP with another's address",
            f"arp,in_port={A.ofport},dl_src={A.mac},arp_op=1,arp_spa={B.address},"
            f"arp_sha={A.mac},arp_tpa={names.ROUTER_ADDRESS}",
            "SpoofGuard",
        ),
        (
            "ARP with another's MAC",
            f"arp,in_port={A.ofport},dl_src={A.mac},arp_op=1,arp_spa={A.address},"
            f"arp_sha={B.mac},arp_tpa={names.ROUTER_ADDRESS}",
            "SpoofGuard",
        ),
        (
            "ARP for a pod",
            f"arp,in_port={A.ofport},dl_src={A.mac},dl_dst=ff:ff:ff:ff:ff:ff,arp_op=1,arp_spa={A.address},"
            f"arp_sha={A.mac},arp_tpa={B.address}",
            "Arp",
        ),
        (
            "a tunnel from an unknown peer",
            f"tcp,in_port=1,tun_src=172.30.9.9,nw_src={C.address},nw_dst={A.address}",
            "TunnelGuard",
        ),
        (
            "a peer with another peer's pod",
            f"tcp,in_port=1,tun_src=172.30.1.3,nw_src={C.address},nw_dst={A.address}",
            "TunnelGuard",
        ),
        (
            "a tunnel from the node's own address",
            f"tcp,in_port=1,tun_src=172.30.1.1,nw_src={B.address},nw_dst={A.address}",
            "TunnelGuard",
        ),
        (
            "a pod's address by the gateway",
            f"tcp,in_port=2,dl_src={names.GATEWAY_MAC},nw_src={C.address},nw_dst={A.address}",
            "GatewayGuard",
        ),
        (
            "the gateway with another MAC",
            f"tcp,in_port=2,dl_src={A.mac},nw_src={EXTERNAL},nw_dst={A.address}",
            "GatewayGuard",
        ),
    ],
)
def test_dropped_before_conntrack(switch: Ovs, what: str, packet: str, last: str) -> None:
    trace = switch.trace(packet, NEW, NEW)
    assert path(trace)[-1] == last, what
    assert re.search(r"actions: (drop|meter\(\d+\))$", trace.rstrip()), what


@pytest.mark.parametrize(
    ("what", "packet", "last"),
    [
        (
            "a DHCP server",
            from_pod(nw_dst=B.address, udp_src=67).replace("tcp", "udp", 1),
            "NewConnection",
        ),
        (
            "to a node's tunnel port",
            from_pod(nw_dst="172.30.1.2", udp_dst=6081).replace("tcp", "udp", 1),
            "DestinationGuard",
        ),
        ("an unused pod address of this node", from_pod(nw_dst="10.244.1.200"), "Forwarding"),
        ("an unused pod address of no node", from_pod(nw_dst="10.244.200.1"), "PeerWay"),
        ("multicast", from_pod(nw_dst="224.0.0.1"), "Forwarding"),
        ("broadcast", from_pod(nw_dst="255.255.255.255"), "Forwarding"),
        (
            "from a tunnel to a tunnel",
            f"tcp,in_port=1,tun_src=172.30.1.2,nw_src={C.address},nw_dst=10.244.3.5",
            "Egress",
        ),
        (
            "from a tunnel to the outside",
            f"tcp,in_port=1,tun_src=172.30.1.2,nw_src={C.address},nw_dst={EXTERNAL}",
            "Egress",
        ),
    ],
)
def test_dropped_after_conntrack(switch: Ovs, what: str, packet: str, last: str) -> None:
    trace = switch.trace(packet, NEW, NEW)
    assert path(trace)[-1] == last, what
    assert trace.rstrip().endswith(("actions: drop", "actions: meter(0)")), what


def test_invalid_is_dropped(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=B.address), INVALID)
    assert path(trace)[-1] == "ConntrackState"
    assert trace.rstrip().endswith("Datapath actions: drop")


def test_packet_from_a_tunnel_reaches_a_pod(switch: Ovs) -> None:
    packet = f"tcp,in_port=1,tun_src=172.30.1.2,nw_src={C.address},nw_dst={A.address}"
    assert outputs(switch.trace(packet, NEW, NEW)) == [A.ofport]


def test_packet_from_a_peer_reaches_the_node(switch: Ovs) -> None:
    packet = f"tcp,in_port=1,tun_src=172.30.1.2,nw_src={C.address},nw_dst=10.244.1.1"
    assert outputs(switch.trace(packet, NEW, NEW)) == [names.GATEWAY_OFPORT]


def test_switch_answers_broadcast_arp(switch: Ovs) -> None:
    trace = switch.trace(
        f"arp,in_port={A.ofport},dl_src={A.mac},dl_dst=ff:ff:ff:ff:ff:ff,arp_op=1,"
        f"arp_spa={A.address},arp_sha={A.mac},arp_tpa={names.ROUTER_ADDRESS}"
    )
    assert path(trace) == ["Classifier", "SpoofGuard", "RouterGuard", "BroadcastGuard", "Arp"]
    assert tracing.meters(trace) == [names.refusal_meter(A.ofport)]
    final = trace.rpartition("Final flow: ")[2].partition("\n")[0]
    assert f"arp_spa={names.ROUTER_ADDRESS},arp_tpa={A.address},arp_op=2" in final
    assert f"arp_sha={names.ROUTER_MAC},arp_tha={A.mac}" in final
    assert "IN_PORT" in trace


def test_switch_answers_unicast_arp_to_the_router(switch: Ovs) -> None:
    """Kernels send it to check that a neighbour is still reachable."""
    request = (
        f"arp,in_port={A.ofport},dl_src={A.mac},arp_op=1,arp_spa={A.address},arp_sha={A.mac},"
        f"arp_tpa={names.ROUTER_ADDRESS}"
    )
    assert "IN_PORT" in switch.trace(f"{request},dl_dst={names.ROUTER_MAC}")
    for other, last in ((B.mac, "RouterGuard"), ("01:00:5e:00:00:01", "BroadcastGuard")):
        assert path(switch.trace(f"{request},dl_dst={other}"))[-1] == last


def test_new_connections_are_metered(switch: Ovs) -> None:
    trace = switch.trace(from_pod(nw_dst=B.address), NEW, NEW)
    assert f"meter:{A.ofport}" in trace
    assert "meter" not in switch.trace(from_pod(nw_dst=B.address), ESTABLISHED)


KNOWN_STATES = {
    "new": (NEW,),
    "known": (NEW,),
    "established": (ESTABLISHED,),
    "translated before": ("trk,new,dnat",),
}


@pytest.mark.parametrize("state", KNOWN_STATES)
@pytest.mark.parametrize("address", ["172.30.1.1", "172.30.1.2"])
def test_guard_applies_to_connections_that_were_allowed_before(
    switch: Ovs, address: str, state: str
) -> None:
    """The connection may be older than the guard, for example if the Node was unknown."""
    mark = f",ct_mark={KNOWN:#x}" if state == "known" else ""
    packet = tracing.from_pod(A, "udp", nw_dst=address, udp_dst=6081) + mark
    trace = switch.trace(packet, *KNOWN_STATES[state], NEW)
    assert path(trace)[-1] == "DestinationGuard"
    assert outputs(trace) == []


@pytest.mark.parametrize("fragment", ["first", "later"])
def test_fragments_from_a_pod_to_a_node_are_dropped(switch: Ovs, fragment: str) -> None:
    """In the userspace datapath fragments have no ports, so a guard of a port cannot match."""
    packet = tracing.from_pod(A, "udp", nw_dst="172.30.1.2", nw_frag=fragment)
    for state in (NEW, ESTABLISHED):
        trace = switch.trace(packet, state, NEW)
        assert path(trace)[-1] == "DestinationGuard"
        assert outputs(trace) == []
    # A reply goes to a port that the node has sent from.
    assert outputs(switch.trace(packet, "trk,est,rpl")) == [names.GATEWAY_OFPORT]


@pytest.mark.parametrize("fragment", ["first", "later"])
def test_fragments_between_pods_are_metered_and_forwarded(switch: Ovs, fragment: str) -> None:
    packet = tracing.from_pod(A, "udp", nw_dst=B.address, nw_frag=fragment)
    trace = switch.trace(packet, ESTABLISHED)
    assert tracing.meters(trace) == [names.fragment_meter(A.ofport)]
    assert outputs(trace) == [B.ofport]


def icmp_error(sender: Attachment, **connection: object) -> str:
    """A pod's "port unreachable" to A; `connection` is what conntrack knows of the connection."""
    about = {"nw_dst": A.address, "icmp_type": 3, "icmp_code": 3, "ct_state": "trk|est"}
    return tracing.from_pod(sender, "icmp", **about, ct_nw_proto=6, **connection)


def test_icmp_error_of_a_pod_about_its_own_connection_arrives(switch: Ovs) -> None:
    """The pod opened the connection, or was its destination, or its endpoint."""
    by_service = FROM_SERVICE | ENDPOINT.value(int(B.address))[0]
    connections: list[dict[str, object]] = [
        {"ct_nw_src": B.address, "ct_nw_dst": A.address},
        {"ct_nw_src": A.address, "ct_nw_dst": B.address},
        {"ct_nw_src": A.address, "ct_nw_dst": "10.96.0.10", "ct_mark": f"{by_service:#x}"},
    ]
    for connection in connections:
        trace = switch.trace(icmp_error(B, **connection), RELATED)
        assert outputs(trace) == [A.ofport], connection


def test_icmp_error_of_a_pod_about_a_connection_of_others_is_dropped(switch: Ovs) -> None:
    """Such errors could reset sockets of others, and lower their path MTU."""
    by_service = FROM_SERVICE | ENDPOINT.value(int(C.address))[0]
    # Without FromService, the bits of Endpoint do not count.
    no_service = ENDPOINT.value(int(B.address))[0]
    connections: list[dict[str, object]] = [
        {"ct_nw_src": A.address, "ct_nw_dst": C.address},
        {"ct_nw_src": C.address, "ct_nw_dst": A.address},
        {"ct_nw_src": A.address, "ct_nw_dst": EXTERNAL},
        {"ct_nw_src": A.address, "ct_nw_dst": "10.96.0.10", "ct_mark": f"{by_service:#x}"},
        {"ct_nw_src": A.address, "ct_nw_dst": C.address, "ct_mark": f"{no_service:#x}"},
    ]
    for connection in connections:
        trace = switch.trace(icmp_error(B, **connection), RELATED)
        assert path(trace)[-1] == "IcmpError", connection
        assert outputs(trace) == [], connection


def test_icmp_error_from_another_node_arrives(switch: Ovs) -> None:
    """The other node has checked that the pod is an end of the connection."""
    packet = f"icmp,in_port=1,tun_src=172.30.1.2,nw_src={C.address},nw_dst={A.address}"
    assert outputs(switch.trace(f"{packet},icmp_type=3,icmp_code=3", RELATED)) == [A.ofport]


def megaflows_of(switch: Ovs, packets: list[str]) -> int:
    """The number of datapath flows for these packets."""
    traces = [switch.trace(packet, NEW, NEW) for packet in packets]
    return len({trace.rpartition("Megaflow: ")[2].partition("\n")[0] for trace in traces})


@pytest.mark.parametrize(
    ("field", "protocol", "most"),
    [
        ("dl_src", "udp", 48),
        ("dl_dst", "udp", 48),
        ("nw_src", "udp", 64),
        ("arp_sha", "arp", 48),
        ("dl_dst", "arp", 96),
    ],
)
def test_invented_addresses_do_not_fill_the_datapath_with_flows(
    switch: Ovs, field: str, protocol: str, most: int
) -> None:
    random = Random(1)  # noqa: S311  no secret
    packets = []
    for _ in range(300):
        number = random.getrandbits(32)
        mac = random.getrandbits(48).to_bytes(6, "big").hex(":")
        value = str(IPv4Address(number)) if field == "nw_src" else mac
        if protocol == "arp":
            request = {
                "dl_src": A.mac, "dl_dst": "ff:ff:ff:ff:ff:ff", "arp_spa": A.address,
                "arp_sha": A.mac, "arp_tpa": names.ROUTER_ADDRESS, field: value,
            }  # fmt: skip
            fields = ",".join(f"{name}={of_field}" for name, of_field in request.items())
            packets.append(f"arp,in_port={A.ofport},arp_op=1,{fields}")
        else:
            packets.append(tracing.from_pod(A, protocol, nw_dst=B.address, **{field: value}))
    assert megaflows_of(switch, packets) <= most
