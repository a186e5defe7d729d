"""Events about connections that policy denied: which ones are due, by a clock of the test's own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from controller.denials import (
    EVENTS_BURST,
    EVENTS_OF_POD,
    EVENTS_PER_SECOND,
    FORGET,
    MOST_OF_NODE,
    MOST_OF_POD,
    PATIENCE,
    PERIOD,
    Denials,
)
from controller.events import LONGEST_NOTE, POLICY_DENIED, Telling, notices_of
from controller.kubernetes_api import MERGE
from flows.policy import Direction, rule_id
from tests.controller.policies.clusters import PolicyCluster
from tests.flows.worlds import CLUSTER
from wire.documents import MAX_DENIED_PORTS, DeniedPair, DeniedPort, NodeDenials

FROM, TO = Direction.FROM_POD, Direction.TO_POD
LOGGED = replace(CLUSTER, log_denials=True)
HTTP, DNS = DeniedPort(6, 80), DeniedPort(17, 53)
MON = "10.244.2.6"

CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: NAMESPACE}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""
RULES = """
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: rules}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{namespaces: {matchLabels: {team: none}}}]}
"""
RULE = rule_id(f"ClusterNetworkPolicy rules {TO.value} 0")


def closed(namespace: str, name: str = "closed") -> str:
    return CLOSED.replace("NAMESPACE", namespace).replace("name: closed", f"name: {name}")


class Story:
    """A cluster whose Namespace `shop` is closed, and an API server that takes every Event."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cluster = cluster = PolicyCluster(LOGGED)
        for name in ("shop", "ops"):
            cluster.namespace(name)
        cluster.pod("shop/web", "10.244.1.5")
        cluster.pod("shop/db", "10.244.2.5")
        cluster.pod("ops/mon", MON)
        cluster.apply(closed("shop"))
        self.denials = Denials(cluster.inventory, monotonic=lambda: self.now)

    def pair(
        self,
        *ports: DeniedPort,
        of: str = "shop/web",
        to: Direction = TO,
        end: str = MON,
        more_ports: bool = False,
    ) -> DeniedPair:
        port = self.cluster.ports[of][1].name
        return DeniedPair(port, to, IPv4Address(end), ports or (HTTP,), more_ports)

    def report(self, *pairs: DeniedPair, node: str = "node1") -> None:
        self.denials.take(node, NodeDenials(pairs))

    def write(self) -> list[Telling]:
        """One look."""
        written = []
        for pair in self.denials.due():
            telling = self.denials.telling(pair)
            assert telling is not None
            self.denials.told(pair, telling)
            written.append(telling)
        return written

    def sentence(self, *pairs: DeniedPair) -> str:
        self.report(*pairs)
        (telling,) = self.write()
        return telling.notice.sentence


def pods(told: Iterable[Telling]) -> list[str]:
    return [f"{each.notice.regarding.namespace}/{each.notice.regarding.name}" for each in told]


CLOSES = "NetworkPolicy shop/closed isolates the pod, and no rule accepts this connection"
WEB = "pod shop/web (10.244.1.5)"


@pytest.mark.parametrize(
    ("direction", "end", "named"),
    [
        (TO, MON, f"from pod ops/mon ({MON}) to {WEB}"),
        (FROM, MON, f"from {WEB} to pod ops/mon ({MON})"),
        (TO, "10.244.2.1", f"from node node2 (10.244.2.1) to {WEB}"),
        (FROM, "172.30.1.2", f"from {WEB} to node node2 (172.30.1.2)"),
        (
            FROM,
            "10.244.2.77",
            f"from {WEB} to 10.244.2.77 (nobody has this address of the pod range)",
        ),
        (TO, "10.244.2.0", f"from 10.244.2.0 (clients outside, through node node2) to {WEB}"),
        (TO, "192.0.2.7", f"from 192.0.2.7 (outside) to {WEB}"),
        (FROM, "10.96.0.10", f"from {WEB} to Service shop/www (10.96.0.10)"),
        (FROM, "10.96.0.11", f"from {WEB} to 10.96.0.11"),
    ],
)
def test_event_names_both_ends(direction: Direction, end: str, named: str) -> None:
    story = Story()
    story.cluster.apply("""
apiVersion: v1
kind: Service
metadata: {name: www, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
""")
    way = "to" if direction is TO else "from"
    sentence = story.sentence(story.pair(to=direction, end=end))
    assert sentence == f"policy {way} the pod denied 80/TCP {named}: {CLOSES}"


