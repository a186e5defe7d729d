"""Packets to Services, and their replies, in `ofproto/trace` of a real switch.

A trace has no conntrack: the test gives the state of each lookup. A group of method `dp_hash`
chooses by the hash of the packet; the test tries several hashes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest

from flows import names
from flows.compile import compile_scope
from flows.text import flow_text, group_text
from flows.view import CLUSTER_SCOPE, HostDnatAddress, Service
from tests.flows import worlds
from tests.flows.tracing import (
    ESTABLISHED,
    NEW,
    become,
    fixed_ports,
    from_host,
    from_pod,
    leaves,
    meters,
    path,
    translations,
)
from tests.flows.worlds import SCTP, UDP, endpoint, frontend, port, service
from tests.ovs import Ovs, running
from tests.waiting import wait_until

AT_A, AT_B, AT_C = "10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080"
ONE, TWO, OF_C = (
    endpoint("10.244.1.2", 8080, "node1"),
    endpoint("10.244.1.3", 8080, "node1"),
    endpoint("10.244.2.2", 8080, "node2"),
)
GATEWAY, OTHER_ADDRESS = "10.244.1.1", "172.30.1.1"
"""Source addresses of the stack of node1."""
CLIENT, IN_RANGE = "203.0.113.10", "198.51.100.9"
"""Clients outside the cluster; the second is within loadBalancerSourceRanges."""


def more_services() -> list[Service]:
    """Services in addition to `worlds.services`."""
    first = names.GROUPS[0] + 0x100
    return [
        service("streams", port("", [frontend("10.96.0.20", 3868)], [OF_C], SCTP, first)),
        service(
            "two",
            port("one", [frontend("10.96.0.21", 80)], [ONE], first_group=first + 1),
            port("two", [frontend("10.96.0.21", 81)], [TWO._replace(port=9090)],
                 first_group=first + 2),
        ),
        service(
            "inside",
            port("", [frontend("10.96.0.22", 80)], [ONE, OF_C], first_group=first + 3,
                 variants=("cluster", "local"), internal_local=True),
        ),
        service(
            "close",
            port("", [frontend("10.96.0.23", 80)],
                 [ONE._replace(nodes=("node1",)), OF_C._replace(nodes=("node2",))],
                 first_group=first + 5, variants=("cluster", "node")),
        ),
        service(
            "host",
            port("", [frontend("10.96.0.24", 443)], [endpoint(OTHER_ADDRESS, 6443, "node1")],
                 first_group=first + 7),
        ),
        service(
            "wicked",
            port("", [frontend("10.96.0.25", 53)], [endpoint("172.30.1.2", 6081)], UDP, first + 8),
        ),
        service("self", port("", [frontend("10.96.0.26", 80)], [ONE], first_group=first + 9)),
        service(
            "far",
            port("", [frontend("10.96.0.27", 80), frontend(None, 30027, external=True)],
                 [OF_C], first_group=first + 10),
        ),
        service(
            "nobody",
            port("", [frontend("10.96.0.28", 80), frontend(None, 30028, external=True)], [],
                 first_group=first + 11, variants=("cluster", "local"), internal_local=True,
                 external_local=True),
        ),
        # With the port number of the NodePort of `nobody`.
        service(
            "narrow",
            port("", [frontend(OTHER_ADDRESS, 30028, external=True, node="node1",
                               sources=(IPv4Network("198.51.100.0/24"),),
                               host_dnat=(HostDnatAddress("node1", names.HOST_DNAT_RANGE[0]),))],
                 [TWO], first_group=first + 16),
        ),
        service(
            "leaving",
            port("", [frontend("10.96.0.29", 80)], [ONE, OF_C._replace(ready=False)],
                 first_group=first + 13, affinity=60),
        ),
        service(
            "loyal",
            port("", [frontend(None, 30030, external=True)], [ONE, OF_C],
                 first_group=first + 14, variants=("cluster", "local"), external_local=True,
                 affinity=60),
        ),
        service(
            "many",
            port("", [frontend("10.96.0.31", 80)],
                 [endpoint("10.244.2.2", number) for number in range(1, 602)],
                 first_group=first + 32,
                 variants=("cluster", "part 0 of cluster", "part 1 of cluster")),
        ),
    ]  # fmt: skip


SERVICES = [*worlds.services(), *more_services()]
VIEW = worlds.view(
    {1: ["default/a", "default/b"], 2: ["default/c"], 3: ["default/d"]}, served=SERVICES
)
A, B = VIEW.attachments["node1"].values()
(C,) = VIEW.attachments["node2"].values()
(D,) = VIEW.attachments["node3"].values()
TRANSLATED = "trk,new,dnat"
FIRST = (NEW, TRANSLATED, TRANSLATED, NEW)
"""The conntrack states of the first packet of a connection: on entry, after DNAT, after the commit,
and in the SNAT zone."""
REFUSED = (NEW, NEW, NEW)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """node1 has endpoints and a zone."""
    with running(tmp_path_factory.mktemp("node1")) as made:
        become(made, VIEW, "node1")
        yield made


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """node3 has no endpoints and no zone."""
    with running(tmp_path_factory.mktemp("node3")) as made:
        become(made, VIEW, "node3")
        yield made


def a_pod(address: str, number: int, protocol: str = "tcp", **more: object) -> str:
    """A packet of pod a to this address and port."""
    return from_pod(A, protocol, nw_dst=address, **{f"{protocol}_dst": number}, **more)


def host(source: str, address: str, number: int, protocol: str = "tcp", **more: object) -> str:
    """A packet of the node's own stack, or from outside through it."""
    to = {"nw_dst": address, f"{protocol}_dst": number}
    return from_host(protocol, nw_src=source, **to, **more)


