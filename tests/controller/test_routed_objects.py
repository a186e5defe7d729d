"""The custom resources: read from manifests, and taken by a real API server as their CRDs say."""

from typing import Any

import pytest

from controller.inventory import Inventory
from controller.object_names import object_named
from controller.sources.objects import ObjectError, from_manifest
from controller.sources.routed_objects import (
    AddressPoolObject,
    BGPPeerObject,
    EgressAddressObject,
)
from flows.refs import ObjectRef
from tests.flows.worlds import CLUSTER


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "one"},
        "spec": spec,
    }


def test_each_kind_is_read_with_the_defaults_of_its_crd() -> None:
    peer = from_manifest(
        manifest("BGPPeer", {"address": "172.30.0.1", "asn": 64512, "localASN": 64513})
    )
    assert isinstance(peer, BGPPeerObject)
    assert (peer.spec.from_, peer.spec.port, peer.spec.hold_time_seconds) == (
        "Controllers",
        179,
        90,
    )
    pool = from_manifest(manifest("AddressPool", {"ranges": ["192.0.2.0/28"]}))
    assert isinstance(pool, AddressPoolObject)
    assert pool.spec.auto_assign
    rule = from_manifest(manifest("EgressAddress", {"address": "192.0.2.9", "gateways": {}}))
    assert isinstance(rule, EgressAddressObject)
    assert rule.spec.pod_selector is None


def test_a_field_of_a_wrong_type_is_named() -> None:
    with pytest.raises(
        ObjectError, match=r"BGPPeer one: Expected `int`, got `str` - at `\$.spec.asn`"
    ):
        from_manifest(manifest("BGPPeer", {"asn": "65000"}))


def test_an_object_is_kept_until_it_is_removed() -> None:
    inventory = Inventory(CLUSTER)
    told: list[str] = []
    inventory.address_pools.followers.append(told.append)
    inventory.set_object(from_manifest(manifest("AddressPool", {"ranges": []})))
    ref = ObjectRef("AddressPool", "", "one")
    assert object_named(inventory, "addresspool/one") == ref
    inventory.remove_object(*ref)
    assert inventory.metadata(*ref) is None
    assert told == ["one", "one"]
