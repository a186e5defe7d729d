"""EgressAddresses: which pods they select, their gateways, and what is refused."""

import asyncio
from ipaddress import IPv4Address
from typing import Any

import pytest
from msgspec.structs import replace

from controller import work_budget
from controller.causes import keys_of
from controller.egress.addresses import MAX_EGRESS_ADDRESSES
from controller.inventory import Inventory
from controller.policies.slices import complete
from controller.reconciler import Reconciler
from controller.sources.objects import NodeObject, PodObject, from_manifest
from controller.sources.policy_objects import NamespaceObject
from controller.work_budget import WorkBudget
from flows.compile import fragment
from flows.kinds import EGRESS_MEMBER
from flows.pipeline import LAYOUT
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, Key
from tests.controller.events import node_object, pod_object, port
from tests.flows.worlds import CLUSTER

NINE = IPv4Address("192.0.2.9")


def rule(name: str = "web", **spec: Any) -> dict[str, Any]:
    created = spec.pop("created", None)
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "EgressAddress",
        "metadata": {"name": name, **({"creationTimestamp": created} if created else {})},
        "spec": {
            "address": "192.0.2.9",
            "namespaceSelector": {"matchLabels": {"team": "a"}},
            "podSelector": {"matchLabels": {"app": "web"}},
            "gateways": {"matchLabels": {"egress": "yes"}},
        }
        | spec,
    }


def node(number: int, **labels: str) -> NodeObject:
    made = node_object(f"node{number}", f"10.244.{number}.0/24", f"172.30.1.{number}")
    return replace(made, metadata=replace(made.metadata, labels=labels))


def pod(name: str, on: str, **labels: str) -> PodObject:
    made = pod_object(name, on, uid=f"u-{name}")
    return replace(made, metadata=replace(made.metadata, labels=labels))


def namespace(**labels: str) -> NamespaceObject:
    found = from_manifest(
        {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default", "labels": labels}}
    )
    assert isinstance(found, NamespaceObject)
    return found


class World:
    """Three nodes, of which node2 and node3 may be gateways; `web` on node1 and `db` on node2."""

    def __init__(self) -> None:
        self.inventory = Inventory(CLUSTER)
        for each in (
            node(1), node(2, egress="yes"), node(3, egress="yes"),
            namespace(team="a"),
            pod("web", "node1", app="web"), pod("db", "node2", app="db"),
        ):  # fmt: skip
            self.inventory.set_object(each)
        self.inventory.settle()
        self.plug("web", "node1", "10.244.1.5", 16)
        self.plug("db", "node2", "10.244.2.5", 16)

    def plug(self, name: str, on: str, address: str, ofport: int) -> set[Key]:
        made = port(name, f"u-{name}", "s1", address, ofport)
        return self.inventory.set_port(on, made)

    def apply(self, manifest: dict[str, Any]) -> set[Key]:
        self.inventory.set_object(from_manifest(manifest))
        return self.inventory.settle()

    def give(self, owner: str, address: IPv4Address = NINE) -> set[Key]:
        """As if the owners had decided so."""
        owners = self.inventory.address_owners
        owners.owners.pop(address, None)
        if owner:
            owners.owners[address] = owner
        touched: set[Key] = set()
        for follower in owners.followers:
            touched |= follower({address})
        return touched

    def selected(self) -> dict[str, str]:
        """By address of a pod, the egress address."""
        return {each: str(m.address) for each, m in self.inventory.view.egress_members.items()}

    def problem(self, name: str = "web") -> str:
        return self.inventory.problems.texts().get(f"EgressAddress {name}", "")


@pytest.fixture
def world() -> World:
    return World()


def test_pods_are_selected_by_namespace_and_labels(world: World) -> None:
    world.apply(rule())
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}
    view = world.inventory.view
    assert list(view.egress_pods) == ["node1"]
    key = Key(SOME_SCOPE, EGRESS_MEMBER.name, "10.244.1.5")
    assert view.needed_by[key] == {"node2", "node3"}
    assert world.problem() == ""


def test_new_pod_is_selected_before_it_is_connected(world: World) -> None:
    world.apply(rule())
    world.inventory.set_object(pod("late", "node2", app="web"))
    world.inventory.settle()
    touched = world.plug("late", "node2", "10.244.2.6", 17)
    (egress,) = [key for key in touched if key.kind == "egress-pod"]
    assert Key("node2", "attachment", egress.name) in touched
    assert world.selected()["10.244.2.6"] == "192.0.2.9"


