"""The feature of docs/add-a-feature.md works."""

import inspect
from ipaddress import IPv4Address

import pytest

from flows.compile import FEATURES, Compiler
from flows.kinds import Kind
from flows.refs import CLUSTER, ObjectRef
from flows.text import flow_text
from flows.view import CLUSTER_SCOPE, Cluster
from tests.flows import toy, worlds


def view(needed: dict[str, set[str]]) -> toy.ToyView:
    base = worlds.view({1: ["default/a"], 2: [], 3: []})
    blocked = {
        name: toy.BlockedAddress(name, IPv4Address("192.0.2.0") + index)
        for index, name in enumerate(needed, 1)
    }
    return toy.ToyView(
        base.cluster,
        base.nodes,
        base.attachments,
        needed_by={toy.key(name): nodes for name, nodes in needed.items()},
        blocked=blocked,
    )


def test_only_nodes_that_need_a_fragment_have_it() -> None:
    given = view({"x": {"node1", "node3"}, "y": {"node3"}})
    found = {
        scope: [
            flow_text(flow)
            for flow, owners in toy.TOY.program(given, scope).cookies.values()
            if owners[0].kind == "BlockedAddress"
        ]
        for scope in (CLUSTER_SCOPE, *given.nodes)
    }
    dropped = "table=DestinationGuard, priority=500,ip,reg0=0x1/0xf,nw_dst=192.0.2.{} actions=drop"
    x, y = (dropped.format(number) for number in (1, 2))
    assert found == {CLUSTER_SCOPE: [], "node1": [x], "node2": [], "node3": [x, y]}


def test_fragment_names_its_owner() -> None:
    fragment = toy.TOY.fragment(view({"x": {"node1"}}), toy.key("x"))
    assert fragment is not None
    assert fragment.owners == (ObjectRef("BlockedAddress", "", "x"),)
    assert all(flow.is_shared for flow in fragment.flows)


def test_seal_of_a_node_covers_fragments_of_some_scope() -> None:
    seals = [
        toy.TOY.program(view({"x": nodes}), "node1").seal.cookie for nodes in ({"node1"}, {"node2"})
    ]
    assert seals[0] != seals[1]


def test_two_kinds_with_one_name_and_scope_are_refused() -> None:
    twin = Kind[Cluster](
        "peer", "cluster", find=lambda view, _, __: view.cluster, owners=lambda _, __: [CLUSTER]
    )
    with pytest.raises(ValueError, match="two kinds peer of scope cluster"):
        Compiler((*FEATURES, (twin.by(lambda _, __: ()),)))


def test_code_on_the_page_is_the_code_of_the_tests() -> None:
    """Tests cannot add a type to `flows.view` at run time, so `tests.flows.toy` has a copy."""
    on_page = toy.blocks()["flows/view.py"]
    assert inspect.getsource(toy.BlockedAddress).strip() in on_page
    assert "blocked: Mapping[str, BlockedAddress] = field(default_factory=dict)" in on_page
