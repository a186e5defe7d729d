"""What the audit expects of a switch follows the programs."""

from controller.drift import Digests
from flows.compile import COMPILER, Program
from flows.features.state import companion
from flows.pipeline import Feature
from flows.view import CLUSTER_SCOPE
from openflow import digest
from tests.controller.service_inventory import inventory, put
from tests.controller.service_objects import endpoint_slice, service


def test_digests_and_companions_follow_a_changed_group() -> None:
    """Its id stays, and none of its flows but the companion changes."""
    made = inventory(service("s"), endpoint_slice("s-1", "s", ["10.244.1.5"]))
    program, digests = COMPILER.program(made.view, CLUSTER_SCOPE), Digests()
    before = dict(program.groups)
    while not digests.follow(program):
        pass
    touched = put(made, endpoint_slice("s-1", "s", ["10.244.1.6"]))
    shared = [key for key in touched if key.scope == CLUSTER_SCOPE]
    program.update(COMPILER.fragments(made.view, shared))
    while not digests.follow(program):
        pass
    anew, fresh = COMPILER.program(made.view, CLUSTER_SCOPE), Digests()
    while not fresh.follow(anew):
        pass
    assert program.groups.keys() == before.keys()
    assert program.groups != before
    assert (digests.sums, digests.groups_total) == (fresh.sums, fresh.groups_total)
    assert program.companions == anew.companions == companions(program)


def test_flows_of_features_that_an_agent_does_not_know_are_not_expected_of_it() -> None:
    program, digests = COMPILER.program(inventory().view, CLUSTER_SCOPE), Digests()
    while not digests.follow(program):
        pass
    known = [flow for flow in program.flows() if flow.feature <= Feature.GENERATION]
    assert len(known) < len(list(program.flows()))
    expected = digest.sums((flow.cookie, digest.of_flow(flow)) for flow in known)
    assert digests.known_to(Feature.GENERATION) == expected
    assert digests.known_to(max(Feature)) == digests.sums != expected


def companions(program: Program) -> dict[int, int]:
    return {number: companion(group).cookie for number, group in program.groups.items()}
