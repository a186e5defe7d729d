"""AddressPools: what they have, who gets which address, and what is reported."""

from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from controller.load_balancers import pools as pools_module
from controller.load_balancers.pools import Interval, Pool, Pools, read_pool
from controller.sources.objects import from_manifest
from tests.controller.address_pools import (
    balancer,
    balancers,
    given,
    namespace,
    pool,
    problem,
    with_pools,
)
from tests.controller.events import node_object
from tests.controller.service_inventory import inventory
from tests.controller.service_objects import endpoint, endpoint_slice

SHARED = "sluice.dev/allow-shared-address"
WANTED = "sluice.dev/addresses"


# --- pools ---


@pytest.mark.parametrize(
    ("ranges", "intervals"),
    [
        (["192.0.2.0/30"], ["192.0.2.0-192.0.2.3"]),
        (["192.0.2.9 - 192.0.2.12", "192.0.2.1-192.0.2.1"], ["192.0.2.1", "192.0.2.9-192.0.2.12"]),
        (["192.0.2.0/30", "192.0.2.2-192.0.2.5"], ["192.0.2.0-192.0.2.3", "192.0.2.4-192.0.2.5"]),
    ],
)
def test_ranges_are_read(ranges: list[str], intervals: list[str]) -> None:
    assert [*map(str, read_pool(pool("a", *ranges)).intervals)] == intervals


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.0/33", "is neither a CIDR nor FIRST-LAST"),
        ("192.0.2.1/24", "is neither a CIDR nor FIRST-LAST"),
        ("192.0.2.9-192.0.2.1", "ends before it begins"),
        ("2001:db8::/64", "is not IPv4; this cluster is IPv4-only"),
        ("x" * 40, "is neither a CIDR nor FIRST-LAST"),
    ],
)
def test_unreadable_range_is_named_and_the_others_are_used(text: str, why: str) -> None:
    made = with_pools(pool("a", text, "192.0.2.0/31"), balancer("s"))
    assert problem(made, "a", "AddressPool").startswith("spec.ranges[0]: ")
    assert problem(made, "a", "AddressPool").endswith(why)
    assert set(given(made.load_balancers)) == {"s"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("10.244.3.0/24", "the pod range 10.244.0.0/16"),
        ("10.96.0.0/12", "the Service range 10.96.0.0/16"),
        ("127.0.0.1-127.0.0.9", "loopback addresses"),
        ("169.254.1.0/24", "link-local addresses"),
        ("224.0.0.0/24", "multicast and reserved addresses"),
    ],
)
def test_what_no_pool_may_have_is_left_out_and_reported(text: str, what: str) -> None:
    made = with_pools(pool("a", text))
    assert f"overlaps {what}" in problem(made, "a", "AddressPool")
    (only,) = made.load_balancers.pools.all
    assert only.size == (65536 * 15 if text == "10.96.0.0/12" else 0)


def test_addresses_of_two_pools_belong_to_the_older_one() -> None:
    young = pool("a", "192.0.2.0/24", created="2026-02-02")
    old = pool("b", "192.0.2.16-192.0.2.31", created="2026-01-01")
    made = with_pools(young, old)
    found = made.load_balancers.pools
    assert [each.name for each in found.all] == ["b", "a"]
    assert "overlaps 192.0.2.16-192.0.2.31 of AddressPool b, which is older" in problem(
        made, "a", "AddressPool"
    )
    assert problem(made, "b", "AddressPool") == ""
    assert [(each.name, each.size) for each in found.all] == [("b", 16), ("a", 240)]
    addresses = [found.all[1].address(number) for number in range(240)]
    assert addresses == sorted(set(addresses))
    owners = {found.of(address) for address in addresses}
    assert owners == {found.all[1]}
    assert found.of(addresses[0] - 1) is None


def test_pools_with_very_many_ranges_are_bounded() -> None:
    many = [
        pool(f"p{number}", *(f"198.18.{number}.{low}/31" for low in range(0, 128, 4)))
        for number in range(60)
    ]
    made = with_pools(*many, pool("z", "0.0.0.0/0", created="2027-01-01"))
    used = [each for each in made.load_balancers.pools.all if each.size]
    assert len(used) == 32
    assert "only the 256 oldest pools" in problem(made, "z", "AddressPool")
    assert "65 are more than 64" in problem(
        with_pools(pool("a", *(f"192.0.2.{n}-192.0.2.{n}" for n in range(65)))), "a", "AddressPool"
    )


