"""What people are told of a cookie, a flow, an object or an address."""

import re
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from controller.explanations import CompiledPrograms, explain
from controller.explanations.objects import services_at
from controller.inventory import Inventory
from controller.object_names import UnknownObject
from controller.policies.slices import complete
from controller.policy_reports import ends
from controller.reports.explanation import Explanation, FlowFacts
from flows.pipeline import LAYOUT, Feature
from flows.text import actions_text, match_text
from flows.view import CLUSTER_SCOPE
from tests.controller.explained_cluster import explained_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return explained_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def programs(cluster: Inventory) -> CompiledPrograms:
    return CompiledPrograms(cluster.view)


def explained(
    cluster: Inventory, programs: CompiledPrograms, text: str, node: str | None = None
) -> Explanation:
    return complete(explain(cluster, programs, text, node))


def the_flow(given: Explanation) -> FlowFacts:
    assert given.flow is not None
    return given.flow


def test_every_cookie_is_explained(cluster: Inventory, programs: CompiledPrograms) -> None:
    """With the objects, and with a field of theirs, unless the whole cluster is the object."""
    for scope in (CLUSTER_SCOPE, "n1"):
        program = programs.program(scope)
        for cookie, (flow, owners) in program.cookies.items():
            found = explained(cluster, programs, f"{cookie:#x}", scope or None)
            told = the_flow(found)
            assert int(told.cookie, 16) == cookie
            assert tuple(each.ref for each in told.owners) == owners
            assert told.purpose == LAYOUT.by_number[flow.table].doc
            assert told.feature_purpose
            assert told.fields or owners[0].kind == "cluster"
            assert told.every_node == (scope == CLUSTER_SCOPE)
            assert scope in {*told.nodes, CLUSTER_SCOPE}
            assert flow.reason in found.sentence
        assert "sealed" in explained(cluster, programs, f"{program.seal.cookie:#x}").sentence


def test_equal_flow_of_another_node_is_told(cluster: Inventory, programs: CompiledPrograms) -> None:
    """Pods with one ofport: the flow that sends to it is the same on both nodes."""
    equal = programs.program("n1").cookies.keys() & programs.program("n2").cookies.keys()
    cookies = [
        cookie
        for cookie in equal
        if programs.program("n1").cookies[cookie][0].table == LAYOUT.tables["Output"].number
    ]
    assert cookies
    for cookie in cookies:
        for node, other in (("n1", "n2"), ("n2", "n1")):
            found = explained(cluster, programs, f"{cookie:#x}", node)
            assert the_flow(found).nodes == (node,)
            (owner,) = programs.program(other).cookies[cookie][1]
            assert [(each.name, each.value) for each in found.facts] == [
                (f"the same on {other}", str(owner))
            ]
        assert the_flow(explained(cluster, programs, f"{cookie:#x}")).nodes == ("n1",)


def test_flow_of_a_dump_is_found_without_its_cookie(
    cluster: Inventory, programs: CompiledPrograms
) -> None:
    program = programs.program("n1")
    for cookie, (flow, _) in program.cookies.items():
        table = LAYOUT.by_number[flow.table].name
        line = (
            f" cookie=0x0, duration=1.5s, table={table}, n_packets=7, n_bytes=98, idle_age=3,"
            f" {match_text(flow)} actions={actions_text(flow)}"
        )
        assert int(the_flow(explained(cluster, programs, line, "n1")).cookie, 16) == cookie
        short = f"table={flow.table},{match_text(flow)}"
        assert int(the_flow(explained(cluster, programs, short, "n1")).cookie, 16) == cookie


def test_port_of_a_dump_may_have_its_name(cluster: Inventory, programs: CompiledPrograms) -> None:
    (port,) = [each for each in cluster.view.attachments["n1"].values() if each.pod == "shop/api"]
    line = f'table=0, priority=400,in_port="{port.port}" actions=drop'
    assert explained(cluster, programs, line).sentence == "Pod shop/api: from this pod"
    line = "table=Classifier, priority=200,in_port=sluice-tun actions=drop"
    assert explained(cluster, programs, line).sentence == "cluster: from another node"


def test_cookie_of_a_dump_decides(cluster: Inventory, programs: CompiledPrograms) -> None:
    cookie = next(iter(programs.shared.cookies))
    line = f"cookie={cookie:#x}, duration=1s, table=99, priority=1 actions=drop"
    assert int(the_flow(explained(cluster, programs, line)).cookie, 16) == cookie


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0x0", "not managed by Sluice"),
        (f"{int(Feature.ARP) << 56 | 1:#x}", "no object needs such a flow now; one was of the"),
        (f"{int(Feature.LEARNED) << 56 | 7:#x}", "to remember the endpoint of a client"),
        (f"cookie={int(Feature.LEARNED) << 56:#x}, table=62", "to remember the endpoint"),
        ("cookie=0x5, table=Forwarding, priority=7 actions=drop", "nor is there a flow of this"),
        ("table=Nowhere, priority=7", "there is no table Nowhere"),
        ("shop/no", "there is no Pod shop/no"),
        ("ops/exporter", "uses the network of its node"),
        ("", "a question has"),
        ("x" * 5_000, "a question has"),
    ],
)
def test_unknown_things_are_one_sentence(
    cluster: Inventory, programs: CompiledPrograms, text: str, why: str
) -> None:
    with pytest.raises(UnknownObject, match=why) as caught:
        explained(cluster, programs, text)
    assert "\n" not in str(caught.value)