def node_port(source: str, number: int) -> str:
    """A packet to a NodePort of the node, after DNAT by its own stack."""
    return host(source, str(names.NODE_PORT_ADDRESS), number)


def own_address(source: str, number: int) -> str:
    """A packet to the node's first address, at a Service port, after DNAT by its own stack."""
    return host(source, str(names.HOST_DNAT_RANGE[0]), number)


def tunnel(address: str, number: int, protocol: str = "tcp") -> str:
    """A packet of pod c of node2 to this address and port."""
    return (
        f"{protocol},in_port={names.TUNNEL_OFPORT},tun_src=172.30.1.2,nw_src={C.address},"
        f"nw_dst={address},{protocol}_dst={number},nw_ttl=63"
    )


@dataclass(frozen=True)
class Way:
    """The result of a trace."""

    trace: str
    end: str
    """The endpoint after DNAT, `refused`, `dropped in TABLE`, or `on`: forwarded without DNAT."""


def way(switch: Ovs, packet: str, states: tuple[str, ...] = FIRST, dp_hash: int = 1) -> Way:
    trace = switch.trace(f"{packet},dp_hash={dp_hash}", *states)
    if "Refuse" in path(trace):
        end = "refused"
    elif not leaves(trace):
        end = f"dropped in {path(trace)[-1]}"
    else:
        chosen = [each for each in translations(trace) if each.startswith("dst=")]
        assert len(chosen) <= 1
        end = chosen[0].removeprefix("dst=") if chosen else "on"
    return Way(trace, end)


def ends(switch: Ovs, packet: str) -> set[str]:
    """All results for several hashes."""
    return {way(switch, packet, dp_hash=dp_hash).end for dp_hash in range(1, 7)}


