"""The flows themselves, as people read them. `pytest --update-goldens` rewrites them."""

from pathlib import Path

import pytest

from flows.compile import COMPILER, compile_scope, fragment
from flows.features import (
    arp,
    classify,
    conntrack,
    direct,
    egress,
    forwarding,
    misses,
    output,
    policy,
    services,
    state,
)
from flows.flow import Ct, Flow
from flows.labels import Labels
from flows.pipeline import LAYOUT, Feature
from flows.text import golden, group_text
from flows.view import CLUSTER_SCOPE, ClusterView, Service
from tests.flows import policies, worlds

GOLDENS = Path(__file__).parent / "goldens"

FEATURES = {
    "miss": Feature.MISS,
    "classify": Feature.CLASSIFY,
    "arp": Feature.ARP,
    "conntrack": Feature.CONNTRACK,
    "forwarding": Feature.FORWARDING,
    "output": Feature.OUTPUT,
    "services": Feature.SERVICES,
    "direct": Feature.DIRECT,
    "egress": Feature.EGRESS,
    "policy": Feature.POLICY,
    "state": Feature.STATE,
}


PODS = {1: ["default/a", "default/b"], 2: ["default/c"], 3: []}


def a_view() -> ClusterView:
    view = worlds.view(PODS, served=worlds.services())
    a, b = view.attachments["node1"].values()
    (c,) = view.attachments["node2"].values()
    view = policies.some(a, b, c, view.cluster.pod_range).on(view)
    gateways = {"192.0.2.9": "node1", "192.0.2.10": "node3", "192.0.2.11": ""}
    return worlds.with_egress(view, gateways, {"default/b": "192.0.2.10", "default/c": "192.0.2.9"})


def whole_node(name: str) -> list[Flow]:
    view = a_view()
    shared, own = compile_scope(view, CLUSTER_SCOPE), compile_scope(view, name)
    return [*shared.flows(), shared.seal, *own.flows(), own.seal]


def check(name: str, text: str, update: bool) -> None:
    path = GOLDENS / f"{name}.txt"
    if update:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("feature", FEATURES)
def test_flows_of_a_feature_equal_its_golden(feature: str, update_goldens: bool) -> None:
    flows = [flow for flow in whole_node("node1") if flow.feature == FEATURES[feature]]
    assert flows
    check(feature, golden(flows, Labels.of(a_view(), "node1")), update_goldens)


def test_flows_of_a_cluster_equal_their_golden(update_goldens: bool) -> None:
    view = worlds.view(PODS)
    titles = {CLUSTER_SCOPE: "every node"} | {name: name for name in view.nodes}
    texts = []
    for scope, title in titles.items():
        program = compile_scope(view, scope)
        texts.append(
            f"## {title}\n" + golden([*program.flows(), program.seal], Labels.of(view, scope))
        )
    check("cluster", "\n".join(texts), update_goldens)


@pytest.mark.parametrize("made", worlds.services(), ids=lambda made: made.name)
def test_flows_and_groups_of_a_service_equal_their_golden(
    made: Service, update_goldens: bool
) -> None:
    """All flows and groups of a Service: those on every node, then those of single nodes."""
    view = worlds.view(PODS, served=[made])
    texts = []
    for scope in (CLUSTER_SCOPE, *view.nodes):
        keys = [key for key in COMPILER.keys(view, scope) if key.kind.startswith("service")]
        found = [each for key in sorted(keys) if (each := fragment(view, key)) is not None]
        flows = [flow for each in found for flow in each.flows]
        labels = Labels.of(view, scope)
        groups = "".join(f"{group_text(g, labels)}\n" for each in found for g in each.groups)
        if flows:
            texts.append(f"## {scope or 'every node'}\n" + golden(flows, labels) + groups)
    check(f"service-{made.name}", "\n".join(texts), update_goldens)


def test_every_table_has_a_counted_miss() -> None:
    misses = {flow.table for flow in whole_node("node1") if flow.priority == 0 and not flow.match}
    assert misses == set(LAYOUT.by_number)


def test_shared_and_own_flows_have_different_matches() -> None:
    for name in ("node1", "node2", "node3"):
        flows = whole_node(name)
        assert len({flow.key for flow in flows}) == len(flows)


def test_every_flow_belongs_to_a_known_feature() -> None:
    assert {flow.feature for flow in whole_node("node1")} == set(FEATURES.values())


def test_equal_flows_have_equal_cookies() -> None:
    view = worlds.view({1: ["default/a"]})
    key = min(COMPILER.keys(view, "node1"))
    first, again = fragment(view, key), fragment(view, key)
    assert first is not None
    assert again is not None
    assert [f.cookie for f in first.flows] == [f.cookie for f in again.flows]
    assert all(f.cookie >> 56 == f.feature for f in first.flows)


def test_attachment_classifier_flow_names_one_sandbox() -> None:
    one, two = (
        classify.attachment_classifier_flow(16, 1),
        classify.attachment_classifier_flow(16, 2),
    )
    assert one.key == two.key
    assert one.cookie != two.cookie


def test_every_feature_has_a_golden() -> None:
    modules = (
        classify, arp, conntrack, services, direct, egress, forwarding, misses, output, policy,
        state,
    )  # fmt: skip
    found = {module.__name__.rpartition(".")[2] for module in modules}
    assert found - {"misses"} | {"miss"} == set(FEATURES)


def test_every_commit_with_nat_translates_something() -> None:
    """One without crashes Open vSwitch 3.1 after some thousand connections: docs/decisions.md."""
    view = worlds.view(PODS, served=worlds.services())
    programs = [compile_scope(view, scope) for scope in (CLUSTER_SCOPE, "node1")]
    of_flows = [flow.actions for program in programs for flow in program.flows()]
    of_groups = [b.actions for p in programs for g in p.groups.values() for b in g.buckets]
    commits = [
        action
        for actions in (*of_flows, *of_groups)
        for action in actions
        if isinstance(action, Ct) and action.commit
    ]
    assert any(action.nat for action in commits)
    assert all(a.nat.source or a.nat.destination for a in commits if a.nat)