def test_range_of_everything_leaves_what_is_reserved() -> None:
    taken = [
        ("x", Interval(number * 16, number * 16 + 7)) for number in range(1 << 24, 1 << 24 | 99)
    ]
    found = Pools([read_pool(pool("a", "0.0.0.0/0"))], taken)
    (only,) = found.all
    assert only.size == (1 << 32) - (1 << 29) - (1 << 24) * 2 - (1 << 16) - 99 * 8
    assert len(found.problems["a"]) == pools_module.MAX_PROBLEMS


def test_address_of_a_node_is_not_given() -> None:
    made = with_pools(pool("a", "172.30.1.2-172.30.1.3"), balancer("s"), balancer("t"))
    assert list(given(made.load_balancers).values()) == ["172.30.1.3"]
    assert "no Service gets 172.30.1.2: it is Node node2's own address" in problem(
        made, "a", "AddressPool"
    )
    assert problem(made, "t") == "no address is free in AddressPool a"


# --- who gets an address ---


def test_service_of_another_class_is_left_alone() -> None:
    other = balancer("s", loadBalancerClass="example.com/lb", has="192.0.2.1")
    made = balancers(pool("a", "192.0.2.0/31"), other, balancer("t"), balancer("u"))
    assert list(given(made).values()) == ["192.0.2.0"], "192.0.2.1 is taken"
    assert "s" not in given(made)


def test_service_without_class_keeps_the_address_of_another_load_balancer() -> None:
    foreign = balancer("s", has="203.0.113.1")
    made = with_pools(pool("a", "192.0.2.0/31"), foreign)
    assert given(made.load_balancers) == {}
    assert "another load balancer's" in problem(made, "s")
    ours = balancer("s", has="203.0.113.1", loadBalancerClass="sluice.dev/load-balancer")
    assert set(given(balancers(pool("a", "192.0.2.0/31"), ours))) == {"s"}
    moved = balancer("s", has="203.0.113.1", assigned=True)
    assert set(given(balancers(pool("a", "192.0.2.0/31"), moved))) == {"s"}


def test_oldest_service_gets_the_last_address() -> None:
    services = [
        balancer("young", created="2026-01-03"),
        balancer("old", created="2026-01-01"),
        balancer("middle", created="2026-01-02"),
    ]
    for order in (services, services[::-1]):
        made = with_pools(pool("a", "192.0.2.7-192.0.2.7"), *order)
        assert given(made.load_balancers) == {"old": "192.0.2.7"}
        assert problem(made, "young") == "no address is free in AddressPool a"


def test_address_that_a_service_has_is_the_memory() -> None:
    made = with_pools(
        pool("a", "192.0.2.7-192.0.2.7"),
        balancer("old", created="2026-01-01"),
        balancer("young", created="2026-01-03", has="192.0.2.7"),
    )
    assert given(made.load_balancers) == {"young": "192.0.2.7"}
    made.remove_object("Service", "default", "young")
    made.settle()
    made.load_balancers.refresh()
    assert given(made.load_balancers) == {"old": "192.0.2.7"}
    assert problem(made, "old") == ""


def test_service_created_again_gets_the_same_address_if_it_is_free() -> None:
    one, other = pool("a", "192.0.2.0/24"), balancer("other")
    assert (
        given(balancers(one, balancer("s")))["s"]
        == given(balancers(one, other, balancer("s")))["s"]
    )


@pytest.mark.parametrize(
    "how",
    [
        {"annotations": {WANTED: "192.0.2.9"}},
        {"annotations": {"metallb.io/loadBalancerIPs": " 192.0.2.9 ,2001:db8::1"}},
        {"annotations": {"metallb.universe.tf/loadBalancerIPs": "192.0.2.9"}},
        {"loadBalancerIP": "192.0.2.9"},
        {"loadBalancerIP": "192.0.2.5", "annotations": {WANTED: "192.0.2.9"}},
    ],
)
def test_requested_address_is_given(how: dict[str, Any]) -> None:
    automatic = [balancer(f"s{number}", created="2025-01-01") for number in range(15)]
    made = balancers(pool("a", "192.0.2.0/28"), balancer("wants", **how), *automatic)
    assert given(made)["wants"] == "192.0.2.9"
    assert len(set(given(made).values())) == 16


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.99", "192.0.2.99 is in no AddressPool"),
        ("192.0.2.1", "Service default/old has it, and both do not have one sharing key"),
        ("172.30.1.1", "it is Node node1's own address"),
        ("nonsense", "'nonsense' is not an IP address"),
        ("192.0.2.2,192.0.2.3", "a Service can have one IPv4 address, not 2"),
        ("2001:db8::1", "holds no IPv4 address"),
        (",".join(["192.0.2.2"] * 500), "a Service can have one IPv4 address"),
        ("198.51.100.1", "is of AddressPool c, not for namespace default"),
    ],
)
def test_request_that_cannot_be_met_is_reported_and_gets_nothing_else(text: str, why: str) -> None:
    made = with_pools(
        pool("a", "192.0.2.0/28", "172.30.1.0/30"),
        pool("c", "198.51.100.0/24", namespaceSelector={"matchLabels": {"team": "b"}}),
        balancer("old", has="192.0.2.1", created="2025-01-01"),
        balancer("s", annotations={WANTED: text}),
    )
    assert set(given(made.load_balancers)) == {"old"}
    assert why in problem(made, "s")
    assert problem(made, "s").startswith("annotation sluice.dev/addresses: ")


