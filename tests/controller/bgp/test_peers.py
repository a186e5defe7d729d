"""BGPPeers: what makes one useless, and that it changes nothing for the others."""

from typing import Any, cast

import pytest

from controller.bgp.peers import MAX_OBJECTS, Judgement, PeerDraft, beyond_limit, judge
from controller.policies.selectors import EVERYTHING, Selector
from controller.sources.objects import from_manifest
from controller.sources.routed_objects import BGPPeerObject
from tests.flows.worlds import CLUSTER
from wire.bgp import MAX_PEERS

SPEC = {"address": "172.30.0.1", "asn": 64601, "localASN": 64512}
NODES = {"172.30.1.1": "node1"}


def bgp_peer(name: str = "one", created: str = "", **spec: Any) -> BGPPeerObject:
    metadata = {"name": name} | ({"creationTimestamp": created} if created else {})
    made = from_manifest(
        {"apiVersion": "sluice.dev/v1alpha1", "kind": "BGPPeer", "metadata": metadata,
         "spec": SPEC | spec}
    )  # fmt: skip
    assert isinstance(made, BGPPeerObject)
    return made


def selected(selector: Selector) -> frozenset[str]:
    return frozenset(("node1", "node2") if selector == EVERYTHING else ("node2",))


def judged(*objects: BGPPeerObject) -> Judgement:
    made = judge(objects, CLUSTER, lambda address: NODES.get(str(address), ""), selected)
    while True:
        try:
            next(made)
        except StopIteration as end:
            return cast("Judgement", end.value)


def names(found: Judgement) -> list[str]:
    return [each.name for each in found.peers]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"address": ""}, "spec.address: '' is not an IP address"),
        ({"address": "router.example"}, "is not an IP address"),
        ({"address": "2001:db8::1"}, "is not IPv4"),
        ({"address": "127.0.0.1"}, "127.0.0.1 is a loopback address"),
        ({"address": "224.0.0.5"}, "is a multicast address"),
        ({"address": "10.244.7.1"}, "inside the pod range 10.244.0.0/16"),
        ({"address": "10.96.0.9"}, "inside the Service range 10.96.0.0/16"),
        ({"address": "172.30.1.1"}, "172.30.1.1 is the address of Node node1"),
        ({"port": 0}, "spec.port: 0 is not in 1 to 65535"),
        ({"asn": 0}, "spec.asn: 0 is not in 1 to 4294967294"),
        ({"asn": 1 << 32}, "spec.asn: 4294967296 is not in 1 to 4294967294"),
        ({"localASN": -1}, "spec.localASN: -1 is not in 1 to 4294967294"),
        ({"asn": 23456}, "spec.asn: 23456 is reserved (RFC 6793)"),
        ({"from": "Pods"}, "spec.from: 'Pods' is neither Controllers nor Nodes"),
        ({"announce": ["Everything"]}, "spec.announce: 'Everything' is none of PodRanges,"),
        ({"communities": ["65536:1"]}, "spec.communities: '65536:1' is neither"),
        ({"communities": ["1:4294967296:1"]}, "is neither"),
        ({"communities": ["no-export; }"]}, "is neither"),
        ({"communities": ["1:1"] * 33}, "spec.communities: 32 are the most"),
        ({"holdTimeSeconds": 2}, "spec.holdTimeSeconds: 2 is not in 3 to 65535"),
        ({"gracefulRestartSeconds": 4096}, "spec.gracefulRestartSeconds: 4096 is not in 0 to"),
        ({"multihop": 256}, "spec.multihop: 256 is not in 0 to 255"),
        ({"communities": ["\u0663:1"]}, "is neither"),
        ({"passwordSecret": {"name": ""}}, "spec.passwordSecret.name: '' is no name of a Secret"),
        ({"passwordSecret": {"name": "../configmaps/x"}}, "is no name of a Secret"),
        ({"passwordSecret": {"name": "x?watch=1"}}, "is no name of a Secret"),
        ({"passwordSecret": {"name": "sluice-ca"}}, "has the key of the nodes' CA"),
        ({"passwordSecret": {"name": ".."}}, "is no name of a Secret"),
        ({"localPreference": -1}, "spec.localPreference: -1 is not in"),
        (
            {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
            "spec.nodeSelector.matchExpressions[0].operator: 'Near' is none of",
        ),
    ],
)
def test_a_bad_value_is_named_and_the_peer_is_not_used(spec: dict[str, Any], said: str) -> None:
    good = bgp_peer("good", address="172.30.0.9")
    found = judged(bgp_peer("bad", **spec), good)
    assert said in found.problems["bad"]
    assert names(found) == ["good"]
    assert found.problems.keys() == {"bad"}