@pytest.mark.parametrize(
    ("what", "packet", "expected"),
    [
        ("ClusterIP, TCP", a_pod("10.96.0.10", 80), {AT_A, AT_B, AT_C}),
        ("ClusterIP, TCP beside UDP", a_pod("10.96.0.12", 53), {AT_B}),
        ("ClusterIP, UDP", a_pod("10.96.0.12", 53, "udp"), {AT_B}),
        ("ClusterIP, SCTP", a_pod("10.96.0.20", 3868, "sctp"), {AT_C}),
        ("the host to a ClusterIP", host(GATEWAY, "10.96.0.10", 80), {AT_A, AT_B, AT_C}),
        ("from outside to a ClusterIP", host(CLIENT, "10.96.0.12", 53), {AT_B}),
        ("one port of two", a_pod("10.96.0.21", 80), {AT_A}),
        ("the other port", a_pod("10.96.0.21", 81), {"10.244.1.3:9090"}),
        ("another protocol", a_pod("10.96.0.10", 80, "udp"), {"refused"}),
        ("a port of no Service", a_pod("10.96.0.10", 81), {"refused"}),
        ("an address of no Service", a_pod("10.96.0.99", 80), {"refused"}),
        ("an address of no Service, from the host", host(GATEWAY, "10.96.0.99", 80), {"refused"}),
        ("ping", from_pod(A, "icmp", nw_dst="10.96.0.10", icmp_type=8), {"refused"}),
        ("no endpoints", a_pod("10.96.0.14", 80), {"refused"}),
        ("NodePort from outside", node_port(CLIENT, 30027), {AT_C}),
        ("NodePort from the node", node_port(OTHER_ADDRESS, 30027), {AT_C}),
        ("NodePort by the node's address from a pod", a_pod("172.30.1.1", 30027), {AT_C}),
        ("NodePort by another node's address", a_pod("172.30.1.2", 30027), {"on"}),
        ("the node's own address", a_pod("172.30.1.1", 22), {"on"}),
        ("NodePort at a ClusterIP", a_pod("10.96.0.27", 30027), {"refused"}),
        ("a Service's port at the node's address", a_pod("172.30.1.1", 80), {"on"}),
        ("NodePort from the tunnel, as the stack would",
         tunnel(str(names.NODE_PORT_ADDRESS), 30027), {"dropped in Egress"}),
        ("NodePort from the tunnel", tunnel("172.30.1.1", 30027), {"dropped in Egress"}),
        ("ClusterIP from the tunnel", tunnel("10.96.0.10", 80), {"dropped in Egress"}),
        ("external IP, from a pod", a_pod("192.0.2.2", 443), {AT_A, AT_C}),
        ("another port of an external IP", a_pod("192.0.2.2", 444), {"on"}),
        ("Local, from outside by NodePort", node_port(CLIENT, 30443), {AT_A}),
        ("Local, from outside by external IP", host(CLIENT, "192.0.2.2", 443), {AT_A}),
        ("Local, from outside by ClusterIP", host(CLIENT, "10.96.0.13", 443), {AT_A, AT_C}),
        ("Local, a pod by NodePort", a_pod("172.30.1.1", 30443), {AT_A, AT_C}),
        ("Local, the node by its gateway address", node_port(GATEWAY, 30443), {AT_A, AT_C}),
        ("Local, the node by its own address", node_port(OTHER_ADDRESS, 30443), {AT_A, AT_C}),
        ("source ranges: within", host(IN_RANGE, "192.0.2.1", 443), {AT_A}),
        ("source ranges: outside", host(CLIENT, "192.0.2.1", 443), {"dropped in ServiceChoice"}),
        ("source ranges: a pod", a_pod("192.0.2.1", 443), {"dropped in ServiceChoice"}),
        ("source ranges: the node",
         host(GATEWAY, "192.0.2.1", 443), {"dropped in ServiceChoice"}),
        ("internal Local", a_pod("10.96.0.22", 80), {AT_A}),
        ("internal Local, the host", host(GATEWAY, "10.96.0.22", 80), {AT_A}),
        ("zone hints", a_pod("10.96.0.15", 80), {AT_B}),
        ("node hints", a_pod("10.96.0.23", 80), {AT_A}),
        ("Local without any endpoint", a_pod("10.96.0.28", 80), {"refused"}),
        ("Local without any endpoint, from outside", node_port(CLIENT, 30028), {"refused"}),
        ("own address, from outside", own_address(CLIENT, 8443), {AT_A}),
        ("own address, from the node", own_address(OTHER_ADDRESS, 8443), {AT_A, AT_C}),
        ("own address, from a pod", a_pod(OTHER_ADDRESS, 8443), {AT_A, AT_C}),
        ("own address, another port", own_address(CLIENT, 8444), {"on"}),
        ("own address, its port as if it were a NodePort", node_port(CLIENT, 8443), {"on"}),
        ("own address, its port at another node's", a_pod("172.30.1.2", 8443), {"on"}),
        ("own address and a NodePort: within", own_address(IN_RANGE, 30028), {AT_B}),
        ("own address and a NodePort: outside",
         own_address(CLIENT, 30028), {"dropped in ServiceChoice"}),
        ("own address and a NodePort: a pod",
         a_pod(OTHER_ADDRESS, 30028), {"dropped in ServiceChoice"}),
        ("affinity: none known yet", a_pod("10.96.0.11", 80), {AT_A, AT_C}),
        ("affinity: one that is terminating is not chosen", a_pod("10.96.0.29", 80), {AT_A}),
        ("affinity and Local", node_port(CLIENT, 30030), {AT_A}),
    ],
)  # fmt: skip
def test_endpoints_chosen_on_a_node_with_endpoints(
    one: Ovs, what: str, packet: str, expected: set[str]
) -> None:
    # With affinity, the datapath does not choose by its own hash: it could not learn that choice.
    sources = range(5000, 5020) if what.startswith("affinity: none") else [0]
    found = [ends(one, f"{packet},tcp_src={source}" if source else packet) for source in sources]
    assert set.union(*found) == expected, what
    assert len(found) == 1 or all(len(each) == 1 for each in found)


