"""Fragments that some nodes need: compiled once, encoded once, and part of each node's program."""

import dataclasses
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import Desired, batch_of
from flows.compile import Compiler
from flows.diff import Delta
from flows.view import Key
from openflow import templates
from tests.controller.world import controller, run
from tests.flows import toy, worlds
from tests.ovs import Ovs

NODES = [worlds.node(number) for number in (1, 2, 3)]
nodes = st.frozensets(st.sampled_from([node.name for node in NODES]))
names = st.sampled_from("xyz")


class World:
    """A view that is changed in place, and programs that follow it."""

    def __init__(self) -> None:
        self.view = toy.ToyView(worlds.CLUSTER, {}, {}, blocked={})
        self.desired = Desired(self.view, toy.TOY)
        self.compiled = 0
        self.needs: dict[str, set[str]] = {}

    def node(self, number: int) -> None:
        """It comes, or it goes."""
        node = NODES[number]
        known: Any = self.view.nodes
        if known.pop(node.name, None) is None:
            known[node.name] = node
        needed = {
            Key(node.name, toy.key(n).kind, n) for n in self.needs if node.name in self.needs[n]
        }
        self._settle({Key(node.name, "node", node.name), *needed})

    def block(self, name: str, number: int | None) -> None:
        """An object comes, changes or goes (None)."""
        blocked: Any = self.view.blocked
        blocked.pop(name, None)
        if number is not None:
            blocked[name] = toy.BlockedAddress(name, IPv4Address("192.0.2.0") + number)
        self._settle({toy.key(name)})

    def need(self, name: str, nodes: frozenset[str]) -> None:
        changed = self.needs.get(name, set()) ^ nodes
        self.needs[name] = set(nodes)
        self._settle({Key(node, toy.key(name).kind, name) for node in changed})

    def _settle(self, touched: set[Key]) -> None:
        """As an inventory does: `needed_by` names nodes of the view only."""
        needed: Any = self.view.needed_by
        for name, nodes in self.needs.items():
            needed[toy.key(name)] = nodes & self.view.nodes.keys()
        by_node: dict[str, list[Key]] = {}
        for key in touched:
            of, to = self.desired.touch(key)
            for node in to:
                by_node.setdefault(node, []).append(of)
        for node, keys in by_node.items():
            changes = {key: self.desired.fragment(node, key) for key in keys}
            self.desired.update_node(node, changes)


events = st.one_of(
    st.tuples(st.just("node"), st.integers(0, 2)),
    st.tuples(st.just("block"), names, st.none() | st.integers(1, 3)),
    st.tuples(st.just("need"), names, nodes),
)


@given(st.lists(events, max_size=30))
@settings(max_examples=300, deadline=None)
def test_incremental_equals_full(history: list[tuple[Any, ...]]) -> None:
    # Two objects may block one address: then one node's program refuses, which is another story.
    world = World()
    for event, *arguments in history:
        if event == "block" and arguments[1] is not None:
            arguments[1] = 10 * "xyz".index(arguments[0]) + arguments[1]
        getattr(world, event)(*arguments)
        for node in world.view.nodes:
            now, oracle = world.desired.program(node), toy.TOY.program(world.view, node)
            assert now.cookies.keys() == oracle.cookies.keys()
            assert now.seal == oracle.seal
            assert world.desired.of(node).keys() >= oracle.cookies.keys()
    for node in {each.name for each in NODES} - world.view.nodes.keys():
        assert not world.desired.program(node).cookies
    assert world.desired._some.keys() <= world.view.needed_by.keys()


def test_programs_hold_one_fragment_and_its_flows_are_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[object] = []
    compiled: list[Key] = []
    once, make = templates._ByShape.encoded, Compiler.fragment

    def counted(self: Any, subject: Any, xid: int) -> bytes:
        encoded.append(subject)
        return once(self, subject, xid)

    def fragment(self: Any, view: Any, key: Key) -> Any:
        compiled.append(key)
        return make(self, view, key)

    monkeypatch.setattr(templates._ByShape, "encoded", counted)
    monkeypatch.setattr(Compiler, "fragment", fragment)
    world = World()
    for number in range(3):
        world.node(number)
    world.block("x", 1)
    world.need("x", frozenset(world.view.nodes))
    programs = [world.desired.program(node) for node in world.view.nodes]
    held = [program._fragments[toy.key("x")] for program in programs]
    assert held[0] is held[1] is held[2]
    (flow,) = held[0].flows
    entries = [program.cookies[flow.cookie] for program in programs]
    assert entries[0] is entries[1] is entries[2]
    parts = [
        part.data
        for program in programs
        for part in batch_of(Delta(adds=(flow,)), program.seal, sealed=True).parts
    ]
    assert len(parts) == 3
    assert encoded.count(flow) == 1
    assert compiled.count(toy.key("x")) == 1


def test_switch_holds_only_what_its_node_needs(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.desired.COMPILER", toy.TOY)
    needed: dict[Key, set[str]] = {}

    async def story() -> None:
        async with controller(ovs) as world:
            await world.in_sync()
            before = world.cookies()
            desired, view = world.reconciler.desired, world.reconciler.inventory.view
            same = {each.name: getattr(view, each.name) for each in dataclasses.fields(view)}
            blocked = {"x": toy.BlockedAddress("x", IPv4Address("192.0.2.1"))}
            desired._view = toy.ToyView(**same | {"needed_by": needed}, blocked=blocked)
            for nodes, held in (({"node1"}, True), ({"node2"}, False)):
                needed[toy.key("x")] = nodes
                world.reconciler._absorb({Key("node1", toy.key("x").kind, "x")})
                await world.in_sync()
                dump = [line for line in ovs.dump() if "nw_dst=192.0.2.1" in line]
                assert len(dump) == held
                assert desired.program("node1").seal.cookie in world.cookies()
                assert (world.cookies() == before) == (not held)

    run(story)


def test_a_first_program_has_what_came_while_its_node_needed_it() -> None:
    """A member of a set that a node needs already: its own key changed, not what the node needs."""
    world = World()
    world.node(0)
    needed: Any = world.view.needed_by
    needed[toy.key("x")] = frozenset({NODES[0].name})
    world.desired.touch(toy.key("x"))
    assert toy.key("x") in world.desired.keys(NODES[0].name)