def test_a_peer_is_told_pod_ranges_and_load_balancer_addresses_by_default() -> None:
    (peer,) = judged(bgp_peer()).peers
    assert peer.kinds == {"PodRanges", "LoadBalancerAddresses"}
    assert (peer.port, peer.hold_time, peer.graceful_restart, peer.multihop) == (179, 90, 120, 0)


def test_local_preference_is_for_a_peer_of_our_own_as() -> None:
    (peer,) = judged(bgp_peer(asn=64512, localPreference=200)).peers
    assert peer.local_preference == 200
    found = judged(bgp_peer(localPreference=200))
    assert "spec.localPreference has no effect" in found.problems["one"]
    assert found.peers[0].local_preference is None


def test_of_two_peers_with_one_address_the_older_one_counts() -> None:
    old = bgp_peer("old", "2026-01-01T00:00:00Z")
    new = bgp_peer("new", "2026-01-02T00:00:00Z")
    for objects in ((old, new), (new, old)):
        found = judged(*objects)
        assert names(found) == ["old"]
        assert found.problems == {"new": "spec.address: 172.30.0.1 is the address of old, too"}
    # Another port is another peer.
    assert names(judged(old, bgp_peer("new", port=1790))) == ["old", "new"]


def test_nodes_of_two_racks_may_have_peers_with_one_address() -> None:
    rack = {"matchLabels": {"rack": "two"}}
    every, some = bgp_peer("a", **{"from": "Nodes"}), {"from": "Nodes", "nodeSelector": rack}
    assert names(judged(every, bgp_peer("b", **some))) == ["a"]
    # The controllers have sessions of their own.
    assert names(judged(bgp_peer("c"), bgp_peer("b", **some))) == ["b", "c"]


def test_peers_are_bounded() -> None:
    many = [bgp_peer(f"p{n:03d}", address=f"172.29.{n // 250}.{1 + n % 250}") for n in range(260)]
    found = judged(*many)
    assert len(found.peers) == MAX_OBJECTS
    assert found.problems["p259"] == "there are 256 older BGPPeers, which is the most"


def test_peers_with_one_address_are_compared_in_steps() -> None:
    objects = [bgp_peer(f"p{n}", **{"from": "Nodes"}) for n in range(20)]
    racks = iter(range(1_000_000))
    made = judge(objects, CLUSTER, lambda _: "", lambda _: frozenset((f"node{next(racks)}",)))
    assert sum(1 for _ in made) >= 20 * 19 / 2


def limited(*objects: BGPPeerObject) -> tuple[frozenset[str], dict[str, str]]:
    def speakers(peer: PeerDraft) -> frozenset[str]:
        return selected(peer.nodes) if peer.from_nodes else frozenset(("",))

    work = beyond_limit(judged(*objects).peers, speakers)
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: tuple[frozenset[str], dict[str, str]] = end.value
            return found


def one_too_many(**spec: Any) -> list[BGPPeerObject]:
    return [
        bgp_peer(
            f"p{number:02}", f"2026-01-01T00:00:{number:02}Z", **spec | {"port": 1000 + number}
        )
        for number in range(MAX_PEERS + 1)
    ]


def test_peers_that_controllers_have_no_room_for_are_reported() -> None:
    said = f"it has no session: {MAX_PEERS} older BGPPeers are the most"
    assert limited(*one_too_many()) == (frozenset(("p16",)), {"p16": said})
    assert limited(*one_too_many()[:-1]) == (frozenset(), {})


def test_peers_that_some_nodes_have_no_room_for_are_reported_and_used_elsewhere() -> None:
    only_node2 = {"matchLabels": {"a": "b"}}
    *full, last = one_too_many(**{"from": "Nodes", "nodeSelector": only_node2})
    everywhere = bgp_peer("p16", "2026-01-01T00:00:16Z", **{"from": "Nodes", "port": 1016})
    unused, problems = limited(*full, everywhere)
    assert unused == frozenset()
    assert problems["p16"].startswith("on 1 of its nodes, as node2, it has no session")
    assert limited(*full, last)[0] == frozenset(("p16",))
