"""Egress addresses in `ofproto/trace` of a real switch: the pod's node, and the gateway."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from flows import names
from flows.pipeline import EGRESS_ADDRESS, KNOWN
from flows.view import ClusterView, egress_number
from tests.flows import tracing, worlds
from tests.flows.tracing import ESTABLISHED, NEW, RELATED, become, outputs, path, translations
from tests.ovs import Ovs, running

PODS = {
    1: ["default/a", "default/b", "default/e", "default/f"],
    2: ["default/c", "default/d"],
    3: [],
}
OUTSIDE = "203.0.113.10"
VIEW: ClusterView = worlds.with_egress(
    worlds.view(PODS),
    {"192.0.2.9": "node2", "192.0.2.10": "node1", "192.0.2.11": ""},
    {
        "default/a": "192.0.2.9",
        "default/b": "192.0.2.11",
        "default/c": "192.0.2.10",
        "default/e": "192.0.2.10",
    },
)
A, B, E, F = VIEW.attachments["node1"].values()
C, D = VIEW.attachments["node2"].values()
REPLY, ICMP_ERROR = f"{ESTABLISHED},rpl", f"{RELATED},rpl"
NODE2 = "172.30.1.2"


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """node1: the node of `A`, `B` and `E`, and the gateway of 192.0.2.10."""
    with running(tmp_path_factory.mktemp("ovs")) as made:
        become(made, VIEW, "node1")
        yield made


def opened_with(address: str) -> str:
    """The fields of a packet of a connection that was opened with this egress address."""
    number = egress_number(IPv4Address(address)) if address else 0
    return f",ct_mark={KNOWN:#x},ct_label={EGRESS_ADDRESS.value(number)[0]:#x}"


def tunnel(source: object, destination: object, peer: str = NODE2) -> str:
    return f"tcp,in_port=1,tun_src={peer},nw_src={source},nw_dst={destination},nw_ttl=63"


def test_new_connection_of_a_selected_pod_goes_to_its_gateway(switch: Ovs) -> None:
    trace = switch.trace(tracing.from_pod(A, nw_dst=OUTSIDE), NEW, NEW)
    assert outputs(trace) == [names.TUNNEL_OFPORT]
    assert f"set_field:{NODE2}->tun_dst" in trace
    assert translations(trace) == []
    label = trace.rpartition("Datapath actions: ")[2]
    assert "label=0x2090000000000000000/" in label


def test_pod_without_an_egress_address_leaves_through_its_own_node(switch: Ovs) -> None:
    for fields, states in (("", (NEW, NEW)), (opened_with(""), [ESTABLISHED])):
        trace = switch.trace(tracing.from_pod(F, nw_dst=OUTSIDE) + fields, *states)
        assert outputs(trace) == [names.GATEWAY_OFPORT]
        assert translations(trace) == []


def test_without_a_gateway_packets_are_dropped(switch: Ovs) -> None:
    trace = switch.trace(tracing.from_pod(B, nw_dst=OUTSIDE), NEW, NEW)
    assert outputs(trace) == []
    assert path(trace)[-1] == "EgressRoute"


def test_connection_keeps_the_address_that_it_was_opened_with(switch: Ovs) -> None:
    for pod in (A, B):
        packet = tracing.from_pod(pod, nw_dst=OUTSIDE)
        for state in (ESTABLISHED, NEW):
            trace = switch.trace(packet + opened_with("192.0.2.9"), state)
            assert outputs(trace) == [names.TUNNEL_OFPORT]
            trace = switch.trace(packet + opened_with(""), state)
            assert outputs(trace) == [names.GATEWAY_OFPORT]


def test_connection_of_an_egress_address_that_is_gone_is_dropped(switch: Ovs) -> None:
    for pod in (A, F):
        packet = tracing.from_pod(pod, nw_dst=OUTSIDE) + opened_with("192.0.2.77")
        for state in (ESTABLISHED, NEW):
            trace = switch.trace(packet, state)
            assert path(trace)[-1] == "Egress"
            assert outputs(trace) == []


@pytest.mark.parametrize("destination", ["172.30.1.3", "172.30.1.2", "169.254.169.254"])
def test_nodes_and_link_local_addresses_are_not_the_outside(switch: Ovs, destination: str) -> None:
    trace = switch.trace(tracing.from_pod(A, nw_dst=destination), NEW, NEW)
    assert outputs(trace) == [names.GATEWAY_OFPORT]
    assert "label=0x2090" not in trace


def test_gateway_sends_packets_of_selected_pods_from_the_egress_address(switch: Ovs) -> None:
    for packet in (tunnel(C.address, OUTSIDE), tracing.from_pod(E, nw_dst=OUTSIDE)):
        for fields, states in (("", (NEW, NEW, NEW)), (opened_with("192.0.2.10"), [ESTABLISHED])):
            trace = switch.trace(packet + fields, *states)
            assert outputs(trace) == [names.GATEWAY_OFPORT]
            assert translations(trace)[-1] == "src=192.0.2.10"
            assert f"set_field:{names.GATEWAY_MAC}->eth_dst" in trace


@pytest.mark.parametrize(
    ("what", "packet", "state", "last"),
    [
        ("a pod that is not selected", tunnel(D.address, OUTSIDE), NEW, "Egress"),
        ("to another peer's pods", tunnel(C.address, "10.244.3.5"), NEW, "EgressRoute"),
        ("to the Service range", tunnel(C.address, "10.96.0.77"), NEW, "EgressRoute"),
        ("to the egress address itself", tunnel(C.address, "192.0.2.10"), NEW, "Forwarding"),
        (
            "with the address of another gateway",
            tunnel(C.address, OUTSIDE) + opened_with("192.0.2.9"),
            ESTABLISHED,
            "EgressRoute",
        ),
        (
            "from outside, to open a connection",
            tunnel(OUTSIDE, A.address),
            NEW,
            "EgressReply",
        ),
        (
            "from outside, about a connection without an egress address",
            tunnel(OUTSIDE, A.address) + opened_with(""),
            REPLY,
            "EgressReply",
        ),
        (
            "from outside, of an egress address of another gateway",
            tunnel(OUTSIDE, A.address) + opened_with("192.0.2.11"),
            REPLY,
            "EgressReply",
        ),
        (
            "from outside, from a node that is no gateway",
            tunnel(OUTSIDE, A.address, "172.30.1.3") + opened_with("192.0.2.9"),
            REPLY,
            "TunnelGuard",
        ),
        (
            "from outside, from this node's own address",
            tunnel(OUTSIDE, A.address, "172.30.1.1") + opened_with("192.0.2.9"),
            REPLY,
            "TunnelGuard",
        ),
        (
            "another peer's pod, from a gateway",
            tunnel("10.244.3.5", A.address) + opened_with("192.0.2.9"),
            REPLY,
            "TunnelGuard",
        ),
        (
            "a reply for a pod of another node",
            tunnel(OUTSIDE, "10.244.3.5") + opened_with("192.0.2.9"),
            REPLY,
            "Forwarding",
        ),
    ],
)
def test_what_a_tunnel_must_not_bring(
    switch: Ovs, what: str, packet: str, state: str, last: str
) -> None:
    trace = switch.trace(packet, state, state)
    assert path(trace)[-1] == last, what
    assert outputs(trace) == [], what


@pytest.mark.parametrize("state", [REPLY, ICMP_ERROR])
def test_reply_from_the_gateway_reaches_the_pod(switch: Ovs, state: str) -> None:
    trace = switch.trace(tunnel(OUTSIDE, A.address) + opened_with("192.0.2.9"), state)
    assert outputs(trace) == [A.ofport]


def test_reply_at_the_gateway_goes_to_the_pod_through_the_tunnel(switch: Ovs) -> None:
    # `ofproto/trace` translates nothing, so the second part begins with the pod's address.
    reply = tracing.from_host(nw_src=OUTSIDE, nw_dst="192.0.2.10")
    assert "ct(table=30,zone=101,nat)" in switch.trace(reply, REPLY, REPLY)
    back = tracing.from_host(nw_src=OUTSIDE, nw_dst=C.address) + opened_with("192.0.2.10")
    trace = switch.trace(back, REPLY)
    assert outputs(trace) == [names.TUNNEL_OFPORT]
    assert f"set_field:{NODE2}->tun_dst" in trace


def test_connection_from_outside_to_an_egress_address_is_dropped(switch: Ovs) -> None:
    for address in ("192.0.2.9", "192.0.2.10", "192.0.2.11"):
        trace = switch.trace(tracing.from_host(nw_src=OUTSIDE, nw_dst=address), NEW, NEW)
        assert path(trace)[-1] == "Forwarding"
        assert outputs(trace) == []