@pytest.mark.parametrize(
    ("what", "packet", "expected"),
    [
        ("ClusterIP", from_pod(D, nw_dst="10.96.0.10", tcp_dst=80), {AT_A, AT_B, AT_C}),
        ("Local, from outside", node_port(CLIENT, 30443), {"dropped in EndpointChoice"}),
        ("Local, a pod", from_pod(D, nw_dst="172.30.1.3", tcp_dst=30443), {AT_A, AT_C}),
        ("Local, the node", node_port("10.244.3.1", 30443), {AT_A, AT_C}),
        # Here, the address of another node is outside the cluster.
        ("Local, another node", node_port("172.30.1.1", 30443), {"dropped in EndpointChoice"}),
        ("internal Local", from_pod(D, nw_dst="10.96.0.22", tcp_dst=80),
         {"dropped in EndpointChoice"}),
        ("zone hints, without a zone", from_pod(D, nw_dst="10.96.0.15", tcp_dst=80), {AT_B, AT_C}),
        ("node hints, of others", from_pod(D, nw_dst="10.96.0.23", tcp_dst=80), {AT_A, AT_C}),
        ("affinity and Local", node_port(CLIENT, 30030), {"dropped in EndpointChoice"}),
        ("another's own address", from_pod(D, nw_dst=OTHER_ADDRESS, tcp_dst=8443), {AT_A, AT_C}),
        ("another's own address, as if it were ours", own_address(CLIENT, 8443), {"on"}),
    ],
)  # fmt: skip
def test_endpoints_chosen_on_a_node_without_endpoints(
    three: Ovs, what: str, packet: str, expected: set[str]
) -> None:
    assert ends(three, packet) == expected, what


def test_choice_among_several_groups_reaches_many_endpoints(one: Ovs) -> None:
    found = [way(one, a_pod("10.96.0.31", 80, tcp_src=source)) for source in range(40)]
    assert len({each.end for each in found}) > 30
    assert all(each.end.startswith("10.244.2.2:") for each in found)
    (of_port,) = VIEW.services["default/many"].ports
    through = {f"group:{number}" for number in of_port.groups.values()}
    passed = {word for each in found for word in through if f"{word}\n" in each.trace}
    assert passed == through
    assert len(through) == 1 + 2


def test_tables_of_the_first_packet_of_a_service_connection(one: Ovs) -> None:
    found = way(one, a_pod("10.96.0.12", 53))
    assert path(found.trace) == [
        "Classifier", "SpoofGuard", "RouterGuard", "UnSnat", "Conntrack", "ConntrackState",
        "NewConnection", "NodeAddress", "ServiceAddress", "ServiceChoice", "Topology",
        "EndpointChoice", "DestinationGuard",
        "PolicyFromPod", "IsolationFromPod", "PolicyFromPodVerdict", "Forwarding",
        "PolicyToPod", "IsolationToPod", "PolicyToPodVerdict", "Hairpin",
        "Commit", "Snat", "Output",
    ]  # fmt: skip
    assert leaves(found.trace) == [B.ofport]
    assert meters(found.trace) == [A.ofport]
    assert "ct(commit,table=74,zone=100,nat(dst=10.244.1.3:8080),exec(" in found.trace
    # FromService and Endpoint; then Known, but not NeedsSnat.
    assert "ct_mark=0x1030001," in found.trace
    assert "ct(commit,zone=100,exec(set_field:0x8/0x8->ct_mark," in found.trace
    # By Conntrack and EndpointChoice alone: one endpoint is not chosen by a hash of the packet.
    assert found.trace.count("\nrecirc(0x") == 2
    assert translations(found.trace) == ["dst=10.244.1.3:8080"]


