"""Policy in `ofproto/trace` of a real switch."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from flows import names
from flows.features import judgement, policy
from flows.flow import Flow
from flows.pipeline import Feature
from flows.policy import EVERY_PORT, Walks
from flows.transition import transition
from flows.view import Attachment, ClusterView
from tests.flows import tracing, worlds
from tests.flows.policies import ACCEPT, DENY, FROM_POD, PASS, SCTP, TCP, TO_POD, UDP, Policies
from tests.flows.tracing import ESTABLISHED, NEW, RELATED, leaves, path
from tests.ovs import Ovs, running

VIEW: ClusterView = worlds.view(
    {1: ["default/a", "default/b", "default/c", "default/d", "default/e"], 2: ["default/x"]}
)
A, B, C, D, E = VIEW.attachments["node1"].values()
(X,) = VIEW.attachments["node2"].values()
NODE = VIEW.nodes["node1"]
OUTSIDE = "203.0.113.10"
GATEWAYS = {"outsiders": (ip_network("10.244.0.1/32"),), "outsiders_mask": 0xFF}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """A switch with the ports of node1."""
    with running(tmp_path_factory.mktemp("ovs")) as made:
        tracing.become(made, VIEW, "node1")
        yield made


class Node1:
    """The switch of node1 with some policies."""

    def __init__(self, switch: Ovs) -> None:
        self.switch = switch

    def become(self, made: Policies, view: ClusterView = VIEW, more: Iterable[Flow] = ()) -> None:
        self.switch.ofctl("del-flows", str(self.switch.mgmt))
        self.switch.install([*tracing.flows(made.on(view), "node1"), *more])

    def passes(self, packet: str, *states: str) -> bool:
        return bool(leaves(self.trace(packet, *states)))

    def trace(self, packet: str, *states: str) -> str:
        return self.switch.trace(packet, *(states or (NEW, NEW)))


@pytest.fixture
def node(bare: Ovs) -> Node1:
    return Node1(bare)


def pod(attachment: Attachment, to: object, port: int = 80, protocol: str = "tcp") -> str:
    """A packet of a pod of this node."""
    target = to.address if isinstance(to, Attachment) else to
    return tracing.from_pod(attachment, protocol, nw_dst=target, **layer_4(protocol, port))


def remote(source: object, to: Attachment, port: int = 80, protocol: str = "tcp") -> str:
    """A packet of a pod of node2, from the tunnel."""
    address = source.address if isinstance(source, Attachment) else source
    fields = {
        "in_port": names.TUNNEL_OFPORT, "tun_src": VIEW.nodes["node2"].address,
        "dl_src": names.ROUTER_MAC, "dl_dst": names.ROUTER_MAC,
        "nw_src": address, "nw_dst": to.address, "nw_ttl": 64, **layer_4(protocol, port),
    }  # fmt: skip
    return ",".join([protocol, *(f"{name}={value}" for name, value in fields.items())])


def host(to: Attachment, source: object, port: int = 80) -> str:
    return tracing.from_host(nw_src=source, nw_dst=to.address, **layer_4("tcp", port))


def layer_4(protocol: str, port: int) -> dict[str, int]:
    """The ports of a packet, if its protocol has ports."""
    if protocol == "icmp":
        return {"icmp_type": 8, "icmp_code": 0}
    return {f"{protocol}_src": 40000, f"{protocol}_dst": port}


def test_policy_to_the_pod(node: Node1) -> None:
    made = Policies()
    web = made.walk("web", TO_POD, (made.peers(TO_POD, B, X), made.ports((TCP, 80))))
    made.isolate(A, TO_POD, web)
    node.become(made)
    assert node.passes(pod(B, A))
    assert node.passes(remote(X, A))
    assert not node.passes(pod(B, A, 81))
    assert not node.passes(pod(B, A, 80, "udp"))
    assert not node.passes(pod(B, A, protocol="icmp"))
    assert not node.passes(pod(C, A))
    assert not node.passes(remote("10.244.2.99", A))
    assert not node.passes(host(A, OUTSIDE))
    # Nothing else is isolated.
    assert node.passes(pod(A, B, 81))
    assert node.passes(pod(A, OUTSIDE))
    assert node.passes(pod(C, B))


def test_policy_from_the_pod(node: Node1) -> None:
    made = Policies()
    out = made.walk("out", FROM_POD, (made.peers(FROM_POD, B, X), made.ports((UDP, 53))))
    made.isolate(A, FROM_POD, out)
    node.become(made)
    assert node.passes(pod(A, B, 53, "udp"))
    assert node.passes(pod(A, X, 53, "udp"))
    assert not node.passes(pod(A, B, 53))
    assert not node.passes(pod(A, C, 53, "udp"))
    assert not node.passes(pod(A, OUTSIDE, 53, "udp"))
    assert node.passes(pod(B, A, 81))
    assert node.passes(remote(X, A, 81))


def test_both_directions_must_allow_a_connection(node: Node1) -> None:
    made = Policies()
    made.isolate(A, FROM_POD, made.walk("out", FROM_POD, (None, made.ports((TCP, 80)))))
    made.isolate(B, TO_POD, made.walk("in", TO_POD, (None, made.ports((TCP, 80), (TCP, 81)))))
    node.become(made)
    assert node.passes(pod(A, B, 80))
    assert not node.passes(pod(A, B, 81))
    assert node.passes(pod(C, B, 81))
    assert node.passes(pod(A, C, 80))
    assert not node.passes(pod(C, B, 82))


def test_connection_is_committed_with_the_rules_that_allowed_it(node: Node1) -> None:
    made = Policies()
    out = made.walk("out", FROM_POD, (None, made.ports((TCP, 80))))
    other = made.walk("other", TO_POD, (made.peers(TO_POD, X), EVERY_PORT))
    into = made.walk("in", TO_POD, (made.peers(TO_POD, C), EVERY_PORT), (None, EVERY_PORT))
    made.isolate(A, FROM_POD, out)
    made.isolate(B, TO_POD, other, into)
    node.become(made)
    assert label(node.trace(pod(A, B))) == made.rule(out) | made.rule(into, 1) << 32
    assert label(node.trace(pod(C, B))) == made.rule(into, 0) << 32
    assert label(node.trace(pod(A, OUTSIDE))) == made.rule(out)
    assert label(node.trace(pod(C, OUTSIDE))) == 0


def label(trace: str) -> int:
    """What the commit of a connection stores in ct_label."""
    (found,) = re.findall(r"ct\(commit,zone=100,mark=\S+,label=(0x[0-9a-f]+|0)/", trace)
    return int(found, 16)


def test_established_packets_and_icmp_errors_meet_no_flow_of_policy(node: Node1) -> None:
    made = Policies()
    made.isolate(A, FROM_POD)
    made.isolate(A, TO_POD)
    node.become(made)
    for packet, states in (
        (pod(A, B), (ESTABLISHED, "trk,est,rpl")),
        (pod(B, A), (ESTABLISHED, "trk,est,rpl")),
        (pod(A, OUTSIDE), (ESTABLISHED, "trk,est,rpl")),
        (remote(X, A), (ESTABLISHED, "trk,est,rpl", RELATED)),
    ):
        for state in states:
            trace = node.trace(packet, state)
            assert leaves(trace)
            assert {each for each in path(trace) if "Pol" in each or "Isol" in each} == {
                "PolicyToPod"
            }
            assert "tp_" not in trace.rpartition("Megaflow: ")[2].partition("\n")[0]
        assert not node.passes(packet)


def test_packet_before_the_first_reply_is_judged_again(node: Node1) -> None:
    made = Policies()
    made.isolate(A, FROM_POD)
    node.become(made)
    # The mark Known.
    known = f"{pod(A, B)},ct_mark=8"
    assert not node.passes(known)


def test_pod_reaches_itself(node: Node1) -> None:
    made = Policies()
    made.isolate(A, FROM_POD)
    made.isolate(A, TO_POD)
    made.isolate(B, TO_POD)
    node.become(made)
    assert leaves(node.trace(pod(A, A))) == ["IN_PORT"]
    assert leaves(node.trace(pod(B, B))) == ["IN_PORT"]
    assert label(node.trace(pod(A, A))) == 0
    assert not node.passes(pod(A, B))


def test_node_reaches_its_own_pods_by_its_own_addresses_only(node: Node1) -> None:
    made = Policies()
    made.isolate(A, TO_POD)
    node.become(made)
    assert node.passes(host(A, NODE.gateway))
    assert node.passes(host(A, NODE.address))
    assert not node.passes(host(A, OUTSIDE))
    # The gateway of another node comes through the tunnel.
    assert not node.passes(remote(VIEW.nodes["node2"].gateway, A))
    assert not node.passes(pod(B, A))


def test_pod_reaches_its_own_node_only_by_a_rule(node: Node1) -> None:
    made = Policies()
    made.isolate(A, FROM_POD)
    node.become(made)
    for to in (NODE.gateway, NODE.address):
        assert not node.passes(pod(A, to, 53, "udp"))
        assert not node.passes(pod(A, to, 80))
        assert node.passes(pod(B, to, 80))
    local = replace(VIEW, cluster=replace(VIEW.cluster, node_local_dns=True))
    node.become(made, local)
    for to in (NODE.gateway, NODE.address):
        assert node.passes(pod(A, to, 53, "udp"))
        assert node.passes(pod(A, to, 53, "tcp"))
        assert not node.passes(pod(A, to, 54, "udp"))
    assert not node.passes(pod(A, VIEW.nodes["node2"].address, 53, "udp"))


def test_admin_decides_before_network_policies(node: Node1) -> None:
    made = Policies()
    first = made.walk(
        "admin", TO_POD,
        (made.peers(TO_POD, B), EVERY_PORT, DENY),
        (made.peers(TO_POD, B, C), EVERY_PORT, ACCEPT),
        (made.peers(TO_POD, D), made.ports((TCP, 80)), PASS),
        (made.peers(TO_POD, D, E), EVERY_PORT, DENY),
    )  # fmt: skip
    second = made.walk("later", TO_POD, (None, made.ports((TCP, 90)), DENY))
    web = made.walk("web", TO_POD, (made.peers(TO_POD, B, D, E), made.ports((TCP, 80), (TCP, 90))))
    made.select(A, to_pod=Walks(admin=(first, second), isolated=True, policies=(web,)))
    node.become(made)
    assert not node.passes(pod(B, A))  # denied before it is accepted
    assert node.passes(pod(C, A, 99))  # accepted, without a NetworkPolicy
    assert node.passes(pod(C, A, 90))  # accepted before it is denied
    assert node.passes(pod(D, A))  # passed on to the NetworkPolicy
    assert not node.passes(pod(D, A, 90))
    assert not node.passes(pod(E, A))
    assert not node.passes(remote(X, A))  # isolated
    assert label(node.trace(pod(C, A))) == made.rule(first, 1) << 32
    assert label(node.trace(pod(D, A))) == made.rule(web) << 32


def test_passed_to_the_baseline_tier_or_the_default(node: Node1) -> None:
    made = Policies()
    admin = made.walk("admin", TO_POD, (made.peers(TO_POD, B, C), EVERY_PORT, PASS))
    base = made.walk(
        "base", TO_POD,
        (made.peers(TO_POD, B), EVERY_PORT, ACCEPT),
        (made.peers(TO_POD, D), EVERY_PORT, PASS),
        (None, made.ports((TCP, 80)), DENY),
    )  # fmt: skip
    made.select(A, to_pod=Walks(admin=(admin,), baseline=(base,)))
    # A NetworkPolicy isolates: the baseline does not count.
    made.select(E, to_pod=Walks(admin=(admin,), isolated=True, baseline=(base,)))
    made.select(D, to_pod=Walks(admin=(admin,)))
    node.become(made)
    assert node.passes(pod(B, A))
    assert not node.passes(pod(C, A))
    assert node.passes(pod(D, A))
    assert node.passes(pod(C, A, 81))
    assert not node.passes(remote(X, A))
    assert not any(node.passes(pod(each, E)) for each in (A, B, C))
    assert all(node.passes(pod(each, D)) for each in (A, B, C))
    assert label(node.trace(pod(B, A))) == made.rule(base) << 32
    assert label(node.trace(pod(D, A))) == 0


def test_longest_block_decides_and_members_always_count(node: Node1) -> None:
    made = Policies()
    peers = made.peers(
        FROM_POD, X, "10.1.2.3",
        blocks=["10.0.0.0/8", "10.1.2.0/24", "198.51.100.0/24"],
        excepts=["10.1.0.0/16", "10.244.0.0/16", "198.51.100.128/25"],
    )  # fmt: skip
    made.isolate(A, FROM_POD, made.walk("out", FROM_POD, (peers, EVERY_PORT)))
    node.become(made)
    for to, expected in (
        ("10.2.0.1", True), ("10.1.9.1", False), ("10.1.2.9", True), ("10.1.2.3", True),
        ("198.51.100.1", True), ("198.51.100.200", False), ("203.0.113.1", False),
        (str(X.address), True), (str(B.address), False),
    ):  # fmt: skip
        assert node.passes(pod(A, to)) is expected, to


def test_whole_address_space_is_a_block(node: Node1) -> None:
    made = Policies()
    peers = made.peers(TO_POD, blocks=["0.0.0.0/0"], excepts=["10.244.1.4/32"])
    made.isolate(A, TO_POD, made.walk("in", TO_POD, (peers, EVERY_PORT)))
    node.become(made)
    assert node.passes(pod(B, A))
    assert not node.passes(pod(C, A))  # 10.244.1.4
    assert node.passes(host(A, OUTSIDE))


def test_every_pod_is_a_few_masks_and_no_gateway(node: Node1) -> None:
    made = Policies()
    everybody = made.peers(TO_POD, **GATEWAYS)
    made.isolate(A, TO_POD, made.walk("in", TO_POD, (everybody, EVERY_PORT)))
    mixed = made.peers(
        TO_POD, **GATEWAYS, blocks=["10.244.2.0/24", "203.0.113.0/24"], excepts=["10.244.2.9/32"]
    )
    made.isolate(B, TO_POD, made.walk("mixed", TO_POD, (mixed, made.ports((TCP, 80))),
                                      (mixed, made.ports((TCP, 81)))))  # fmt: skip
    node.become(made)
    gateway = VIEW.nodes["node2"].gateway
    assert node.passes(pod(C, A))
    assert node.passes(remote(X, A))
    assert node.passes(remote("10.244.2.200", A))
    assert not node.passes(remote(gateway, A))
    assert not node.passes(host(A, OUTSIDE))
    # A block may have the gateway all the same, and outside addresses.
    for port, expected in ((80, True), (81, True), (82, False)):
        assert node.passes(pod(C, B, port)) is expected
        assert node.passes(remote(gateway, B, port)) is expected
        assert node.passes(remote("10.244.2.9", B, port)) is expected  # as a pod
        assert node.passes(host(B, OUTSIDE, port)) is expected
    assert not node.passes(host(B, "198.51.100.1"))


def test_port_ranges_and_protocols(node: Node1) -> None:
    made = Policies()
    ports = made.ports((TCP, 1000, 1007), (TCP, 1008, 1030), (TCP, 65535), (UDP,), (SCTP, 1, 2))
    made.isolate(A, TO_POD, made.walk("in", TO_POD, (None, ports)))
    node.become(made)
    for port, expected in (
        (999, False), (1000, True), (1008, True), (1030, True), (1031, False), (65534, False),
        (65535, True), (1, False), (0, False),
    ):  # fmt: skip
        assert node.passes(pod(B, A, port)) is expected, port
    assert node.passes(pod(B, A, 7, "udp"))
    assert node.passes(pod(B, A, 2, "sctp"))
    assert not node.passes(pod(B, A, 3, "sctp"))
    assert not node.passes(pod(B, A, protocol="icmp"))


def test_icmp_needs_a_rule_without_ports(node: Node1) -> None:
    made = Policies()
    all_of_each = made.ports((TCP,), (UDP,), (SCTP,))
    made.isolate(A, TO_POD, made.walk("ports", TO_POD, (None, all_of_each)))
    made.isolate(B, TO_POD, made.walk("all", TO_POD, (None, EVERY_PORT)))
    node.become(made)
    assert not node.passes(pod(C, A, protocol="icmp"))
    assert node.passes(pod(C, B, protocol="icmp"))


def test_fragments_match_no_port_and_are_denied_by_any(node: Node1) -> None:
    made = Policies()
    web = made.ports((UDP, 80))
    made.isolate(A, TO_POD, made.walk("web", TO_POD, (None, web)))
    made.isolate(B, TO_POD, made.walk("all", TO_POD, (None, EVERY_PORT)))
    deny = made.walk("deny", TO_POD, (made.peers(TO_POD, C), web, DENY))
    skip = made.walk("pass", TO_POD, (made.peers(TO_POD, C), web, PASS))
    made.select(D, to_pod=Walks(admin=(deny,)))
    made.select(E, to_pod=Walks(admin=(skip,)))
    node.become(made)
    assert node.passes(pod(C, A, 80, "udp"))
    for frag in ("first", "later"):
        fragment = f"nw_frag={frag}"
        assert not node.passes(f"{pod(C, A, 0, 'udp')},{fragment}")
        assert node.passes(f"{pod(C, B, 0, 'udp')},{fragment}")
        assert not node.passes(f"{pod(C, D, 0, 'udp')},{fragment}")
        assert not node.passes(f"{pod(C, E, 0, 'udp')},{fragment}")
        assert node.passes(f"{pod(B, D, 0, 'udp')},{fragment}")


def test_unknown_walk_is_closed_and_an_unknown_set_matches_nothing(node: Node1) -> None:
    made = Policies()
    walk = made.walk("in", TO_POD, (made.peers(TO_POD, B), EVERY_PORT))
    made.isolate(A, TO_POD, walk)
    made.select(D, to_pod=Walks(admin=(1234,)))  # although no NetworkPolicy isolates it
    made.peer_sets.clear()
    made.members.clear()
    node.become(made)
    assert not node.passes(pod(B, A))
    assert not node.passes(pod(B, D))
    made.walks.clear()
    node.become(made)
    assert not node.passes(pod(B, A))


def test_attachment_whose_policies_do_not_fit_is_closed(node: Node1) -> None:
    made = Policies()
    everything = made.walk("in", TO_POD, (None, EVERY_PORT))
    made.select(A, to_pod=Walks(admin=(everything,), policies=(everything,), refused=True))
    node.become(made)
    assert not node.passes(pod(B, A))


def test_pages_of_long_walks_and_of_many_walks(node: Node1) -> None:
    made = Policies()
    web = made.ports((TCP, 80))
    long = made.walk(
        "long", TO_POD,
        *((made.peers(TO_POD, f"192.0.2.{number % 250}"), web) for number in range(1_000)),
        (made.peers(TO_POD, C), web, DENY),
        (made.peers(TO_POD, B, C), web),
    )  # fmt: skip
    many = [made.walk(f"w{n}", TO_POD, (made.peers(TO_POD, D), web)) for n in range(1_200)]
    last = made.walk("last", TO_POD, (made.peers(TO_POD, B), web))
    made.select(A, to_pod=Walks(admin=(long,), isolated=True))
    made.isolate(E, TO_POD, *many, last)
    node.become(made)
    assert label(node.trace(pod(B, A))) == made.rule(long, 1_001) << 32
    assert not node.passes(pod(C, A))
    assert label(node.trace(pod(B, E))) == made.rule(last) << 32
    assert not node.passes(pod(C, E))
    assert policy.resubmits(made.walks[long]) < policy.MOST_RESUBMITS


def test_more_resubmits_than_the_switch_allows_are_closed(node: Node1) -> None:
    made = Policies()
    web = made.ports((TCP, 80))
    steps = [(made.peers(TO_POD, B), made.ports((TCP, port))) for port in range(1_000, 3_100)]
    long = made.walk("long", TO_POD, *steps, (None, web))
    made.isolate(A, TO_POD, long)
    node.become(made)
    assert policy.resubmits(made.walks[long]) > policy.MOST_RESUBMITS
    assert not node.passes(pod(B, A))


def test_between_two_states_a_switch_lets_pass_what_both_allow(node: Node1) -> None:
    states = []
    for peers, ports in (((B, C), ((TCP, 80), (UDP, 80))), ((C, D, X), ((TCP, 80), (TCP, 81)))):
        made = Policies()
        rule = (made.peers(TO_POD, *peers), made.ports(*ports))
        made.isolate(A, TO_POD, made.walk("in", TO_POD, rule))
        made.isolate(B, FROM_POD, made.walk("out", FROM_POD, (None, made.ports(ports[0]))))
        states.append(made)
    packets = [
        each(one, A, port, protocol)
        for each, one in ((pod, B), (pod, C), (pod, D), (remote, X))
        for port in (80, 81)
        for protocol in ("tcp", "udp")
    ]
    allowed = []
    for made in states:
        node.become(made)
        allowed.append([node.passes(packet) for packet in packets])
    assert [sum(each) for each in allowed] == [3, 6]
    old, new = (
        [f for f in tracing.flows(made.on(VIEW), "node1") if f.feature == Feature.POLICY]
        for made in states
    )
    between = transition(old, new)
    for control, expected in (
        ("single", allowed[0]),
        ("both", [one and two for one, two in zip(*allowed, strict=True)]),
        ("new", allowed[1]),
        ("closed", [False] * len(packets)),
    ):
        node.become(Policies(), more=[*between, *judgement.control(control)])
        assert [node.passes(packet) for packet in packets] == expected, control