def test_unknown_node_of_a_flow(cluster: Inventory, programs: CompiledPrograms) -> None:
    with pytest.raises(UnknownObject, match="Node n9"):
        explained(cluster, programs, "table=0", "n9")


def test_pod_with_its_policies_and_services(cluster: Inventory, programs: CompiledPrograms) -> None:
    found = explained(cluster, programs, "shop/web-0")
    assert found.sentence.startswith("Pod shop/web-0 has the address 10.244.1.7 on Node n1")
    assert [(str(each.object), each.direction) for each in found.policies] == [
        ("ClusterNetworkPolicy no-metrics", "to the pod"),
        ("NetworkPolicy shop/web", "to the pod"),
    ]
    assert [(str(each.object), each.endpoint) for each in found.services] == [
        ("Service shop/web", "10.244.1.7:8080")
    ]
    tables = {each.table: each for each in found.tables}
    assert tables["Classifier"].reasons == ("from this pod",)
    assert tables["IsolationToPod"].nodes == "n1"
    assert [each.table_number for each in found.tables] == sorted(
        each.table_number for each in found.tables
    )
    # Among the peers of nobody; the others of its namespace are among those of a policy.
    assert "PolicyPeers" not in tables
    front = explained(cluster, programs, "shop/front-6b7f-x2x4z")
    assert "PolicyPeers" in {each.table for each in front.tables}


def test_service_and_policy(cluster: Inventory, programs: CompiledPrograms) -> None:
    found = explained(cluster, programs, "svc/shop/api")
    facts = [fact.value for fact in found.facts if fact.name == "address"]
    assert "10.96.0.11:80/TCP (ClusterIP)" in facts
    assert "every node:30081/UDP (NodePort)" in facts
    assert "203.0.113.5:80/TCP (external)" in facts
    assert {each.nodes for each in found.tables} == {"every node"}
    nothing = explained(cluster, programs, "svc/shop/nobody")
    assert "it is headless" in nothing.sentence
    assert nothing.sentence.endswith("no flow exists because of it")
    policy = explained(cluster, programs, "networkpolicy/ops/closed")
    assert policy.sentence == "NetworkPolicy ops/closed selects 1 pod on 1 node"


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("10.244.1.7", "the address of Pod shop/web-0 on Node n1"),
        ("10.244.1.1", "the gateway of Node n1"),
        ("10.244.1.0", "the source of connections from outside that Node n1"),
        ("10.244.1.250", "in the podCIDR of Node n1, but no pod has it"),
        ("192.0.2.11", "the address of Node n1, where other nodes send the packets"),
        ("10.96.0.10", "an address of Service shop/web, at 80/TCP (ClusterIP)"),
        ("10.96.0.11", "an address of Service shop/api, at 80/TCP (ClusterIP), 81/UDP (ClusterIP)"),
        ("203.0.113.5", "an address of Service shop/api, at 80/TCP (external)"),
        ("10.96.3.3", "in the range of Services, but no Service has it"),
        ("10.244.77.1", "in the range of pods, but in no node's podCIDR"),
        ("169.254.1.1", "the next hop of every pod"),
        ("169.254.1.17", "what a node's own stack translates a Service at its own address to"),
        ("224.0.0.1", "multicast"),
        ("198.51.100.9", "outside the cluster"),
        ("2001:db8::1", "of another family than the pods"),
    ],
)
def test_addresses(cluster: Inventory, programs: CompiledPrograms, address: str, what: str) -> None:
    found = explained(cluster, programs, address)
    assert found.kind == "address"
    assert what in found.sentence
    assert found.sentence.startswith(f"{address}: ")


def test_denial_names_its_rule(cluster: Inventory, programs: CompiledPrograms) -> None:
    (denial,) = [
        flow
        for flow, _ in programs.program("n1").cookies.values()
        if LAYOUT.by_number[flow.table].name == "PolicyDenials" and flow.match
    ]
    found = the_flow(explained(cluster, programs, f"{denial.cookie:#x}"))
    assert found.fields == ("spec.ingress[0] of ClusterNetworkPolicy no-metrics",)


def test_services_of_many_endpoints_are_looked_at_in_slices() -> None:
    endpoint = SimpleNamespace(address=IPv4Address("10.244.1.9"))
    port = SimpleNamespace(endpoints=[endpoint] * 1_000)
    services = {str(number): SimpleNamespace(ports=[port] * 10) for number in range(3)}
    view: Any = SimpleNamespace(services=services)
    assert len([*services_at(view, IPv4Address("10.244.1.8"))]) == 30


def test_ends_of_a_service_are_looked_for_one_by_one(
    cluster: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []

    def at(_: Inventory, address: IPv4Address, **options: Any) -> ends.End:
        looked_for.append(options["node"])
        return ends.End("it", address)

    monkeypatch.setattr(ends, "at", at)
    found = ends.destinations(cluster, "svc/shop/api", "a", 6)
    assert [looked_for.copy() for _ in found] == [["n1"], ["n1", "n2"]]


def test_offline_answer_of_the_command(tmp_path: Path) -> None:
    explained_cluster(tmp_path)
    done = CliRunner().invoke(main, ["explain", "10.244.1.7", "--cluster", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.startswith("10.244.1.7: the address of Pod shop/web-0 on Node n1")
    assert re.search("\n    NetworkPolicy shop/web +to the pod +NetworkPolicy\n", done.stdout)
    done = CliRunner().invoke(main, ["explain", "shop/no", "--cluster", str(tmp_path)])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "Error: there is no Pod shop/no")