def test_labels_of_pods_and_namespaces_decide_anew(world: World) -> None:
    world.apply(rule())
    for change, selected in (
        (pod("web", "node1", app="other"), {}),
        (pod("web", "node1", app="web"), {"10.244.1.5": "192.0.2.9"}),
        (namespace(team="b"), {}),
        (namespace(team="a"), {"10.244.1.5": "192.0.2.9"}),
    ):
        world.inventory.set_object(change)
        world.inventory.settle()
        assert world.selected() == selected
    world.inventory.remove_port("node1", next(iter(world.inventory.view.egress_pods["node1"])))
    assert world.selected() == {}
    assert world.inventory.view.egress_pods == {}


def test_gateway_is_who_owns_the_address(world: World) -> None:
    world.apply(rule())
    view = world.inventory.view
    assert view.egress_addresses["web"].tunnel_address is None
    assert world.give("node2") == {
        Key(CLUSTER_SCOPE, "egress", "web"),
        Key(CLUSTER_SCOPE, "egress-gateway", "node2"),
        Key("node2", "egress", "web"),
    }
    assert view.egress_addresses["web"].tunnel_address == IPv4Address("172.30.1.2")
    touched = world.give("node3")
    assert {key.scope for key in touched} == {CLUSTER_SCOPE, "node2", "node3"}
    assert view.egress_gateways == {"node3": {"web"}}
    world.give("")
    assert view.egress_gateways == {}


def test_gateway_that_is_no_node_any_more_is_none(world: World) -> None:
    world.apply(rule())
    world.give("node2")
    world.inventory.remove_object("Node", "", "node2")
    touched = world.inventory.settle()
    assert world.inventory.view.egress_addresses["web"].gateway == ""
    assert Key(CLUSTER_SCOPE, "egress", "web") in touched


def test_claims_name_the_nodes_that_gateways_select(world: World) -> None:
    claimed: dict[str, Any] = {}
    world.inventory.address_owners.want = (  # type: ignore[method-assign]
        lambda source, claims: claimed.update({source: dict(claims)})
    )
    world.apply(rule(announce=["BGP"]))
    claim = claimed["egress"][NINE]
    assert (claim.candidates, claim.announce, claim.gated) == ({"node2", "node3"}, False, True)
    world.inventory.set_object(node(3))
    world.inventory.settle()
    assert claimed["egress"][NINE].candidates == {"node2"}
    key = Key(SOME_SCOPE, EGRESS_MEMBER.name, "10.244.1.5")
    assert world.inventory.view.needed_by[key] == {"node2"}
    world.inventory.remove_object("EgressAddress", "", "web")
    world.inventory.settle()
    assert claimed["egress"] == {}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"address": "ten"}, "spec.address: 'ten' is not an IPv4 address"),
        ({"address": "fd00::1"}, "spec.address: 'fd00::1' is not an IPv4 address"),
        ({"address": "10.244.9.9"}, "spec.address: 10.244.9.9 is in the pod range"),
        ({"address": "10.96.0.9"}, "spec.address: 10.96.0.9 is in the Service range"),
        ({"address": "127.0.0.1"}, "spec.address: 127.0.0.1 is in loopback addresses"),
        ({"address": "169.254.1.3"}, "spec.address: 169.254.1.3 is in link-local addresses"),
        ({"address": "239.0.0.1"}, "spec.address: 239.0.0.1 is in multicast"),
        ({"address": "192.0.0.0"}, "spec.address: 192.0.0.0 is the first address"),
        ({"address": "172.30.1.3"}, "spec.address: 172.30.1.3 is an address of Node node3"),
        ({"gateways": None}, "spec.gateways is missing"),
        ({"namespaceSelector": None}, "spec.namespaceSelector is missing"),
        (
            {"podSelector": {"matchLabels": {"-": "x"}}},
            "spec.podSelector.matchLabels: '-' is not the key of a label",
        ),
        (
            {"gateways": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
            "spec.gateways.matchExpressions[0].operator: 'Near'",
        ),
    ],
)
def test_bad_egress_address_selects_nothing_and_is_reported(
    world: World, spec: dict[str, Any], problem: str
) -> None:
    world.apply(rule("good", address="192.0.2.10", podSelector={}))
    world.apply(rule(**spec))
    assert world.problem().startswith(problem)
    assert set(world.inventory.view.egress_addresses) == {"good"}
    assert set(world.selected().values()) == {"192.0.2.10"}
    world.apply(rule())
    assert world.problem() == "" or "older" in world.problem()
    world.inventory.remove_object("EgressAddress", "", "web")
    world.inventory.settle()
    assert world.problem() == ""