def test_repeated_first_packet_keeps_its_endpoint(one: Ovs) -> None:
    """Conntrack translates it again; no meter counts it, and no new endpoint is chosen."""
    repeated = "trk,new,dnat"
    found = way(one, a_pod("10.96.0.10", 80), (repeated, TRANSLATED))
    # A trace does not apply the translation of conntrack, so the destination is unchanged.
    assert path(found.trace)[5:10] == [
        "ConntrackState", "DestinationGuard",
        "PolicyFromPod", "IsolationFromPod", "PolicyFromPodVerdict",
    ]  # fmt: skip
    assert translations(found.trace) == []
    found = way(one, a_pod(str(B.address), 8080), (repeated, TRANSLATED))
    assert leaves(found.trace) == [B.ofport]
    assert not {"NewConnection", "ServiceChoice"} & set(path(found.trace))


def test_established_connection_skips_service_tables(one: Ovs) -> None:
    found = way(one, a_pod("10.96.0.10", 80), (ESTABLISHED,))
    assert not {"ServiceChoice", "EndpointChoice", "NewConnection"} & set(path(found.trace))


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize(("taken", "state"), [(False, NEW), (True, ESTABLISHED), (True, "trk,inv")])
def test_direct_connection_to_an_endpoint_checks_its_reply_tuple(
    one: Ovs, protocol: str, taken: bool, state: str
) -> None:
    """The source port changes only if another connection has the same reply tuple."""
    to = {"tcp": B.address, "udp": C.address, "sctp": C.address}[protocol]
    trace = one.trace(a_pod(str(to), 8080, protocol), NEW, state, NEW)
    assert path(trace)[10:14] == ["Direct", "ReplyTuple", "DestinationGuard", "PolicyFromPod"]
    turned, back = re.findall(r"pop:NXM_OF_IP_SRC\[\]\n\s+-> NXM_OF_IP_SRC\[\] is now (\S+)", trace)
    assert (turned, back) == (str(to), str(A.address))
    assert len(re.findall(r"^\s+ct_clear$", trace, re.MULTILINE)) == 2
    assert leaves(trace) == [B.ofport if to == B.address else names.TUNNEL_OFPORT]
    assert translations(trace) == ([f"src={A.address}:1024-65535"] if taken else [])


def test_direct_connection_elsewhere_is_not_checked(one: Ovs) -> None:
    for at, to in ((8079, B.address), (8080, "203.0.113.10")):
        trace = one.trace(a_pod(str(to), at), NEW, NEW)
        assert path(trace)[10:12] == ["Direct", "DestinationGuard"]
    from_outside = one.trace(host(CLIENT, str(B.address), 8080), NEW, NEW)
    assert "ReplyTuple" not in path(from_outside)


def test_connection_without_endpoint_goes_to_the_stack_of_the_node_untranslated(one: Ovs) -> None:
    found = way(one, a_pod("10.96.0.14", 80), REFUSED)
    assert path(found.trace)[-6:] == [
        "EndpointChoice", "Refuse", "Hairpin", "Commit", "Snat", "Output"
    ]  # fmt: skip
    assert leaves(found.trace) == [names.GATEWAY_OFPORT]
    refused = [names.refusal_meter(A.ofport), names.POD_REFUSAL_METER]
    assert meters(found.trace) == [names.connection_meter(A.ofport), *refused]
    assert f"set_field:{names.GATEWAY_MAC}->eth_dst" in found.trace
    assert translations(found.trace) == []
    # TCP is committed, so that the RST counts as a reply, but without Known: a repeat is metered.
    assert "ct(commit,zone=100)" in found.trace
    found = way(one, a_pod("10.96.0.14", 80, "udp"), REFUSED)
    assert leaves(found.trace) == [names.GATEWAY_OFPORT]
    assert "ct(commit" not in found.trace


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_refused_packets_of_the_node_return_with_another_source(one: Ovs, protocol: str) -> None:
    """A stack drops packets from outside with its own source address."""
    found = way(one, host(GATEWAY, "10.96.0.99", 80, protocol), REFUSED)
    assert leaves(found.trace) == ["IN_PORT"]
    assert meters(found.trace) == [names.REFUSAL_METER]
    assert translations(found.trace) == [f"src={names.HAIRPIN_ADDRESS}"]
    assert f"ct(commit,table=140,zone=101,nat(src={names.HAIRPIN_ADDRESS}))" in found.trace


