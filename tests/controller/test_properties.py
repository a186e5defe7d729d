"""The flows depend on what is there, never on how it came to be there."""

import random
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from hypothesis import given, reject, settings
from hypothesis import strategies as st

from controller.inventory import Inventory
from controller.inventory.node_drafts import NodeRefusedError, draft_of
from controller.sources.objects import NodeObject
from flows import names
from flows.compile import Program, compile_scope, fragments
from flows.diff import GroupChange, diff
from flows.flow import Group
from flows.kinds import port_key
from flows.view import CLUSTER_SCOPE, Endpoint, Key, Service, ServicePort, Target
from tests.controller.events import (
    Event,
    Facts,
    Incremental,
    assert_same_in_any_order,
    events,
    node_object,
    node_objects,
    pod_objects,
    ports,
    remove_pod,
    remove_port,
    service_events,
    services,
    set_object,
    set_port,
    slices,
)
from tests.flows.worlds import CLUSTER

service_histories = st.lists(service_events, min_size=8, max_size=30)


@given(st.one_of(st.lists(events, max_size=40), service_histories))
@settings(max_examples=400, deadline=None)
def test_incremental_equals_full(history: list[Event]) -> None:
    world = Incremental()
    for event in history:
        world.take(event)
        assert world.state() == world.oracle()


@given(st.one_of(st.lists(events, max_size=40), service_histories))
@settings(max_examples=500, deadline=None)
def test_history_leaves_no_trace(history: list[Event]) -> None:
    """An inventory that has seen much equals one that was told only what is there now."""
    old, new, facts = Incremental(), Incremental(), Facts()
    for event in history:
        old.take(event)
        event(facts)  # type: ignore[arg-type]
    for event in facts.replay():
        new.take(event)
    assert old.state() == new.state()
    assert old.inventory.problems.texts() == new.inventory.problems.texts()
    assert old.inventory.view == new.inventory.view
    for node in ("node1", "node2"):
        hosts = [each.inventory.services.hosts.wanted(node) for each in (old, new)]
        assert hosts[0] == hosts[1]


things = st.tuples(
    st.lists(node_objects, unique_by=lambda n: n.metadata.name),
    st.lists(pod_objects, unique_by=lambda p: p.metadata.name),
    st.lists(st.tuples(st.sampled_from(("node1", "node2")), ports), unique_by=lambda p: p[1].name),
    st.lists(services, unique_by=lambda s: s.metadata.name),
    st.lists(slices, unique_by=lambda s: s.metadata.name),
).map(
    lambda all_: [
        *map(set_object, all_[0]),
        *map(set_object, all_[1]),
        *(set_port(node, port) for node, port in all_[2]),
        *map(set_object, all_[3]),
        *map(set_object, all_[4]),
    ]
)