def test_event_names_ports_and_reasons() -> None:
    story = Story()
    ends = f"from pod ops/mon ({MON}) to {WEB}"
    for ports, more, expected in (
        ((HTTP, DNS, DeniedPort(1)), False, f"ICMP, 80/TCP, 53/UDP {ends}: {CLOSES}"),
        ((DeniedPort(6), DeniedPort(47)), False, f"TCP, protocol 47 {ends}: {CLOSES}"),
        ((HTTP,), True, f"80/TCP and others {ends}: {CLOSES}"),
    ):
        story.now += FORGET
        sentence = story.sentence(story.pair(*ports, more_ports=more))
        assert sentence == f"policy to the pod denied {expected}"

    story.now += FORGET
    story.cluster.apply(RULES)
    denies = "spec.ingress[0] of ClusterNetworkPolicy rules denies it"
    sentence = story.sentence(story.pair(DeniedPort(6, 80, RULE)))
    assert sentence == f"policy to the pod denied 80/TCP {ends}: {denies}"
    story.now += FORGET
    sentence = story.sentence(story.pair(DeniedPort(6, 80, RULE), DNS))
    reasons = f"80/TCP: {denies}; 53/UDP: {CLOSES}"
    assert sentence == f"policy to the pod denied several ports {ends}: {reasons}"


def test_event_about_a_pod_whose_policies_are_refused_says_so() -> None:
    story = Story()
    rules = ", ".join(f"{{ports: [{{port: {number}}}]}}" for number in range(1, 1500))
    for name in "abcde":
        policy = closed("shop", name).replace(
            "podSelector: {}", f"podSelector: {{}}, ingress: [{rules}]"
        )
        story.cluster.apply(policy)
    sentence = story.sentence(story.pair(DeniedPort(6, 80, RULE)))
    assert sentence.endswith("the policies of the pod are refused, so nothing may pass")


def test_event_about_many_policies_and_names_is_short() -> None:
    story = Story()
    for number in range(100):
        story.cluster.apply(closed("shop", f"p{number}-{'x' * 200}"))
    sentence = story.sentence(story.pair())
    assert sentence.endswith(": 101 policies isolate the pod, and no rule accepts this connection")
    assert len(sentence.encode()) <= LONGEST_NOTE


def test_event_is_normal_and_regards_the_pod_that_the_policy_selects() -> None:
    story = Story()
    story.report(story.pair())
    (told,) = story.write()
    write = told.write("here")
    assert (write.method, write.path) == ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
    body = write.body
    assert (body["type"], body["reason"]) == ("Normal", POLICY_DENIED)
    assert body["regarding"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "uid-web"
    }  # fmt: skip


def test_pair_has_one_event_a_minute_and_a_series() -> None:
    story = Story()
    told = []
    start = story.now
    while story.now < start + 3 * PERIOD:
        story.report(story.pair())
        told += [(story.now - start, each.event, each.times) for each in story.write()]
        story.now += 5
    name = told[0][1]
    assert told == [(0, name, 1), (60, name, 2), (120, name, 3)]
    story.now += PERIOD
    story.report(story.pair())
    (again,) = story.write()
    write = again.write("here")
    assert (write.method, write.content_type) == ("PATCH", MERGE)
    assert write.body["series"]["count"] == 4
    story.now += FORGET
    story.report(story.pair())
    (anew,) = story.write()
    assert (anew.times, anew.event == name) == (1, False)


def test_pair_with_another_port_has_another_event_after_a_minute() -> None:
    story = Story()
    first = story.sentence(story.pair(HTTP))
    story.report(story.pair(DNS))
    assert story.write() == []
    story.now += PERIOD
    (second,) = story.write()
    assert second.times == 1
    assert second.notice.sentence == first.replace("80/TCP", "80/TCP, 53/UDP")
    # Whichever comes next, the Event says the same.
    story.now += PERIOD
    story.report(story.pair(HTTP))
    (third,) = story.write()
    assert (third.event, third.times) == (second.event, 2)


def test_deleted_event_is_written_again() -> None:
    story = Story()
    story.sentence(story.pair())
    story.now += PERIOD
    story.report(story.pair())
    (due,) = story.denials.due()
    again = story.denials.telling(due)
    assert again is not None
    assert again.times == 2
    story.denials.lost(due)
    story.now += PERIOD
    (anew,) = story.write()
    assert anew.times == 1


def test_event_that_could_not_be_written_is_written_later() -> None:
    story = Story()
    story.report(story.pair())
    for _ in range(EVENTS_OF_POD):
        assert story.denials.due()
    assert story.denials.due() == [], "attempts count"
    story.now += PERIOD / EVENTS_OF_POD
    assert len(story.write()) == 1
    story.now += PERIOD
    story.report(story.pair())
    story.now += PATIENCE
    assert story.write() == [], "it is too old"
    assert not story.denials._waiting
    assert not story.denials._waiting_of


def test_scan_of_10_000_ports_has_one_event_a_minute() -> None:
    """Also if an agent tells of all of them."""
    story = Story()
    told = []
    for number in range(0, 10_000, MAX_DENIED_PORTS):
        ports = (DeniedPort(6, number + n) for n in range(MAX_DENIED_PORTS))
        story.report(story.pair(*ports))
        told += story.write()
        story.now += PERIOD / 2000
    (first,) = told
    story.now += PERIOD
    (second,) = story.write()
    assert "0/TCP, 1/TCP, 2/TCP, 3/TCP, 4/TCP from" in first.notice.sentence
    assert "0/TCP, 1/TCP, 2/TCP, 3/TCP, 4/TCP and others from" in second.notice.sentence