def test_no_node_that_may_be_the_gateway_is_reported(world: World) -> None:
    world.apply(rule(gateways={"matchLabels": {"egress": "no"}}))
    assert world.problem() == "spec.gateways selects no Node that takes part"
    # Its pods reach nothing outside, rather than with another address.
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}


def test_of_two_with_one_address_the_older_has_it(world: World) -> None:
    world.apply(rule("young", created="2026-02-02T00:00:00Z"))
    world.apply(rule("old", created="2026-01-01T00:00:00Z"))
    assert world.problem("young") == "spec.address: 192.0.2.9 is EgressAddress old's already"
    assert list(world.inventory.view.egress_addresses) == ["old"]
    world.apply(rule("alike", address="10.0.2.9"))
    assert "their last 24 bits are the same" in world.problem("alike")
    world.inventory.remove_object("EgressAddress", "", "old")
    world.inventory.settle()
    assert list(world.inventory.view.egress_addresses) == ["young"]
    assert world.problem("young") == ""
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}


def test_of_two_that_select_a_pod_the_older_has_it(world: World) -> None:
    world.apply(rule("young", created="2026-02-02T00:00:00Z"))
    world.apply(rule("old", address="192.0.2.10", podSelector={}, created="2026-01-01T00:00:00Z"))
    assert world.selected() == {"10.244.1.5": "192.0.2.10", "10.244.2.5": "192.0.2.10"}
    assert world.problem("young") == (
        "it selects pods of EgressAddress old, which is older and keeps them, as default/web"
    )
    assert world.problem("old") == ""
    world.inventory.remove_object("EgressAddress", "", "old")
    world.inventory.settle()
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}
    assert world.problem("young") == ""


def test_address_on_an_interface_of_a_host_is_reported(world: World) -> None:
    world.inventory.report_addresses("node2", [NINE])
    world.apply(rule())
    assert "the host of Node node2 has 192.0.2.9 on an interface" in world.problem()


def test_pods_whose_packets_may_not_fit_into_the_tunnel_are_reported(world: World) -> None:
    world.apply(rule())
    world.inventory.set_object(node(1, **{"sluice.dev/network-mode": "noEncap"}))
    world.inventory.settle()
    assert world.problem().startswith("pods of Node node1, whose mode is noEncap, may send packets")
    world.inventory.egress.mtu = 1450
    world.inventory.set_object(node(1, **{"sluice.dev/network-mode": "noEncap", "more": "x"}))
    world.apply(rule(announce=["Link"]))
    assert world.problem() == ""


def test_explanation_has_the_flows_of_an_egress_address(world: World) -> None:
    world.apply(rule())
    world.give("node2")
    view = world.inventory.view
    ref = ObjectRef("EgressAddress", "", "web")
    keys = set(complete(keys_of(world.inventory, ref)))
    assert {(key.scope, key.kind) for key in keys} == {
        (CLUSTER_SCOPE, "egress"), (CLUSTER_SCOPE, "egress-gateway"), ("node2", "egress"),
        ("node1", "egress-pod"), (SOME_SCOPE, "egress-member"),
    }  # fmt: skip
    assert all(fragment(view, key) for key in keys)
    of_pod = complete(keys_of(world.inventory, ObjectRef("Pod", "default", "web")))
    assert Key(SOME_SCOPE, "egress-member", "10.244.1.5") in of_pod


def test_change_of_an_unrelated_object_touches_no_egress_key(world: World) -> None:
    world.apply(rule())
    world.give("node2")
    world.inventory.set_object(pod("new", "node3", app="other"))
    touched = world.inventory.settle() | world.plug("new", "node3", "10.244.3.5", 16)
    world.inventory.set_object(node(4))
    touched |= world.inventory.settle()
    touched |= world.apply(
        rule("other", address="192.0.2.77", podSelector={"matchLabels": {"x": "y"}})
    )
    assert not [
        key
        for key in touched
        if "egress" in key.kind and "77" not in str(key) and key.name != "other"
    ]


