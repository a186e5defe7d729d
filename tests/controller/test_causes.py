"""Which fragments exist because of an object: the same as the owners of the compiled ones say."""

import pytest

from controller.causes import holders, keys_of
from controller.inventory import Inventory
from controller.object_names import UnknownObject, object_named
from controller.policies.slices import complete
from flows.compile import compile_scope
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key
from tests.controller.explained_cluster import explained_cluster

OBJECTS = [
    "node/n1", "node/n2", "pod/shop/web-0", "pod/shop/front-6b7f-x2x4z", "pod/ops/prometheus",
    "pod/shop/api", "svc/shop/web", "svc/shop/api", "networkpolicy/shop/web",
    "networkpolicy/ops/closed", "clusternetworkpolicy/no-metrics",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return explained_cluster(tmp_path_factory.mktemp("cluster"))


def owned(cluster: Inventory, ref: ObjectRef) -> dict[Key, set[str]]:
    """By key, the scopes whose compiled program has a fragment with this owner."""
    found: dict[Key, set[str]] = {}
    for scope in (CLUSTER_SCOPE, *cluster.view.nodes):
        for key, fragment in compile_scope(cluster.view, scope).fragments.items():
            if ref in fragment.owners:
                found.setdefault(key, set()).add(scope)
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_keys_of_an_object_are_those_it_owns(cluster: Inventory, name: str) -> None:
    ref = object_named(cluster, name)
    keys = complete(keys_of(cluster, ref))
    of_owners = owned(cluster, ref)
    assert of_owners or name == "networkpolicy/ops/closed"
    assert len(keys) == len(set(keys))
    assert of_owners.keys() <= {*keys}
    for key, scopes in of_owners.items():
        # A fragment of all nodes is in the program that they share.
        everywhere = {CLUSTER_SCOPE} if key.scope == CLUSTER_SCOPE else scopes
        held = {CLUSTER_SCOPE} if key.scope == CLUSTER_SCOPE else {*holders(cluster.view, key)}
        assert held == everywhere
    # A policy owns no isolation of a pod, and not the members of its sets.
    there = {
        key
        for scope in (CLUSTER_SCOPE, *cluster.view.nodes)
        for key in compile_scope(cluster.view, scope).fragments
    }
    others = {key.kind for key in {*keys} - of_owners.keys() if key in there}
    assert others <= ({"isolation", "policy-member"} if "policy" in name else set())


def test_policy_without_rules_causes_isolation(cluster: Inventory) -> None:
    keys = complete(keys_of(cluster, ObjectRef("NetworkPolicy", "ops", "closed")))
    assert [(key.scope, key.kind) for key in keys] == [("n2", "isolation")]


def test_endpoint_slice_causes_what_its_service_causes(cluster: Inventory) -> None:
    slice_, service = (
        complete(keys_of(cluster, object_named(cluster, name)))
        for name in ("endpointslice/shop/api-1", "svc/shop/api")
    )
    assert slice_ == service


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("shop/web-0", ObjectRef("Pod", "shop", "web-0")),
        ("Pod/shop/web-0", ObjectRef("Pod", "shop", "web-0")),
        ("shop/web", ObjectRef("Service", "shop", "web")),
        ("service/shop/nobody", ObjectRef("Service", "shop", "nobody")),
        ("netpol/shop/web", ObjectRef("NetworkPolicy", "shop", "web")),
        ("n1", ObjectRef("Node", "", "n1")),
    ],
)
def test_objects_as_people_write_them(cluster: Inventory, text: str, ref: ObjectRef) -> None:
    assert object_named(cluster, text) == ref


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/b/c/d", "pod/shop", "node/", "svc//", "n9", "shop/no", "pod/shop/web", "x" * 300,
     "configmap/shop/web", "node/n1/n1"],
)  # fmt: skip
def test_unknown_object_is_one_sentence(cluster: Inventory, text: str) -> None:
    with pytest.raises(UnknownObject) as caught:
        object_named(cluster, text)
    assert "\n" not in str(caught.value)