def test_service_keeps_its_address_until_it_can_get_the_requested_one() -> None:
    holder = balancer("old", has="192.0.2.1")
    moving = balancer("s", has="192.0.2.2", annotations={WANTED: "192.0.2.1"})
    made = with_pools(pool("a", "192.0.2.0/28"), holder, moving)
    assert given(made.load_balancers)["s"] == "192.0.2.2"
    assert "Service default/old has it" in problem(made, "s")
    made.remove_object("Service", "default", "old")
    made.settle()
    made.load_balancers.refresh()
    assert given(made.load_balancers) == {"s": "192.0.2.1"}


def test_pool_is_chosen_by_annotation_and_namespace() -> None:
    objects = [
        namespace("team", team="b"),
        pool("all", "192.0.2.0/28", created="2025-01-01"),
        pool("asked", "198.51.100.0/28", autoAssign=False),
        pool("team", "203.0.113.0/28", namespaceSelector={"matchLabels": {"team": "b"}}),
        balancer("s"),
        balancer("t", annotations={"sluice.dev/pool": "asked"}),
        balancer("team/u"),
        balancer("v", annotations={"metallb.io/address-pool": "nowhere"}),
        balancer("w", annotations={"sluice.dev/pool": "team"}),
    ]
    made = with_pools(*objects)
    found = {name: text.rpartition(".")[0] for name, text in given(made.load_balancers).items()}
    assert found == {"s": "192.0.2", "t": "198.51.100", "team/u": "203.0.113"}
    assert problem(made, "v") == "there is no AddressPool 'nowhere'"
    assert problem(made, "w") == "AddressPool team is not for namespace default"


def test_no_pool_for_a_namespace_is_reported() -> None:
    made = with_pools(pool("asked", "198.51.100.0/28", autoAssign=False), balancer("s"))
    assert problem(made, "s") == (
        "no AddressPool gives addresses to namespace default without being asked for"
    )


# --- who loses one ---


def test_address_that_the_pool_has_no_more_is_given_back() -> None:
    had = balancer("s", has="192.0.2.99", assigned=True)
    made = balancers(pool("a", "192.0.2.0/28"), had)
    assert given(made)["s"] != "192.0.2.99"
    assert made.allocation.lost == {"default/s": "192.0.2.99: it is in no AddressPool any more"}


def test_without_any_pool_nothing_is_given_back() -> None:
    made = balancers(balancer("s", has="192.0.2.99", assigned=True))
    assert (made.requests, made.allocation.lost) == ({}, {})


def test_namespace_that_a_pool_is_not_for_any_more_gives_back() -> None:
    closed = pool("a", "192.0.2.0/28", namespaceSelector={"matchLabels": {"team": "b"}})
    made = with_pools(closed, balancer("s", has="192.0.2.1"))
    assert given(made.load_balancers) == {}
    assert "AddressPool a is not for namespace default" in problem(made, "s")


def test_pool_with_an_invalid_selector_gives_nothing_and_takes_nothing_back() -> None:
    bad = pool("a", "192.0.2.0/28", namespaceSelector={"matchLabels": {"-": "b"}})
    made = with_pools(bad, balancer("s", has="192.0.2.1"), balancer("t"))
    assert given(made.load_balancers) == {"s": "192.0.2.1"}
    assert "no further address" in problem(made, "a", "AddressPool")


def test_of_two_services_with_one_address_the_older_keeps_it() -> None:
    made = balancers(
        pool("a", "192.0.2.0/28"),
        balancer("young", has="192.0.2.1", created="2026-02-02"),
        balancer("old", has="192.0.2.1", created="2026-01-01"),
    )
    assert given(made)["old"] == "192.0.2.1"
    assert given(made)["young"] != "192.0.2.1"


