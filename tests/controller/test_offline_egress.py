"""Egress addresses where no node can be asked: in a copy of a cluster, and in manifests."""

import asyncio

import pytest

from controller.offline.cluster_copy import CopyError, copy_of, load
from controller.offline.gateways import assume
from tests.controller.test_egress import World, rule


@pytest.fixture
def world() -> World:
    made = World()
    made.apply(rule())
    return made


def copied(world: World) -> list[bytes]:
    async def lines() -> list[bytes]:
        return [line async for line in copy_of(world.inventory, services=True)]

    return asyncio.run(lines())


def test_copy_has_egress_addresses_and_their_gateways(world: World) -> None:
    world.give("node3")
    again = load(copied(world)).view
    view = world.inventory.view
    assert again.egress_addresses == view.egress_addresses
    assert again.egress_pods == view.egress_pods
    assert again.egress_members == view.egress_members
    assert again.egress_gateways == {"node3": {"web"}}


def test_copy_with_a_gateway_of_no_address_is_refused(world: World) -> None:
    world.give("node3")
    first, *rest = copied(world)
    with pytest.raises(CopyError, match="cannot be read"):
        load([first.replace(b"192.0.2.9", b"elsewhere"), *rest])


def test_first_candidate_is_assumed_to_be_the_gateway(world: World) -> None:
    (assumed,) = assume(world.inventory)
    assert assumed == "the gateway of 192.0.2.9 is the first that may be it"
    assert world.inventory.view.egress_addresses["web"].gateway in {"node2", "node3"}
