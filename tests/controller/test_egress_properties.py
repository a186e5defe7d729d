"""Egress addresses in random histories: flows depend on what is there, not on how it came."""

import random
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import Desired
from controller.inventory import Inventory
from controller.sources.objects import from_manifest
from flows.compile import Program
from flows.view import Key
from tests.controller.events import (
    Event,
    Incremental,
    assert_same_in_any_order,
    port,
    set_object,
    set_port,
)
from tests.controller.test_egress import namespace, node, pod, rule

ADDRESSES = ("192.0.2.9", "192.0.2.9", "192.0.2.10", "10.0.2.9", "172.30.1.2", "10.244.0.9", "x")
NAMES = ("one", "two", "three")
PODS = {"a": ("node1", "10.244.1.5"), "b": ("node1", "10.244.1.6"), "c": ("node2", "10.244.2.5")}


def give(address: str, owner: str) -> Event:
    """As if the owners had decided so."""

    def event(inventory: Inventory) -> set[Key]:
        owners = inventory.address_owners
        owners.owners.pop(IPv4Address(address), None)
        if owner:
            owners.owners[IPv4Address(address)] = owner
        return owners.followers[0]([IPv4Address(address)])

    return event


def remove(kind: str, name: str) -> Event:
    return lambda inventory: inventory.remove_object(kind, "", name) | inventory.settle()


def unplug(name: str, sandbox: str) -> Event:
    on, address = PODS[name]
    old = port(name, f"u-{name}", sandbox, address, 16)
    return lambda inventory: inventory.remove_port(on, old.name)


def labelled(name: str, app: str) -> Event:
    return set_object(pod(name, PODS[name][0], app=app))


def plug(name: str, sandbox: str, ofport: int) -> Event:
    on, address = PODS[name]
    return set_port(on, port(name, f"u-{name}", sandbox, address, ofport))


selectors = st.sampled_from(
    (
        {},
        {"matchLabels": {"app": "web"}},
        {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
        {"matchLabels": {"-": ""}},
    )
)
rules = st.builds(
    lambda name, address, pods, namespaces, gateways, created: rule(
        name, address=address, podSelector=pods, namespaceSelector=namespaces, gateways=gateways,
        created=created,
    ),
    st.sampled_from(NAMES),
    st.sampled_from(ADDRESSES),
    selectors,
    st.sampled_from(({}, {"matchLabels": {"team": "a"}}, None)),
    st.sampled_from(({}, {"matchLabels": {"egress": "yes"}})),
    st.sampled_from((None, "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z")),
)  # fmt: skip
names = st.sampled_from(tuple(PODS))
sandboxes = st.sampled_from(("s1", "s2"))
nodes = st.builds(
    lambda number, label: node(number, **({"egress": "yes"} if label else {})),
    st.sampled_from((1, 2, 3)),
    st.booleans(),
)
events = st.one_of(
    *[rules.map(from_manifest).map(set_object)] * 3,
    st.builds(remove, st.just("EgressAddress"), st.sampled_from(NAMES)),
    st.sampled_from(("a", "b")).map(lambda team: set_object(namespace(team=team))),
    nodes.map(set_object),
    st.builds(remove, st.just("Node"), st.sampled_from(("node1", "node2", "node3"))),
    st.builds(labelled, names, st.sampled_from(("web", "db"))),
    *[st.builds(plug, names, sandboxes, st.sampled_from((16, 17, 18)))] * 2,
    st.builds(unplug, names, sandboxes),
    st.builds(
        give, st.sampled_from(ADDRESSES[:4]), st.sampled_from(("", "node1", "node2", "node3"))
    ),
)


class World(Incremental):
    """Also with what some nodes need, as `controller.compilation` has it."""

    def absorb(self, touched: set[Key]) -> None:
        if not hasattr(self, "desired"):
            self.desired = Desired(self.inventory.view)
        changed: dict[str, set[Key]] = {}
        for key in touched:
            of, holders = self.desired.touch(key) if key.scope else (key, [key.scope])
            for name in holders:
                changed.setdefault(name, set()).add(of)
        for scope, keys in changed.items():
            program = self.programs.setdefault(scope, Program(scope))
            program.update({key: self.desired.fragment(scope, key) for key in keys})


BEGIN = [
    *(set_object(node(number, egress="yes")) for number in (1, 2, 3)),
    set_object(namespace(team="a")),
    *(labelled(name, "web") for name in PODS),
    *(plug(name, "s1", 16 + number) for number, name in enumerate(PODS)),
]


@given(st.lists(events, max_size=15))
@settings(max_examples=40, deadline=None)
def test_incremental_equals_full(history: list[Event]) -> None:
    world = World()
    for event in BEGIN + history:
        world.take(event)
        assert world.state() == world.oracle()


things = st.tuples(
    st.lists(rules, unique_by=lambda made: made["metadata"]["name"]),
    st.lists(nodes, unique_by=lambda made: made.metadata.name),
    st.lists(names, unique=True),
).map(
    lambda made: [
        *(set_object(from_manifest(each)) for each in made[0]),
        *map(set_object, made[1]),
        set_object(namespace(team="a")),
        *(labelled(name, "web") for name in made[2]),
        *(plug(name, "s1", 16 + number) for number, name in enumerate(made[2])),
        give("192.0.2.9", "node2"),
    ]
)


@given(things, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_order_gives_the_same_flows(history: list[Event], chance: random.Random) -> None:
    assert_same_in_any_order(World, history, chance)