def test_address_that_is_to_be_given_back_is_not_free_before() -> None:
    made = balancers(
        pool("a", "192.0.2.1-192.0.2.1", namespaceSelector={"matchLabels": {"team": "b"}}),
        namespace("team", team="b"),
        balancer("s", has="192.0.2.1"),
        balancer("team/t"),
        balancer("team/u", annotations={WANTED: "192.0.2.1"}),
    )
    assert given(made) == {}
    assert set(made.allocation.lost) == {"default/s"}


# --- sharing ---


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({}, True),
        ({"ports": (80,)}, False),
        ({"annotations": {SHARED: "other"}}, False),
        ({"annotations": {}}, False),
        ({"annotations": {"metallb.io/allow-shared-ip": "key"}}, True),
        ({"externalTrafficPolicy": "Local", "selector": {"app": "a"}}, False),
    ],
)
def test_services_share_an_address_by_the_rules_of_metallb(
    more: dict[str, Any], shares: bool
) -> None:
    first = balancer("first", annotations={SHARED: "key"}, has="192.0.2.3")
    second = balancer("second", **({"annotations": {SHARED: "key"}, "ports": (443,)} | more))
    made = balancers(pool("a", "192.0.2.0/28"), first, second)
    assert (given(made)["second"] == "192.0.2.3") is shares


def test_local_services_share_an_address_if_their_selectors_are_equal() -> None:
    local = {"externalTrafficPolicy": "Local", "annotations": {SHARED: "key"}}
    first = balancer("first", has="192.0.2.3", selector={"app": "a"}, **local)
    second = balancer("second", ports=(443,), selector={"app": "a"}, **local)
    third = balancer("third", ports=(444,), selector={"app": "b"}, **local)
    made = balancers(pool("a", "192.0.2.0/28"), first, second, third)
    assert given(made)["second"] == "192.0.2.3"
    assert given(made)["third"] != "192.0.2.3"


@pytest.mark.parametrize(
    ("other", "selector"), [("team/second", {"app": "a"}), ("second", {}), ("second", None)]
)
def test_local_services_with_other_endpoints_share_no_address(
    other: str, selector: dict[str, str] | None
) -> None:
    # Otherwise nodes with endpoints of one of them only would get packets for both.
    local = {"externalTrafficPolicy": "Local", "annotations": {SHARED: "key"}}
    first = balancer("first", has="192.0.2.3", selector=selector, **local)
    second = balancer(other, ports=(443,), selector=selector, **local)
    made = balancers(pool("a", "192.0.2.0/28"), namespace("team"), first, second)
    assert given(made)[other] != "192.0.2.3"


def test_service_shares_no_address_whose_port_any_other_service_has() -> None:
    key = {"annotations": {SHARED: "key"}}
    made = balancers(
        pool("a", "192.0.2.0/28"),
        balancer("first", has="192.0.2.3", **key),
        balancer("second", has="192.0.2.3", ports=(443,), **key),
        balancer("third", ports=(443, 444), **key),
    )
    assert given(made)["second"] == "192.0.2.3"
    assert given(made)["third"] != "192.0.2.3"


def test_shared_address_is_free_when_its_last_service_is_gone() -> None:
    key = {"annotations": {SHARED: "key"}}
    made = with_pools(
        pool("a", "192.0.2.3-192.0.2.3"),
        balancer("first", has="192.0.2.3", **key),
        balancer("second", has="192.0.2.3", ports=(443,), **key),
        balancer("other"),
    )
    for name in ("first", "second"):
        assert "other" not in given(made.load_balancers)
        made.remove_object("Service", "default", name)
        made.settle()
        made.load_balancers.refresh()
    assert given(made.load_balancers) == {"other": "192.0.2.3"}


# --- bounds ---


def test_many_services_are_allocated_quickly_even_without_a_free_address() -> None:
    services = [balancer(f"s{number}") for number in range(2_000)]
    made = balancers(pool("a", "198.18.0.0/22"), *services)
    assert len(set(given(made).values())) == 1024


def test_address_is_no_longer_reserved_when_the_node_is_gone() -> None:
    made = inventory(namespace("default"), pool("a", "172.30.1.9-172.30.1.9"), balancer("s"))
    made.set_object(node_object("node9", "10.244.9.0/24", "172.30.1.9"))
    made.settle()
    made.load_balancers.refresh()
    assert given(made.load_balancers) == {}
    made.remove_object("Node", "", "node9")
    made.settle()
    assert made.load_balancers.changed.is_set()
    made.load_balancers.refresh()
    assert given(made.load_balancers) == {"s": "172.30.1.9"}