def test_icmp_refusal_of_an_uncommitted_connection_reaches_its_pod(one: Ovs) -> None:
    """UDP to be refused is not committed, so the ICMP error is invalid for conntrack."""
    of_host = "icmp,in_port=2,dl_src={},dl_dst={},nw_src={},nw_dst={},icmp_type=3,icmp_code=3"
    packet = of_host.format(names.GATEWAY_MAC, names.ROUTER_MAC, GATEWAY, A.address)
    assert leaves(one.trace(packet, "trk,inv")) == [A.ofport]
    packet = of_host.format(names.GATEWAY_MAC, names.ROUTER_MAC, CLIENT, A.address)
    assert leaves(one.trace(packet, "trk,inv")) == []


def test_hairpin_connection_of_a_pod_to_itself(one: Ovs) -> None:
    found = way(one, a_pod("10.96.0.26", 80))
    assert translations(found.trace) == [f"dst={AT_A}", f"src={names.HAIRPIN_ADDRESS}"]
    assert leaves(found.trace) == ["IN_PORT"]
    assert f"set_field:{A.mac}->eth_dst" in found.trace
    # FromService, NeedsSnat, Known and Endpoint.
    assert "ct_mark=0x102000d," in found.trace
    # Later packets in the same direction are translated too.
    marked = f"{a_pod(str(A.address), 8080)},ct_mark=0xd"
    found = way(one, marked, (ESTABLISHED, ESTABLISHED))
    assert leaves(found.trace) == ["IN_PORT"]


@pytest.mark.parametrize(
    ("what", "packet", "undone"),
    [
        ("a pod answers itself", from_pod(A, nw_dst=names.HAIRPIN_ADDRESS), True),
        ("the node answers itself", from_host(nw_src="172.30.1.1", nw_dst=names.HAIRPIN_ADDRESS),
         True),
        ("another node's pod answers", tunnel("10.244.1.0", 1024), True),
        ("a pod here to that address", from_pod(A, nw_dst="10.244.1.0"), False),
        ("somebody outside to that address", from_host(nw_src=CLIENT, nw_dst="10.244.1.0"), False),
        ("another node's pod to a pod", tunnel(str(A.address), 1024), False),
    ],
)  # fmt: skip
def test_snat_of_replies_is_undone(one: Ovs, what: str, packet: str, undone: bool) -> None:
    trace = one.trace(packet, *([NEW] if undone else []), "trk,est,rpl")
    assert ("ct(table=30,zone=101,nat)" in trace) is undone, what
    after = path(trace)[path(trace).index("UnSnat") + 1 :]
    assert after[:3] == ["Conntrack", "ConntrackState", "DestinationGuard"]


@pytest.mark.parametrize(
    ("what", "address", "mark", "state", "left"),
    [
        ("to who asked from outside", CLIENT, 0xD, "trk,est,rpl", [names.GATEWAY_OFPORT]),
        ("to the node that asked by its other address", OTHER_ADDRESS, 0xD, "trk,est,rpl",
         [names.GATEWAY_OFPORT]),
        ("of a connection that needs none of it", CLIENT, 0x9, "trk,est,rpl", []),
        ("in the direction in which it was opened", CLIENT, 0xD, "trk,est", []),
        ("of no connection", CLIENT, 0, "trk,new", []),
        ("to a pod here, of which it is not", str(A.address), 0x9, "trk,est,rpl", [A.ofport]),
    ],
)  # fmt: skip
def test_packets_from_a_tunnel_leave_only_as_replies_to_external_clients(
    one: Ovs, what: str, address: str, mark: int, state: str, left: list[int]
) -> None:
    """The SNAT of a reply is already undone here."""
    trace = one.trace(f"{tunnel(address, 1024)},ct_mark={mark:#x}", state)
    assert leaves(trace) == left, what


