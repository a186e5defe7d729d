"""Which Events are due, by a clock of the test's own."""

from collections.abc import Iterable
from ipaddress import IPv4Address

import pytest

from controller.events import (
    IN_ORDER,
    MOST,
    PERIOD,
    REPEAT,
    RESOLVED_AFTER,
    SETTLE,
    Account,
    Notice,
    Regarding,
    Telling,
    notices_of,
)
from controller.inventory import BridgePort, Inventory
from controller.kubernetes_api import MERGE
from controller.problems import (
    ApiPathRef,
    FileRef,
    PortRef,
    Reporter,
    ReporterKind,
    Subject,
    SwitchRef,
)
from controller.sources.objects import from_manifest
from controller.sources.routed_objects import GROUP_VERSION
from flows import names
from flows.refs import CLUSTER as CLUSTER_REF
from flows.refs import ObjectRef
from tests.controller.events import node_object, pod_object
from tests.controller.service_objects import endpoint_slice, service
from tests.flows.worlds import CLUSTER

A = Notice(Regarding("Node", "", "node1", "n1"), "NodeRefused", "spec.podCIDR is missing")
B = A._replace(sentence="spec.podCIDR 10.0.0.0/24 is outside the pod range 10.244.0.0/16")
POD = Notice(Regarding("Pod", "default", "a", "u"), "AttachmentFailed", "no address")


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

    def after(self, seconds: float, *notices: Notice) -> list[Telling]:
        """Looks every two seconds with these notices; what was told in the end."""
        end = self.now + seconds
        told: list[Telling] = []
        while self.now < end:
            self.now = min(self.now + 2, end)
            for telling in self.account.look(notices, self.inventory, self.now):
                self.account.told(telling, self.now)
                told.append(telling)
        return told


def sentences(told: Iterable[Telling]) -> list[str]:
    return [each.notice.sentence for each in told]


FINE = "the network of this Node is in order again"


def test_problem_and_its_end_have_one_event_each() -> None:
    story = Story()
    assert story.after(SETTLE, A) == []
    (told,) = story.after(60, A)
    assert (told.notice, told.times) == (A, 1)
    assert story.after(RESOLVED_AFTER - 2) == []
    (ended,) = story.after(10)
    assert (ended.notice.reason, ended.notice.sentence) == (IN_ORDER, FINE)
    assert story.after(3 * REPEAT) == []


def test_short_problem_has_no_event() -> None:
    story = Story()
    assert story.after(SETTLE, A) + story.after(3 * RESOLVED_AFTER) == []


def test_flapping_problem_has_one_event_per_period() -> None:
    story = Story()
    told = []
    while story.now < PERIOD:
        told += story.after(6, A) + story.after(6)
    assert sentences(told) == [A.sentence], "gaps are no ends"
    story.after(2 * RESOLVED_AFTER)

    story, told = Story(), []
    while story.now < 3 * PERIOD:
        told += story.after(RESOLVED_AFTER, A) + story.after(2 * RESOLVED_AFTER)
    warnings = [each for each in told if each.notice == A]
    assert len(warnings) == 3
    assert len({each.event for each in warnings}) <= 3
    # Of each Warning the end is told, and of what was not told none.
    assert sentences(told) == [A.sentence, FINE] * 3


def test_returning_problem_has_another_event_after_the_period() -> None:
    story = Story()
    (first,) = story.after(10, A)
    (ended,) = story.after(2 * RESOLVED_AFTER)
    assert ended.notice.reason == IN_ORDER
    assert story.after(PERIOD - 2 * RESOLVED_AFTER - 10, A) == []
    (again,) = story.after(20, A)
    assert (again.event, again.times) == (first.event, 2)


def test_event_of_a_lasting_problem_is_repeated() -> None:
    story = Story()
    told = story.after(2.5 * REPEAT, A)
    assert [(each.event, each.times) for each in told] == [
        (told[0].event, times) for times in (1, 2, 3)
    ]
    write = told[-1].write("here")
    assert (write.method, write.content_type) == ("PATCH", MERGE)
    assert write.path.endswith(f"/namespaces/default/events/{told[0].event}")
    assert write.body["series"]["count"] == 3


