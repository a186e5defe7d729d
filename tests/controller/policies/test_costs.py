"""What a change costs depends on what it concerns, not on how much else there is."""

import gc
import sys
from collections.abc import Callable

from flows.view import Key
from tests.controller.policies.clusters import PolicyCluster, kinds, namespace, pod, policy
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