@pytest.mark.parametrize(
    ("what", "packet", "translated", "left"),
    [
        ("from outside to another node", node_port(CLIENT, 30027),
         [f"dst={AT_C}", "src=10.244.1.0"], [names.TUNNEL_OFPORT]),
        ("the node by its other address", node_port(OTHER_ADDRESS, 30027),
         [f"dst={AT_C}", "src=10.244.1.0"], [names.TUNNEL_OFPORT]),
        ("the node by its gateway address", node_port(GATEWAY, 30027),
         [f"dst={AT_C}"], [names.TUNNEL_OFPORT]),
        ("from outside to a pod here", node_port(CLIENT, 30443), [f"dst={AT_A}"], [A.ofport]),
        ("a pod to another node", a_pod("10.96.0.27", 80), [f"dst={AT_C}"], [names.TUNNEL_OFPORT]),
        ("the node to a Service that is itself", host(GATEWAY, "10.96.0.24", 443),
         ["dst=172.30.1.1:6443", f"src={names.HAIRPIN_ADDRESS}"], ["IN_PORT"]),
        ("from outside to a Service that is the node", host(CLIENT, "10.96.0.24", 443),
         ["dst=172.30.1.1:6443", f"src={names.HAIRPIN_ADDRESS}"], ["IN_PORT"]),
        ("a pod to a Service that is the node", a_pod("10.96.0.24", 443),
         ["dst=172.30.1.1:6443"], [names.GATEWAY_OFPORT]),
        # Without a Service, no source is translated.
        ("from outside to a pod elsewhere", host(CLIENT, "10.244.2.2", 8080),
         [], [names.TUNNEL_OFPORT]),
    ],
)  # fmt: skip
def test_snat_of_service_connections(
    one: Ovs, what: str, packet: str, translated: list[str], left: list[object]
) -> None:
    states = FIRST if translated else (NEW, NEW)
    found = way(one, packet, states)
    assert translations(found.trace) == translated, what
    assert leaves(found.trace) == left, what


def test_service_with_a_tunnel_port_as_endpoint_is_dropped(one: Ovs) -> None:
    found = way(one, a_pod("10.96.0.25", 53, "udp"))
    assert translations(found.trace) == ["dst=172.30.1.2:6081"]
    assert found.end == "dropped in DestinationGuard"


CHOICE = "table=Affinity,priority=100,cookie=0xa00000000000001,ip,reg2={:#x},nw_src={},"
LOADS = "actions=load:{:#x}->NXM_NX_REG3[],load:{}->NXM_NX_REG4[0..15]"


def remember(switch: Ovs, group: int, client: object, chosen: int, number: int = 8080) -> None:
    """Add the flow that a switch would learn from a client's connection."""
    flow = CHOICE.format(group, client) + LOADS.format(chosen, number)
    switch.ofctl("--names", "add-flow", str(switch.mgmt), flow)


def forget(switch: Ovs) -> None:
    switch.ofctl("del-flows", str(switch.mgmt), "cookie=0xa00000000000000/0xff00000000000000")


def sticky_group(name: str, variant: str = "cluster") -> int:
    (of_port,) = VIEW.services[f"default/{name}"].ports
    return of_port.groups[variant]


@pytest.mark.parametrize("chosen", [ONE, OF_C], ids=str)
def test_client_keeps_its_endpoint(one: Ovs, chosen) -> None:  # type: ignore[no-untyped-def]
    try:
        remember(one, sticky_group("sticky"), A.address, int(chosen.address))
        assert ends(one, a_pod("10.96.0.11", 80)) == {f"{chosen.address}:8080"}
        found = way(one, a_pod("10.96.0.11", 80))
        assert path(found.trace)[9:14] == [
            "ServiceChoice", "Affinity", "AffinityCheck", "ServiceNat", "DestinationGuard",
        ]  # fmt: skip
        # It is learned again, so the timeout restarts.
        assert "learn(table=62,idle_timeout=10800,priority=100," in found.trace
    finally:
        forget(one)