def test_changed_sentence_is_a_new_event_and_not_an_end() -> None:
    story = Story()
    assert sentences(story.after(10, A) + story.after(2 * RESOLVED_AFTER, B)) == [
        A.sentence,
        B.sentence,
    ]
    assert sentences(story.after(2 * RESOLVED_AFTER)) == [FINE]


def test_deleted_event_is_written_again() -> None:
    story = Story()
    (first,) = story.after(10, A)
    story.now += REPEAT - 4
    (again,) = story.account.look([A], story.inventory, story.now + 4)
    assert again.times == 2
    story.account.lost(again)
    (anew,) = story.after(SETTLE + 2, A)
    assert anew.times == 1
    assert anew.event != first.event


def test_end_is_written_for_the_same_object_only() -> None:
    for replace in (True, False):
        story = Story()
        story.after(10, POD)
        story.inventory.remove_object("Pod", "default", "a")
        if replace:
            story.inventory.set_object(pod_object("a", "node1", uid="another"))
        assert story.after(3 * RESOLVED_AFTER) == []
        assert not story.account._objects_with_problem


def test_event_that_could_not_be_written_is_written_later() -> None:
    story = Story()
    for now in range(0, 100, 2):
        due = story.account.look([A], story.inventory, now)
    assert sentences(due) == [A.sentence]
    assert story.account.untold == 1
    story.now = 100
    assert len(story.after(10, A)) == 1
    assert story.account.untold == 0


def test_events_of_many_problems_are_bounded() -> None:
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
    for now in (
        SETTLE + RESOLVED_AFTER,
        SETTLE + RESOLVED_AFTER + 2,
        2 * SETTLE + RESOLVED_AFTER + 2,
    ):
        due = list(story.account.look(rest, story.inventory, now))
    assert {each.notice for each in due} == set(rest)
    for now in (PERIOD * 2, PERIOD * 2 + RESOLVED_AFTER):
        story.account.look([], story.inventory, now)
    assert story.account._spells == story.account._told == story.account._objects_with_problem == {}


def test_event_has_the_form_of_the_api() -> None:
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
    slice_ = Notice(Regarding("EndpointSlice", "default", "s-1", "uid-s-1"), "EndpointsRefused", "")
    (told,) = story.after(10, slice_)
    assert told.write("here").body["regarding"]["apiVersion"] == "discovery.k8s.io/v1"
    (ended,) = story.after(2 * RESOLVED_AFTER, long)
    assert ended.notice.sentence == "the network of this EndpointSlice is in order again"


PORT = names.port_name("default", "a", "u", "eth0", "sandbox")


NODE1 = ObjectRef.node("node1")
POD_A = ObjectRef("Pod", "default", "a")
SERVICE = ObjectRef("Service", "default", "s")
SWITCH = Reporter(ReporterKind.SWITCH, "node2", 7)
INVENTORY = Reporter(ReporterKind.INVENTORY)
SOURCE = Reporter(ReporterKind.SOURCE)


@pytest.mark.parametrize(
    ("reporter", "subject", "name", "reason", "sentence"),
    [
        (INVENTORY, NODE1, "node1", "NodeProblem", "why"),
        (SOURCE, POD_A, "a", "PodRefused", "why"),
        (Reporter(ReporterKind.AGENT, "node1"), POD_A, "a", "AttachmentFailed", "why"),
        (SWITCH, POD_A, "a", "FlowsRefused", "why"),
        (SWITCH, NODE1, "node1", "FlowsRefused", "on the switch of node2, why"),
        (INVENTORY, SERVICE, "s", "ServiceRefused", "why"),
        (INVENTORY, ObjectRef("EndpointSlice", "default", "s-1"), "s-1", "EndpointsRefused", "why"),
        (SWITCH, SERVICE, "s", "FlowsRefused", "on the switch of node2, why"),
        (Reporter(ReporterKind.AGENT, "node1"), NODE1, "node1", "NodeNotSetUp", "why"),
        (Reporter(ReporterKind.COMPILER, "node1"), NODE1, "node1", "FlowsNotCompiled", "why"),
        (Reporter(ReporterKind.PORTS, "node1"), PortRef("node1", PORT), "a", "PortRefused",
         f"port {PORT}: why"),
    ],
)  # fmt: skip
def test_event_names_the_object_of_its_problem(
    reporter: Reporter, subject: Subject, name: str, reason: str, sentence: str
) -> None:
    made = inventory()
    made.problems.set(reporter, subject, "why")
    (found,) = notices_of(made, made.problems)
    kind = subject.kind if isinstance(subject, ObjectRef) else "Pod"
    assert (found.regarding.kind, found.regarding.name) == (kind, name)
    uids = {"Node": "n1", "Pod": "u", "Service": "s1", "EndpointSlice": "uid-s-1"}
    assert found.regarding.uid == uids[kind]
    assert (found.reason, found.sentence) == (reason, sentence)


