"""Which Events are due, by a clock of the test's own."""

from collections.abc import Iterable
from ipaddress import IPv4Address

import pytest

from controller.events import (
    CALM,
    IN_ORDER,
    MOST,
    PERIOD,
    REPEAT,
    SETTLE,
    Account,
    Problem,
    Regarding,
    Telling,
    problems_of,
)
from controller.inventory import BridgePort, Inventory
from controller.kubernetes_api import MERGE
from flows import names
from tests.controller.events import node_object, pod_object
from tests.controller.service_objects import endpoint_slice, service
from tests.flows.worlds import CLUSTER

A = Problem(Regarding("Node", "", "node1", "n1"), "NodeRefused", "spec.podCIDR is missing")
B = A._replace(sentence="spec.podCIDR 10.0.0.0/24 is outside the pod range 10.244.0.0/16")
POD = Problem(Regarding("Pod", "default", "a", "u"), "AttachmentFailed", "no address")


def inventory() -> Inventory:
    made = Inventory(CLUSTER)
    made.set_object(node_object("node1", "10.244.1.0/24", "172.30.1.1", uid="n1"))
    made.set_object(pod_object("a", "node1"))
    made.set_object(service("s", uid="s1"))
    made.set_object(endpoint_slice("s-1", "s", []))
    made.settle()
    return made


class Story:
    """An API server that takes whatever it is told."""

    def __init__(self) -> None:
        self.account = Account()
        self.inventory = inventory()
        self.now = 0.0
        self.said: list[tuple[str, str, int]] = []

    def after(self, seconds: float, *problems: Problem) -> list[Telling]:
        """Looks every two seconds with these problems; what was told in the end."""
        end = self.now + seconds
        told: list[Telling] = []
        while self.now < end:
            self.now = min(self.now + 2, end)
            for telling in self.account.look(problems, self.inventory, self.now):
                self.account.told(telling, self.now)
                told.append(telling)
        return told


def sentences(told: Iterable[Telling]) -> list[str]:
    return [each.problem.sentence for each in told]


FINE = "the network of this Node is in order again"


def test_a_problem_and_its_end_are_told_once() -> None:
    story = Story()
    assert story.after(SETTLE, A) == []
    (told,) = story.after(60, A)
    assert (told.problem, told.times) == (A, 1)
    assert story.after(CALM - 2) == []
    (ended,) = story.after(10)
    assert (ended.problem.reason, ended.problem.sentence) == (IN_ORDER, FINE)
    assert story.after(3 * REPEAT) == []


def test_what_passes_is_not_told() -> None:
    story = Story()
    assert story.after(SETTLE, A) + story.after(3 * CALM) == []


def test_what_comes_and_goes_is_told_once_a_period() -> None:
    story = Story()
    told = []
    while story.now < PERIOD:
        told += story.after(6, A) + story.after(6)
    assert sentences(told) == [A.sentence], "gaps are no ends"
    story.after(2 * CALM)

    story, told = Story(), []
    while story.now < 3 * PERIOD:
        told += story.after(CALM, A) + story.after(2 * CALM)
    warnings = [each for each in told if each.problem == A]
    assert len(warnings) == 3
    assert len({each.event for each in warnings}) <= 3
    # Of each Warning the end is told, and of what was not told none.
    assert sentences(told) == [A.sentence, FINE] * 3


def test_what_comes_back_and_stays_is_told_again_after_a_period() -> None:
    story = Story()
    (first,) = story.after(10, A)
    (ended,) = story.after(2 * CALM)
    assert ended.problem.reason == IN_ORDER
    assert story.after(PERIOD - 2 * CALM - 10, A) == []
    (again,) = story.after(20, A)
    assert (again.event, again.times) == (first.event, 2)


def test_what_lasts_is_told_again_before_it_is_forgotten() -> None:
    story = Story()
    told = story.after(2.5 * REPEAT, A)
    assert [(each.event, each.times) for each in told] == [
        (told[0].event, times) for times in (1, 2, 3)
    ]
    write = told[-1].write("here")
    assert (write.method, write.content_type) == ("PATCH", MERGE)
    assert write.path.endswith(f"/namespaces/default/events/{told[0].event}")
    assert write.body["series"]["count"] == 3


def test_another_sentence_is_told_and_is_no_end() -> None:
    story = Story()
    assert sentences(story.after(10, A) + story.after(2 * CALM, B)) == [A.sentence, B.sentence]
    assert sentences(story.after(2 * CALM)) == [FINE]


def test_an_event_that_is_gone_is_told_anew() -> None:
    story = Story()
    (first,) = story.after(10, A)
    story.now += REPEAT - 4
    (again,) = story.account.look([A], story.inventory, story.now + 4)
    assert again.times == 2
    story.account.lost(again)
    (anew,) = story.after(SETTLE + 2, A)
    assert anew.times == 1
    assert anew.event != first.event


def test_the_end_is_told_of_the_same_object_only() -> None:
    for replace in (True, False):
        story = Story()
        story.after(10, POD)
        story.inventory.remove_object("Pod", "default", "a")
        if replace:
            story.inventory.set_object(pod_object("a", "node1", uid="another"))
        assert story.after(3 * CALM) == []
        assert not story.account._uneasy