@pytest.mark.parametrize(
    ("what", "name", "chosen", "number"),
    [
        ("gone", "sticky", int(TWO.address), 8080),
        ("another port", "sticky", int(OF_C.address), 8081),
        ("terminating", "leaving", int(OF_C.address), 8080),
    ],
)
def test_learned_endpoint_that_is_gone_is_not_used(
    one: Ovs, what: str, name: str, chosen: int, number: int
) -> None:
    address = "10.96.0.11" if name == "sticky" else "10.96.0.29"
    before = ends(one, a_pod(address, 80))
    try:
        remember(one, sticky_group(name), A.address, chosen, number)
        assert ends(one, a_pod(address, 80)) == before, what
        assert "EndpointChoice" in path(way(one, a_pod(address, 80)).trace)
    finally:
        forget(one)


def test_affinity_with_policy_local_uses_endpoints_of_the_node(one: Ovs) -> None:
    """An endpoint learned for the group "cluster" does not count for the group "local"."""
    try:
        remember(one, sticky_group("loyal"), CLIENT, int(OF_C.address))
        assert ends(one, node_port(CLIENT, 30030)) == {AT_A}
        remember(one, sticky_group("loyal", "local"), CLIENT, int(OF_C.address))
        assert ends(one, node_port(CLIENT, 30030)) == {AT_A}
        remember(one, sticky_group("loyal"), GATEWAY, int(OF_C.address))
        assert ends(one, node_port(GATEWAY, 30030)) == {AT_C}
    finally:
        forget(one)


def test_switch_learns_from_a_real_packet(one: Ovs) -> None:
    (socket,) = one.directory.glob("ovs-vswitchd.*.ctl")
    packet = (
        f"in_port({A.ofport}),eth(src={A.mac},dst={names.ROUTER_MAC}),eth_type(0x0800),"
        f"ipv4(src={A.address},dst=10.96.0.11,proto=6,tos=0,ttl=64,frag=no),"
        "tcp(src=4000,dst=80),tcp_flags(syn)"
    )
    try:
        one.run("ovs-appctl", "-t", str(socket), "netdev-dummy/receive", A.port, packet)
        wait_until(lambda: learned(one))
        (line,) = learned(one)
        assert line.startswith("cookie=0xa00001000002a30, table=Affinity, idle_timeout=10800, ")
        assert f"reg2={sticky_group('sticky'):#x},nw_src={A.address} " in line
        kept = re.search(r"set_field:(0x[0-9a-f]+)->reg3,set_field:0x1f90->reg4", line)
        assert kept
        assert int(kept[1], 16) in {int(ONE.address), int(OF_C.address)}
    finally:
        forget(one)


def learned(switch: Ovs) -> list[str]:
    return [line for line in switch.dump() if line.startswith("cookie=0xa0000")]


@pytest.mark.parametrize("node", ["node1", "node3"])
def test_dump_of_the_switch_equals_flow_text(request: pytest.FixtureRequest, node: str) -> None:
    """The dump equals `flow_text` and `group_text`, including cookies."""
    switch: Ovs = request.getfixturevalue("one" if node == "node1" else "three")
    programs = [compile_scope(VIEW, scope) for scope in (CLUSTER_SCOPE, node)]
    flows = [flow for program in programs for flow in program.flows()]
    # With --names, ovs-ofctl prints ports by name; `flow_text` has numbers.
    ports = fixed_ports() | {p.port: p.ofport for p in VIEW.attachments[node].values()}
    found = set()
    for line in switch.dump():
        for name, ofport in ports.items():
            line = re.sub(rf'(in_port=|output:)"?{name}"?', rf"\g<1>{ofport}", line)  # noqa: PLW2901
        found.add(line.replace(" reset_counts", ""))
    assert found == {f"cookie={flow.cookie:#x}, {flow_text(flow)}" for flow in flows}
    shown = switch.ofctl("--names", "dump-groups", str(switch.mgmt)).splitlines()[1:]
    groups = [group for program in programs for group in program.groups.values()]
    assert len(groups) > 10
    assert {line.strip() for line in shown} == set(map(group_text, groups))