def test_egress_address_is_not_given() -> None:
    egress = from_manifest(
        {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "EgressAddress",
            "metadata": {"name": "out"},
            "spec": {"address": "192.0.2.1"},
        }
    )
    made = with_pools(pool("a", "192.0.2.1-192.0.2.1"), egress, balancer("s"))
    assert given(made.load_balancers) == {}
    assert "it is EgressAddress out's" in problem(made, "a", "AddressPool")


def test_problem_with_the_address_hides_no_other_problem_of_the_service() -> None:
    bad = balancer("s", externalIPs=["10.244.0.9"], loadBalancerIP="192.0.2.99")
    made = with_pools(pool("a", "192.0.2.0/28"), bad)
    told = made.problems.texts()
    assert "inside the pod range" in told["Service default/s"]
    assert "in no AddressPool" in told["address of Service default/s"]


def test_owner_and_serving_nodes_follow_the_pool_and_the_nodes() -> None:
    excluded = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
    made = with_pools(
        pool("a", "192.0.2.0/28", nodeSelector={"matchLabels": {"edge": "yes"}}),
        balancer("s", has="192.0.2.1"),
    )
    only = made.load_balancers.announced[IPv4Address("192.0.2.1")]
    assert only.nodes == frozenset()
    for name, labels in (("node1", {"edge": "yes"}), ("node2", {"edge": "yes"} | excluded)):
        given = made.nodes.objects[name]
        metadata = msgspec.structs.replace(given.metadata, labels=labels)
        made.set_object(msgspec.structs.replace(given, metadata=metadata))
        made.settle()
        made.load_balancers.refresh()
        only = made.load_balancers.announced[IPv4Address("192.0.2.1")]
        assert only.nodes == {"node1"}
    # There is no other node.
    made.remove_object("Node", "", "node1")
    made.settle()
    made.load_balancers.refresh()
    assert made.load_balancers.announced[IPv4Address("192.0.2.1")].nodes == {"node2"}


@pytest.mark.parametrize(
    ("endpoints", "nodes"),
    [
        ([], set()),
        ([endpoint("10.244.1.5", "node1", ready=True)], {"node1"}),
        (
            [
                endpoint("10.244.1.5", "node1", ready=True),
                endpoint("10.244.2.5", "node2", ready=False, serving=True, terminating=True),
            ],
            {"node1"},
        ),
        (
            [endpoint("10.244.2.5", "node2", ready=False, serving=True, terminating=True)],
            {"node2"},
        ),
    ],
)
def test_with_the_policy_local_nodes_with_endpoints_serve(
    endpoints: list[Any], nodes: set[str]
) -> None:
    local = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}
    made = with_pools(
        pool("a", "192.0.2.0/28"),
        balancer("s", has="192.0.2.1", **local),
        endpoint_slice("s-1", "s", endpoints),
    )
    assert made.load_balancers.announced[IPv4Address("192.0.2.1")].nodes == nodes
    claimed = IPv4Address("192.0.2.1") in made.address_owners.grants.addresses
    assert claimed is bool(nodes)


def test_nothing_is_announced_that_the_allocation_does_not_give() -> None:
    """Somebody writes an address of another Service, or of nobody, to the status of a Service."""
    made = balancers(
        pool("a", "192.0.2.0/28", namespaceSelector={"matchLabels": {"team": "b"}}),
        namespace("team", team="b"),
        balancer("team/victim", has="192.0.2.1", created="2026-01-02"),
        balancer("thief", has="192.0.2.1", created="2026-01-01"),
        balancer("other", has="203.0.113.7", created="2026-01-01"),
    )
    (only,) = made.announced.values()
    assert [str(each) for each in only.services] == ["Service team/victim"]


def test_nodes_are_selected_once_for_pools_with_one_selector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rack = {"matchLabels": {"rack": "a"}}
    many = [pool(f"p{n}", f"192.0.2.{n}/32") for n in range(20)]
    made = balancers(*many, pool("q", "192.0.2.99/32", nodeSelector=rack), balancer("s"))
    asked: list[str] = []

    def nodes_of(asked_for: Pool) -> frozenset[str]:
        asked.append(asked_for.name)
        return frozenset()

    monkeypatch.setattr(made, "nodes_of", nodes_of)
    assert sum(1 for _ in made.refreshing()) >= 21, "one step for each pool"
    assert len(asked) == 2