def test_pod_that_scans_addresses_has_a_few_events_a_minute() -> None:
    story = Story()
    told: list[Telling] = []
    for second in range(120):
        story.report(
            *(story.pair(to=FROM, end=f"192.0.{second}.{number}") for number in range(200))
        )
        told += story.write()
        assert len(story.denials._waiting) <= MOST_OF_POD
        story.now += 1
    assert EVENTS_OF_POD <= len(told) <= 3 * EVENTS_OF_POD
    assert set(pods(told)) == {"shop/web"}


def test_events_of_the_cluster_are_bounded_and_namespaces_take_turns() -> None:
    story = Story()
    namespaces = [f"n{number}" for number in range(40)]
    for namespace in namespaces:
        story.cluster.namespace(namespace)
        story.cluster.apply(closed(namespace))
    # One namespace has most of the pods.
    paths = [f"n0/p{number}" for number in range(100)]
    paths += [f"{namespace}/p" for namespace in namespaces[1:]]
    for number, path in enumerate(paths):
        story.cluster.pod(path, f"10.244.1.{number + 10}")
    pairs = [story.pair(of=path) for path in paths]
    seconds = 40
    story.report(*pairs)
    told = story.write()
    assert len({each.notice.regarding.namespace for each in told}) == EVENTS_BURST
    for _ in range(seconds):
        story.report(*pairs)
        told += story.write()
        story.now += 1
    assert len(told) <= EVENTS_BURST + EVENTS_PER_SECOND * seconds
    of = Counter(each.notice.regarding.namespace for each in told)
    assert of.keys() == set(namespaces)
    assert max(of[namespace] for namespace in namespaces[1:]) == 1


def test_node_that_reports_without_end_is_bounded() -> None:
    story = Story()
    for number in range(200):
        story.cluster.pod(f"shop/p{number}", f"10.244.1.{number + 10}")
    for number in range(200):
        pairs = (story.pair(of=f"shop/p{number}", end=f"192.0.2.{n}") for n in range(200))
        story.report(*pairs)
    assert len(story.denials._waiting) == MOST_OF_NODE
    # Other nodes are not concerned.
    story.report(story.pair(of="shop/db"), node="node2")
    assert len(story.denials._waiting) == MOST_OF_NODE + 1
    story.now += PATIENCE
    assert story.write() == []
    assert not story.denials._waiting_of


def test_number_of_waiting_pairs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.denials.MOST", 3)
    story = Story()
    story.report(*(story.pair(end=f"192.0.2.{number}") for number in range(9)))
    story.report(story.pair(of="shop/db"), node="node2")
    assert {pair.node for pair in story.denials._waiting} == {"node1"}
    assert len(story.denials._waiting) == 3


def test_agent_is_believed_about_pods_of_its_own_node_only() -> None:
    story = Story()
    story.report(story.pair(of="shop/db"), node="node1")
    story.report(story.pair(of="shop/web"), node="node2")
    story.report(story.pair(of="shop/web"), node="node9")
    story.report(DeniedPair("paaaaaaaaaaaaaa", TO, IPv4Address(MON), (HTTP,)))
    assert story.write() == []
    story.report(story.pair(of="shop/db"), node="node2")
    assert pods(story.write()) == ["shop/db"]


def test_agent_is_believed_only_where_a_policy_selects_the_pod() -> None:
    story = Story()
    story.report(story.pair(of="ops/mon"), node="node2")
    assert story.write() == []
    story.cluster.apply(closed("ops").replace(", Egress", ""))
    story.report(story.pair(of="ops/mon", to=FROM), node="node2")
    assert story.write() == []
    story.report(story.pair(of="ops/mon", to=TO), node="node2")
    assert pods(story.write()) == ["ops/mon"]


def test_nothing_is_believed_while_denials_are_not_logged() -> None:
    story = Story()
    silent = PolicyCluster(CLUSTER)
    silent.namespace("shop")
    silent.pod("shop/web", "10.244.1.5")
    silent.apply(closed("shop"))
    denials = Denials(silent.inventory, monotonic=lambda: story.now)
    denials.take("node1", NodeDenials((story.pair(),)))
    assert denials.due() == []


def test_pod_that_is_gone_has_no_event() -> None:
    story = Story()
    story.report(story.pair())
    (due,) = story.denials.due()
    story.cluster.unplug("shop/web")
    assert story.denials.telling(due) is None
    story.now += PERIOD
    assert story.write() == []
    assert not story.denials._waiting_of


def test_policy_that_is_gone_is_not_named() -> None:
    story = Story()
    story.report(story.pair())
    story.cluster.delete("NetworkPolicy", "shop", "closed")
    (told,) = story.write()
    assert told.notice.sentence.endswith("the policies have changed since")


def test_denials_are_no_problems() -> None:
    story = Story()
    story.report(story.pair())
    inventory = story.cluster.inventory
    assert story.write()
    assert len(inventory.problems) == 0
    assert list(notices_of(inventory, inventory.problems)) == []
