"""What a change costs depends on what it concerns, not on how much else there is."""

import gc
import sys
from collections.abc import Callable

from controller.sources.objects import Object
from flows.view import Key
from tests.controller.policies.clusters import (
    PolicyCluster,
    bridge_port,
    kinds,
    namespace,
    pod,
    policy,
)
from tests.controller.policies.histories import OneSlice, Told


def cluster_of(pods: int) -> PolicyCluster:
    made = PolicyCluster()
    made.namespace("shop", team="red")
    for number in range(pods):
        node, last = 1 + number % 3, 2 + number // 3
        made.pod(f"shop/p{number}", f"10.244.{node}.{last}", {"app": f"a{number % 20}"})
    for app in range(20):
        peers = [{"podSelector": {"matchLabels": {"app": f"a{app}"}}}]
        made.put(policy(f"shop/a{app}", podSelector=labels(app), ingress=[{"from": peers}]))
    return made


def cluster_with_large_sets(rules: int, members: int) -> PolicyCluster:
    """Pods of node2 and node3 are members of the set of each rule to the pods `x`."""
    made = PolicyCluster()
    made.namespace("shop")
    for number in range(members):
        node, last = 2 + number % 2, 2 + number // 2
        made.pod(f"shop/p{number}", f"10.244.{node}.{last}", {"app": "peer"})
    made.put(policy_with_rules(rules, "a"))
    return made


def policy_with_rules(rules: int, prefix: str) -> Object:
    ingress = []
    for number in range(rules):
        other = {"key": "app", "operator": "NotIn", "values": [f"{prefix}{number}"]}
        ingress.append({"from": [{"podSelector": {"matchExpressions": [other]}}]})
    return policy("shop/large", podSelector={"matchLabels": {"app": "x"}}, ingress=ingress)


def calls_of_slices(cluster: PolicyCluster) -> list[int]:
    """The calls of each slice until the inventory is settled."""
    found = []
    while not cluster.inventory.is_settled:
        found.append(calls_of(lambda: cluster.inventory.settle(OneSlice())))  # type: ignore[arg-type]
    return found


def labels(app: int) -> dict[str, object]:
    return {"matchLabels": {"app": f"a{app}"}}


def calls_of(change: Callable[[], object]) -> int:
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        change()
    finally:
        sys.setprofile(None)
    return calls


def test_label_change_costs_the_same_among_many_pods() -> None:
    few, many = cluster_of(60), cluster_of(600)
    costs = [
        calls_of(lambda c=cluster: c.put(pod("shop/p7", "node2", {"app": "a8"})))  # type: ignore[misc]
        for cluster in (few, many)
    ]
    assert costs[1] <= 1.2 * costs[0]


def test_new_pod_touches_one_member_of_each_set_that_contains_it() -> None:
    cluster = cluster_of(60)
    touched = cluster.pod("shop/new", "10.244.1.250", {"app": "a3"})
    assert kinds(touched) == {"attachment", "isolation", "policy-member"}
    members = {key for key in touched if key.kind == "policy-member"}
    assert len(members) == 1


def test_namespace_label_change_is_done_in_slices_and_handed_over_at_once() -> None:
    cluster = cluster_of(600)
    blue = [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]
    cluster.put(policy("shop/b", podSelector=labels(0), ingress=[{"from": blue}]))
    cluster.inventory.set_object(namespace("shop", {"team": "blue"}))
    slices: list[set[Key]] = []
    while not cluster.inventory.is_settled:
        slices.append(cluster.inventory.settle(OneSlice()))  # type: ignore[arg-type]
    assert len(slices) > 20
    assert not any(slices[:-1])
    assert len([key for key in slices[-1] if key.kind == "policy-member"]) == 600


def test_change_leaves_nothing_that_only_the_garbage_collector_frees() -> None:
    told = Told()
    told.put(namespace("red", {}))
    told.put(pod("red/a", "node1", {"app": "a1"}))
    told.plug("red/a", "10.244.1.5")
    made = [policy("red/p", ingress=[{"from": [{"podSelector": labels(app)}]}]) for app in (1, 2)]
    told.put(made[0])
    gc.collect()
    gc.disable()
    try:
        told.put(made[1])
        told.remove("NetworkPolicy", "red", "p")
        told.put(made[0])
        told.unplug("red/a")
        told.plug("red/a", "10.244.1.5")
        assert gc.collect() == 0
    finally:
        gc.enable()


MOST_CALLS = 8_000
"""Of one slice: some milliseconds."""


def test_attachment_that_needs_large_sets_comes_and_goes_in_slices() -> None:
    rules, members = 100, 300
    cluster = cluster_with_large_sets(rules, members)
    cluster.put(pod("shop/x", "node1", {"app": "x"}))
    port = bridge_port("shop/x", "10.244.1.5")
    inventory = cluster.inventory
    changes: list[Callable[[], set[Key]]] = [
        lambda: inventory.set_port("node1", port, OneSlice()),  # type: ignore[arg-type]
        lambda: inventory.remove_port("node1", port.name, OneSlice()),  # type: ignore[arg-type]
    ]
    for change in changes:
        slices = [calls_of(change), *calls_of_slices(cluster)]
        assert max(slices) < MOST_CALLS
        assert sum(slices) > rules * members


def test_walk_gets_other_large_sets_in_slices() -> None:
    cluster = cluster_with_large_sets(50, 300)
    cluster.pod("shop/x", "10.244.1.5", {"app": "x"})
    cluster.inventory.set_object(policy_with_rules(50, "b"))
    assert max(calls_of_slices(cluster)) < MOST_CALLS


def test_pod_becomes_a_member_of_many_sets_in_slices() -> None:
    cluster = cluster_with_large_sets(1_000, 2)
    cluster.put(pod("shop/new", "node2", {"app": "peer"}))
    port = bridge_port("shop/new", "10.244.2.200")
    one = OneSlice()
    slices = [calls_of(lambda: cluster.inventory.set_port("node2", port, one))]  # type: ignore[arg-type]
    slices += calls_of_slices(cluster)
    assert max(slices) < MOST_CALLS


def test_all_attachments_of_a_node_are_isolated_in_slices() -> None:
    cluster = cluster_of(60)
    for number in range(200):
        unique = {"app": f"a{number % 20}", "pod": str(number)}
        cluster.put(pod(f"shop/many{number}", "node1", unique))
    ports = [bridge_port(f"shop/many{n}", f"10.244.1.{50 + n}") for n in range(200)]
    cluster.inventory.ports.put_all("node1", ports)
    assert max(calls_of_slices(cluster)) < MOST_CALLS