@pytest.mark.parametrize(
    ("reporter", "subject"),
    [
        (INVENTORY, ObjectRef.node("node9")),
        (INVENTORY, ObjectRef("Service", "default", "t")),
        (INVENTORY, ObjectRef("EndpointSlice", "default", "t-1")),
        (Reporter(ReporterKind.AGENT, "node1"), ObjectRef("Pod", "default", "b")),
        (Reporter(ReporterKind.AGENT, "node1"), SERVICE),
        (Reporter(ReporterKind.PORTS, "node1"), PortRef("node1", "pabcdefghijklmn")),
        (Reporter(ReporterKind.COMPILER), CLUSTER_REF),
        (Reporter(ReporterKind.SWITCH), SwitchRef(1, "1.2.3.4:5")),
        (SOURCE, FileRef("pods/a.yaml")),
        (SOURCE, ApiPathRef("/api/v1/pods")),
        (SOURCE, ObjectRef("Secret", "kube-system", "sluice-ca")),
    ],
)
def test_problem_without_an_object_of_the_source_has_no_event(
    reporter: Reporter, subject: Subject
) -> None:
    made = inventory()
    made.problems.set(reporter, subject, "why")
    assert list(notices_of(made, made.problems)) == []


def test_event_says_whether_a_node_with_a_problem_takes_part() -> None:
    made = inventory()
    made.set_object(node_object("node1", "", "172.30.1.1", uid="n1"))
    made.set_object(node_object("node2", "", "172.30.1.2", uid="n2"))
    made.settle()
    reasons = {each.regarding.name: each.reason for each in notices_of(made, made.problems)}
    assert reasons == {"node1": "NodeProblem", "node2": "NodeRefused"}


def test_every_refusal_of_the_inventory_has_an_event() -> None:
    made = inventory()
    made.set_object(node_object("node2", "", "172.30.1.2", uid="n2"))
    made.set_port("node1", BridgePort(PORT, 17, names.mac_of(IPv4Address("10.244.9.9"))))
    made.set_object(service("s", uid="s1", clusterIP=""))
    made.set_object(endpoint_slice("s-1", "s", ["127.0.0.1"]))
    made.settle()
    regarded = {p.regarding.name for p in notices_of(made, made.problems)}
    assert regarded == {"node2", "a", "s", "s-1"}


@pytest.mark.parametrize("kind", ReporterKind)
def test_problems_of_every_reporter_can_have_an_event(kind: ReporterKind) -> None:
    made = inventory()
    for subject in (ObjectRef("Node", "", "node1"), ObjectRef("Service", "default", "s")):
        made.problems.set(Reporter(kind, "node1"), subject, "why")
    told = list(notices_of(made, made.problems))
    assert bool(told) is (kind is not ReporterKind.ELECTION)


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("EgressAddress", {"address": "192.0.2.9"}, "AddressOwnerProblem"),
        ("AddressPool", {"ranges": ["192.0.2.0/28"]}, "AddressOwnerProblem"),
        ("BGPPeer", {"address": "192.0.2.1", "asn": 64601, "localASN": 64512}, "PeerProblem"),
    ],
)
def test_problems_of_custom_resources_have_events(
    kind: str, content: dict[str, object], reason: str
) -> None:
    made = inventory()
    manifest = {"apiVersion": GROUP_VERSION, "kind": kind, "metadata": {"name": "x", "uid": "x1"}}
    made.set_object(from_manifest({**manifest, "spec": content}))
    made.settle()
    reporter = ReporterKind.BGP if kind == "BGPPeer" else ReporterKind.OWNERS
    made.problems.set(Reporter(reporter), ObjectRef(kind, "", "x"), "why")
    assert [each.reason for each in notices_of(made, made.problems) if each.sentence == "why"] == [
        reason
    ]