@given(things, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_any_order_gives_the_same_flows(history: list[Event], chance: random.Random) -> None:
    assert_same_in_any_order(Incremental, history, chance)


def choices(inventory: Inventory, node: str) -> dict[str, object]:
    """By Service, all that this node could choose by, where it has a choice of its own."""
    return {
        name: [
            (replace(port, endpoints=()), hints_of(port), own_endpoints(port, node))
            for port in inventory.view.services[name].ports
            if node in port.nodes_with_a_choice()
        ]
        for name in inventory.view.local_services.get(node, ())
    }


def hints_of(port: ServicePort) -> object:
    """Whether those that name nodes hold."""
    ready = [endpoint for endpoint in port.endpoints if endpoint.ready]
    return "node" in port.groups and bool(ready) and all(endpoint.nodes for endpoint in ready)


def own_endpoints(port: ServicePort, node: str) -> list[Endpoint]:
    return [e for e in port.endpoints if node == e.node or node in e.nodes]


def ports_of(service: Service | None) -> dict[str, ServicePort]:
    return {port_key(port): port for port in (service.ports if service else ())}


def fronts(service: Service | None) -> list[object]:
    return [(port_key(port), port.frontends) for port in (service.ports if service else ())]


@given(service_histories)
@settings(max_examples=300, deadline=None)
def test_all_that_changed_of_services_is_touched(history: list[Event]) -> None:
    world = Incremental()
    inventory = world.inventory
    scopes = ("node1", "node2", "node3", "node9")
    for event in history:
        services_before = dict(inventory.view.services)
        choices_before = {node: choices(inventory, node) for node in scopes}
        hosts_before = {node: host(inventory, node) for node in scopes}
        targets_before = targets(inventory)
        touched = event(inventory)
        services_after = inventory.view.services
        for name in services_before.keys() | services_after.keys():
            before, after = services_before.get(name), services_after.get(name)
            of_it = {
                key
                for key in touched
                if key.scope == CLUSTER_SCOPE and key.name.split(" ")[0] == name
            }
            assert bool(of_it) == (before != after)
            assert fronts(before) == fronts(after) or Key(CLUSTER_SCOPE, "service", name) in of_it
            ports_before, ports_after = ports_of(before), ports_of(after)
            for key in ports_before.keys() | ports_after.keys():
                same = ports_before.get(key) == ports_after.get(key)
                assert same != (Key(CLUSTER_SCOPE, "service-port", f"{name} {key}") in of_it)
        for node in scopes:
            choices_after = choices(inventory, node)
            for name in choices_before[node].keys() | choices_after.keys():
                if choices_before[node].get(name) != choices_after.get(name):
                    assert Key(node, "service", name) in touched
            (revision, before), (newer, after) = hosts_before[node], host(inventory, node)
            assert before == after or revision != newer
        ids = [
            number
            for each in services_after.values()
            for port in each.ports
            for number in port.groups.values()
        ]
        assert len(ids) == len(set(ids)) == len(inventory.services._groups)
        targets_after = targets(inventory)
        assert inventory.view.targets == {str(target): target for target in targets_after}
        for target in targets_before ^ targets_after:
            assert Key(CLUSTER_SCOPE, "target", str(target)) in touched


def targets(inventory: Inventory) -> set[Target]:
    """Anew, where all endpoints are."""
    return {
        Target.of(endpoint, port.protocol, inventory.view.cluster.pod_range)
        for each in inventory.view.services.values()
        for port in each.ports
        for endpoint in port.endpoints
    }


def host(inventory: Inventory, node: str) -> tuple[object, object]:
    return inventory.services.hosts.revision(node), inventory.services.hosts.wanted(node)


def draft_of_or_skip(node: NodeObject) -> None:
    try:
        draft_of(node, CLUSTER, [("the Service range", CLUSTER.service_range)])
    except NodeRefusedError:
        reject()


def attachments(world: Incremental) -> set[tuple[str, str]]:
    return {
        (node, port) for node, ports in world.inventory.view.attachments.items() for port in ports
    }


@given(st.lists(events, max_size=25), node_objects, pod_objects)
@settings(max_examples=200, deadline=None)
def test_apply_then_revert_changes_nothing(history, node, pod) -> None:  # type: ignore[no-untyped-def]
    world = Incremental()
    for event in history:
        world.take(event)
    before = world.state()
    for item, kind in ((node, "Node"), (pod, "Pod")):
        old = {
            "Node": world.inventory.nodes.objects.get(item.metadata.name),
            "Pod": world.inventory.pod("default", item.metadata.name),
        }[kind]
        if isinstance(old, NodeObject):
            # A Node that cannot be used keeps its last usable state.
            draft_of_or_skip(old)
        attached = attachments(world)
        world.take(set_object(item))
        if attachments(world) - attached:
            return  # an attachment that was accepted lasts as long as its port
        if old is not None:
            world.take(set_object(old))
        else:
            world.take(
                lambda i, item=item, kind=kind: (
                    i.remove_object(kind, item.metadata.namespace, item.metadata.name) | i.settle()
                )
            )
    assert world.state() == before


@given(st.one_of(st.lists(events, max_size=25), service_histories))
@settings(max_examples=200, deadline=None)
def test_a_restart_that_changed_nothing_sends_nothing(history: list[Event]) -> None:
    world = Incremental()
    for event in history:
        world.take(event)
    view = world.inventory.view
    for node in view.nodes:
        shared, own = compile_scope(view, CLUSTER_SCOPE), compile_scope(view, node)
        held = [world.programs[scope] for scope in (CLUSTER_SCOPE, node)]
        installed = {cookie for program in held for cookie in program.cookies}
        groups = {n: group for program in held for n, group in program.groups.items()}
        desired = {f.cookie: f for f in (*shared.flows(), *own.flows())}
        wanted = {**shared.groups, **own.groups}
        assert len(wanted) == len(shared.groups) + len(own.groups)
        assert not diff(installed, held[1].meters, groups, desired, own.meters, wanted)


@given(st.one_of(st.lists(events, max_size=25), service_histories))
@settings(max_examples=200, deadline=None)
def test_deltas_add_up(history: list[Event]) -> None:
    """What a switch holds after all deltas is what the program says."""
    world = Incremental()
    held: dict[str, set[int]] = {}
    groups: dict[str, dict[int, Group]] = {}
    programs: dict[str, Program] = {}
    for event in history:
        touched = event(world.inventory)
        for scope in {key.scope for key in touched}:
            keys = [key for key in touched if key.scope == scope]
            program = programs.setdefault(scope, Program(scope))
            delta = program.update(fragments(world.inventory.view, keys))
            cookies = held.setdefault(scope, set())
            assert not cookies & {flow.cookie for flow in delta.adds}
            cookies |= {flow.cookie for flow in delta.adds}
            assert cookies >= set(delta.deletes)
            cookies -= set(delta.deletes)
            assert cookies == program.cookies.keys()
            held_groups = groups.setdefault(scope, {})
            for change in delta.groups_set:
                assert change.old == held_groups.get(change.new.id) != change.new
                held_groups[change.new.id] = changed(change)
            for number in delta.groups_delete:
                del held_groups[number]
            assert held_groups == program.groups


def changed(change: GroupChange) -> Group:
    """What a switch that holds the old group makes of what is sent."""
    if (edits := change.buckets()) is None:
        return change.new
    assert change.old is not None
    removed, inserted = edits
    kept = [bucket for bucket in change.old.buckets if bucket.id not in removed]
    assert len(kept) == len(change.old.buckets) - len(removed)
    ordered = tuple(sorted((*kept, *inserted), key=lambda bucket: bucket.id))
    return replace(change.old, buckets=ordered)


def test_history_leaves_no_trace_where_pods_collide() -> None:
    """Digests of so few bits that pods of one uid have the same ports."""
    digest = names.pod_port_prefix

    def short(_: str, __: str, uid: str, ifname: str = "eth0") -> str:
        return digest("", "", uid, ifname)

    few = st.one_of(
        pod_objects.map(set_object),
        ports.map(partial(set_port, "node1")),
        st.sampled_from(("a", "b", "c")).map(remove_pod),
        ports.map(partial(remove_port, "node1")),
    )
    node = set_object(node_object("node1", "10.244.1.0/24", "172.30.1.1"))

    @given(st.lists(few, min_size=5, max_size=30))
    @settings(max_examples=300, deadline=None)
    def leaves_no_trace(history: list[Event]) -> None:
        old, new, facts = Inventory(CLUSTER), Inventory(CLUSTER), Facts()
        history.insert(0, node)
        for event in history:
            event(old)
            event(facts)  # type: ignore[arg-type]
        for event in facts.replay():
            event(new)
        assert old.view.attachments == new.view.attachments
        assert old.problems.texts() == new.problems.texts()

    # Also while histories are drawn: they hold names of ports.
    with patch.object(names, "pod_port_prefix", short):
        leaves_no_trace()
