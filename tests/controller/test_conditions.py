"""When a Node's condition NetworkUnavailable is patched, and to what."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from controller.agent_problems import take_problems
from controller.conditions import AGAIN, GRACE, READY, Conditions
from controller.inventory import Inventory
from controller.kubernetes_api import STRATEGIC
from controller.reconciler import Reconciler
from controller.sources.objects import NodeCondition, NodeObject
from settings import EXCLUDED_NODES
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER
from wire.documents import NodeProblems


class Story:
    """A controller that knows node1."""

    def __init__(self, cidr: str = "10.244.1.0/24", uid: str = "n1") -> None:
        self.reconciler = Reconciler(Inventory(CLUSTER))
        self.conditions = Conditions(self.reconciler)
        self.node = node_object("node1", cidr, "172.30.1.1", uid=uid)
        self.reconciler.update([self.node], [])

    def shows(self, condition: NodeCondition) -> None:
        """The API server says so."""
        ready = NodeCondition("Ready", "True")
        status = msgspec.structs.replace(self.node.status, conditions=[ready, condition])
        self.node = msgspec.structs.replace(self.node, status=status)
        self.reconciler.update([self.node], [])

    def switch(self, *, synced: bool) -> None:
        session = SimpleNamespace(was_synced=synced, wake=lambda: None)
        self.reconciler.sessions["node1"] = cast("Any", session)

    def due(self, now: float) -> dict[str, Any] | None:
        """What node1 is patched to."""
        found = self.conditions.due(now)
        if not found:
            return None
        (self.patch,) = found
        write = self.patch.write
        assert self.patch.node == "node1"
        assert (write.method, write.content_type) == ("PATCH", STRATEGIC)
        assert write.path == "/api/v1/nodes/node1/status"
        body = msgspec.json.decode(msgspec.json.encode(write.body))
        assert body["metadata"] == {"uid": "n1"}
        (condition,) = body["status"]["conditions"]
        assert condition["type"] == "NetworkUnavailable"
        return cast("dict[str, Any]", condition)


def is_(condition: dict[str, Any] | None) -> tuple[str, str]:
    assert condition
    return condition["status"], condition["reason"]


def test_cleared_when_the_switch_holds_its_flows() -> None:
    story = Story()
    story.switch(synced=True)
    assert is_(story.due(0)) == ("False", "SluiceReady")
    story.shows(READY)
    assert story.due(1) is None


def test_condition_stays_false() -> None:
    other = NodeCondition("NetworkUnavailable", "False", "RouteCreated")
    for said in (READY, other):
        story = Story()
        story.shows(said)
        assert story.due(0) is None
        assert story.due(GRACE * 10) is None, "no session, and none for long"
        story.switch(synced=False)
        assert story.due(GRACE * 20) is None
    story.switch(synced=True)
    assert is_(story.due(GRACE * 20)) == ("False", "SluiceReady")


def test_condition_says_why_a_node_has_no_network() -> None:
    story = Story()
    assert story.due(0) is None
    assert story.due(GRACE - 1) is None, "it may be just coming"
    assert is_(story.due(GRACE)) == ("True", "NotConnected")
    story.switch(synced=False)
    assert is_(story.due(GRACE)) == ("True", "FlowsNotInstalled")
    take_problems(
        story.reconciler.inventory, "node1", NodeProblems(node="its address is on no interface")
    )
    condition = story.due(GRACE)
    assert is_(condition) == ("True", "NodeNotSetUp")
    assert condition
    assert condition["message"] == "its address is on no interface"


def test_condition_says_why_a_node_is_refused() -> None:
    story = Story(cidr="")
    assert story.due(0) is None
    condition = story.due(GRACE)
    assert is_(condition) == ("True", "NodeRefused")
    assert condition
    assert condition["message"] == "spec.podCIDR is missing"


def test_transition_time_changes_with_the_status_only() -> None:
    since = "2026-01-02T03:04:05Z"
    story = Story()
    story.shows(NodeCondition("NetworkUnavailable", "True", "NodeRefused", "x", since))
    assert story.due(0) is None
    condition = story.due(GRACE)
    assert is_(condition) == ("True", "NotConnected")
    assert condition
    assert condition["lastTransitionTime"] == since
    assert condition["lastHeartbeatTime"] > since
    story.switch(synced=True)
    condition = story.due(GRACE)
    assert condition
    assert condition["lastTransitionTime"] == condition["lastHeartbeatTime"]


def test_patch_without_effect_is_repeated_after_a_while() -> None:
    story = Story()
    story.switch(synced=True)
    assert story.due(0)
    story.conditions.patched(story.patch, 0)
    assert story.due(AGAIN - 1) is None
    assert story.due(AGAIN)


def test_different_patch_is_sent_at_once() -> None:
    story = Story()
    assert story.due(0) is None
    assert is_(story.due(GRACE)) == ("True", "NotConnected")
    story.conditions.patched(story.patch, GRACE)
    assert story.due(GRACE + 1) is None
    story.switch(synced=True)
    assert is_(story.due(GRACE + 1)) == ("False", "SluiceReady")


def test_node_that_waited_longest_is_patched_first() -> None:
    story = Story()
    story.reconciler.update([node_object("node2", "", "172.30.1.2", uid="n2")], [])
    assert story.conditions.due(0) == []

    def due(now: float) -> list[str]:
        return [patch.node for patch in story.conditions.due(now)]

    one, two = story.conditions.due(GRACE)
    story.conditions.patched(one, GRACE)
    assert due(GRACE + AGAIN) == [two.node, one.node]
    story.conditions.patched(two, GRACE + 1)
    assert due(GRACE + AGAIN + 1) == [one.node, two.node]


def test_removed_node_is_forgotten() -> None:
    story = Story()
    assert story.due(0) is None
    assert story.due(GRACE)
    story.conditions.patched(story.patch, GRACE)
    story.reconciler.update([], [("Node", "", "node1")])
    assert story.due(1) is None
    assert story.conditions._since == story.conditions._patched == {}


def test_changed_condition_does_not_change_the_view() -> None:
    story = Story()
    story.shows(READY)
    assert story.reconciler.inventory.node_objects["node1"].network_unavailable == READY
    inventory = Inventory(CLUSTER)
    inventory.set_object(story.node)
    assert inventory.settle()
    other = msgspec.structs.replace(READY, status="True")
    status = msgspec.structs.replace(story.node.status, conditions=[other])
    inventory.set_object(msgspec.structs.replace(story.node, status=status))
    assert not inventory.nodes._dirty
    assert inventory.node_objects["node1"].network_unavailable == other


def test_condition_has_the_form_of_the_api() -> None:
    data = (
        b'{"metadata":{"name":"n"},"status":{"conditions":[{"type":"NetworkUnavailable","status":'
        b'"False","lastHeartbeatTime":null,"lastTransitionTime":null}]}}'
    )
    made = msgspec.json.decode(data, type=NodeObject)
    assert made.network_unavailable == NodeCondition("NetworkUnavailable", "False")


@pytest.mark.parametrize(
    "labels",
    [
        {"kubernetes.io/os": "windows"},
        {"type": "virtual-kubelet"},
        {"sluice.dev/excluded": ""},
        {"sluice.dev/excluded": "true"},
    ],
)
def test_node_without_sluice_gets_no_condition(labels: dict[str, str]) -> None:
    node = node_object("node1", "10.244.1.0/24", "172.30.1.1")
    node = replace(node, metadata=replace(node.metadata, labels=labels))
    reconciler = Reconciler(Inventory(CLUSTER, excluded=EXCLUDED_NODES))
    reconciler.update([node], [])
    conditions = Conditions(reconciler)
    for now in (0, 100):
        assert not conditions.due(now)
    assert not reconciler.inventory.view.nodes
    assert not list(reconciler.problems)
    # Without the label it takes part, and its condition is due.
    node = replace(node, metadata=replace(node.metadata, labels={"kubernetes.io/os": "linux"}))
    reconciler.update([node], [])
    assert not conditions.due(101)
    assert conditions.due(201)
    assert set(reconciler.inventory.view.nodes) == {"node1"}


def test_problem_of_a_node_that_takes_part_is_not_why_it_waits() -> None:
    story = Story()
    story.due(0)
    status = replace(story.node.status, addresses=[])
    story.reconciler.update([replace(story.node, status=status)], [])
    assert story.reconciler.problems.texts()["Node node1"].startswith("status.addresses holds no")
    assert is_(story.due(100)) == ("True", "NotConnected")