def test_order_of_objects_does_not_matter(world: World) -> None:
    manifests = [
        rule("young", created="2026-02-02T00:00:00Z"),
        rule("old", address="192.0.2.10", podSelector={}, created="2026-01-01T00:00:00Z"),
        rule("bad", address="10.244.0.9"),
    ]
    other = World()
    for each in manifests:
        world.apply(each)
    for each in reversed(manifests):
        other.apply(each)
    for one in (world, other):
        one.give("node3", IPv4Address("192.0.2.10"))
    view, again = world.inventory.view, other.inventory.view
    assert view.egress_members == again.egress_members
    assert view.egress_pods == again.egress_pods
    assert view.egress_addresses == again.egress_addresses
    assert view.egress_gateways == again.egress_gateways
    assert world.inventory.problems.texts() == other.inventory.problems.texts()


def test_every_egress_number_fits_its_register() -> None:
    assert LAYOUT.registers["EgressAddress"].bits == (8, 31)


def test_pod_is_not_connected_before_it_has_its_egress_address(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few keys are compiled in one turn of the event loop."""
    monkeypatch.setattr(work_budget, "MAX_COST", 1)

    async def story() -> None:
        reconciler = Reconciler(world.inventory)
        reconciler.source_complete(True)
        await reconciler.listed.wait()
        desired = reconciler.desired
        seen: list[set[str]] = []
        update = desired.update_node

        def watched(name: str, changes: Any) -> bool:
            did = update(name, changes)
            flows = desired.program(name).flows()
            seen.append(
                {
                    LAYOUT.by_number[flow.table].name
                    for flow in flows
                    if ("in_port", 17, None) in flow.match
                }
            )
            return did

        monkeypatch.setattr(desired, "update_node", watched)
        await reconciler.compilation.compiled("node1")
        world.inventory.set_object(pod("late", "node1", app="web"))
        touched = world.inventory.settle() | world.plug("late", "node1", "10.244.1.9", 17)
        # The attachment first: nothing else has to come in the same turn.
        reconciler.compilation.touch(sorted(touched, key=lambda key: key.kind))
        await reconciler.compilation.compiled("node1")
        connected = [tables for tables in seen if "Classifier" in tables]
        assert connected
        assert all("Egress" in tables for tables in connected)

    world.apply(rule())
    asyncio.run(story())


def test_very_many_egress_addresses_are_refused_in_many_turns(world: World) -> None:
    for number in range(MAX_EGRESS_ADDRESSES + 50):
        address = str(IPv4Address("198.18.0.1") + number)
        made = rule(f"r{number:05}", address=address, podSelector={}, created="2026-01-01")
        world.inventory.set_object(from_manifest(made))
    turns = 0
    while not world.inventory.egress.is_settled:
        world.inventory.egress.settle(WorkBudget())
        turns += 1
    assert turns > 5
    assert len(world.inventory.view.egress_addresses) == MAX_EGRESS_ADDRESSES
    last = f"r{MAX_EGRESS_ADDRESSES + 49:05}"
    assert world.problem(last) == "1024 EgressAddresses are the most of a cluster"
    assert set(world.selected().values()) == {"198.18.0.1"}


def test_an_address_that_the_cluster_needs_is_refused_also_when_that_is_known_later(
    world: World,
) -> None:
    world.apply(rule())
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}
    owners = world.inventory.address_owners
    assert owners.grants.addresses.keys() == {NINE}
    world.inventory.services.addresses.set_api_servers([NINE])
    world.inventory.settle()
    assert world.problem() == "spec.address: 192.0.2.9 is the address of an API server"
    assert (world.selected(), owners.grants.addresses) == ({}, {})
    world.inventory.services.addresses.set_api_servers([])
    world.inventory.settle()
    assert world.problem() == ""
    assert world.selected() == {"10.244.1.5": "192.0.2.9"}


def test_many_changed_nodes_are_looked_at_in_steps(world: World) -> None:
    for number in range(5):
        gateways = {"matchLabels": {"rack": str(number)}}
        world.apply(rule(f"r{number}", address=f"192.0.2.{number + 20}", gateways=gateways))
    egress = world.inventory.egress
    steps = sum(1 for _ in egress._find_gateways(["node1", "node2", "node3"]))
    assert steps >= 5 + 3, "one for each selector, and one for each node"