def test_what_could_not_be_told_is_told_later() -> None:
    story = Story()
    for now in range(0, 100, 2):
        due = story.account.look([A], story.inventory, now)
    assert sentences(due) == [A.sentence]
    assert story.account.untold == 1
    story.now = 100
    assert len(story.after(10, A)) == 1
    assert story.account.untold == 0


def test_many_problems_are_bounded() -> None:
    story = Story()
    many = [A._replace(regarding=A.regarding._replace(uid=str(n))) for n in range(2 * MOST)]
    for now in (0.0, SETTLE):
        due = story.account.look(many, story.inventory, now)
    assert len(due) == MOST
    assert len(story.account._spells) == MOST
    assert story.account.untold == 2 * MOST
    for telling in due:
        story.account.told(telling, SETTLE)
    # The others' turn comes when these are over, and nothing is kept of those for ever.
    rest = many[MOST:]
    for now in (SETTLE + CALM, SETTLE + CALM + 2, 2 * SETTLE + CALM + 2):
        due = list(story.account.look(rest, story.inventory, now))
    assert {each.problem for each in due} == set(rest)
    for now in (PERIOD * 2, PERIOD * 2 + CALM):
        story.account.look([], story.inventory, now)
    assert story.account._spells == story.account._told == story.account._uneasy == {}


def test_an_event_as_the_api_takes_it() -> None:
    story = Story()
    long = POD._replace(sentence="\N{EURO SIGN}" * 1000)
    (told,) = story.after(10, long)
    write = told.write("h" * 300)
    assert write.method == "POST"
    assert write.path == "/apis/events.k8s.io/v1/namespaces/default/events"
    body = write.body
    assert body["regarding"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "a", "uid": "u"
    }  # fmt: skip
    assert (body["type"], body["reason"]) == ("Warning", "AttachmentFailed")
    assert len(str(body["note"]).encode()) <= 1024
    assert str(body["note"]) in long.sentence
    assert len(str(body["reportingInstance"])) == 128
    (node,) = Story().after(10, A)
    assert "namespace" not in node.write("here").body["regarding"]
    slice_ = Problem(
        Regarding("EndpointSlice", "default", "s-1", "uid-s-1"), "EndpointsRefused", ""
    )
    (told,) = story.after(10, slice_)
    assert told.write("here").body["regarding"]["apiVersion"] == "discovery.k8s.io/v1"
    (ended,) = story.after(2 * CALM, long)
    assert ended.problem.sentence == "the network of this EndpointSlice is in order again"


PORT = names.port_name("default", "a", "u", "eth0", "sandbox")


@pytest.mark.parametrize(
    ("subject", "kind", "name", "reason", "sentence"),
    [
        ("Node node1", "Node", "node1", "NodeRefused", "why"),
        ("Pod default/a", "Pod", "a", "PodRefused", "why"),
        ("Pod default/a on node1", "Pod", "a", "AttachmentFailed", "why"),
        ("Pod default/a on the switch of node1", "Pod", "a", "FlowsRefused", "why"),
        ("Node node1 on the switch of node2", "Node", "node1", "FlowsRefused",
         "on the switch of node2, why"),
        ("Service default/s", "Service", "s", "ServiceRefused", "why"),
        ("EndpointSlice default/s-1", "EndpointSlice", "s-1", "EndpointsRefused", "why"),
        ("Service default/s on the switch of node2", "Service", "s", "FlowsRefused",
         "on the switch of node2, why"),
        ("agent of node1", "Node", "node1", "NodeNotSetUp", "why"),
        ("flows of node1", "Node", "node1", "FlowsNotCompiled", "why"),
        (f"port {PORT} of node1", "Pod", "a", "PortRefused", f"port {PORT}: why"),
    ],
)  # fmt: skip
def test_whom_a_problem_concerns(
    subject: str, kind: str, name: str, reason: str, sentence: str
) -> None:
    (found,) = problems_of(inventory(), {subject: "why"})
    assert (found.regarding.kind, found.regarding.name) == (kind, name)
    uids = {"Node": "n1", "Pod": "u", "Service": "s1", "EndpointSlice": "uid-s-1"}
    assert found.regarding.uid == uids[kind]
    assert (found.reason, found.sentence) == (reason, sentence)


@pytest.mark.parametrize(
    "subject",
    [
        "Node node9",
        "Service default/t",
        "EndpointSlice default/t-1",
        "Pod default/b on node1",
        "port pabcdefghijklmn of node1",
        "flows of every node",
        "switch 0000000000000001 at 1.2.3.4:5",
        "file pods/a.yaml",
        "API server /api/v1/pods",
    ],
)
def test_whom_no_event_could_be_about(subject: str) -> None:
    assert list(problems_of(inventory(), {subject: "why"})) == []


def test_subjects_are_those_of_the_inventory() -> None:
    made = inventory()
    made.set_object(node_object("node2", "", "172.30.1.2", uid="n2"))
    made.set_port("node1", BridgePort(PORT, 17, names.mac_of(IPv4Address("10.244.9.9"))))
    made.set_object(service("s", uid="s1", clusterIP=""))
    made.set_object(endpoint_slice("s-1", "s", ["127.0.0.1"]))
    made.settle()
    regarded = {p.regarding.name for p in problems_of(made, made.problems)}
    assert regarded == {"node2", "a", "s", "s-1"}
